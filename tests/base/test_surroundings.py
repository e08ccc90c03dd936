"""Terminals that cannot write every letter, proxies in the environment, homes that are not there."""

import io
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from vfmgl_lib import cli
from vfmgl_lib.base.surroundings import about_proxy, direct_to_loopback, is_loopback, print_anything, proxy_for

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxy_here(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp437"])
def test_what_cannot_be_encoded_is_replaced(encoding):
    code = (
        "import sys; from vfmgl_lib.base.surroundings import print_anything; print_anything()\n"
        "from tqdm import tqdm\n"
        "for stream in (sys.stdout, sys.stderr): stream.write('M\\u00fcller \\u2026 \\u65e5 \\udcfc\\n')\n"
        "list(tqdm([1, 2], desc='M\\u00fcller \\u2026'))"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    out, error = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0 and "Traceback" not in error and out.splitlines()[0] == error.splitlines()[0]
    assert out.startswith("M") and "ller " in out and r"\udcfc" in out and ("…" in out) == (encoding == "utf-8")


@pytest.mark.parametrize("where", ["closed", "full", "pipe"])
def test_a_finished_command_that_nobody_reads_is_finished(where):
    command = [sys.executable, "-c", "from vfmgl_lib.base.surroundings import write_out; write_out('done\\n'); write_out('note\\n')"]
    script = {"closed": '"$@" >&-', "full": '"$@" >/dev/full', "pipe": 'set -o pipefail; (sleep 0.2; exec "$@") | true'}[where]
    done = subprocess.run(["bash", "-c", script, "bash", *command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_without_an_encoding_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_anything()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("data", ["verify", "Mü…"]),
        ("predict", ["Mü….onnx", "x", "--out", "out"]),
        ("export", ["Mü…", "--center", "A", "--out", "x"]),
        ("sweep", ["--task", "nuclei", "--methods", "Mü…"]),
        ("run", ["--task", "Mü…"]),
        ("federation", ["check", "Mü…"]),
    ],
)
def test_every_command_starts_with_it(command, words, monkeypatch, tmp_path):
    """Each says something with a letter of the user's that the terminal does not have."""
    monkeypatch.chdir(tmp_path)
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    assert cli.main([command, *words]) in (1, 2)
    assert rb"M\xfc\u2026" in b"".join(stream.buffer.getvalue() for stream in streams)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost", "LOCALHOST", "a.localhost", "localhost."])
def test_loopback(host, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert is_loopback(host) and proxy_for(host) == "" and about_proxy(host) == ""


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "localhost.example.org", "example.org", ""])
def test_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("variables", "proxy"),
    [
        ({}, ""),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://anna:p@ss@proxy:3128/"}, "http://proxy:3128/"),
        ({"HTTPS_PROXY": "anna:secret@proxy:3128"}, "proxy:3128"),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "socks5://proxy:1080"),
        ({"https_proxy": "http://lower", "HTTPS_PROXY": "http://upper"}, "http://lower"),
        ({"HTTP_PROXY": "http://proxy:3128"}, ""),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "example.org"}, ""),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "a, .example.org ,b"}, ""),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "*"}, ""),
        ({"HTTPS_PROXY": "http://proxy", "no_proxy": "other.org"}, "http://proxy"),
    ],
)
def test_the_proxy_of_the_environment(variables, proxy, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for("www.example.org") == proxy
    assert (f"names the proxy {proxy} for it" in about_proxy("www.example.org")) == bool(proxy)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"])
@pytest.mark.parametrize("no_proxy", [None, "example.org"])
def test_a_client_of_this_machine_goes_past_the_proxy(variable, no_proxy, monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    if no_proxy:
        monkeypatch.setenv("no_proxy", no_proxy)
    before = dict(os.environ)
    with direct_to_loopback("127.0.0.1"):
        client = httpx.Client()
    try:
        assert client.get(f"http://127.0.0.1:{server.server_port}/").status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.Client().get(f"http://127.0.0.1:{server.server_port}/")
    finally:
        server.shutdown()
        client.close()
    assert dict(os.environ) == before


def test_another_host_keeps_its_proxy(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    with direct_to_loopback("example.org"):
        assert "no_proxy" not in os.environ and proxy_for("example.org") == "http://proxy"


def test_a_user_without_a_home_can_take_part():
    """As in a container with a user of no name: flwr asks for a home when it is imported."""
    code = (
        "import os, pwd\n"
        "def gone(number): raise KeyError(number)\n"
        "pwd.getpwuid = gone\n"
        "os.environ.pop('HOME', None)\n"
        "import vfmgl_lib.tools.flower\n"
        "from flwr.supercore.utils import get_flwr_home\n"
        "print(get_flwr_home())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("flwr"), done.stderr[-300:]
