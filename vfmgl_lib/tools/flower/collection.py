"""Questions to several centres at once: asked again when a centre is back, answers fetched as they come, those out of turn kept on disk."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import httpx
from flwr.app import Message, RecordDict
from safetensors.torch import load_file, save_file

from vfmgl_lib.federation.rounds import Fault
from vfmgl_lib.federation.servers import Update
from vfmgl_lib.tools.flower.messages import arrays_up_to

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)
POLL = 0.3  # seconds between two looks for answers
LOOK = 0.05  # seconds that a look waits for one that is being fetched
COLLECT = 30.0  # the same after the deadline, when it is the last look
STUCK = 30.0  # seconds for which others wait while one answer is fetched: its sender may have been killed, or its line be slow
SLACK = 600.0  # seconds after the deadline for which Flower keeps a message and its answer


@dataclass
class _Question:
    """What one centre was asked.

    Attributes:
        asked: when, at first.
        identifier: of the latest message; "": the centre was away.
        activation: of its node when the message was sent.
        fetched: where the answer arrives, while it is being fetched; since when.
    """

    message: Callable[[], Message]
    asked: float
    identifier: str = ""
    activation: str = ""
    fetched: SimpleQueue | None = None
    since: float = 0.0


class Answers:
    """Iterating gives (centre, its answer, seconds since it was asked) as the answers come. The answer is an exception where it cannot be
    read. After the deadline every centre is looked at once more, so that none that is silent costs another one its answer; then None.

    Args:
        nodes: centre -> Flower's node id.
        deadline: when, as time.monotonic has it; asked again and again, for it may move.
        limit: the most bytes of one array.
        waiting: called while nothing is there.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        deadline: Callable[[], float],
        limit: int,
        waiting: Callable[[], object] = lambda: None,
    ):
        self.grid, self.nodes, self.deadline, self.limit, self.waiting = grid, nodes, deadline, limit, waiting
        self._open: dict[str, _Question] = {}

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline()

    def ask(self, center: str, content: Callable[[], RecordDict], kind: str, group: str) -> None:
        """Asks a centre, now or as soon as it is there."""

        def message() -> Message:
            left = max(self.deadline() - time.monotonic(), 1.0)
            return Message(content(), self.nodes[center], kind, ttl=left + SLACK, group_id=group)

        self._open[center] = _Question(message, time.monotonic())
        self._send(center, self.active())

    def __iter__(self) -> Iterator[tuple[str, Message | Exception | None, float]]:
        while self._open:
            late, found = self.late, False
            self.waiting()
            active = self.active()
            for center in list(self._open):
                answer = self._look(center, active, late)
                if answer is not None or late:
                    found = True
                    yield center, answer, time.monotonic() - self._open.pop(center).asked
            if not found:
                time.sleep(POLL)

    def active(self) -> dict[str, str]:
        """centre -> when its node was last activated, of the nodes that are there now."""
        by_node = {info.node_id: info.last_activated_at for info in self.grid.get_nodes()}
        return {center: by_node[node] for center, node in self.nodes.items() if node in by_node}

    def _look(self, center: str, active: dict[str, str], late: bool) -> Message | Exception | None:
        question = self._open[center]
        if not late and (not question.identifier or active.get(center, question.activation) != question.activation):
            if question.identifier:
                log.info("centre %s is back: asked again", center)
            self._send(center, active)
        if not question.identifier:
            return None
        if question.fetched is None:
            if not late and self._is_fetching():
                return None
            question.fetched, question.since = self._fetch(question.identifier), time.monotonic()
        try:
            found = question.fetched.get(timeout=COLLECT if late else LOOK)
        except Empty:
            return None
        question.fetched = None
        if isinstance(found, httpx.HTTPError | ConnectionError):
            raise found  # this server's own way to the SuperLink
        if isinstance(found, Exception):
            return found
        if found and found[0].has_error():
            # Flower's own errors: the node is away, or an object was lost on the way.
            log.info("centre %s: %s", center, str(found[0].error.reason)[:300])
            if not late:
                self._send(center, active)
            return None
        return found[0] if found else None

    def _is_fetching(self) -> bool:
        """One at a time: an answer can be as large as a model."""
        now = time.monotonic()
        return any(question.fetched is not None and now - question.since < STUCK for question in self._open.values())

    def _fetch(self, identifier: str) -> SimpleQueue:
        """Where what there is of an answer arrives: Flower waits for minutes for the rest of one whose sender was killed, we do not."""
        arrived: SimpleQueue = SimpleQueue()

        def fetch() -> None:
            try:
                with arrays_up_to(self.limit):
                    arrived.put(list(self.grid.pull_messages([identifier])))
            except Exception as error:  # handed to whoever waits for the answer
                arrived.put(error)

        threading.Thread(target=fetch, name="fetch", daemon=True).start()
        return arrived

    def _send(self, center: str, active: dict[str, str]) -> None:
        question = self._open[center]
        identifiers = list(self.grid.push_messages([question.message()])) if center in active else []
        question.identifier, question.activation = identifiers[0] if identifiers else "", active.get(center, "")
        question.fetched = None


class Aside:
    """Outcomes that wait for their turn, so that the sum runs in the same order as in one process. Models wait on disk: the server holds
    one at a time, however many centres there are.

    Args:
        folder: where; None: the system's folder for temporary files.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = tempfile.TemporaryDirectory(prefix="aside-", dir=folder)
        self._there: dict[str, Update | Fault] = {}
        self._files: dict[str, Path] = {}

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def __contains__(self, center: str) -> bool:
        return center in self._there

    def put(self, center: str, outcome: Update | Fault) -> None:
        """Keeps an outcome. Raises: OSError: no room."""
        if isinstance(outcome, Update):
            file = self._files[center] = Path(self._folder.name) / str(len(self._files))
            parts = {"s": outcome.state, "a": outcome.aggregates}
            save_file({f"{part}{name}": tensor for part, state in parts.items() for name, tensor in state.items()}, file)
            outcome = replace(outcome, state={}, aggregates={})
        self._there[center] = outcome

    def take(self, center: str) -> Update | Fault:
        """Gives an outcome back, once."""
        outcome = self._there.pop(center)
        if isinstance(outcome, Update):
            tensors, file = load_file(self._files[center]), self._files[center]
            state, aggregates = ({name[1:]: t for name, t in tensors.items() if name[0] == part} for part in "sa")
            file.unlink()
            return replace(outcome, state=state, aggregates=aggregates)
        return outcome
