"""VFMGL as a standard Flower App: equal to one process to the bit, in this process and with `flwr run` for real."""

import importlib.util
import itertools
import json
import os
import subprocess
import sysconfig
import tomllib
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from flwr.app import Context, RecordDict

from vfmgl_lib import __version__
from vfmgl_lib.config import ConfigError
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.flower import app as module
from vfmgl_lib.tools.flower.network import FederationError
from vfmgl_lib.tools.flower.programs import Program, flower_program, free_port, wait_until

ROOT = Path(__file__).parents[3]
APP = ROOT / "deploy" / "flower_app"
SMALLEST = ROOT / "tests" / "smallest.yaml"
RUN = {"task": "nuclei", "profile": str(SMALLEST), "seed": 0, "teacher": "", "out": "", "min-available-nodes": 2}


class DirectGrid:
    """A Grid whose nodes answer in this process: node n has the node config `nodes[n]`."""

    def __init__(self, run_config, nodes):
        self.run_config, self.nodes, self.answers, self.count = run_config, nodes, {}, itertools.count()

    def get_node_ids(self):
        return list(self.nodes)

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, last_activated_at="") for node in self.nodes]

    def push_messages(self, messages):
        return [self._answer(message) for message in messages]

    def pull_messages(self, identifiers):
        return [self.answers.pop(identifier) for identifier in identifiers if identifier in self.answers]

    def send_and_receive(self, messages, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message):
        node, identifier = message.metadata.dst_node_id, f"m{next(self.count)}"
        message.metadata.__dict__["_message_id"] = identifier
        self.answers[identifier] = module.client(message, context(self.run_config, node, self.nodes[node]))
        return identifier


def context(run_config, node=1, node_config=None):
    return Context(run_id=7, node_id=node, node_config=node_config or {}, state=RecordDict(), run_config=run_config)


@pytest.fixture
def home(tmp_path, monkeypatch, some_task):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    return tmp_path


def equals_one_process(rounds, runs, method):
    study = open_workspace("nuclei", SMALLEST, runs=runs).run(method, progress=False)
    kept = [file.relative_to(study.folder / "rounds") for file in sorted((study.folder / "rounds").glob("*/shared.safetensors"))]
    assert len(kept) > 1 and int(kept[-1].parts[0]) == study.last_round
    for file in kept:
        assert (rounds / file).read_bytes() == (study.folder / "rounds" / file).read_bytes(), file


@pytest.mark.parametrize("method", ["vfmgl", "harmofl"])
def test_the_app_equals_one_process(home, method):
    grid = DirectGrid(
        RUN | {"method": method}, {11: {"partition-id": 1, "num-partitions": 2}, 12: {"partition-id": 0, "num-partitions": 2}}
    )
    module.server(grid=grid, context=context(grid.run_config))
    equals_one_process(home / "vfmgl" / "7" / "rounds", home / "vfmgl" / "runs", method)
    assert {path.name for path in (home / "vfmgl" / "7").iterdir()} == {"rounds", "SiteA", "SiteB"}
    assert (home / "vfmgl" / "7" / "SiteA" / "shared" / "adapted.safetensors").is_file(), "every node has the last shared model"


def test_nodes_with_centres_of_their_own(home, phantoms):
    data = str(phantoms["nuclei"].root)
    nodes = {node: {"center": center, "data": data} for node, center in ((1, "SiteB"), (2, "SiteA"))}
    grid = DirectGrid(RUN | {"method": "fedavg", "out": str(home / "here")}, nodes)
    module.server(grid=grid, context=context(grid.run_config))
    assert (home / "here" / "rounds" / "002" / "shared.safetensors").is_file()


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ({1: {"center": "SiteA"}, 2: {"center": "SiteA"}}, FederationError, "two nodes say that they are centre SiteA"),
        ({1: {"center": "SiteZ"}, 2: {}}, ConfigError, "centre SiteZ has no images to train with; there are SiteA, SiteB"),
        ({1: {}, 2: {}}, ConfigError, "says neither center nor partition-id"),
        ({1: {"partition-id": 0, "num-partitions": 1}, 2: {}}, ConfigError, "num-partitions must be 2 or more, got 1"),
    ],
)
def test_nodes_that_cannot_be_centres(home, nodes, error, message):
    grid = DirectGrid(RUN | {"method": "fedavg"}, nodes)
    with pytest.raises(error, match=message):
        module.server(grid=grid, context=context(grid.run_config))


