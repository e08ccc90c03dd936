"""How a study stands at its server: for `vfmgl federation status`, a page on this machine's loopback, and Prometheus.

All of it is read from the server's folder: the rounds that are kept, what the centres declared when they joined, and `now.json`, which the
server at work renews every few seconds. Nothing here holds more than the server's own tables.
"""

from __future__ import annotations

import csv
import html
import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vfmgl_lib.base.files import content_of, shown, write_json
from vfmgl_lib.config import StudySettings
from vfmgl_lib.federation.exchange import epsilon
from vfmgl_lib.federation.servers import VALIDATION_METRICS
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.tools.flower.members import MEMBERS, REMEDY
from vfmgl_lib.tools.flower.programs import LOOPBACK

log = logging.getLogger(__name__)
NOW, FRESH = "now.json", 30.0  # seconds for which what it says counts
DAMAGED = "restore it from a backup; leave the rounds where they are, since sites answer none twice"
EVERY = 5.0  # seconds from one renewal to the next
MIB = 2**20


@dataclass
class Center:
    """One centre.

    Attributes:
        there: its site is connected; None: not known, no server is at work.
        awaited: the round at work waits for it.
        samples: as declared; None: it has not joined.
        rounds: in which it took part.
        last: the last of them; 0: none.
        seconds: of its last answer.
        sent, received: bytes of tensors, of all rounds.
        epsilon: spent so far, delta 1e-5; None: there is no noise.
        own, shared: AUC or Dice on its validation images of its own model and the one received, as last sent; None: not sent.
        faults: how many.  fault: the last one, in words.
    """

    name: str
    there: bool | None = None
    awaited: bool = False
    samples: int | None = None
    rounds: int = 0
    last: int = 0
    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    epsilon: float | None = None
    own: float | None = None
    shared: float | None = None
    faults: int = 0
    fault: str = ""


@dataclass
class Status:
    """A study.

    Attributes:
        done: rounds that are kept, of `rounds`.
        since: seconds since the server last had an answer or began a round; None: no server is at work.
    """

    title: str
    rounds: int
    done: int = 0
    since: float | None = None
    centers: list[Center] = field(default_factory=list)


class Now:
    """What the server at work says of the round, in its folder."""

    def __init__(self, folder: Path):
        self._file, self._written, self._event = folder / NOW, 0.0, time.time()
        self._awaited: set[str] = set()

    def begins(self, centers: Sequence[str]) -> None:
        """A round of these centres begins."""
        self._event, self._awaited, self._written = time.time(), set(centers), 0.0

    def arrived(self, center: str) -> None:
        """Its answer is there, or its time is over."""
        self._event, self._written = time.time(), 0.0
        self._awaited.discard(center)

    def renew(self, there: Sequence[str]) -> None:
        write_json(self._file, {"time": time.time(), "event": self._event, "there": sorted(there), "awaited": sorted(self._awaited)})
        self._written = time.time()

    def ends(self) -> None:
        """The server has ended."""
        self._file.unlink(missing_ok=True)

    @property
    def due(self) -> bool:
        return time.time() - self._written > EVERY


def read_status(folder: Path, study: StudySettings) -> Status:
    """A server's folder.

    Args:
        folder: the server's.
        study: its settings.
    Raises: ValueError: a file of the server's state is damaged; names it.
    """
    state = folder / "state"
    centers = {file.stem: Center(file.stem) for file in sorted((folder / "centers").glob("*.pub"))}
    found = Status(f"{study.method} on {study.task}, profile {study.profile}", max(report_rounds(study).values()))
    for rounds in sorted(path for path in (state / "rounds").glob("*") if path.name.isdigit()):
        found.done = int(rounds.name)
        for file, add in (("traffic.csv", _add_traffic), ("metrics.csv", _add_metrics), ("faults.csv", _add_fault)):
            with content_of(rounds / file, DAMAGED):
                for row in _rows(rounds / file):
                    add(centers.setdefault(row["center"], Center(row["center"])), row, found.done)
    with content_of(state / MEMBERS, REMEDY):
        samples = dict(_json(state / MEMBERS).get("samples", {}))
    with content_of(state / NOW, "remove it; a server at work writes it anew"):
        now = _json(state / NOW)
        if time.time() - now.get("time", 0) < FRESH:
            found.since = time.time() - now["event"]
        there, awaited = (set(now[name]) if found.since is not None else set() for name in ("there", "awaited"))
    for name, center in centers.items():
        center.samples = samples.get(name)
        center.there, center.awaited = (name in there if found.since is not None else None), name in awaited
        center.epsilon = epsilon(study.exchange.noise, center.rounds) if study.exchange.noise else None
    found.centers = list(centers.values())
    return found


def _add_traffic(center: Center, row: dict[str, str], number: int) -> None:
    center.rounds, center.last = center.rounds + 1, number
    center.seconds = float(row["seconds"] or center.seconds)
    center.sent, center.received = center.sent + int(row["sent"]), center.received + int(row["received"])


def _add_metrics(center: Center, row: dict[str, str], number: int) -> None:
    sent = (float(row[name] or "nan") for name in VALIDATION_METRICS)
    center.own, center.shared = (None if math.isnan(value) else value for value in sent)


