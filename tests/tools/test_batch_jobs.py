"""Notebooks side by side: what runs when, that the log is as in series, and that an interrupted batch leaves no kernel behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from vfmgl_lib.tools.batch.__main__ import main
from vfmgl_lib.tools.batch.runner import read_log, run_batch
from vfmgl_lib.tools.batch.schedule import ALONE, NEEDS, Step, run_side_by_side, waits_for
from vfmgl_lib.tools.batch.settings import BatchSettings, default_jobs

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("endometrial", "nuclei")
ALL = (*NEEDS, *ALONE)
PARAMETERS = "\n".join(f'{name}: str = ""' for name in ("task", "profile", "data", "teacher", "device", "runs")) + "\nseed: int = 0"


def write_notebook(path: Path, code: str) -> None:
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), path)


def steps_of(*names: str, tasks: tuple[str, ...] = TASKS) -> list[Step]:
    return [Step(task, Path(f"{name}.ipynb")) for task in tasks for name in names]


def named(steps) -> set[tuple[str, str]]:
    return {(step.task, step.stem) for step in steps}


def test_a_notebook_waits_for_what_it_reads_and_for_nothing_else():
    waits = waits_for(steps_of(*ALL))
    before = {(step.task, step.stem): named(others) for step, others in waits.items()}
    assert before["nuclei", "03_ddbl"] == set() and before["nuclei", "05_comparison"] == {("nuclei", "03_ddbl")}
    others = {(task, name) for task in TASKS for name in NEEDS}
    for name in ALONE:
        assert before["endometrial", name] == others, "08 measures latency, and 09 reads the tables of every task"
        assert before["nuclei", name] == others | {("endometrial", name)}, "one at a time"
        others |= {(task, name) for task in TASKS}
    chosen = waits_for(steps_of("05_comparison", "06_generalization", tasks=("nuclei",)))
    assert [named(others) for others in chosen.values()] == [set(), {("nuclei", "05_comparison")}]
    own = waits_for(steps_of("01_a", "02_b", "03_c"))
    assert all(named(others) == {(step.task, name) for name in ("01_a", "02_b") if name < step.stem} for step, others in own.items())


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_what_the_longest_chains_wait_for_comes_first_and_no_more_run_than_asked_for(jobs: int):
    waits, lock = waits_for(steps_of(*ALL)), threading.Lock()
    begun, running, most, ended = [], set(), [0], []

    def run(step: Step) -> str:
        with lock:
            assert all(other in ended for other in waits[step])
            begun.append(step)
            running.add(step)
            most[0] = max(most[0], len(running))
        time.sleep(0.01)
        with lock:
            running.remove(step)
            ended.append(step)
        return step.name

    told = []
    run_side_by_side(run, waits, jobs, lambda step, result: told.append((step, result)), threading.Event())
    assert sorted(result for _, result in told) == sorted(step.name for step in waits) and most[0] == jobs
    assert named(begun[:2]) == {(task, "03_ddbl") for task in TASKS}
    assert [step.stem for step in begun[-4:]] == [name for name in ALONE for _ in TASKS]


def test_an_error_ends_what_runs_beside_it_and_is_passed_on():
    stopping = threading.Event()

    def run(step: Step) -> None:
        if step.task == "nuclei":
            raise OSError("the disk is full")
        assert stopping.wait(20), "nobody said to stop"

    with pytest.raises(OSError, match="the disk is full"):
        run_side_by_side(run, waits_for(steps_of("01_a", "02_b")), 2, lambda step, result: None, stopping)


MEETING = """
import os, pathlib, time
assert os.environ["OMP_NUM_THREADS"] == "1"
here, met = pathlib.Path(runs), []
(here / f"met-{task}").write_text("")
deadline = time.time() + 120
while len(met) < 2 and time.time() < deadline:
    met = sorted(here.glob("met-*"))
    time.sleep(0.05)
assert len(met) == 2, "the other task's notebook does not run beside this one"
assert pathlib.Path.cwd().name == "notebooks"
block = bytearray(150 * 2**20) if task == "nuclei" else None
time.sleep(1.5 if task == "endometrial" else 1)
"""


def test_tasks_run_side_by_side_and_the_log_is_as_in_series(tmp_path: Path, monkeypatch):
    """Each waits for the other; the second task is faster, and its rows stand second all the same. A failure stops nothing."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder, runs = tmp_path / "notebooks", tmp_path / "runs"
    folder.mkdir()
    write_notebook(folder / "01_data_preparation.ipynb", MEETING)
    write_notebook(folder / "10_fails.ipynb", "if task == 'endometrial':\n    raise ValueError('no samples')")
    write_notebook(folder / "11_last.ipynb", "1")
    done = run_batch(folder, BatchSettings(runs=runs, jobs=2), progress=False)
    names = ("01_data_preparation", "10_fails", "11_last")
    assert [(run.task, run.notebook) for run in done] == [(task, name) for task in TASKS for name in names]
    assert [run.error for run in done] == ["", "ValueError: no samples", "", "", "", ""]
    rows = read_log(runs / "smoke" / "runs.csv")
    assert [(row["folder"], row["notebook"], row["status"]) for row in rows] == [(run.task, run.notebook, run.status) for run in done]
    peaks = {run.task: run.peak_memory_mib for run in done if run.notebook == names[0]}
    assert peaks["nuclei"] - peaks["endometrial"] > 100, "a kernel's memory is its own"
    page = (runs / "smoke" / "index.html").read_text()
    places = [page.index(f"{task}/notebooks/{name}.html") for task in TASKS for name in names]
    assert places == sorted(places)


