"""Files that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, lock_descriptor

PARTIAL = ".partial"  # suffix of a file that is being written
LONGEST_NAME = 255  # bytes, of file systems in use
_NO_NAME = '<>:"|?*\\'  # signs that a name cannot have on every system
_DEVICES = ("con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789"))
_SYSTEM_ERRORS = {
    errno.ENOSPC: "no room is left on the disk; make room",
    errno.EDQUOT: "the quota of this user is used up; make room",
    errno.EFBIG: "no file may grow so large here (ulimit -f, or the file system's limit); raise the limit or write elsewhere",
    errno.EROFS: "is on a read-only file system; write elsewhere",
    errno.EACCES: "this user may not open it; change its rights or write elsewhere",
    errno.EPERM: "this user may not change it; change its rights or write elsewhere",
    errno.ENOTDIR: "a file stands where a folder is expected; move it away or write elsewhere",
    errno.EISDIR: "a folder stands where a file is expected; move it away",
    errno.EEXIST: "is there already and no folder; move it away or write elsewhere",
    errno.ENAMETOOLONG: "the name is longer than the file system allows; shorten it",
}


def reason(error: OSError) -> str:
    """A system's error in one line: the file, what happened, what to do."""
    if error.errno not in _SYSTEM_ERRORS:
        return shown(str(error))
    file = error.filename2 or error.filename or "a file"  # of a renaming the name that was wanted, not the temporary one
    return f"{shown(str(file))}: {_SYSTEM_ERRORS[error.errno]} ({error.strerror})"


def first_line(error: BaseException) -> str:
    """An error's text up to its first line break; of one without words, its kind."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


@contextmanager
def content_of(file: Path, remedy: str) -> Iterator[None]:
    """Whatever the block finds wrong in a file's content becomes one error.

    Raises: ValueError: naming file and remedy.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else first_line(error)
        raise ValueError(f"{file}: damaged ({said[:120]}); {remedy}") from error


def real_path(path: Path | str) -> Path:
    """As `Path.resolve`, also of links that lead in a circle, for which that raises before Python 3.13."""
    return Path(os.path.realpath(path))


# Embeddings, overrides and isolates, which turn the order of the letters around them.
_TURNING = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))


def is_control(letter: str) -> bool:
    """Whether it is a control character, a line break, one that turns the order of letters, or a byte of a name that is not UTF-8."""
    return unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(letter) in _TURNING


def shown(text: str) -> str:
    """A text in one line that every table and terminal takes: bytes that are not UTF-8 and control characters as in Python's strings."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter.encode("unicode_escape").decode() if is_control(letter) else letter for letter in text)


def portable(name: str) -> str:
    """A file's name, without suffix, with "_" for what some system does not take in a name: itself where all do."""
    clean = "".join("_" if letter in _NO_NAME or is_control(letter) else letter for letter in name)
    return f"_{clean}" if clean.split(".")[0].strip().lower() in _DEVICES else clean


def file_name(name: str, suffix: str = "", mark: bool = False) -> str:
    """What a file is called after a name: `name + suffix`; where some system cannot have that, one like it that ends in a hash of it.

    Args:
        mark: with the hash in any case.
    """
    clean = portable(name) if suffix else portable(name).rstrip(" .")
    whole = clean + suffix
    if clean == name and clean and not mark and len(whole.encode()) <= LONGEST_NAME:
        return whole
    end = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{suffix}"
    return clean.encode()[: LONGEST_NAME - len(end.encode())].decode(errors="ignore") + end


def temporary_name(path: Path, mark: str = "") -> Path:
    """Where a file or folder is written before it is called `path`: hidden, beside it, and no longer than names may be."""
    path = Path(os.path.abspath(path))  # "." has no name
    name = f".{path.name}{mark}{PARTIAL}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}{mark}{PARTIAL}"
    return path.with_name(name)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically: a reader or a crash sees the old content or the new, never a part. Makes the folder if needed.

    Raises: OSError: naming the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path, f".{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno:
            error.filename = str(path)  # writing does not say where, and the temporary name tells nobody anything
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, line ends as they are; bytes of a name that are not UTF-8 as "\\udcxx", which JSON reads back."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears under its name only when the block has ended well; a partial one of an earlier run is discarded.

    Its content is on the disk before it is renamed: after a failure of power, too, it is whole or not there.
    """
    path = Path(os.path.abspath(path))
    partial = temporary_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for entry in [*partial.rglob("*"), partial]:
            _to_disk(entry)
        os.replace(partial, path)
        _to_disk(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def append_line(path: Path, text: str) -> None:
    """Adds a line to a file; it is on the disk when this returns.

    Raises: OSError: naming the file.
    """
    try:
        with open(path, "ab") as file:
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(path)
        raise


def _to_disk(path: Path) -> None:
    """A file's content, or which entries a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Steps:
    """What an interrupted call has done, in order: the result of each step as a line of JSON, on the disk before the next one begins."""

    def __init__(self, file: Path):
        self._file, self.done, whole = file, [], 0
        for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
            if not line.endswith(b"\n"):
                break  # the room ended here
            self.done.append(json.loads(line))
            whole += len(line)
        if file.is_file():
            os.truncate(file, whole)

    def step(self, number: int, make: Callable[[], Any]) -> Any:
        """The result of step `number`, counted from 0: what an earlier call kept, or else made now and kept."""
        if number < len(self.done):
            return self.done[number]
        made = make()
        append_line(self._file, json.dumps(made, default=lambda value: value.item()))
        self.done.append(made)
        return made


class FolderInUseError(ValueError):
    """Another process is writing the same folder."""


@contextmanager
def locked(lock: Path, error: Exception, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock file for the block, against processes on all machines of its file system. It is released however the process ends.

    Args:
        error: what is raised when another process holds it.
        wait: seconds to wait for it before.
    """
    try:
        held = FileLock(lock, fallback_to_soft=False).acquire(timeout=wait)
    except Timeout:
        raise error from None
    with held:
        yield


def is_locked(lock: Path) -> bool:
    """Whether some process holds the lock file now; who asks holds it for an instant, so `locked` has to wait a little."""
    try:
        file = open(lock, "r+" if os.access(lock, os.W_OK) else "r")
    except FileNotFoundError:
        return False
    with file:
        return not lock_descriptor(file.fileno(), blocking=False)


@contextmanager
def resumed_folder(path: Path, call: str) -> Iterator[tuple[Path, Steps]]:
    """As `new_folder`, but what is done stays in the hidden folder when the block ends badly, and the same call goes on with it.

    Args:
        call: everything that the content depends on; what is left of another call is discarded.
    Yields: the folder, and the steps that were done in it.
    Raises: FolderInUseError: another process is at it.
    """
    path = Path(os.path.abspath(path))
    partial = temporary_name(path)
    about, log, lock = partial / "call.json", partial / "steps.jsonl", partial / ".lock"
    error = FolderInUseError(f"{path}: another process is writing it; wait for it, stop it, or write elsewhere")
    with locked(lock, error):
        if not about.is_file() or about.read_bytes() != call.encode():
            for entry in partial.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != lock:
                    entry.unlink()
            write_text(about, call)
        steps = Steps(log)
        try:
            yield partial, steps
            os.replace(partial, path)
        except BaseException:
            if not steps.done:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        for file in (about, log, lock):
            (path / file.name).unlink(missing_ok=True)
