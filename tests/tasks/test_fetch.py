"""Downloads against a server on this machine that drops connections, ignores ranges, changes its mind."""

import errno
import gzip
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import vfmgl_lib.tasks.fetch as module
from vfmgl_lib.tasks.datasheets import Download, read_datasheet
from vfmgl_lib.tasks.fetch import FetchError, check_downloads, download_all, fetch

CONTENT = b"PK" + bytes(range(256)) * 2000  # half a megabyte that begins as a zip does


class Server(ThreadingHTTPServer):
    """Serves `content` at /set.zip; counts requests in `ranges`, one entry each: the Range header or None."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.tag, self.ranges = CONTENT, '"1"', []
        self.drops: list[int] = []  # of the coming answers: the connection ends after so many bytes
        self.answers: list[int] = []  # of the coming answers: this status instead
        self.knows_ranges, self.gives_length, self.location = True, True, ""
        self.encoding = ""
        self.piece: int | None = None  # the most bytes of a ranged answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set.zip"

    def handle_error(self, request, address):  # clients that hang up are part of the tests
        pass


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server: Server = self.server
        server.ranges.append(self.headers.get("Range"))
        if server.answers:
            return self.send_error(server.answers.pop(0))
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            return self.end_headers()
        if self.path != "/set.zip":
            return self.send_error(404)
        content, total, start = server.content, len(server.content), 0
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, server.tag)
        if wanted and server.knows_ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                return self.end_headers()
            self.send_response(206)
            content = content[: start + server.piece if server.piece else total]
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{total}")
        else:
            self.send_response(200)
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.encoding:
            self.send_header("Content-Encoding", server.encoding)
        if server.gives_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][: server.drops.pop(0) if server.drops else None])


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join(timeout=5)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def entry(server, **values) -> Download:
    return Download(**{"name": "set", "url": server.url, "file": "set.zip", "licence": "CC0"} | values)


def get(server, folder, **values):
    return download_all([entry(server, **values)], folder, None, False)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_file_is_whole_and_pinned(server, tmp_path):
    folder = tmp_path / "a folder" / "für Daten"
    assert get(server, folder).files == (folder / "set.zip",)
    assert (folder / "set.zip").read_bytes() == CONTENT and leftovers(folder) == ["checksums.json", "set.zip"]
    pin = json.loads((folder / "checksums.json").read_text())["set.zip"]
    assert pin["sha256"] == hashlib.sha256(CONTENT).hexdigest() and pin["size"] == len(CONTENT)
    assert pin["url"] == server.url and len(pin["date"]) == 10
    assert check_downloads(folder) == []


def test_file_that_is_there_is_verified_and_not_asked_for_again(server, tmp_path):
    get(server, tmp_path)
    server.content = b"PK other"
    assert get(server, tmp_path).files == (tmp_path / "set.zip",) and len(server.ranges) == 1


def test_dropped_connection_goes_on_where_it_ended(server, tmp_path):
    server.drops = [100_000, 150_000]
    get(server, tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT and leftovers(tmp_path) == ["checksums.json", "set.zip"]
    assert server.ranges == [None, "bytes=100000-", "bytes=250000-"]


def test_next_call_goes_on_where_the_last_one_was_stopped(server, tmp_path, monkeypatch):
    def interrupted(seconds):
        raise KeyboardInterrupt

    server.drops = [100_000]
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path)
    assert leftovers(tmp_path) == [".set.zip.partial", ".set.zip.partial.json"]
    get(server, tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT and server.ranges == [None, "bytes=100000-"]


def test_part_of_another_version_is_not_continued(server, tmp_path, monkeypatch):
    server.drops = [100_000]
    monkeypatch.setattr(module, "ATTEMPTS", 0)
    with pytest.raises(FetchError, match=r"given up after 0 attempts\. The same call goes on from here"):
        get(server, tmp_path)
    server.content, server.tag = b"PK" + bytes(reversed(CONTENT[2:])), '"2"'
    get(server, tmp_path)
    assert server.ranges == [None, "bytes=100000-"] and (tmp_path / "set.zip").read_bytes() == server.content


@pytest.mark.parametrize("size", [50_000, 300_000])
def test_part_of_a_file_of_another_size_is_not_continued(server, tmp_path, monkeypatch, size):
    server.drops, server.tag = [100_000], ""  # nothing that If-Range could name
    monkeypatch.setattr(module, "ATTEMPTS", 0)
    with pytest.raises(FetchError):
        get(server, tmp_path)
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    server.content = CONTENT[:size]
    get(server, tmp_path)
    assert server.ranges == [None, "bytes=100000-", None] and (tmp_path / "set.zip").read_bytes() == CONTENT[:size]


def test_server_that_sends_pieces(server, tmp_path):
    server.drops, server.piece = [100_000], 200_000
    get(server, tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=300000-", "bytes=500000-"]


def test_server_that_ignores_ranges(server, tmp_path):
    server.drops, server.knows_ranges = [100_000, 200_000], False
    get(server, tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT and len(server.ranges) == 3


def test_server_that_calls_an_archive_an_encoding(server, tmp_path):
    server.content, server.encoding = gzip.compress(CONTENT), "gzip"
    get(server, tmp_path, file="set.tar.gz")
    assert (tmp_path / "set.tar.gz").read_bytes() == server.content


def test_server_with_an_empty_file(server, tmp_path):
    server.content = b""
    with pytest.raises(FetchError, match="0 of 0 bytes came; given up after 6 attempts"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


def test_server_without_a_length(server, tmp_path, caplog):
    server.gives_length = False
    get(server, tmp_path)
    assert (tmp_path / "set.zip").read_bytes() == CONTENT
    assert "does not say how long its file is, 512002 bytes came" in caplog.text


def test_server_that_always_drops_is_given_up(server, tmp_path):
    server.drops, server.knows_ranges = [1000] * 50, False
    with pytest.raises(FetchError, match=r"1000 of 512002 bytes came; given up after 6 attempts|connection was lost .*given up after 6"):
        get(server, tmp_path)
    assert len(server.ranges) == 7 and "set.zip" not in leftovers(tmp_path)


def test_wrong_file_later_is_refused_and_nothing_is_replaced(server, tmp_path):
    get(server, tmp_path)
    pins = (tmp_path / "checksums.json").read_bytes()
    (tmp_path / "set.zip").unlink()
    server.content = b"PK another file"
    with pytest.raises(FetchError, match=r"has not the sha256 [0-9a-f]{12}… pinned on \d{4}-\d\d-\d\d; it was refused and deleted"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == ["checksums.json"] and (tmp_path / "checksums.json").read_bytes() == pins
    server.content = CONTENT
    get(server, tmp_path)
    assert check_downloads(tmp_path) == []


def test_checksum_of_the_datasheet(server, tmp_path):
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    with pytest.raises(FetchError, match="has not the sha256 000000000000… of the datasheet; it was refused and deleted"):
        get(server, tmp_path, sha256=wrong)
    assert leftovers(tmp_path) == []
    get(server, tmp_path, sha256=right)
    with pytest.raises(FetchError, match="the datasheet 000000000000…: remove the file and its entry"):
        get(server, tmp_path, sha256=wrong)


def test_file_that_was_changed_or_put_there_by_hand(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(CONTENT)
    with pytest.raises(FetchError, match=r"is there without an entry in checksums\.json"):
        get(server, tmp_path)
    get(server, tmp_path, sha256=hashlib.sha256(CONTENT).hexdigest())
    (tmp_path / "set.zip").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(FetchError, match=r"set\.zip: sha256 [0-9a-f]{12}…, expected [0-9a-f]{12}…: changed since"):
        get(server, tmp_path)
    assert len(check_downloads(tmp_path)) == 1 and server.ranges == []
    (tmp_path / "set.zip").unlink()
    assert check_downloads(tmp_path)[0].startswith("set.zip: file not found, downloaded on")


def test_missing_page_is_final_and_the_others_are_downloaded(server, tmp_path):
    entries = [entry(server, name="gone", url=server.url + "x", file="gone.zip"), entry(server)]
    with pytest.raises(FetchError, match=r"set\.zipx: the server answers 404 Not Found, expected a file"):
        download_all(entries, tmp_path, None, False)
    assert leftovers(tmp_path) == ["checksums.json", "set.zip"] and len(server.ranges) == 2


def test_busy_server_is_asked_again(server, tmp_path):
    server.answers = [503, 429]
    get(server, tmp_path)
    assert len(server.ranges) == 3


def test_error_page_is_not_pinned(server, tmp_path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(FetchError, match=r"what came is no \.zip file \(it begins with b'<htm'\); deleted"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/set.zip"])
def test_redirection_leads_to_http_only(server, tmp_path, location):
    server.location = location
    with pytest.raises(FetchError, match="No connection adapters"):
        get(server, tmp_path)
    assert leftovers(tmp_path) == []


def test_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FetchError, match=r"cannot be written .*, expected a writable folder with space"):
        get(server, tmp_path / "file" / "folder")
    assert server.ranges == []


def test_full_disk(server, tmp_path, monkeypatch):
    usage = module.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(FetchError, match=r"512002 bytes are to come, .* has room for 1000"):
            get(server, tmp_path)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.pooch.HTTPDownloader, "__call__", full)
        with pytest.raises(FetchError, match="cannot be written"):
            get(server, tmp_path)
    get(server, tmp_path)
    assert check_downloads(tmp_path) == []


def test_second_process_is_refused(server, tmp_path):
    with module.locked(tmp_path / ".lock", AssertionError()), pytest.raises(FetchError, match="another process is downloading into it"):
        get(server, tmp_path)


def test_damaged_checksums_are_no_permission_to_pin_anew(server, tmp_path):
    for text in ("{", "[]", '{"set.zip": {"sha256": "x", "date": "2026-01-01"}}', '{"set.zip": 3}'):
        (tmp_path / "checksums.json").write_text(text)
        with pytest.raises(FetchError, match=r"checksums\.json: cannot be read"):
            get(server, tmp_path)
    with pytest.raises(FetchError, match="expected a folder that fetch has filled"):
        check_downloads(tmp_path / "nowhere")


def test_gated_sets_are_said_and_nothing_is_written(tmp_path):
    result = fetch("endometrial", tmp_path / "ec", progress=False)
    assert result.files == () and not (tmp_path / "ec").exists()
    (text,) = result.requests
    assert "corresponding author" in text and "@" in text and "ethics committees" in text and "Licence: none published." in text


def test_only_named_ones(server, tmp_path):
    gated = Download(name="asked", gated=True, request="Ask them.", url="https://example.org/page", licence="none")
    downloads = [entry(server), gated]
    assert download_all(downloads, tmp_path, ["asked"], False).requests == (
        "asked: Ask them. Page: https://example.org/page. Licence: none.",
    )
    assert server.ranges == []
    with pytest.raises(FetchError, match="unknown download 'sets', the datasheet has set, asked"):
        download_all(downloads, tmp_path, ["sets"], False)


def test_fetch_uses_the_datasheet(server, tmp_path, monkeypatch):
    sheet = read_datasheet("endometrial").model_copy(update={"downloads": (entry(server),)})
    monkeypatch.setattr(module, "read_datasheet", lambda task: sheet)
    started = time.monotonic()
    assert fetch("endometrial", tmp_path, only=["set"], progress=False).files[0].is_file()
    assert time.monotonic() - started < 5
