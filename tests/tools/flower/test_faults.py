"""What goes wrong in a federation, with real processes: each fault, and that nothing is lost or counted twice."""

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import torch

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_json
from vfmgl_lib.federation.rounds import QuorumError, run_rounds
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.flower import credentials, sandbox
from vfmgl_lib.tools.flower import one_machine as local
from vfmgl_lib.tools.flower.deployment import init
from vfmgl_lib.tools.flower.network import client_app, network_rounds
from vfmgl_lib.tools.flower.one_machine import run_rounds_apart, write_site_data
from vfmgl_lib.tools.flower.programs import free_port
from vfmgl_lib.tools.flower.site import Site
from vfmgl_lib.tools.flower.status import NOW

ROOT = Path(__file__).parents[3]
SMALLEST = ROOT / "tests" / "smallest.yaml"
needs_landlock = pytest.mark.skipif(
    not sandbox.landlock_version(), reason="this kernel has no Landlock: a process cannot be kept to its files"
)


def _waits_for(condition, seconds=900.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.05)


# Updates that are refused ---------------------------------------------------------------------------------------------------------------


def _nan(state):
    state["head.weight"][0] = float("nan")


def _shape(state):
    state["head.weight"] = state["head.weight"][:1]


def _dtype(state):
    state["head.weight"] = state["head.weight"].double()


def _missing(state):
    del state["head.weight"]


def _additional(state):
    state["images"] = torch.zeros(3)


def _norm(state):
    state["head.weight"] *= 1e6


BAD = [
    (_nan, "head.weight holds values that are not finite"),
    (_shape, "state head.weight must be"),
    (_dtype, "state head.weight must be torch.float32, got torch.float64"),
    (_missing, "state head.weight must be .* got nothing"),
    (_additional, "state images must be nothing: it is not declared"),
    (_norm, "its norm is .* over faults.largest_norm"),
]


@pytest.mark.parametrize("method", ["vfmgl", "metafed"])
@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[spoil.__name__[1:] for spoil, _ in BAD])
def test_a_bad_update_is_refused_by_name_and_the_round_goes_on(federation, received, monkeypatch, method, spoil, message):
    clients, server = federation("nuclei", method, optimizer__lr=0.005, federation__rounds=3)
    taken, send = received(server), type(clients[0]).sent_state

    def spoilt(self):
        state, aggregates = send(self)
        if self.center == "SiteA":
            spoil(state)
        return state, aggregates

    monkeypatch.setattr(type(clients[0]), "sent_state", spoilt)
    for done in run_rounds(clients, server, 2, quorum=0.5):
        (fault,) = done.faults
        assert (fault.round, fault.center, fault.kind) == (done.number, "SiteA", "refused")
        assert re.search(message, fault.detail) and "centre SiteA" in fault.detail
        assert done.centers == ["SiteB"] and [update.center for update in taken] == ["SiteB"]
        if done.shared is not None:
            assert all(torch.equal(done.shared[name], tensor) for name, tensor in taken[0].state.items()), "the mean of SiteB alone"
        taken.clear()
    clients, server = federation("nuclei", method, optimizer__lr=0.005, federation__rounds=3)
    with pytest.raises(QuorumError, match=r"round 1: 1 of 2 centres took part, faults.quorum asks for 2: SiteA refused: "):
        list(run_rounds(clients, server, 2, quorum=1.0))


# A federation of processes below one study ----------------------------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch):
    """The site processes of the study that runs next."""
    made = []
    start = local.SiteProcesses.__init__

    def remember(self, *arguments):
        start(self, *arguments)
        made.append(self)

    monkeypatch.setattr(local.SiteProcesses, "__init__", remember)
    return made


def _run(workspace, disturb, processes):
    """Runs the study over the network while `disturb` does its work beside it; returns study and the sites' processes."""
    problems = []

    def work():
        try:
            _waits_for(lambda: bool(processes))
            disturb(processes[0])
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    study = workspace.run("vfmgl", progress=False, network=run_rounds_apart)
    thread.join()
    assert not problems, problems
    assert all(process.poll() is not None for process in processes[0].running.values()), "everything that was started is ended"
    return study


