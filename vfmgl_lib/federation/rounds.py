"""Federated rounds in one process: every client runs its round, the server averages their updates into the next shared model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.strategies import Update, average
from vfmgl_lib.models.students import Student


@dataclass
class Round:
    """One finished round: its number, what left the centres, and the next shared model."""

    number: int
    updates: list[Update]
    shared: dict[str, Tensor]


def run_rounds(
    clients: list[Client],
    shared: Student,
    rounds: int,
    *,
    start: int = 0,
    weights: str = "samples",
    progress: Callable[[int], object] = lambda batches: None,
) -> Iterator[Round]:
    """Yields every round when it is finished; nothing of it is kept here, so a caller that stops can go on from `start`.

    Args:
        clients: one per centre, in the state after round `start`; the order in which they train does not matter.
        shared: the shared model after round `start` (ignored at 0); moved in place to each round's average.
        rounds: the last round's number.
        weights: "samples" or "uniform" (see `strategies.average`).
        progress: told the number of batches done.
    """
    for number in range(start + 1, rounds + 1):
        updates = [client.run_round(number, shared if number > 1 else None, progress) for client in clients]
        state = average(updates, weights)
        shared.load_state_dict(state)
        yield Round(number, updates, state)