def _add_fault(center: Center, row: dict[str, str], number: int) -> None:
    center.faults, center.fault = center.faults + 1, f"round {row['round']}, {row['kind']}: {row['detail']}"


TITLES = (
    "centre",
    "there",
    "waited for",
    "samples",
    "rounds",
    "last",
    "seconds",
    "sent MiB",
    "received MiB",
    "epsilon",
    "validation: own",
    "shared",
    "faults",
    "last fault",
)


def table(status: Status) -> list[tuple[str, ...]]:
    """A row of words a centre, in the order of `TITLES`."""
    answers = {True: "yes", False: "no", None: "?"}
    return [
        (
            *(shown(one.name), answers[one.there], "yes" if one.awaited else "", "?" if one.samples is None else str(one.samples)),
            *(str(one.rounds), str(one.last), f"{one.seconds:.1f}", f"{one.sent / MIB:.1f}", f"{one.received / MIB:.1f}"),
            "-" if one.epsilon is None else f"{one.epsilon:.3g}",
            *("-" if score is None else f"{score:.3f}" for score in (one.own, one.shared)),
            *(str(one.faults), shown(one.fault[:120])),
        )
        for one in status.centers
    ]


def in_words(status: Status) -> str:
    """The study in lines of text."""
    head = f"{status.title}: {status.done} of {status.rounds} rounds"
    work = "no server is at work here" if status.since is None else f"a server is at work; the last thing happened {status.since:.0f} s ago"
    rows = [TITLES, *table(status)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(TITLES))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([head, work, "", *lines]) + "\n"


def as_page(status: Status) -> str:
    """The same as a page, which renews itself."""
    first, second, *_ = in_words(status).splitlines()
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(word)}</td>" for word in row) + "</tr>" for row in table(status))
    titles = "".join(f"<th>{title}</th>" for title in TITLES)
    style = "body{font-family:sans-serif;margin:2em}td,th{text-align:left;padding:.3em 1em .3em 0;border-bottom:1px solid #ccc}"
    about = '<meta charset="utf-8"><meta http-equiv="refresh" content="10">'
    return (
        f'<!doctype html><html lang="en"><head>{about}<title>{html.escape(first)}</title>'
        f"<style>{style}</style></head><body><h1>{html.escape(first)}</h1><p>{html.escape(second)}</p>"
        f"<table><tr>{titles}</tr>{rows}</table></body></html>"
    )


def as_metrics(status: Status) -> str:
    """The same in Prometheus' text format."""
    lines = [
        "# TYPE vfmgl_rounds_done gauge",
        f"vfmgl_rounds_done {status.done}",
        "# TYPE vfmgl_rounds gauge",
        f"vfmgl_rounds {status.rounds}",
    ]
    lines += ["# TYPE vfmgl_server_at_work gauge", f"vfmgl_server_at_work {int(status.since is not None)}"]
    values = {
        "there": ("gauge", lambda one: int(bool(one.there))),
        "awaited": ("gauge", lambda one: int(one.awaited)),
        "samples": ("gauge", lambda one: one.samples or 0),
        "rounds_total": ("counter", lambda one: one.rounds),
        "answer_seconds": ("gauge", lambda one: one.seconds),
        "sent_bytes_total": ("counter", lambda one: one.sent),
        "received_bytes_total": ("counter", lambda one: one.received),
        "faults_total": ("counter", lambda one: one.faults),
        "epsilon": ("gauge", lambda one: one.epsilon),
        "own_validation": ("gauge", lambda one: one.own),
        "shared_validation": ("gauge", lambda one: one.shared),
    }
    for name, (kind, value) in values.items():
        there = [(one, value(one)) for one in status.centers if value(one) is not None]
        lines += [f"# TYPE vfmgl_center_{name} {kind}"] * bool(there)
        for one, number in there:
            label = shown(one.name).replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'vfmgl_center_{name}{{center="{label}"}} {number}')
    return "\n".join(lines) + "\n"


@contextmanager
def status_page(folder: Path, study: StudySettings, port: int) -> Iterator[int]:
    """Serves `/` and `/metrics` on loopback while the block lasts. Where the port is taken the study goes on without.

    Args:
        port: 0: a free one.
    Yields: the port; 0: there is no page.
    """
    pages = {"/": (as_page, "text/html; charset=utf-8"), "/metrics": (as_metrics, "text/plain; version=0.0.4; charset=utf-8")}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page of another site that a browser here is shown must not read this one under a name of its own.
            local = self.headers.get("Host", "").rpartition(":")[0] in (LOOPBACK, "localhost")
            if self.path not in pages or not local:
                self.send_error(404)
                return
            made, kind = pages[self.path]
            try:
                content = made(read_status(folder, study)).encode()
            except (ValueError, OSError) as error:
                log.warning("no status: %s", error)
                self.send_error(500, "The server's log says what is wrong")
                return
            self.send_response(200)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))), ("Cache-Control", "no-store")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """No line a request."""

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as error:
        log.warning("no status page: port %d on %s: %s", port, LOOPBACK, error)
        yield 0
        return
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    log.info("status: http://%s:%d/ on this machine, /metrics for Prometheus", LOOPBACK, server.server_address[1])
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _json(file: Path) -> dict:
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not isinstance(found, dict):
        raise TypeError("it holds no names and values")
    return found
