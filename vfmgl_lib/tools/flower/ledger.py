"""A site's ledger: a line of JSON for every update that has left the site, on the disk before the update leaves.

The first line names the study. Every other line holds the round, the time, the hashes of the message and of its answer, the bytes of the
tensors sent, epsilon so far (null: no noise, no guarantee), and the hash of the line before it, so that a line that was changed or taken
out is noticed. With it a round is answered once, whatever the server asks: noise that is drawn anew for the same round, or rounds that the
study does not have, would cost more privacy than was agreed.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vfmgl_lib import __version__
from vfmgl_lib.base.files import append_line, write_text
from vfmgl_lib.federation.exchange import epsilon
from vfmgl_lib.federation.servers import is_count

log = logging.getLogger(__name__)
LEDGER = "ledger.jsonl"
REMEDY = "without it nobody knows what left this site: restore it from a backup, or take part with a new folder and tell the coordinator"


class LedgerError(ValueError):
    """A ledger that is damaged or of another study; names file, line and remedy."""


class RoundRefusedError(ValueError):
    """A round that this site does not answer; says which ones it does."""


@dataclass(frozen=True)
class Opening:
    """The first line.

    Attributes:
        study: the key of the study at this site (`Site.study_key`).
        rounds: how many rounds the site had answered before this ledger began.
    """

    study: str
    vfmgl_lib: str
    time: str
    rounds: int


@dataclass(frozen=True)
class Entry:
    """An update that left the site.

    Attributes:
        message, update: SHA-256 of what was received and of what was sent.
        bytes: of the tensors sent.
        epsilon: of all updates so far, delta 1e-5; None: there is no noise.
        before: SHA-256 of the line before.
    """

    round: int
    time: str
    message: str
    update: str
    bytes: int
    epsilon: float | None
    before: str


class Ledger:
    """The ledger of a site at work.

    Args:
        file: begun if it is not there.
        study: its key.
        rounds: the last round of the study.
        noise: of the study's exchange.
        start: rounds answered before the ledger begins.
    Raises: LedgerError: a damaged one, or another study's.
    """

    def __init__(self, file: Path, study: str, rounds: int, noise: float, start: int = 0):
        self.file, self.rounds, self.noise = file, rounds, noise
        if not file.is_file():
            write_text(file, json.dumps(asdict(Opening(study, __version__, _now(), start))) + "\n")
        self.opening, self.entries = read_ledger(file, repair=True)
        if self.opening.study != study:
            raise LedgerError(f"{file}: is of study {self.opening.study}, this one is {study}; choose another folder")
        for place, entry in enumerate(self.entries, 1):
            if (spent := self._epsilon(place)) != entry.epsilon:
                raise LedgerError(f"{file}, round {entry.round}: epsilon must be {spent}, got {entry.epsilon}; {REMEDY}")
        self._size = file.stat().st_size

    def hold_to_rounds(self, kept: Sequence[int]) -> None:
        """Compares with the rounds whose state is on the disk, in order. Of the newest the line may be missing: its update did not leave.

        Raises: LedgerError: lines that are missing. ValueError: the state after the last line is missing; to train on from an older one
            would end in another model than an unbroken run's.
        """
        known = {entry.round for entry in self.entries}
        missing = [number for number in kept[:-1] if number > self.opening.rounds and number not in known]
        if missing:
            raise LedgerError(f"{self.file}: has no line of round {missing[0]}, which this site has trained; {REMEDY}")
        if max(kept, default=0) < self.last:
            raise ValueError(
                f"{self.file.parent / 'rounds'}: the state after round {self.last} is not there, and {self.file.name} says that this site "
                "answered that round; restore it from a backup, or take part with a new folder and tell the coordinator"
            )

    @property
    def last(self) -> int:
        """The last round that was answered; 0: none."""
        return self.entries[-1].round if self.entries else self.opening.rounds

    def asked(self, number: int, message: str) -> Entry | None:
        """What was answered to this very message before; None: the round may be answered now.

        Raises: RoundRefusedError: a round out of order, beyond the study, or answered to another message.
        """
        for entry in self.entries:
            if entry.round == number:
                if entry.message != message:
                    raise RoundRefusedError(f"round {number} was answered already, to another message; a round is answered once")
                return entry
        if number <= self.last:
            raise RoundRefusedError(f"round {number} comes too late: round {self.last} was answered already")
        if number > self.rounds:
            raise RoundRefusedError(f"round {number}: the study has {self.rounds} rounds")
        return None

    def write(self, number: int, message: str, update: str, sent: int) -> None:
        """Adds an update that is about to leave.

        Raises: OSError: it cannot be written; the update must not leave then. LedgerError: somebody else has changed the file.
        """
        if self.file.stat().st_size != self._size:
            raise LedgerError(f"{self.file}: was changed while this site ran; does another process work in this folder?")
        spent = self._epsilon(len(self.entries) + 1)
        entry = Entry(number, _now(), message, update, sent, spent, _hash(self.file.read_bytes().splitlines()[-1]))
        try:
            append_line(self.file, json.dumps(asdict(entry)))
        except OSError:
            os.truncate(self.file, self._size)  # half a line would spoil the next one
            raise
        self.entries.append(entry)
        self._size = self.file.stat().st_size

    def _epsilon(self, answers: int) -> float | None:
        return round(epsilon(self.noise, self.opening.rounds + answers), 6) if self.noise else None


def read_ledger(file: Path, repair: bool = False) -> tuple[Opening, list[Entry]]:
    """A ledger's lines, checked.

    Args:
        repair: a last line that was cut off while it was written is taken out; its update did not leave.
    Raises: LedgerError: naming file and line.
    """
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if repair and whole != content:
        log.warning("%s: the last line was cut off and is taken out; its update did not leave", file)
        os.truncate(file, len(whole))
    lines = whole.splitlines()
    if not lines:
        raise LedgerError(f"{file}: is empty; {REMEDY}")
    entries: list[Entry] = []
    number = 1
    try:
        opening = Opening(**json.loads(lines[0]))
        if not is_count(opening.rounds) or opening.rounds < 0:
            raise TypeError("rounds must be a whole number")
        for number, line in enumerate(lines[1:], 2):
            entry = Entry(**json.loads(line))
            last = entries[-1].round if entries else opening.rounds
            if not (is_count(entry.round) and is_count(entry.bytes) and isinstance(entry.epsilon, float | int | None)):
                raise TypeError("holds no whole numbers where they belong")
            if entry.before != _hash(lines[number - 2]) or entry.round <= last:
                raise ValueError("does not follow from the line before it")
            entries.append(entry)
    except (ValueError, TypeError, RecursionError) as error:
        raise LedgerError(f"{file}, line {number}: was changed or damaged ({error}); {REMEDY}") from error
    return opening, entries


def in_words(file: Path) -> Iterator[str]:
    """The lines of `vfmgl federation log`.

    Raises: LedgerError, OSError: a ledger that is damaged, or not there.
    """
    opening, entries = read_ledger(file)
    before = f", {opening.rounds} rounds answered before" if opening.rounds else ""
    yield f"{file}: study {opening.study}, vfmgl_lib {opening.vfmgl_lib}, begun {opening.time}{before}"
    yield f"{'round':>5}  {'time':<20}  {'message':<12}  {'update':<12}  {'bytes':>14}  {'epsilon':>8}"
    for entry in entries:
        spent = "-" if entry.epsilon is None else f"{entry.epsilon:.3g}"
        hashes = f"{entry.message[:12]}  {entry.update[:12]}"
        yield f"{entry.round:>5}  {entry.time:<20}  {hashes}  {entry.bytes:>14,}  {spent:>8}"
    yield f"{len(entries)} updates left this site, {sum(entry.bytes for entry in entries):,} bytes; every line follows from the one before"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
