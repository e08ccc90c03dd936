"""FedAvg with local fine-tuning (Wang et al. 2019, "Federated evaluation of on-device personalization", arXiv:1910.10252).

The personal model is the shared model after one more local epoch (`federation.local_epochs`) at the centre. A centre of FedAvg trains just
that before its model is averaged, so it costs nothing: what a centre has after its epoch is what is reported as its own, and the shared
model overwrites it when the next round begins. The averages are FedAvg's, to the bit.

Deviation: the model reported after round R was fine-tuned from the average of round R - 1, and the average of round R is reported as the
shared model alone.
"""

from __future__ import annotations

from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.servers import State, Switches
from vfmgl_lib.methods.record import Method


class FineTunedClient(Client):
    """A centre of FedAvg that is measured after its local epoch."""

    def adopt(self, state: State) -> None:
        """Nothing at the end of a round: the shared model overwrites the local one when the next round begins (`begin_round`)."""


METHODS = (
    Method(
        "fedavg_ft",
        "FedAvg + fine-tuning",
        "FedAvg's model after one more local epoch; Wang et al. 2019, arXiv:1910.10252",
        order=30,
        color="#3B6EA5",
        line="dash_dot",
        marker="h",
        switches=Switches(sends=True, adopts=True),
        client=FineTunedClient,
    ),
)
