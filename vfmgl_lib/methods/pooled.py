"""Pooled training: the training images of all centres in one place. An upper bound, not a federation, and not private.

One student is trained on them (`federation.local_epochs` a round), as local training does it on one centre's; its batches mix the centres.
After a round every centre has it as its own model, with its own statistics of batch normalisation; "shared" is the model with the
statistics of all images. A round makes as many updates as the centres' batches together, so that it is reported after as many rounds as
VFMGL, and nowhere as after as many updates.

It runs in one process alone: `METHODS["pooled"].private` is false, and what works over a network refuses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vfmgl_lib.data.loading import ImageDataset, joined
from vfmgl_lib.federation.client import Client, RoundLog
from vfmgl_lib.federation.exchange import outgoing
from vfmgl_lib.federation.servers import Averaging, State, Switches, Update, check_update
from vfmgl_lib.methods.record import Method, averaging_server


class PooledClient(Client):
    """A centre whose images the first one trains on; the others train nothing and take over its model."""

    pool: ImageDataset | None = None

    def batch_count(self, round_number: int) -> int:
        if self.pool is None:
            return 0
        own, self.data = self.data, self.pool
        try:
            return super().batch_count(round_number)
        finally:
            self.data = own

    def run_round(self, round_number: int, received: State | None, progress: Callable[[int], object] = lambda batches: None) -> Update:
        if self.pool is None:
            return self._idle_round(round_number)
        own, self.data = self.data, self.pool
        try:
            return super().run_round(round_number, received, progress)
        finally:
            self.data = own

    def _idle_round(self, round_number: int) -> Update:
        self.log, self.last_stage = RoundLog(), "I"
        self.stage_one_state = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        nothing = {"samples": 0, "batches": 0, "task_loss": float("nan"), "seconds": 0.0}
        self.log.rounds.append({"round": round_number, "center": self.center, "stage": "I"} | nothing)
        return outgoing(Update(self.center, {}, 0, {}), {}, None, self.settings.exchange)


class PoolServer(Averaging):
    """Hands on the model of the one centre that trains; the others send nothing."""

    def receive(self, update: Update) -> None:
        if update.state:
            super().receive(update)
        else:
            check_update(update, {}, {})


def pool_data(clients: Sequence[Client]) -> None:
    """Gives the first of the clients the training images of all, where the method pools them; nothing of other methods."""
    if clients and isinstance(clients[0], PooledClient):
        clients[0].pool = joined([client.data for client in clients])


_SWITCHES = Switches(sends=True, adopts=True)
METHODS = (
    Method(
        "pooled",
        "Pooled (not private)",
        "upper bound: all centres' training images in one place",
        order=120,
        color="#4D4D4D",
        line="long_dashes",
        marker=(5, 0, 180),
        switches=_SWITCHES,
        client=PooledClient,
        server=lambda settings, centers, student: averaging_server(settings, student, _SWITCHES, PoolServer),
        private=False,
        own_images=False,
    ),
)