def _round(processes, center, number):
    return (processes.sites[center] / "state" / "rounds" / f"{number:03d}").is_dir()


def _same_models(one, other):
    for number in range(1, one.last_round + 1):
        name = Path("rounds") / f"{number:03d}" / "shared.safetensors"
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes(), number


@pytest.mark.slow
@needs_landlock
def test_a_centre_killed_in_mid_round_comes_back_and_nothing_is_lost(tmp_path, processes):
    workspace = open_workspace("nuclei", SMALLEST, runs=tmp_path / "runs", federation__rounds=3)

    def kill(sites):
        _waits_for(lambda: _round(sites, "SiteA", 1))
        _waits_for(lambda: _round(sites, "SiteB", 1))
        os.kill(sites.running["SiteA"].pid, signal.SIGKILL)

    study = _run(workspace, kill, processes)
    assert processes[0].starts == {"SiteA": 2, "SiteB": 1}
    assert not len(study.faults), "it was back before the deadline"
    _same_models(study, workspace.run("vfmgl", progress=False))


@pytest.mark.slow
@needs_landlock
def test_a_silent_centre_is_left_out_after_the_deadline_and_is_welcome_again(tmp_path, processes):
    few = {"federation__rounds": 3, "faults__deadline": 30}  # which the silent rounds wait out
    workspace = open_workspace("nuclei", SMALLEST, runs=tmp_path / "runs", **few)

    def silence(sites):
        _waits_for(lambda: _round(sites, "SiteA", 1))
        _waits_for(lambda: _round(sites, "SiteB", 1))
        os.kill(sites.running["SiteA"].pid, signal.SIGSTOP)  # whose answer is the first in the order
        _waits_for(lambda: _round(sites, "SiteB", 3))
        os.kill(sites.running["SiteA"].pid, signal.SIGCONT)

    study = _run(workspace, silence, processes)
    left_out = study.faults[["round", "center", "kind"]].values.tolist()
    assert [2, "SiteA", "silent"] in left_out and all(center == "SiteA" and kind == "silent" for _, center, kind in left_out)
    assert study.traffic.query("center == 'SiteB'")["round"].tolist() == [1, 2, 3]


@pytest.mark.slow
@needs_landlock
def test_a_full_disk_at_a_centre_costs_it_the_round_and_no_more(tmp_path, processes):
    workspace = open_workspace("nuclei", SMALLEST, runs=tmp_path / "runs", federation__rounds=4)

    def fill(sites):
        _waits_for(lambda: _round(sites, "SiteB", 1))
        pid = sites.running["SiteB"].pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (2**16, resource.RLIM_INFINITY))
        _waits_for(lambda: _round(sites, "SiteA", 2))
        _waits_for(lambda: "File too large" in (sites.logs / "SiteB.log").read_text())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    study = _run(workspace, fill, processes)
    assert set(map(tuple, study.faults[["center", "kind"]].values)) == {("SiteB", "failed")}
    assert "OSError; the centre's log says more" in study.faults["detail"].iloc[0] and study.faults["round"].iloc[0] in (2, 3)
    assert study.traffic.query("center == 'SiteB'")["round"].max() == 4, "it took part again"


