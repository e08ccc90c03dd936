"""Federated rounds in one process: the clients train in the server's order, and the server makes their updates the next messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.strategies import Server, State, Update


@dataclass
class Round:
    """One finished round: its number, what left the centres, and the shared model (None: the method has none)."""

    number: int
    updates: list[Update]
    shared: State | None


def run_rounds(
    clients: list[Client],
    server: Server,
    rounds: int,
    *,
    start: int = 0,
    progress: Callable[[int], object] = lambda batches: None,
) -> Iterator[Round]:
    """Yields every round when it is finished; nothing of it is kept here, so a caller that stops can go on from `start`.

    After a round the clients of a method that adopts the shared model have it: what is evaluated then is what a centre would use.

    Args:
        clients: one per centre, in the state after round `start`.
        server: in the state after round `start`; it says in which order the centres train (`federation.strategies`).
        rounds: the last round's number.
        progress: told the number of batches done.
    """
    by_center = {client.center: client for client in clients}
    for number in range(start + 1, rounds + 1):
        updates = []
        for center in server.order(sorted(by_center), number):
            update = by_center[center].run_round(number, server.message(center, number), progress)
            server.receive(update)
            updates.append(update)
        shared = server.finish_round()
        if shared is not None:
            for client in clients:
                if client.strategy.adopts:
                    client.adopt(shared)
        yield Round(number, updates, shared)
