"""Downloads what a datasheet names as public, and says for the rest what to request from whom.

A file counts once it is complete. Its sha256, size, address and date are then pinned in `checksums.json` beside it, and
every later download of that file must be the same: another one is refused and deleted, nothing is replaced. What an
interrupted download left stays as `.<file>.partial`, and the next call goes on from there.
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
import urllib3

from vfmgl_lib.base.files import PARTIAL, locked, sha256, write_json
from vfmgl_lib.base.surroundings import about_proxy
from vfmgl_lib.tasks.datasheets import Download, read_datasheet

logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
CHUNK_BYTES = 2**16  # what came of one when the connection is lost is asked for again
TIMEOUT_S = (10, 60)  # to connect, and without a byte
ATTEMPTS = 6  # in a row that bring nothing new
FIRST_WAIT_S = 1.0  # doubled after each of them
LONGEST_WAIT_S = 30.0
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP answers after which asking again can help
LOST = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError)


class _PassingError(Exception):
    """An answer after which the same request may succeed."""


class FetchError(RuntimeError):
    """A file could not be downloaded, or is not the one that was pinned; the message says what to do."""


@dataclass(frozen=True)
class Fetched:
    """What `fetch` did: the public files, and a text for each gated set."""

    files: tuple[Path, ...]
    requests: tuple[str, ...]


def fetch(task: str, folder: Path | str, *, only: Collection[str] | None = None, progress: bool = True) -> Fetched:
    """Download the public files of a task's datasheet; files that are there already are verified.

    Args:
        folder: is made if needed; one call at a time works in it.
        only: names of downloads; None: all.
        progress: draw a progress bar with the time left.
    Returns: the files in the datasheet's order, and what has to be requested from whom.
    Raises:
        DatasheetError: an unknown task.
        FetchError: with every file that failed, after the others have been downloaded.
    """
    return download_all(read_datasheet(task).downloads, Path(folder), only, progress)


def download_all(downloads: Collection[Download], folder: Path, only: Collection[str] | None, progress: bool) -> Fetched:
    """`fetch` for given entries of a datasheet."""
    names = [download.name for download in downloads]
    if unknown := sorted(set(only or ()) - set(names)):
        raise FetchError(f"unknown download {unknown[0]!r}, the datasheet has {', '.join(names) or 'none'}")
    chosen = [download for download in downloads if only is None or download.name in only]
    requested = tuple(_request(download) for download in chosen if download.gated)
    public = [download for download in chosen if not download.gated]
    files, problems = [], []
    if public:
        try:
            error = FetchError(f"{folder}: another process is downloading into it; wait for it or stop it")
            with locked(folder / ".lock", error):  # two downloads into the same part would mix
                for download in public:
                    try:
                        files.append(_fetch_one(download, folder, progress))
                    except FetchError as error:
                        problems.append(str(error))
        except OSError as error:
            problems.append(f"{folder}: cannot be written ({error.strerror or error}), expected a writable folder with space")
    if problems:
        raise FetchError("\n".join(problems))
    return Fetched(tuple(files), requested)


def _request(download: Download) -> str:
    page = f" Page: {download.url}." if download.url else ""
    return f"{download.name}: {download.request}{page} Licence: {download.licence}."


def check_downloads(folder: Path | str) -> list[str]:
    """What has changed in a folder of downloads since they were pinned, one line a file; none if all is as it was.

    Raises: FetchError: no readable checksums.json.
    """
    folder = Path(folder)
    if not (folder / CHECKSUMS).is_file():
        raise FetchError(f"{folder / CHECKSUMS}: file not found, expected a folder that fetch has filled")
    findings = []
    for name, pin in _read_pins(folder).items():
        if not (folder / name).is_file():
            findings.append(f"{name}: file not found, downloaded on {pin['date']}")
        elif (found := sha256(folder / name)) != pin["sha256"]:
            findings.append(f"{name}: sha256 {found[:12]}…, expected {pin['sha256'][:12]}… of {pin['date']}")
    return findings


def _fetch_one(download: Download, folder: Path, progress: bool) -> Path:
    target, pins = folder / download.file, _read_pins(folder)
    pin = pins.get(download.file)
    if pin and download.sha256 and pin["sha256"] != download.sha256:
        raise FetchError(
            f"{target}: {CHECKSUMS} has sha256 {pin['sha256'][:12]}… of {pin['date']}, the datasheet {download.sha256[:12]}…:"
            f" remove the file and its entry to download it anew"
        )
    known = pin["sha256"] if pin else download.sha256 or None

    def finished(path: Path) -> None:
        """Pins a complete download, before it gets its name: a crash in between leaves no unpinned file."""
        found = sha256(path)
        if known is None:
            _check_archive(path, download)
        if not pin and known in (None, found):
            today = datetime.now(UTC).date().isoformat()
            pins[download.file] = {"sha256": found, "size": path.stat().st_size, "url": download.url, "date": today}
            write_json(folder / CHECKSUMS, pins)

    if target.exists():
        if known is None:
            raise FetchError(f"{target}: is there without an entry in {CHECKSUMS}, so it cannot be verified; move it away")
        if (found := sha256(target)) != known:
            raise FetchError(f"{target}: sha256 {found[:12]}…, expected {known[:12]}…: changed since; remove it to download it anew")
        finished(target)
        return target
    store = pooch.create(folder.resolve(), base_url="", registry={download.file: known}, urls={download.file: download.url})
    resuming = ResumingDownloader(folder / f".{download.file}{PARTIAL}", progress, finished)
    try:
        store.fetch(download.file, downloader=resuming)
    except ValueError as error:  # pooch's answer to a wrong checksum; it has deleted what came
        if known is None:
            raise
        since = f"pinned on {pin['date']}" if pin else "of the datasheet"
        raise FetchError(
            f"{download.url}: the server's file has not the sha256 {known[:12]}… {since}; it was refused and deleted."
            f" If the change is meant, remove the entry {download.file!r} from {folder / CHECKSUMS}"
        ) from error
    return target


class ResumingDownloader:
    """A downloader for pooch that goes on where an interrupted download ended, and survives dropped connections.

    A part is continued only if the server says that its file is still the same (If-Range, and the size); a server that
    does not know ranges starts over.

    Args:
        partial: where the part is kept, with `<partial>.json` beside it: address, validator and size.
        progress: draw a progress bar.
        finished: called with the complete file, before pooch checks it and gives it its name.
    """

    def __init__(self, partial: Path, progress: bool, finished: Callable[[Path], None]):
        self.partial = partial
        self.state = partial.with_name(partial.name + ".json")
        self.progress = progress
        self.finished = finished

    def __call__(self, url: str, output_file: str, store: pooch.Pooch) -> None:
        failures, furthest = 0, self._size()
        while problem := self._receive(url):
            failures = 0 if self._size() > furthest else failures + 1
            furthest = max(furthest, self._size())
            if failures >= ATTEMPTS:
                raise FetchError(f"{url}: {problem}; given up after {ATTEMPTS} attempts. The same call goes on from here")
            logger.warning("%s: %s, trying again", url, problem)
            time.sleep(min(FIRST_WAIT_S * 2**failures, LONGEST_WAIT_S))
        try:
            self.finished(self.partial)
        except FetchError:
            self._discard()
            raise
        self.partial.replace(output_file)
        self.state.unlink(missing_ok=True)

    def _receive(self, url: str) -> str:
        """One request. Returns: "" when the file is complete, or what went wrong and may pass."""
        state = self._usable_state(url)
        offset = self._size() if state else 0
        if state and offset == state["total"]:
            return ""
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": state["validator"]} if state["validator"] else {})
        total = None

        def answered(response: requests.Response, **options: object) -> None:
            """Looks at an answer before its content is read."""
            nonlocal total
            status = response.status_code
            if response.is_redirect:
                return
            if status in PASSING:
                raise _PassingError(f"the server answers {status} {response.reason}")
            if offset and status in (206, 416) and not _continues(response, offset, state["total"]):
                self._discard()
                raise _PassingError("the server's file has another size than the part that is here, starting over")
            if status not in (200, 206):
                raise FetchError(f"{url}: the server answers {status} {response.reason}, expected a file")
            start = offset if status == 206 else 0
            total = state["total"] if start else _length(response)
            self._check_space(url, (total or 0) - start)
            response.raw.headers.discard("Content-Encoding")  # some servers say it of every .gz, which would then be unpacked
            file.truncate(start)
            # After the part was emptied, before anything new is in it: the note never belongs to other bytes.
            write_json(self.state, {"url": url, "validator": _validator(response), "total": total})

        download = pooch.HTTPDownloader(self.progress, CHUNK_BYTES, headers=headers, timeout=TIMEOUT_S, hooks={"response": answered})
        try:
            with open(self.partial, "ab") as file:
                download(url, file, None)
        except _PassingError as error:
            return str(error)
        except LOST as error:
            return f"the connection was lost ({type(error).__name__}){about_proxy(urlsplit(url).hostname or '')}"
        except requests.RequestException as error:
            raise FetchError(f"{url}: {error}{about_proxy(urlsplit(url).hostname or '')}") from error
        finally:
            if not self._size():
                self._discard()
        size = self._size()
        if total is None and size:
            logger.warning("%s: the server does not say how long its file is, %d bytes came", url, size)
        return "" if size and total in (size, None) else f"{size} of {total} bytes came"

    def _usable_state(self, url: str) -> dict:
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        usable = isinstance(state, dict) and state.keys() >= {"url", "validator", "total"} and state["url"] == url
        return state if usable and isinstance(state["total"], int) and self._size() <= state["total"] else {}

    def _check_space(self, url: str, needed: int) -> None:
        free = shutil.disk_usage(self.partial.parent).free
        if needed > free:
            raise FetchError(f"{url}: {needed} bytes are to come, {self.partial.parent} has room for {free}")

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.state.unlink(missing_ok=True)


def _continues(response: requests.Response, offset: int, total: int) -> bool:
    answer = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", response.headers.get("Content-Range", ""))
    return answer is not None and response.status_code == 206 and [int(value) for value in answer.groups()] == [offset, total]


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]+", length) else None


def _validator(response: requests.Response) -> str:
    """What If-Range may name: a strong ETag or else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _check_archive(path: Path, download: Download) -> None:
    """An error page that calls itself a success must not be pinned as the archive."""
    with open(path, "rb") as file:
        start = file.read(4)
    expected = {".zip": b"PK", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b"}.get(Path(download.file).suffix.lower(), b"")
    if not start.startswith(expected) or not start:
        raise FetchError(f"{download.url}: what came is no {Path(download.file).suffix} file (it begins with {start!r}); deleted")


def _read_pins(folder: Path) -> dict[str, dict]:
    path = folder / CHECKSUMS
    if not path.exists():
        return {}
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(pin["date"], str) and re.fullmatch("[0-9a-f]{64}", pin["sha256"]) for pin in pins.values()):
            raise ValueError("an entry without date or sha256")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FetchError(f"{path}: cannot be read ({error}), expected what fetch wrote; restore it or remove it with the files") from error
    return pins
