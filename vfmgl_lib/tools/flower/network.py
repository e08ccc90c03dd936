"""VFMGL over Flower's Message API: what a message and its answer hold, a centre's ClientApp, and the server's rounds over a Grid.

    type          to a centre                       from it
    query         nothing                           its name, its study's key, library's version, teacher's hash
    train         round, study, shared model           model, number of samples, declared metrics and aggregates; or the kind of its failure
    query.finish  shared model of the last round    nothing

An answer never holds the text of an error: it could name files and patients. The site's own log has it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from vfmgl_lib import __version__
from vfmgl_lib.config import StudySettings
from vfmgl_lib.config.sections import ExchangeSettings
from vfmgl_lib.federation.exchange import incoming
from vfmgl_lib.federation.rounds import Fault, Round, close_round
from vfmgl_lib.federation.servers import Server, State, Update, UpdateError
from vfmgl_lib.tools.flower.site import Site, state_bytes

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)
MODEL, AGGREGATES, METRICS, ABOUT = "model", "aggregates", "metrics", "about"
FILE = "safetensors"
FINISH = "query.finish"
POLL = 0.3  # seconds between two looks for an answer


class FederationError(RuntimeError):
    """A federation that cannot go on; the message says which centre, and what to do."""


def pack(state: State) -> ArrayRecord:
    """Tensors as one safetensors file in one of Flower's arrays: one object on the wire instead of hundreds, and no pickle."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return ArrayRecord({FILE: Array(np.frombuffer(to_safetensors(plain), np.uint8))})


def unpack(record: ArrayRecord | MetricRecord | ConfigRecord, where: str) -> State:
    """What `pack` wrote.

    Raises: UpdateError: anything else; names `where` it came from.
    """
    try:
        if not isinstance(record, ArrayRecord) or set(record) != {FILE}:
            raise ValueError(f"arrays {sorted(record)}, expected {FILE}")
        return from_safetensors(record[FILE].numpy().tobytes())
    except (SafetensorError, TypeError, ValueError, OSError, EOFError) as error:
        raise UpdateError(f"update of {where}: not a safetensors file: {error}") from error


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
        asked: Any = message.content[ABOUT]
        number, study = asked["round"], asked["study"]
        try:
            if study != site.client.settings.key():
                raise ValueError(f"the server asks for study {study}, this centre's is {site.client.settings.key()}")
            received = unpack(message.content[MODEL], "the server") if MODEL in message.content else None
            content = update_records(site.train(number, received))
        except Exception as error:  # whatever it is: the site stays, and the server hears its kind alone
            log.exception("round %d: this centre does not take part", number)
            content = RecordDict({ABOUT: ConfigRecord({"failed": type(error).__name__})})
        return Message(content, reply_to=message)

    return app


def identity(site: Site) -> dict[str, str]:
    """What a centre says of itself before the first round."""
    teacher = site.client.teacher.identity if site.client.teacher else "none"
    return {"center": site.client.center, "study": site.client.settings.key(), "vfmgl_lib": __version__, "teacher": teacher}


def update_records(update: Update) -> RecordDict:
    """Everything that leaves a centre after a round."""
    content = RecordDict({MODEL: pack(update.state), AGGREGATES: pack(update.aggregates), METRICS: MetricRecord({**update.metrics})})
    content[ABOUT] = ConfigRecord({"center": update.center, "samples": update.samples})
    return content


def read_update(content: RecordDict, center: str) -> Update:
    """The update of a centre.

    Raises: UpdateError: content that is not an update, or another centre's.
    """
    if set(content) != {MODEL, AGGREGATES, METRICS, ABOUT} or set(content[ABOUT]) != {"center", "samples"}:
        raise UpdateError(f"update of centre {center}: holds {sorted(content)}, expected {MODEL}, {AGGREGATES}, {METRICS}, {ABOUT}")
    about = content[ABOUT]
    if about["center"] != center:
        raise UpdateError(f"update of centre {center}: says that it is centre {about['center']!r}")
    if not isinstance(about["samples"], int):
        raise UpdateError(f"update of centre {center}: the number of samples must be a whole number, got {about['samples']!r}")
    state, aggregates = (unpack(content[part], f"centre {center}") for part in (MODEL, AGGREGATES))
    metrics = {}
    for name, value in content[METRICS].items():
        if not isinstance(value, int | float):
            raise UpdateError(f"update of centre {center}: the metric {name} must be a number, got {value!r}")
        metrics[name] = float(value)
    return Update(center, state, about["samples"], metrics, aggregates)


