"""VFMGL over Flower: a centre's ClientApp, and the server's rounds over a Grid (`messages` says what travels).

Whatever a centre answers can cost that centre its round and nothing else: it is named with the fault, and the round goes on.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from vfmgl_lib.base.files import shown
from vfmgl_lib.config import StudySettings
from vfmgl_lib.federation.exchange import incoming
from vfmgl_lib.federation.rounds import Fault, Round, close_round, quorum_of
from vfmgl_lib.federation.servers import DECLARED_METRICS, Server, State, Update, UpdateError, check_update
from vfmgl_lib.tools.flower.collection import POLL, Answers, Aside
from vfmgl_lib.tools.flower.deadlines import Deadlines
from vfmgl_lib.tools.flower.members import Members
from vfmgl_lib.tools.flower.messages import (
    ABOUT,
    FINISH,
    MODEL,
    identity,
    limits_of,
    pack,
    read_update,
    train_records,
    unpack,
    update_records,
)
from vfmgl_lib.tools.flower.site import Site, state_bytes

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)
LONGEST_DETAIL = 500  # characters of a fault
T = TypeVar("T")
IDENTITY_LIMIT = 2**16  # bytes of one array in an answer that should have none


class FederationError(RuntimeError):
    """A federation that cannot go on; the message says which centre, and what to do."""


def client_app(site: Site) -> ClientApp:
    """The centre as Flower's ClientApp."""
    app = ClientApp()

    @app.query()
    def about(message: Message, context: Context) -> Message:
        return Message(RecordDict({ABOUT: ConfigRecord({**identity(site)})}), reply_to=message)

    @app.query("finish")
    def finish(message: Message, context: Context) -> Message:
        if MODEL in message.content:
            site.finish(unpack(message.content[MODEL], "the server"))
        return Message(RecordDict(), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number: Any = "?"
        try:
            asked: Any = message.content[ABOUT]
            number, study = asked["round"], asked["study"]
            if study != site.client.settings.key():
                raise ValueError(f"the server asks for study {study}, this centre's is {site.client.settings.key()}")
            received = unpack(message.content[MODEL], "the server") if MODEL in message.content else None
            update = site.train(number, received)
            content = update_records(update, site.from_disk)
        except Exception as error:  # whatever it is: the site stays, and the server hears its kind alone
            log.exception("round %s: this centre does not take part", number)
            content = RecordDict({ABOUT: ConfigRecord({"failed": type(error).__name__})})
        return Message(content, reply_to=message)

    return app


def network_rounds(
    grid: Grid,
    nodes: Mapping[str, int],
    server: Server,
    rounds: int,
    *,
    settings: StudySettings,
    start: int = 0,
    members: Members | None = None,
    deadlines: Deadlines | None = None,
    folder: Path | None = None,
    arrived: Callable[[str, int], object] = lambda center, number: None,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[Round]:
    """`federation.rounds.run_rounds` with centres that are elsewhere: yields every round when it is finished.

    All centres train at the same time, but for a server that needs one after the other. Answers are handed over in the server's order, so
    that the sum is the same to the bit as in one process. A centre that was away is asked again when it is back, until the round's
    deadline; one that has not joined yet is compared with the others first.

    Args:
        nodes: centre -> Flower's node id.
        members: the centres that have joined; None: none yet.
        deadlines: the times that centres have taken; None: none is known.
        folder: where answers wait for their turn; None: the system's folder for temporary files.
        arrived: told the centre whose answer is there, and the round.
        waiting: called while nothing is there yet.
    Raises: QuorumError: too few centres took part.
    """
    members, deadlines = members or Members(settings), deadlines or Deadlines(settings.faults)
    network = _Network(grid, nodes, server, settings, members, deadlines, arrived, waiting)
    for number in range(start + 1, rounds + 1):
        done = Round(number, [], None)
        order = server.order(sorted(nodes), number)
        for group in [[center] for center in order] if server.sequential else [order]:
            with Aside(folder) as aside:
                _Group(network, done, group).run(aside)
        close_round(done, server, len(nodes), settings.faults.quorum)
        yield done


def wait_for_centers(
    grid: Grid, nodes: Mapping[str, int], members: Members, deadline: float, waiting: Callable[[], object] = lambda: None
) -> list[Fault]:
    """Lets the centres join before the first round; returns those that are not there yet, or not let in.

    Raises: FederationError: some differ from the study or from the others, so that too few are left for a round.
    """
    end, declared, faults = time.monotonic() + deadline, dict[str, dict](), []
    answers = Answers(grid, nodes, lambda: end, IDENTITY_LIMIT, waiting)
    for center in nodes:
        answers.ask(center, RecordDict, "query", "0")
    for center, answer, _ in answers:
        if answer is None:
            faults.append(Fault(0, center, "silent", "no answer before the first round"))
            continue
        found = _tried(0, center, partial(_declared, answer))
        if isinstance(found, Fault):
            faults.append(found)
        else:
            declared[center] = found
    members.agree_on_teacher(declared)
    if len(declared) > 1 and not members.teacher:
        teachers = {center: found.get("teacher") for center, found in declared.items()}
        raise FederationError(f"the centres' teachers differ, all need the same weights: {teachers!s:.{LONGEST_DETAIL}}")
    for center in sorted(declared):
        if isinstance(fault := _tried(0, center, partial(members.admit, center, declared[center])), Fault):
            faults.append(fault)
    needed, refused = quorum_of(members.settings.faults.quorum, len(nodes)), [fault for fault in faults if fault.kind == "refused"]
    if refused and len(members.joined) < needed:
        reasons = "; ".join(f"centre {fault.center}: {fault.detail}" for fault in refused)
        raise FederationError(f"{len(members.joined)} of {len(nodes)} centres can take part, faults.quorum asks for {needed}: {reasons}")
    return faults


def finish(grid: Grid, nodes: Mapping[str, int], shared: State | None, deadline: float) -> None:
    """Gives every centre the shared model of the last round, where there is one, and waits until all have gone."""
    end = time.monotonic() + deadline
    answers = Answers(grid, nodes, lambda: end, IDENTITY_LIMIT)
    for center in nodes:
        answers.ask(center, lambda: RecordDict({MODEL: pack(shared)} if shared is not None else {}), FINISH, "end")
    while answers.active() and not answers.late:
        time.sleep(POLL)


@dataclass(frozen=True)
class _Network:
    """What the rounds of a study need, as `network_rounds` is given it."""

    grid: Grid
    nodes: Mapping[str, int]
    server: Server
    settings: StudySettings
    members: Members
    deadlines: Deadlines
    arrived: Callable[[str, int], object]
    waiting: Callable[[], object]


class _Group:
    """The centres of a round that train at the same time."""

    def __init__(self, network: _Network, done: Round, centers: list[str]):
        self.network, self.done, self.centers = network, done, centers
        self.messages = {center: network.server.message(center, done.number) for center in centers}
        self.limits, self.traffic = limits_of(network.server), dict[str, dict]()
        started = time.monotonic()
        self.answers = Answers(
            network.grid, network.nodes, lambda: started + network.deadlines.limit(centers), max(self.limits), network.waiting
        )

    def run(self, aside: Aside) -> None:
        """Asks all of them, and hands what comes to the server, in its order."""
        bound = self.network.deadlines.limit(self.centers)
        log.info("round %d: %.0f s at most for %s", self.done.number, bound, ", ".join(self.centers))
        for center in self.centers:
            if center in self.network.members.joined:
                self._ask_to_train(center)
            else:
                self.answers.ask(center, RecordDict, "query", "0")
        turns = deque(self.centers)
        for center, answer, seconds in self.answers:
            if center not in self.network.members.joined and answer is not None and not self.answers.late:
                found = _tried(self.done.number, center, partial(self._join, center, answer))
                if not isinstance(found, Fault):
                    self._ask_to_train(center)
                    continue
                outcome: Update | Fault = found
            else:
                outcome = self._outcome(center, answer, seconds)
            self.network.arrived(center, self.done.number)
            if turns[0] == center:
                self._hand_over(turns.popleft(), outcome)
            else:
                aside.put(center, outcome)
            while turns and turns[0] in aside:
                self._hand_over(turns[0], aside.take(turns.popleft()))

    def _ask_to_train(self, center: str) -> None:
        records = partial(train_records, self.done.number, self.messages[center], self.network.settings.key())
        self.answers.ask(center, records, "train", str(self.done.number))

    def _join(self, center: str, answer: Message | Exception) -> None:
        self.network.members.admit(center, _declared(answer))

    def _outcome(self, center: str, answer: Message | Exception | None, seconds: float) -> Update | Fault:
        """What a centre's answer to a round is: an update that may count, or a fault."""
        if answer is None or center not in self.network.members.joined:
            return Fault(self.done.number, center, "silent", "no answer before the deadline")
        return _tried(self.done.number, center, partial(self._read, center, answer, seconds))

    def _read(self, center: str, answer: Message | Exception, seconds: float) -> Update | Fault:
        if isinstance(answer, Exception):
            raise answer
        about: Mapping[str, Any] = answer.content[ABOUT] if ABOUT in answer.content else {}
        if "failed" in about:
            return _fault(self.done.number, center, "failed", f"{about['failed']!s:.80}; the centre's log says more")
        update = read_update(answer.content, center, self.limits)
        sizes = {"received": state_bytes(self.messages[center] or {}), "sent": state_bytes(update.state | update.aggregates)}
        self.network.members.check(update)
        took = None if about["stored"] else round(seconds, 3)
        self.traffic[center] = {"round": self.done.number, "center": center, **sizes, "seconds": took}
        update = incoming(update, self.messages[center], self.network.settings.exchange)
        check_update(update, *self.network.server.declared(), self.network.server.largest_norm)
        if took is not None:
            self.network.deadlines.took(center, seconds)
        return update

    def _hand_over(self, center: str, outcome: Update | Fault) -> None:
        self.done.traffic += [self.traffic[center]] if center in self.traffic else []
        if isinstance(outcome, Update):
            try:
                self.network.server.receive(outcome)
                sent = {name: outcome.metrics.get(name) for name in DECLARED_METRICS}
                self.done.metrics.append({"round": self.done.number, "center": center, **sent})
                self.done.centers.append(center)
                return
            except UpdateError as error:
                outcome = _fault(self.done.number, center, "refused", str(error))
        self.done.faults.append(outcome)


def _declared(answer: Message | Exception) -> dict[str, Any]:
    """What a centre says of itself."""
    if isinstance(answer, Exception):
        raise answer
    return dict(answer.content[ABOUT]) if ABOUT in answer.content else {}


def _tried(number: int, center: str, step: Callable[[], T]) -> T | Fault:
    """What a step with a centre's answer gives; whatever it raises is that centre's fault."""
    try:
        return step()
    except UpdateError as error:
        return _fault(number, center, "refused", str(error))
    except Exception as error:  # an answer is whatever a centre chose to send
        return _fault(number, center, "refused", f"its answer cannot be read: {type(error).__name__}: {error}")


def _fault(number: int, center: str, kind: str, detail: str) -> Fault:
    return Fault(number, center, kind, shown(detail[:LONGEST_DETAIL]))