def test_a_second_batch_adds_its_rows_behind_the_first(tmp_path: Path):
    write_notebook(tmp_path / "01_one.ipynb", "1")
    settings = BatchSettings(tasks=("nuclei",), runs=tmp_path / "runs")
    first, second = run_batch(tmp_path, settings, progress=False), run_batch(tmp_path, settings, progress=False)
    rows = read_log(tmp_path / "runs" / "smoke" / "runs.csv")
    assert [row["seconds"] for row in rows] == [str(run.seconds) for run in (*first, *second)]


INTERRUPTED = """
import os, pathlib, time
if pathlib.Path.cwd().joinpath("hang").exists():
    pathlib.Path(runs, f"pid-{task}").write_text(str(os.getpid()))
    time.sleep(600)
"""


AGAIN = """
import sys
from pathlib import Path
from vfmgl_lib.tools.batch.__main__ import main
sys.exit(main(sys.argv[2:], Path(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_batch_leaves_no_kernel_and_keeps_what_was_finished(tmp_path: Path, number: signal.Signals):
    folder, runs = tmp_path / "notebooks", tmp_path / "runs"
    folder.mkdir()
    write_notebook(folder / "01_quick.ipynb", "1")
    write_notebook(folder / "02_hangs.ipynb", INTERRUPTED)
    words = ["--task", "endometrial", "--task", "nuclei", "--runs", str(runs), "--jobs", "2"]
    assert main(words, notebooks=folder) == 0
    page = runs / "smoke" / "nuclei" / "notebooks" / "02_hangs.html"
    before = page.read_bytes()
    (folder / "hang").write_text("")
    command = [sys.executable, "-c", AGAIN, str(folder), *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as batch:
        pids, deadline = list[str](), time.time() + 240
        while len(pids) < 2 and batch.poll() is None and time.time() < deadline:
            time.sleep(0.1)
            pids = [text for file in runs.glob("pid-*") if (text := file.read_text())]
        assert len(pids) == 2, batch.communicate()[1][-2000:]
        kernels = [psutil.Process(int(pid)) for pid in pids]
        os.kill(batch.pid, number)
        assert psutil.wait_procs(kernels, timeout=60)[1] == [], "a kernel goes on"
        _, said = batch.communicate(timeout=120)
    if number == signal.SIGKILL:
        return
    assert batch.returncode == 130 and "vfmgl run: interrupted" in said
    rows = read_log(runs / "smoke" / "runs.csv")
    assert [row["notebook"] for row in rows[4:]] == ["01_quick"] * 2 and page.read_bytes() == before
    assert not list(runs.rglob(".*.partial.ipynb"))


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_jobs_that_is_none_is_refused(number: str, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([f"--jobs={number}"])
    assert exit_.value.code == 2
    assert f"argument --jobs: expected a whole number of at least 1, got {number!r}" in capsys.readouterr().err


def test_jobs_unless_asked_for():
    assert default_jobs("cuda") == 1 and 1 <= default_jobs("cpu") <= (os.cpu_count() or 1)


def test_a_kernel_that_is_forked_shares_nothing_with_the_next(tmp_path: Path, monkeypatch):
    """What one notebook changes in a module, the environment, its folder or its random numbers is not there in another."""
    notebooks, seen = tmp_path / "notebooks", tmp_path / "seen"
    notebooks.mkdir()
    code = f"""
import json, logging, os, sys
import numpy as np, torch
from ipykernel.kernelapp import IPKernelApp
from vfmgl_lib.study import workspace
log, said = IPKernelApp.instance().log, []
log.addHandler(type("Heard", (logging.Handler,), {{"emit": lambda self, record: said.append(record.getMessage())}})())
log.error("KeyboardInterrupt caught in kernel.")
log.error("something else")
there = [hasattr(workspace, "changed"), "CHANGED" in os.environ, os.path.basename(os.getcwd())]
there += [torch.get_num_threads(), os.getpgid(0) == os.getpid(), said]
workspace.changed, os.environ["CHANGED"] = True, "1"
with open({str(seen)!r}, "a") as file:
    file.write(json.dumps([os.getppid(), "timm" in sys.modules, np.random.random(), there]) + "\\n")
os.chdir("/")
"""
    for name in ("11_one", "12_two"):
        write_notebook(notebooks / f"{name}.ipynb", code)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = run_batch(notebooks, BatchSettings(tasks=("nuclei",), runs=tmp_path / "runs", jobs=1), progress=False)
    assert [run.status for run in done] == ["ok", "ok"], [run.traceback for run in done]
    first, second = (json.loads(line) for line in seen.read_text().splitlines())
    assert first[0] == second[0] and first[1], "they are not forked from one process that has timm"
    assert first[2] != second[2]
    assert first[3] == second[3] == [False, False, "notebooks", 1, True, ["something else"]], "its end is no error to be told"
