"""FedRep (Collins et al. 2021, "Exploiting shared representations for personalized federated learning", ICML; code: lgcollins/FedRep): the
head stays, the layer that gives the logits: a classifier, or a UNet's 1x1 convolution. A round trains the head alone for `head_epochs`
with the body as received, then the body for the local epochs with the head as it is. Deviations: the task's optimiser and batch size; one
epoch of the head by default, so that a round is not mostly head (paper: ten and more); `federation.weights`.

FedPer (Arivazhagan et al. 2019, "Federated learning with personalization layers", arXiv:1912.00818): FedRep at `head_epochs` 0: head and
body are trained together.

What is measured is each centre's whole model, after it has taken over the shared part. What the server has is no whole model, so no shared
model is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pydantic import Field
from torch import Tensor

from vfmgl_lib.config import StudySettings
from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import Switches
from vfmgl_lib.methods.record import Method
from vfmgl_lib.models.students import set_training_mode


class FedRepSettings(Settings):
    """Collins et al. 2021 train the head for ten epochs and more before one or a few of the body."""

    # One, so that a round is not mostly head.
    head_epochs: int = Field(default=1, ge=0, description="epochs of the head alone before those of the body; 0: both together (FedPer)")


class FedRepClient(Client):
    """A centre that trains its own head first, then the shared body."""

    body_only = False

    def batch_count(self, round_number: int) -> int:
        return super().batch_count(round_number) + self.settings.comparators.fedrep.head_epochs * len(self.batches(round_number, "head"))

    def task_step(self, images: Tensor, target: Tensor, batch: dict) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        task, loss = self.training_loss(images, target, batch)
        loss.backward()
        if self.body_only:
            for parameter in self.student.last_layer.parameters():
                parameter.grad = None  # the optimiser leaves such a parameter alone, its momentum and weight decay too
        self.optimizer.step()
        return task.detach()

    def _stage_one(self, round_number: int, progress: Callable[[int], object]) -> tuple[float, tuple[str, ...]]:
        epochs, started = self.settings.comparators.fedrep.head_epochs, time.perf_counter()
        set_training_mode(self.student)
        self.student.requires_grad_(False)
        self.student.last_layer.requires_grad_(True)
        for epoch in range(epochs):
            for images, target, batch in self._load(round_number, "head", epoch):
                self.task_step(images, target, batch)
                progress(1)
        seconds = time.perf_counter() - started
        self.body_only = epochs > 0
        found = super()._stage_one(round_number, progress)  # it makes all parameters trainable again
        self.body_only = False
        self.log.rounds[-1]["seconds"] += seconds
        return found


def head_passes(settings: StudySettings) -> float:
    """A forward pass of every batch of the head's epochs; the head itself is nothing."""
    return settings.comparators.fedrep.head_epochs / settings.federation.epochs


METHODS = (
    Method(
        "fedrep",
        "FedRep",
        "Collins et al. 2021, ICML",
        order=90,
        color="#999933",
        line="dash_dot",
        marker="*",
        switches=Switches(sends=True, adopts=True, keeps="last_layer"),
        client=FedRepClient,
        settings=FedRepSettings,
        extra_passes=head_passes,
    ),
    Method(
        "fedper",
        "FedPer",
        "Arivazhagan et al. 2019, arXiv:1912.00818",
        order=100,
        color="#BBA14F",
        line="dashed",
        marker="8",
        switches=Switches(sends=True, adopts=True, keeps="last_layer"),
        client=FedRepClient,
        reads=("fedrep",),
        extra_passes=head_passes,
        overrides={"comparators.fedrep.head_epochs": 0},
    ),
)
