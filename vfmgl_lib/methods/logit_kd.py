"""Logit distillation (Hinton et al. 2015, "Distilling the knowledge in a neural network"; the paper's Supp. Fig. 12).

    loss = (1 - a) task + a tau^2 KL( softmax(z_t / tau) || softmax(z / tau) ),    segmentation: mean over pixels

The teacher is the frozen foundation model with the linear classifier of `methods.frozen_probe`, fitted on the centre's own training set
before round 1: a foundation model has no logits of the task. Local, no federation. Deviation: the paper does not say how its teacher gets
logits, nor a and tau; ours are settings (`methods.logit_kd`).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import State, Switches
from vfmgl_lib.kernels.distillation import temperature_kl
from vfmgl_lib.methods.frozen_probe import fit_probe, new_probe
from vfmgl_lib.methods.record import Method

PROBE = "probe."


class LogitKDSettings(Settings):
    """The paper's Supp. Fig. 12 gives neither: alpha and tau of its DDBL (classification), so that the two differ in their teacher."""

    distillation_share: float = Field(default=0.5, ge=0, le=1, description="a: loss = (1 - a) task + a tau^2 KL")
    temperature: float = Field(default=5.0, gt=0, description="tau")


class LogitKDClient(Client):
    """Local training beside the logits of the centre's own probe."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.probe = new_probe(self)

    def begin_round(self, round_number: int, received: State | None) -> None:
        if round_number == 1:
            with torch.no_grad():
                fit_probe(self, self.probe)

    def training_loss(self, images: Tensor, target: Tensor, batch: dict) -> tuple[Tensor, Tensor]:
        chosen = self.settings.comparators.logit_kd
        logits = self.student(images)
        task = self.task_loss(logits, target)
        with torch.no_grad():
            taught = self.probe.head(self.probe.embedding(self.teacher_features(batch)))
        divergence = temperature_kl(logits, taught, chosen.temperature).mean() / logits[0, 0].numel()
        share = chosen.distillation_share
        return task, (1 - share) * task + share * chosen.temperature**2 * divergence

    def state_dict(self) -> State:
        return super().state_dict() | {f"{PROBE}{name}": tensor for name, tensor in self.probe.state_dict().items()}

    def load_state_dict(self, state: State, student: State, stage_one: State) -> None:
        super().load_state_dict(state, student, stage_one)
        self.probe.load_state_dict({name.removeprefix(PROBE): tensor for name, tensor in state.items() if name.startswith(PROBE)})


METHODS = (
    Method(
        "logit_kd",
        "Logit KD",
        "Hinton et al. 2015; the paper's Supp. Fig. 12",
        order=140,
        color="#E69F00",
        line="dash_dot",
        marker="X",
        switches=Switches(teacher=True),
        client=LogitKDClient,
        settings=LogitKDSettings,
        reads=("frozen_probe",),  # its teacher
        revision=2,
    ),
)