@pytest.mark.parametrize("of", [2, 3, 4])
def test_parts_of_centres_share_no_patient_and_leave_none_out(phantoms, of):
    whole, seen = phantoms["nuclei"], []
    parts = [module.partition(whole, number, of) for number in range(of)]
    assert len({name for name, _ in parts}) == of
    for name, part in parts:
        assert set(part.table["center"]) == {name} and "train" in set(part.table["split"])
        seen += part.table["path"].tolist()
    assert sorted(seen) == sorted(whole.table["path"])


def test_more_parts_than_patients_are_refused(phantoms):
    whole = phantoms["nuclei"]
    patients = whole.table[whole.table["split"] == "train"].groupby("center")["patient"].nunique()
    for number, center in enumerate(whole.training_centers):
        most = patients[center]
        with pytest.raises(ConfigError, match=f"asks for {most + 1} parts of centre {center}, which has {most} training patients"):
            module.partition(whole, number, 2 * (most + 1))


def test_the_app_is_of_this_version():
    assert tomllib.loads((APP / "pyproject.toml").read_text())["project"]["version"] == __version__


# `flwr run` for real ------------------------------------------------------------------------------------------------------------------


def environment(home):
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Flower starts its own programs by name.
    found = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    return {"FLWR_HOME": str(home), "PYTHONPATH": paths, "PATH": found, "OMP_NUM_THREADS": "1"}


def flwr(home, *words):
    settings = environment(home) | {"NO_PROXY": "*", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [*flower_program("flwr"), *words], cwd=APP, env=os.environ | settings, capture_output=True, text=True, timeout=900
    )
    return done.stdout + done.stderr


def state_of(home, run):
    said = flwr(home, "ls", "study", "--format", "json")
    (found,) = [one for one in json.loads(said[said.index("{") : said.rindex("}") + 1])["runs"] if one["run-id"] == run]
    return found["status"]


def started(home):
    words = f'task="nuclei" profile="{SMALLEST}" method="fedavg"'
    said = flwr(home, "run", ".", "study", "--run-config", words, "--format", "json")
    answer = json.loads(said[said.index("{") : said.rindex("}") + 1])
    assert answer["success"], said
    return answer["run-id"]


@pytest.mark.slow
def test_flwr_run_on_the_deployment_runtime(tmp_path):
    """Flower's own programs from end to end: a process of the ServerApp, and one of a ClientApp for each message."""
    port = free_port()
    (tmp_path / "config.toml").write_text(f'[superlink.study]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    more = environment(tmp_path)
    with ExitStack() as stack:
        heard = []
        stack.enter_context(Program([*flower_program("flower-superlink"), "--insecure", "--port", str(port)], heard.append, more=more))
        assert wait_until(lambda: any("Uvicorn running" in line for line in heard), 120)
        for number in (0, 1):
            options = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            options += ["--node-config", f"partition-id={number} num-partitions=2"]
            stack.enter_context(Program([*flower_program("flower-supernode"), *options], more=more))
        stopped = started(tmp_path)
        assert "successfully stopped" in flwr(tmp_path, "stop", stopped, "study")
        assert state_of(tmp_path, stopped) == "finished:stopped"
        run = started(tmp_path)
        assert wait_until(lambda: state_of(tmp_path, run) == "finished:completed", 900, pause=5), flwr(
            tmp_path, "log", run, "study", "--show"
        )
        said = flwr(tmp_path, "log", run, "study", "--show")
        assert "round 6 of 6: SiteA, SiteB took part" in said, said
    equals_one_process(tmp_path / "vfmgl" / run / "rounds", tmp_path / "vfmgl" / "runs", "fedavg")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed: Flower's simulation runtime is not tried")
def test_flwr_run_on_the_simulation_runtime(tmp_path):
    (tmp_path / "config.toml").write_text('[superlink.study]\naddress = ":local:"\n')
    words = f'task="nuclei" profile="{SMALLEST}" method="fedavg"'
    try:
        said = flwr(tmp_path, "run", ".", "study", "--stream", "--federation-config", "num-supernodes=2", "--run-config", words)
    finally:
        for left in psutil.process_iter(["cmdline"]):  # Flower leaves this runtime's SuperLink running
            if str(tmp_path) in " ".join(left.info["cmdline"] or []):
                left.terminate()
    assert "round 6 of 6: SiteA, SiteB took part" in said
    (rounds,) = (tmp_path / "vfmgl").glob("*/rounds")
    equals_one_process(rounds, tmp_path / "vfmgl" / "runs", "fedavg")
