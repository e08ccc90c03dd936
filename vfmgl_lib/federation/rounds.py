"""Federated rounds in one process: the clients train in the server's order, and the server makes their updates the next messages."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.exchange import incoming
from vfmgl_lib.federation.servers import Server, State, UpdateError

log = logging.getLogger(__name__)


class QuorumError(RuntimeError):
    """Too few centres took part in a round; nothing of the round is kept."""


@dataclass(frozen=True)
class Fault:
    """A centre that did not take part in a round.

    Attributes:
        kind: "refused" (its update), "failed" (it says so), "silent" (no answer before the deadline).
        detail: in words.
    """

    round: int
    center: str
    kind: str
    detail: str


@dataclass
class Round:
    """One finished round.

    Attributes:
        centers: those whose updates count, in the order received.
        shared: the shared model (None: the method has none).
        faults: those that did not take part.
        traffic: bytes of tensors to and from each centre; empty where nothing travelled.
        metrics: the declared scalars that each centre sent over a network.
    """

    number: int
    centers: list[str]
    shared: State | None
    faults: list[Fault] = field(default_factory=list)
    traffic: list[dict] = field(default_factory=list)
    metrics: list[dict] = field(default_factory=list)


def run_rounds(
    clients: list[Client],
    server: Server,
    rounds: int,
    *,
    start: int = 0,
    quorum: float = 1.0,
    progress: Callable[[int], object] = lambda batches: None,
) -> Iterator[Round]:
    """Yields every round when it is finished; nothing of it is kept here, so a caller that stops can go on from `start`.

    After a round the clients of a method that adopts the shared model have it: what is evaluated then is what a centre would use. A centre
    whose update is refused has no share in the shared model of the round, and goes on.

    Args:
        clients: one per centre, in the state after round `start`.
        server: in the state after round `start`; it says in which order the centres train (`federation.servers`).
        rounds: the last round's number.
        quorum: share of the centres whose updates a round needs.
        progress: told the number of batches done.
    Raises: QuorumError: fewer centres took part than `quorum` asks for.
    """
    by_center = {client.center: client for client in clients}
    for number in range(start + 1, rounds + 1):
        done = Round(number, [], None)
        for center in server.order(sorted(by_center), number):
            client, message = by_center[center], server.message(center, number)
            update = client.run_round(number, message, progress)
            try:
                server.receive(incoming(update, message, client.settings.exchange))
                done.centers.append(center)
            except UpdateError as error:
                done.faults.append(Fault(number, center, "refused", str(error)))
        close_round(done, server, len(clients), quorum)
        if done.shared is not None:
            for client in clients:
                if client.switches.adopts:
                    client.adopt(done.shared)
        yield done


def quorum_of(share: float, centers: int) -> int:
    """The least number of centres that is at least this share of them.

    The share is the fraction that was written (0.1, 0.07, 2/3): binary rounding asks for no centre more.
    """
    return math.ceil(Fraction(share).limit_denominator(10_000) * centers)


def close_round(done: Round, server: Server, centers: int, quorum: float) -> None:
    """Forms the shared model if enough of the centres took part; every fault goes to the log.

    Raises: QuorumError: naming the faults.
    """
    for fault in done.faults:
        log.warning("round %d, centre %s: %s: %s", fault.round, fault.center, fault.kind, fault.detail)
    needed = quorum_of(quorum, centers)
    if len(done.centers) < needed:
        reasons = "; ".join(f"{fault.center} {fault.kind}: {fault.detail}" for fault in done.faults)
        raise QuorumError(
            f"round {done.number}: {len(done.centers)} of {centers} centres took part, faults.quorum asks for {needed}: {reasons}"
        )
    done.shared = server.finish_round()