@pytest.mark.slow
@needs_landlock
def test_a_killed_coordinator_goes_on_after_its_last_round(tmp_path):
    script = (
        "from vfmgl_lib.study.workspace import open_workspace\n"
        "from vfmgl_lib.tools.flower.one_machine import run_rounds_apart\n"
        f"open_workspace('nuclei', {str(SMALLEST)!r}, runs={str(tmp_path / 'runs')!r}, federation__rounds=3)"
        ".run('vfmgl', progress=False, network=run_rounds_apart)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    workspace = open_workspace("nuclei", SMALLEST, runs=tmp_path / "runs", federation__rounds=3)
    rounds = workspace.folder / "studies_network"
    _waits_for(lambda: list(rounds.glob("*/rounds/001")))
    sites = list(rounds.glob("*/federation/sites/*"))
    assert len(sites) == 2
    first.kill()
    first.wait()
    _waits_for(lambda: not _alive(sites), 60)
    study = workspace.run("vfmgl", progress=False, network=run_rounds_apart)
    assert study.complete and [entry["after_round"] for entry in _starts(study)][-1] >= 1
    _same_models(study, workspace.run("vfmgl", progress=False))


def _alive(sites):
    """Processes that serve one of these sites."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        found += [process for site in sites if str(site).encode() in command]
    return found


def _starts(study):
    return json.loads((study.folder / "environment.json").read_text())


# A deployment: a server and sites that know nothing of one another but the network ------------------------------------------------------


class Deployment:
    """The folders that the guide makes, filled in, and their processes."""

    def __init__(self, folder, rounds=3):
        self.folder = folder
        self.workspace = open_workspace("nuclei", SMALLEST, runs=folder / "runs", federation__rounds=rounds)
        port = free_port()
        init(folder / "made", "nuclei", str(SMALLEST), "vfmgl", 0, "127.0.0.1", port, "")
        if not shutil.which("nginx", path="/usr/sbin:/usr/bin"):
            settings = folder / "made" / "server" / "server.yaml"
            settings.write_text(settings.read_text().replace("nginx: true", "nginx: false"))
        self.server, self.sites, self.processes = folder / "made" / "server", {}, {}
        values = self.workspace.settings.model_dump(mode="json") | {"vfmgl_lib": __version__}
        write_json(self.server / "study.json", values)
        for center in self.workspace.manifest.training_centers:
            site = shutil.copytree(folder / "made" / "site", folder / center)
            write_site_data(self.workspace.manifest, center, site / "data")
            credentials.write_key_pair(site / "key")
            shutil.copy(site / "key.pub", self.server / "centers" / f"{center}.pub")
            write_json(site / "study.json", values)
            settings = {
                "center": center,
                "superlink": f"127.0.0.1:{port}",
                "data": "data",
                "patience": 180,  # a busy machine may need a minute until a server that was killed is there again
                "threads": torch.get_num_threads(),
            }
            write_json(site / "site.yaml", settings)
            self.sites[center] = site

    def start(self, name, folder, *before):
        command = [sys.executable, "-m", "vfmgl_lib.cli", "federation", "server" if name == "server" else "site", str(folder)]
        with open(self.folder / f"{name}.log", "ab") as stream:
            self.processes[name] = subprocess.Popen([*before, *command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT)
        return self.processes[name]

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def round(self, folder, number):
        return (folder / "state" / "rounds" / f"{number:03d}").is_dir()

    def equals_one_process(self):
        study = self.workspace.run("vfmgl", progress=False)
        for number in range(1, study.last_round + 1):
            kept, expected = (
                folder / "rounds" / f"{number:03d}" / "shared.safetensors" for folder in (self.server / "state", study.folder)
            )
            assert kept.read_bytes() == expected.read_bytes(), number

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.mark.slow
@needs_landlock
def test_a_server_killed_within_a_round_and_with_a_full_disk_goes_on_and_counts_nothing_twice(tmp_path):
    made = Deployment(tmp_path)
    try:
        server = made.start("server", made.server)
        for center, site in made.sites.items():
            made.start(center, site)
        _waits_for(lambda: made.round(made.server, 1))
        _waits_for(lambda: any(made.round(site, 2) for site in made.sites.values()))
        server.kill()  # within round 2: one site has trained it
        server.wait()
        server = made.start("server", made.server, "prlimit", "--fsize=65536")
        assert server.wait(900) == 1
        assert re.search("error: .*(File too large|disk I/O error|disk is full)", made.log("server")), "a full disk is said"
        assert not made.round(made.server, 2), "nothing half written stays"
        server = made.start("server", made.server)
        assert server.wait(900) == 0
        assert all(made.processes[center].wait(300) == 0 for center in made.sites)
        made.equals_one_process()
        assert any("answered from disk" in made.log(center) for center in made.sites)
        assert not (made.server / "state" / NOW).exists(), "the status knows that the server has ended"
    finally:
        made.end()


@pytest.mark.slow
@needs_landlock
def test_a_killed_superlink_and_a_killed_supernode_come_back_and_nothing_is_lost(tmp_path):
    made = Deployment(tmp_path)

    def kill(name, program):
        (found,) = [one for one in psutil.Process(made.processes[name].pid).children() if program in " ".join(one.cmdline())]
        found.kill()

    try:
        made.start("server", made.server)
        for center, site in made.sites.items():
            made.start(center, site)
        _waits_for(lambda: made.round(made.server, 1))
        kill("server", "flower-superlink")
        _waits_for(lambda: made.round(made.server, 2))
        kill("SiteB", "flower-supernode")
        assert made.processes["server"].wait(900) == 0
        assert all(made.processes[center].wait(300) == 0 for center in made.sites)
        assert "the SuperLink does not answer" in made.log("server") and "going on after round" in made.log("server")
        made.equals_one_process()
    finally:
        made.end()


@pytest.mark.slow
@needs_landlock
def test_a_site_with_a_read_only_folder_says_so_and_a_second_site_with_one_key_is_refused(tmp_path):
    made = Deployment(tmp_path, rounds=2)
    try:
        site = made.sites["SiteA"]
        (site / "tmp").mkdir()
        confine = (
            "import sys; from pathlib import Path; "
            "from vfmgl_lib.tools.flower import sandbox; from vfmgl_lib.tools.flower.__main__ import main; "
            f"sandbox.restrict([Path('/')], [Path({str(site / 'tmp')!r}), Path('/dev')]); sys.exit(main(['site', {str(site)!r}]))"
        )
        done = subprocess.run([sys.executable, "-c", confine], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1 and f"this user may not open {site}" in done.stderr
        made.start("server", made.server)
        made.start("SiteA", site)
        _waits_for(lambda: "connected" in made.log("SiteA"))
        second = shutil.copytree(site, tmp_path / "second", ignore=shutil.ignore_patterns("state", "tmp"))
        values = (second / "site.yaml").read_text().replace('"patience": 180', '"patience": 1')
        (second / "site.yaml").write_text(values)
        assert made.start("second", second).wait(900) == 1
        assert "a site with this key is connected" in made.log("second")
        made.start("SiteB", made.sites["SiteB"])
        assert made.processes["server"].wait(900) == 0, "the federation is not disturbed by it"
    finally:
        made.end()


# A bad line -----------------------------------------------------------------------------------------------------------------------------


class SlowLine:
    """Forwards to a port; a fifth of what passes, either way, is held back for a while."""

    def __init__(self, target):
        self.target, self.random, self.delayed, self.passed = target, random.Random(0), 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            near, _ = self.listener.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                near.close()
                continue
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one, other):
        try:
            while data := one.recv(65536):
                self.passed += 1
                if self.random.random() < 0.2:
                    self.delayed += 1
                    time.sleep(self.random.uniform(0.05, 0.4))
                other.sendall(data)
        except OSError:
            data = b""
        for end in (one, other):
            end.close()


@pytest.mark.slow
def test_a_fifth_of_all_messages_delayed_changes_nothing(federation, line, tmp_path):
    apart, server = federation("nuclei", "vfmgl", optimizer__lr=0.005, federation__rounds=2, faults__deadline=600)
    together, other = federation("nuclei", "vfmgl", optimizer__lr=0.005, federation__rounds=2)
    slow, nodes = SlowLine(line.port), {}
    with ExitStack() as stack:
        for name, client in zip(("Spare1", "Spare2"), apart, strict=True):
            line.apps[name] = client_app(Site(client, tmp_path / client.center, client.settings.key()))
            stack.enter_context(line.site(name, f"127.0.0.1:{slow.port}"))
            nodes[client.center] = line.nodes[name]
        done = list(network_rounds(line.grid, nodes, server, 2, settings=apart[0].settings))
    assert slow.delayed > 10 and not any(round.faults for round in done)
    list(run_rounds(together, other, 2))
    assert all(torch.equal(server.state[name], tensor) for name, tensor in other.state.items())
