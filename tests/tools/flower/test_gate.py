"""nginx before the SuperLink, for real where it is installed: nodes get through, and nobody and nothing else."""

import re
import socket
from pathlib import Path

import httpx
import psutil
import pytest
from flwr.app import Message, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.superlink.main import create_app

from vfmgl_lib.tools.flower import credentials
from vfmgl_lib.tools.flower import gate as module
from vfmgl_lib.tools.flower.gate import MISSING, PATHS, configuration, gate, nginx_program
from vfmgl_lib.tools.flower.programs import free_port, wait_until

try:
    nginx_program()
    installed = True
except FileNotFoundError:
    installed = False
needs_nginx = pytest.mark.skipif(not installed, reason="nginx is not installed: what stands before the SuperLink is not tried for real")


@pytest.fixture(scope="module")
def guarded(started_line):
    """The address of nginx before the line's SuperLink, and the program."""
    port = free_port()
    with gate(started_line.folder, "127.0.0.1", port, started_line.port) as program:
        yield f"127.0.0.1:{port}", program


@pytest.fixture
def anyone():
    return httpx.Client(verify=False, headers={"content-type": "application/protobuf", "accept": "application/protobuf"}, timeout=30)


@needs_nginx
def test_an_outsider_can_neither_join_nor_read(line, guarded, anyone):
    address, _ = guarded
    with pytest.raises(httpx.ConnectError, match=r"certificate|CERTIFICATE"):
        httpx.get(f"https://{address}")  # who does not have the CA's certificate does not talk to this server by mistake
    assert httpx.get(f"http://{address}").status_code == 400, "no answer without TLS"
    served = [*create_app().openapi()["paths"], "/docs", "/openapi.json", "/"]
    assert "/v1/control/start-run" in served and "/v1/fleet/pull-messages" in served
    for path in served:
        status = anyone.post(f"https://{address}{path}", content=b"").status_code
        assert status == (401 if path.removeprefix("/v1/fleet/") in PATHS else 404), path
    for odd in (
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "//v1/control/list-runs",
        "/v1/fleet/pull-messages/x",
    ):
        assert anyone.post(f"https://{address}/v1/{odd}", content=b"").status_code in (400, 404), odd
    assert anyone.get(f"https://{address}/v1/fleet/get-run").status_code == 403
    text = httpx.Client(verify=False, timeout=30).post(f"https://{address}/v1/fleet/get-run", content=b"x")
    assert text.status_code == 415 and "nginx" in text.text, "Flower would write a line of its log for each"
    node = Node(node_id=line.nodes["SiteA"])
    for path, request in (("activate-node", ActivateNodeRequest(public_key=b"x")), ("pull-messages", PullMessagesRequest(node=node))):
        assert anyone.post(f"https://{address}/v1/fleet/{path}", content=request.SerializeToString()).status_code == 401, path


@needs_nginx
def test_a_large_body_reaches_nobody_s_memory(line, guarded, anyone):
    address, program = guarded
    nginx = psutil.Process(program.process.pid)
    superlinks = [one for one in psutil.Process().children() if "flower-superlink" in " ".join(one.cmdline())]
    every = [nginx, *nginx.children(recursive=True), *superlinks]
    assert len(every) == 4

    def memory():
        return sum(one.memory_info().rss for one in every) / 2**20

    before = memory()
    declared = anyone.post(f"https://{address}/v1/fleet/push-object", content=bytes(100 * 2**20))
    assert declared.status_code == 413
    with pytest.raises(httpx.HTTPError):  # in pieces without a length: the connection is closed on the way, or answered
        anyone.post(f"https://{address}/v1/fleet/push-object", content=(bytes(2**20) for _ in range(100))).raise_for_status()
    assert memory() - before < 30


@needs_nginx
def test_a_site_works_through_it_and_it_comes_back_when_it_is_killed(line, guarded):
    address, program = guarded
    line.apps["Spare1"] = lambda message, context: Message(RecordDict(), reply_to=message)

    def answers():
        question = Message(RecordDict(), line.nodes["Spare1"], "query")
        return [reply.has_error() for reply in line.grid.send_and_receive([question], timeout=300)] == [False]

    with line.site("Spare1", address) as node:
        assert wait_until(lambda: node.connected, 300) and answers()
        starts = program.starts
        program.process.kill()
        assert wait_until(lambda: program.starts > starts and program.alive, 120)
        assert answers(), "and the SuperNode goes on"


@needs_nginx
def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"), gate(tmp_path, "127.0.0.1", taken.getsockname()[1], free_port()):
            pass


@needs_nginx
def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / 'prostate {2026}; $host "é" #1'
    folder.mkdir()
    credentials.write_certificates(folder, ["127.0.0.1"], days=1)
    port = free_port()
    with gate(folder, "127.0.0.1", port, free_port()), pytest.raises(httpx.ConnectError, match=r"certificate|CERTIFICATE"):
        httpx.get(f"https://127.0.0.1:{port}")


def test_what_it_lets_through_is_what_flower_s_nodes_call():
    text = configuration("0.0.0.0", 9092, 1234)
    assert "listen [::]:9092 ssl" in configuration("::", 9092, 1234)
    assert "listen 0.0.0.0:9092 ssl" in text and "server 127.0.0.1:1234;" in text and "client_max_body_size 8m;" in text
    (passed,) = re.findall(r"location ~ \^/v1/fleet/\((.*)\)\$", text)
    fleet = {path.rpartition("/")[2] for path in create_app().openapi()["paths"] if path.startswith("/v1/fleet/")}
    assert set(passed.split("|")) == fleet - {"register-node", "unregister-node"}, "who joins is the coordinator's to say"


def test_without_nginx_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda *given, **more: None)
    with pytest.raises(FileNotFoundError, match=re.escape(MISSING)), gate(Path(tmp_path), "127.0.0.1", free_port(), free_port()):
        pass