def network_rounds(
    grid: Grid,
    nodes: Mapping[str, int],
    server: Server,
    rounds: int,
    *,
    settings: StudySettings,
    start: int = 0,
    arrived: Callable[[str, int], object] = lambda center, number: None,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[Round]:
    """`federation.rounds.run_rounds` with centres that are elsewhere: yields every round when it is finished.

    All centres train at the same time, but for a server that needs one after the other. Answers are fetched in the server's order and one
    at a time, so that the sum is the same to the bit as in one process and the server holds one update, however many centres there are.
    A centre that was away is asked again when it is back, until the round's deadline.

    Args:
        nodes: centre -> Flower's node id.
        arrived: told the centre whose answer is there, and the round.
        waiting: called while nothing is there yet.
    Raises: QuorumError: too few centres took part.
    """
    for number in range(start + 1, rounds + 1):
        done = Round(number, [], None)
        deadline = time.monotonic() + settings.faults.deadline
        order = server.order(sorted(nodes), number)
        for group in [[center] for center in order] if server.sequential else [order]:
            messages = {center: server.message(center, number) for center in group}
            asked = _Asked(grid, nodes, deadline, waiting)
            for center in group:
                asked.send(center, partial(train_records, number, messages[center], settings.key()), "train", str(number))
            for center in group:
                answer = asked.answer(center)
                done.faults += _hand_over(server, answer, center, messages[center], settings.exchange, done)
                arrived(center, number)
                del answer
        close_round(done, server, len(nodes), settings.faults.quorum)
        yield done


def train_records(number: int, message: State | None, study: str) -> RecordDict:
    """What a centre receives before it trains."""
    content = RecordDict({ABOUT: ConfigRecord({"round": number, "study": study})})
    if message is not None:
        content[MODEL] = pack(message)
    return content


def wait_for_centers(
    grid: Grid, nodes: Mapping[str, int], study: str, deadline: float, waiting: Callable[[], object] = lambda: None
) -> list[Fault]:
    """Asks every centre who it is, before the first round; returns those that are not there yet.

    Raises: FederationError: a centre under another's name, with another study, version of the library or teacher than the others.
    """
    teachers: dict[str, str] = {}
    asked, missing = _Asked(grid, nodes, time.monotonic() + deadline, waiting), []
    for center in nodes:
        asked.send(center, RecordDict, "query", "0")
    for center in nodes:
        answer = asked.answer(center)
        if answer is None or answer.has_error():
            missing.append(Fault(0, center, "silent", "no answer before the first round"))
            continue
        expected = {"center": center, "study": study, "vfmgl_lib": __version__}
        found = dict(answer.content[ABOUT]) if ABOUT in answer.content else {}
        for name, value in expected.items():
            if found.get(name) != value:
                raise FederationError(
                    f"centre {center}: its {name} must be {value}, it says {found.get(name)!r}; give it this study's settings and version"
                )
        teachers[center] = str(found.get("teacher", ""))
    if len(set(teachers.values())) > 1:
        raise FederationError(f"the centres' teachers differ, all need the same weights: {teachers}")
    return missing


def finish(grid: Grid, nodes: Mapping[str, int], shared: State | None, deadline: float) -> None:
    """Gives every centre the shared model of the last round, where there is one, and waits until all have gone."""
    asked = _Asked(grid, nodes, time.monotonic() + deadline, lambda: None)
    for center in nodes:
        asked.send(center, lambda: RecordDict({MODEL: pack(shared)} if shared is not None else {}), FINISH, "end")
    while asked.active() and time.monotonic() < asked.deadline:
        time.sleep(POLL)


class _Asked:
    """Questions to several centres; one that went away is asked again when it has come back."""

    def __init__(self, grid: Grid, nodes: Mapping[str, int], deadline: float, waiting: Callable[[], object]):
        self.grid, self.nodes, self.deadline, self.waiting = grid, nodes, deadline, waiting
        self.questions: dict[str, Callable[[], Message]] = {}
        self.sent: dict[str, tuple[str, str]] = {}  # centre -> id of the latest message, activation of the node when it was sent

    def send(self, center: str, content: Callable[[], RecordDict], kind: str, group: str) -> None:
        def question() -> Message:
            left = max(self.deadline - time.monotonic(), 1.0)
            return Message(content(), self.nodes[center], kind, ttl=left + 60, group_id=group)

        self.questions[center] = question
        self._ask(center)

    def answer(self, center: str) -> Message | None:
        """The centre's answer, or None after the deadline."""
        fetched: tuple[str, SimpleQueue] | None = None
        while time.monotonic() < self.deadline:
            self.waiting()
            # Not `center` alone: the others, too, are asked again as soon as they are back.
            active = self.active()
            for waiting, (_, activation) in list(self.sent.items()):
                if active.get(waiting, activation) != activation:
                    log.info("centre %s is back: asked again", waiting)
                    self._ask(waiting)
            identifier, _ = self.sent[center]
            if not identifier:
                time.sleep(POLL)
                self._ask(center)
                continue
            if fetched is None or fetched[0] != identifier:
                fetched = identifier, self._fetch(identifier)
            try:
                found = fetched[1].get(timeout=POLL)
            except Empty:
                continue
            fetched = None
            if isinstance(found, Exception):
                raise found
            if found and not found[0].has_error():
                del self.sent[center]
                return found[0]
            time.sleep(POLL)
            if found:
                # Flower's own errors: the node is away, or an object was lost on the way.
                log.info("centre %s: %s", center, found[0].error.reason)
                self._ask(center)
        self.sent.pop(center, None)
        return None

    def _fetch(self, identifier: str) -> SimpleQueue:
        """Where what there is of an answer arrives: Flower waits for minutes for the rest of one whose sender was killed, we do not."""
        arrived: SimpleQueue = SimpleQueue()

        def fetch() -> None:
            try:
                arrived.put(list(self.grid.pull_messages([identifier])))
            except Exception as error:  # raised where the answer is waited for
                arrived.put(error)

        threading.Thread(target=fetch, name="fetch", daemon=True).start()
        return arrived

    def _ask(self, center: str) -> None:
        active = self.active()
        identifiers = list(self.grid.push_messages([self.questions[center]()])) if center in active else []
        self.sent[center] = (identifiers[0] if identifiers else "", active.get(center, ""))

    def active(self) -> dict[str, str]:
        """centre -> when its node was last activated, of the nodes that are there now."""
        by_node = {info.node_id: info.last_activated_at for info in self.grid.get_nodes()}
        return {center: by_node[node] for center, node in self.nodes.items() if node in by_node}


def _hand_over(
    server: Server, answer: Message | None, center: str, message: State | None, exchange: ExchangeSettings, done: Round
) -> list[Fault]:
    """Hands an answer to the server; returns the fault if there is none or it is not taken."""
    if answer is None:
        return [Fault(done.number, center, "silent", "no answer before the deadline")]
    about: Mapping[str, Any] = answer.content.get(ABOUT, {})
    if "failed" in about:
        return [Fault(done.number, center, "failed", f"{about['failed']}; the centre's log says more")]
    try:
        update = read_update(answer.content, center)
        done.traffic.append(
            {
                "round": done.number,
                "center": center,
                "received": state_bytes(message or {}),
                "sent": state_bytes(update.state | update.aggregates),
            }
        )
        server.receive(incoming(update, message, exchange))
    except UpdateError as error:
        return [Fault(done.number, center, "refused", str(error))]
    done.centers.append(center)
    return []
