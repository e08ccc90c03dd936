"""What is expected of Flower's undocumented parts; what came with a task is never opened; nothing else in the library uses them."""

import re
import zipfile
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from flwr.app import Message, RecordDict

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.tools.flower import credentials, inside
from vfmgl_lib.tools.flower.deployment import FLOWER
from vfmgl_lib.tools.flower.programs import free_port, wait_until
from vfmgl_lib.tools.flower.supernode import CONNECTED, run_supernode

LIBRARY = Path(__file__).parents[3] / "vfmgl_lib"
DOCUMENTED = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}


def test_one_file_alone_uses_undocumented_parts():
    used = {}
    for file in LIBRARY.rglob("*.py"):
        found = set(re.findall(r"^\s*(?:from|import) (flwr[\w.]*)", file.read_text(encoding="utf-8"), re.MULTILINE))
        used |= {file.name: found - DOCUMENTED} if found - DOCUMENTED else {}
    assert set(used) == {"inside.py"}


def test_the_version_is_one_that_passed():
    assert version("flwr") in inside.PASSED and FLOWER in inside.PASSED


def test_no_app_that_came_with_a_message_is_opened(line, wire, federation, tmp_path, monkeypatch):
    """Two rounds with a zip reader that nobody may use: a bundle is a zip."""
    clients, server = federation("nuclei", "fedavg", optimizer__lr=0.005, federation__rounds=2, faults__deadline=600)
    together, other = federation("nuclei", "fedavg", optimizer__lr=0.005, federation__rounds=2)
    opened = []
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda self, *given, **more: opened.append(given))
    wire(tmp_path, clients).run(server, 2)
    list(run_rounds(together, other, 2))
    assert not opened and all((server.state[name] == tensor).all() for name, tensor in other.state.items())


def test_only_who_knows_the_secret_gets_a_task(line):
    tasks = line.sites["SiteA"].tasks
    assert tasks.claim() is None
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        inside.Tasks(inside.SITE, tasks.address, b"another secret", None).claim()
    anyone = httpx.Client(headers={"content-type": "application/protobuf", "accept": "application/protobuf"})
    for path in ("acquire-task", "pull-task-input", "pull-messages", "push-messages", "push-object", "push-task-output"):
        assert anyone.post(f"http://{tasks.address}/v1/runtime/{path}", content=b"").status_code in (401, 403), path


def test_who_is_admitted_and_a_second_site_with_one_key(line, tmp_path, caplog):
    ca = line.folder / credentials.CA
    credentials.write_key_pair(tmp_path / "stranger")
    assert inside.admitted(line.address, ca, line.folder / "SiteA"), "also while its site is at work"
    assert not inside.admitted(line.address, ca, tmp_path / "stranger")
    with pytest.raises(ConnectionError, match="refused"):
        inside.admitted(f"127.0.0.1:{free_port()}", ca, line.folder / "SiteA")
    for key, why in ((tmp_path / "stranger", "does not know this centre's key"), (line.folder / "SiteA", CONNECTED)):
        with pytest.raises(ConnectionError, match=f"no connection for 8 s: .*{why}"):
            run_supernode(None, line.address, ca, key, 8.0, tmp_path / "node")
    assert all(node.connected for node in line.sites.values()), "nobody was disturbed"


def test_an_error_at_a_site_leaves_it_as_a_kind_alone_and_the_site_stays(line):
    def fails(message, context):
        raise FileNotFoundError("/data/patient-4711/scan.png")

    line.apps["SiteA"] = fails
    for _ in range(2):
        (reply,) = line.grid.send_and_receive([Message(RecordDict(), line.nodes["SiteA"], "query")], timeout=300)
        assert reply.has_error() and reply.error.reason == "FileNotFoundError"


def test_a_supernode_that_is_killed_comes_back(line):
    node = line.sites["SiteB"]
    activated = {info.node_id: info.last_activated_at for info in line.grid.get_nodes()}[line.nodes["SiteB"]]
    starts = node.program.starts
    node.program.process.kill()
    # Flower lets it in again when it counts as away, a minute after its last sign of life.
    assert wait_until(lambda: node.program.starts > starts and node.connected, 400)
    assert {info.node_id: info.last_activated_at for info in line.grid.get_nodes()}[line.nodes["SiteB"]] != activated


def test_a_request_after_the_end_of_the_run_fails_and_interrupts_nothing(line):
    line.grid._disconnect()  # its client has the token that was valid
    token, line.grid._token = line.grid._token, "no longer valid"
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        line.grid.get_nodes()
    line.grid._disconnect()
    line.grid._token = token
    assert len(list(line.grid.get_nodes())) == 2
