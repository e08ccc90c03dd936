"""Sweeps: the same bits in any order and beside one another, and after every kind of interruption."""

import _thread
import fcntl
import os
import shlex
import signal
import stat
import sys
import threading
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import psutil
import pytest
import torch

from vfmgl_lib.config import ConfigError
from vfmgl_lib.study import training as training_module
from vfmgl_lib.study.training import is_running
from vfmgl_lib.tools.sweep import SweepError, plan, run_sweep, sweep_status
from vfmgl_lib.tools.sweep import run as module


def sweep(workspace, methods, seeds=(0,), **how):
    return run_sweep(workspace, methods, seeds, progress=False, threads=1, **how)


def in_background(action):
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


@pytest.fixture
def interruptible():
    """A shell starts what it runs in the background with SIGINT ignored: nothing could be interrupted there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_any_order_gives_the_same_bits_and_a_second_call_trains_nothing(small, content, monkeypatch):
    sizes = {"federation__rounds": 1}
    one = sweep(small("one", **sizes), ["local", "hgkt"], [0, 1])
    other = sweep(small("other", **sizes), ["hgkt", "local"], [1, 0])
    assert [study.folder.name.split("-")[:2] for study in one] == [
        ["local", "seed0"],
        ["hgkt", "seed0"],
        ["local", "seed1"],
        ["hgkt", "seed1"],
    ]
    by_name = {study.folder.name: study.folder for study in other}
    for study in one:
        assert content(study.folder) == content(by_name[study.folder.name])
    monkeypatch.setattr(training_module, "_train", lambda *arguments: pytest.fail("trained again"))
    assert [study.folder for study in sweep(small("one", **sizes), ["local", "hgkt"], [0, 1])] == [study.folder for study in one]


def test_one_failure_does_not_stop_the_others_and_is_named_at_the_end(small, monkeypatch):
    workspace, train = small(), training_module._train

    def fails_for_local(study, *arguments):
        if study.settings.method == "local":
            raise ValueError("no luck")
        train(study, *arguments)

    monkeypatch.setattr(training_module, "_train", fails_for_local)
    seen = []
    message = r"1 of the sweep's studies failed, 2 are complete:\n  local seed 0: ValueError: no luck"
    with pytest.raises(SweepError, match=message) as raised:
        sweep(workspace, ["fedavg", "local", "fedprox"], finished=lambda job: seen.append(job.name))
    assert seen == ["fedavg seed 0", "fedprox seed 0"]
    assert [study.settings.method for study in raised.value.studies] == ["fedavg", "fedprox"]
    assert sweep_status(workspace, ["local"], [0])["error"].tolist() == ["ValueError: no luck"]
    monkeypatch.undo()
    assert len(sweep(workspace, ["fedavg", "local", "fedprox"])) == 3
    assert sweep_status(workspace, ["local"], [0])[["state", "error"]].to_numpy().tolist() == [["done", ""]]


def test_what_follows_a_study_may_fail_too(small):
    with pytest.raises(SweepError, match=r"local seed 0: the study is complete, but what follows failed: KeyError: 'auc'"):
        sweep(small(), ["local"], finished=lambda job: {}["auc"])


@pytest.mark.parametrize("processes", [1, 2])
def test_what_another_process_runs_is_left_to_it_and_then_taken(small, monkeypatch, tmp_path, processes):
    workspace = small()
    first, _ = plan(workspace, ["local", "fedavg"], [0])
    first.study.folder.mkdir(parents=True)
    started, seen = [], []

    def submit(job, running):
        started.append(job.name)
        job.workspace.run(job.method, progress=False)
        return SimpleNamespace(done=lambda: True, job_id="0", paths=SimpleNamespace(folder=tmp_path))

    monkeypatch.setattr(module, "_beside", lambda *arguments: submit)
    with open(first.study.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def finished(job):
            seen.append(job.name)
            fcntl.flock(lock, fcntl.LOCK_UN)  # the other process ends without having completed it

        sweep(workspace, ["local", "fedavg"], processes=processes, finished=finished)
    assert seen == ["fedavg seed 0", "local seed 0"]
    assert started == seen * (processes > 1), "no process is started for a study that another one holds"


def test_interrupted_in_this_process_goes_on(small, content, monkeypatch):
    undisturbed = sweep(small("undisturbed"), ["local", "fedavg"])
    join = training_module._join_tables
    monkeypatch.setattr(training_module, "_join_tables", lambda study: (_ for _ in ()).throw(KeyboardInterrupt))
    workspace = small()
    with pytest.raises(KeyboardInterrupt):
        sweep(workspace, ["local", "fedavg"])
    monkeypatch.setattr(training_module, "_join_tables", join)
    assert sweep_status(workspace, ["local", "fedavg"], [0])["rounds_done"].tolist() == [2, 0]
    for study, other in zip(sweep(workspace, ["local", "fedavg"]), undisturbed, strict=True):
        assert content(study.folder) == content(other.folder)


@pytest.mark.slow
def test_beside_one_another_with_one_killed_midway_ends_bit_identical(small, content):
    sizes = {"federation__rounds": 3}
    undisturbed = sweep(small("undisturbed", **sizes), ["hgkt", "local"])
    workspace = small(**sizes)
    hgkt, _ = plan(workspace, ["hgkt", "local"], [0])

    def kill():
        wait_until(lambda: hgkt.study.rounds_done)
        lock = str((hgkt.study.folder / ".lock").resolve())
        for process in psutil.Process().children(recursive=True):
            if any(file.path == lock for file in process.open_files()):
                process.kill()

    killer = in_background(kill)
    with pytest.raises(SweepError, match="hgkt seed 0: the process ended before its study was complete") as raised:
        sweep(workspace, ["hgkt", "local"], processes=2)
    killer.join()
    assert list(raised.value.failures) == ["hgkt seed 0"]
    status = sweep_status(workspace, ["hgkt", "local"], [0])
    assert status["state"].tolist() == ["failed", "done"] and 1 <= status["rounds_done"][0] < 3
    for study, other in zip(sweep(workspace, ["hgkt", "local"]), undisturbed, strict=True):
        assert content(study.folder) == content(other.folder)


@pytest.mark.slow
def test_an_interrupt_ends_the_processes_beside(small, interruptible):
    workspace = small(federation__rounds=100_000)
    (job,) = plan(workspace, ["local"], [0])

    def interrupt():
        wait_until(lambda: is_running(job.study.folder))
        _thread.interrupt_main()

    in_background(interrupt)
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt):
        sweep(workspace, ["local"], processes=2)
    assert not [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert job.state == "left"


SBATCH = """#!{python}
import os, pathlib, subprocess, sys
folder = pathlib.Path(__file__).parent
(folder / "submitted.sh").write_text(pathlib.Path(sys.argv[1]).read_text())
slurm = dict(SLURM_JOB_ID="7", SLURM_NTASKS="1", SLURM_JOB_NUM_NODES="1", SLURM_NODEID="0", SLURM_PROCID="0", SLURM_LOCALID="0")
subprocess.Popen(["bash", sys.argv[1]], env=os.environ | slurm, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 7")
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == --output || $1 == --error ]] && shift; shift; done
exec "$@"
"""
SACCT = "#!/bin/bash\nprintf 'JobID|State|NodeList\\n7|RUNNING|here\\n'\n"


@pytest.mark.slow
def test_slurm_gets_the_parameters_and_runs_the_study(small, tmp_path, monkeypatch):
    """With stand-ins for SLURM's commands that run the batch script here."""
    programs = tmp_path / "slurm"
    programs.mkdir()
    for name, text in {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "sacct": SACCT}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    parameters = {"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 7}
    workspace = small()
    (study,) = sweep(workspace, ["local"], executor="slurm", cluster=parameters)
    assert study.complete
    script = (programs / "submitted.sh").read_text()
    for line in ("#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=1", "#SBATCH --time=7"):
        assert line in script.splitlines()
    assert "OMP_NUM_THREADS=1" in script
    with pytest.raises(ConfigError, match=r"executor slurm: .*Unknown argument 'partitoin'"):
        sweep(workspace, ["local"], executor="slurm", cluster={"slurm_partitoin": "gpu"})


def test_slurm_without_a_cluster_and_other_impossible_ways_are_refused(small):
    for how, message in (
        ({"executor": "slurm"}, 'executor slurm: Could not detect "srun"'),
        ({"executor": "pbs"}, "executor 'pbs': must be one of local, slurm"),
        ({"processes": 0}, "processes 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            sweep(small(), ["local"], **how)


def test_every_process_gets_a_gpu_of_its_own_while_there_are_enough(small, monkeypatch):
    workspace = small()
    jobs = plan(workspace, ["local"], [0, 1, 2, 3])
    submitted = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-x")

    class Recorder:
        def __init__(self, folder, cluster, local_python):
            self.words = shlex.split(local_python)

        def update_parameters(self, **parameters):
            pass

        def submit(self, attempt):
            submitted.append((self.words, attempt.threads))

    monkeypatch.setattr(module.submitit, "AutoExecutor", Recorder)
    on_gpus = replace(workspace, settings=workspace.settings.model_copy(update={"device": "cuda"}))
    submit = module._beside(on_gpus, 2, "local", 3, {})
    submit(jobs[0], [])
    submit(jobs[1], [jobs[0]])
    submit(jobs[2], [jobs[1]])  # the first has ended
    submit(jobs[3], [jobs[1], jobs[2]])
    assert [words[-2] for words, _ in submitted] == [f"CUDA_VISIBLE_DEVICES={gpu}" for gpu in ("2", "GPU-x", "2", "2")]
    assert all("OMP_NUM_THREADS=3" in words and threads == 3 for words, threads in submitted)
    module._beside(workspace, 2, "local", 3, {})(jobs[0], [])
    assert not any(word.startswith("CUDA") for word in submitted[-1][0]), "without cuda none is chosen"


@dataclass(frozen=True)
class Seen(module._Attempt):
    def __call__(self):
        return os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]


@pytest.mark.slow
def test_a_process_sees_its_gpu_and_its_threads(small, monkeypatch):
    workspace = small()
    (job,) = plan(workspace, ["local"], [0])
    monkeypatch.setattr(module, "_Attempt", Seen)
    monkeypatch.setattr(module, "_gpus", lambda: ["5"])
    on_gpus = replace(workspace, settings=workspace.settings.model_copy(update={"device": "cuda"}))
    assert module._beside(on_gpus, 2, "local", 3, {})(job, []).result() == ("5", "3")


def test_an_attempt_has_its_threads_and_leaves_those_of_its_process(small, monkeypatch):
    (job,) = plan(small(), ["local"], [0])
    seen, before = [], torch.get_num_threads()
    monkeypatch.setattr(type(job.workspace), "run", lambda *arguments, **options: seen.append(torch.get_num_threads()))
    module._Attempt(job, 3)()
    module._Attempt(job, None)()
    assert seen == [3, before] and torch.get_num_threads() == before


def test_the_bar_counts_rounds_of_all_studies(small, capsys):
    run_sweep(small(), ["local", "fedavg"], [0], threads=1)
    bar = capsys.readouterr().err
    assert "100%" in bar and "4/4 rounds" in bar and "2 done; about 00:00 left" in bar
