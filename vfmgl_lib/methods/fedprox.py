"""FedProx (Li et al. 2020, "Federated optimization in heterogeneous networks", MLSys; code: litian96/FedProx).

    loss = task + mu / 2 sum ||theta - theta_s||^2 over the parameters, theta_s the shared model as received, frozen for the round

Deviations from the authors' code: the task's optimiser (momentum, Adam) instead of plain SGD; every centre takes part in every round and
does the same number of epochs (no stragglers); batch normalisation statistics are averaged with the parameters and not in the distance.
The term is there in round 1, too, where theta_s are the common initial weights.
"""

from __future__ import annotations

from typing import cast

from pydantic import Field
from torch import Tensor

from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import State, Switches
from vfmgl_lib.methods.record import Method
from vfmgl_lib.models.students import Student


class FedProxSettings(Settings):
    """Li et al. 2020 choose mu per data set from 0.001, 0.01, 0.1, 1; 0.01 is the value the design fixes, not tuned here."""

    mu: float = Field(default=0.01, ge=0, description="weight of half the squared distance to the shared model")


class FedProxClient(Client):
    """Local training that is held near the shared model."""

    def begin_round(self, round_number: int, received: State | None) -> None:
        super().begin_round(round_number, received)
        self.anchor = [parameter.detach().clone() for parameter in self.student.parameters()]

    def training_loss(self, images: Tensor, target: Tensor, batch: dict) -> tuple[Tensor, Tensor]:
        task, _ = super().training_loss(images, target, batch)
        return task, task + self.settings.comparators.fedprox.mu / 2 * squared_distance(self.student, self.anchor)


def squared_distance(student: Student, anchor: list[Tensor]) -> Tensor:
    """Sum over the student's parameters of ||theta - theta_s||^2; squared, since a norm's own derivative is NaN at theta = theta_s."""
    return cast(Tensor, sum(((p - start) ** 2).sum() for p, start in zip(student.parameters(), anchor, strict=True)))


METHODS = (
    Method(
        "fedprox",
        "FedProx",
        "Li et al. 2020, MLSys",
        order=40,
        color="#56B4E9",
        line="dashed",
        marker="s",
        switches=Switches(sends=True, adopts=True),
        client=FedProxClient,
        settings=FedProxSettings,
        tunes=("comparators.fedprox.mu",),
        revision=2,
        in_paper=True,
    ),
)
