"""Ditto (Li et al. 2021, "Ditto: fair and robust federated learning through personalization", ICML; code: litian96/ditto).

    w  FedAvg's model, trained and averaged as there, to the bit
    v  the centre's personal model: loss = task + lambda / 2 sum ||v - w_s||^2 over the parameters, w_s the shared model as received,
       frozen for the round

Both take one step on every batch, which makes two updates a batch. v is reported as the centre's model and never leaves it.

Deviations from the official code: the task's optimiser (momentum, Adam), one for each model, instead of plain SGD; every centre takes
part in every round; lambda is one setting instead of a choice by each centre's validation set; the distance leaves out the statistics of
batch normalisation.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.servers import State, Switches
from vfmgl_lib.methods.fedprox import squared_distance
from vfmgl_lib.methods.passes import UPDATE
from vfmgl_lib.methods.record import Method
from vfmgl_lib.methods.two_models import TwoModelClient


class DittoSettings(Settings):
    # 1 in the official scripts, from 0.1, 1, 2; not tuned here.
    proximity: float = Field(
        default=1.0, ge=0, description="lambda: weight of half the squared distance from the personal model to the shared one"
    )


class DittoClient(TwoModelClient):
    """A centre that trains FedAvg's model and, held near it, its own."""

    def begin_round(self, round_number: int, received: State | None) -> None:
        super().begin_round(round_number, received)
        self.anchor = [parameter.detach().clone() for parameter in self.sent.parameters()]

    def training_loss(self, images: Tensor, target: Tensor, batch: dict) -> tuple[Tensor, Tensor]:
        task, _ = super().training_loss(images, target, batch)
        return task, task + self.settings.comparators.ditto.proximity / 2 * squared_distance(self.student, self.anchor)

    def task_step(self, images: Tensor, target: Tensor, batch: dict) -> Tensor:
        self.sent_optimizer.zero_grad(set_to_none=True)
        self.task_loss(self.sent(images), target).backward()
        self.sent_optimizer.step()
        return super().task_step(images, target, batch)


METHODS = (
    Method(
        "ditto",
        "Ditto",
        "Li et al. 2021, ICML",
        order=80,
        color="#AA4499",
        line="dashed",
        marker="H",
        switches=Switches(sends=True, adopts=True),
        client=DittoClient,
        settings=DittoSettings,
        extra_passes=lambda settings: UPDATE,  # the second model
        tunes=("comparators.ditto.proximity",),
    ),
)
