"""Running a sweep: in this process, in several beside it, or on a cluster. A sweep that was interrupted goes on when it is called again.

Each study runs under its lock (`study.training.is_running`), so several sweeps over the same runs, also on several machines, share work:
one takes what no other is running, and loads what another has finished.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import psutil
import submitit
import torch
from submitit.helpers import Checkpointable
from tqdm import tqdm

from vfmgl_lib.base.places import LIBRARY
from vfmgl_lib.config import ConfigError
from vfmgl_lib.study.study import Study
from vfmgl_lib.study.training import StudyRunningError
from vfmgl_lib.study.workspace import Workspace
from vfmgl_lib.tools.sweep.jobs import Job, Split, plan, status_table

log = logging.getLogger(__name__)
Executor = Literal["local", "slurm"]
POLL = 0.5  # seconds between two looks at what is running
YEAR = 365 * 24 * 60  # minutes: submitit's local executor ends what takes longer than it is told


class SweepError(RuntimeError):
    """Some studies of a sweep failed; the message names each with its error.

    Attributes:
        failures: a job's name -> its error.
        studies: the complete ones.
    """

    def __init__(self, failures: Mapping[str, str], studies: Sequence[Study]):
        self.failures, self.studies = dict(failures), list(studies)
        lines = "".join(f"\n  {name}: {error}" for name, error in failures.items())
        super().__init__(f"{len(failures)} of the sweep's studies failed, {len(studies)} are complete:{lines}")


def run_sweep(
    workspace: Workspace,
    methods: Iterable[str],
    seeds: Iterable[int],
    splits: Iterable[Split | None] = (None,),
    processes: int = 1,
    executor: Executor = "local",
    progress: bool = True,
    *,
    threads: int | None = None,
    cluster: Mapping[str, Any] | None = None,
    finished: Callable[[Job], object] = lambda job: None,
) -> list[Study]:
    """Runs every (method, seed, split) that is not complete: complete studies are loaded, interrupted ones go on.

    Args:
        workspace: the task, its data and settings.
        splits: (training share, seed) of divisions of the patients, None for the workspace's own.
        processes: studies at a time. One runs in this very process; more run in processes of their own, each with its share of the cores
            and, with device cuda, its own GPU where there are several. On a cluster all are submitted at once and its queue decides.
        executor: "local" or "slurm" (submitit).
        progress: a bar over the rounds of all studies, with the time left.
        threads: of each process; None: torch's threads in this one, divided by `processes` (on a cluster: what it gives). The last bits of
            a study depend on its number of threads, not on what runs beside it.
        cluster: submitit's parameters of a cluster's jobs, e.g. {"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 240}; a job
            that reaches its time limit is queued again and goes on.
        finished: called with every complete job, also those that were complete before, here and one at a time.
    Returns: the studies, in the order of `plan`.
    Raises: SweepError: at the end, when all others are complete, naming every study that failed. ConfigError, ManifestError: before
        anything runs. KeyboardInterrupt: after the processes that were started have ended; the same call goes on.
    """
    jobs = plan(workspace, methods, seeds, splits)
    return run_jobs(jobs, processes, executor, progress, threads=threads, cluster=cluster, finished=finished)


def run_jobs(
    jobs: Sequence[Job],
    processes: int = 1,
    executor: Executor = "local",
    progress: bool = True,
    *,
    threads: int | None = None,
    cluster: Mapping[str, Any] | None = None,
    finished: Callable[[Job], object] = lambda job: None,
) -> list[Study]:
    """`run_sweep` of jobs that are planned already, of one task on one device."""
    if executor not in get_args(Executor):
        raise ConfigError(f"executor {executor!r}: must be one of {', '.join(get_args(Executor))}")
    if processes < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"processes {processes}, threads {threads}: must be at least 1")
    workspace = jobs[0].workspace
    failures: dict[str, str] = {}

    def settle(job: Job) -> None:
        if not job.study.complete:
            failures[job.name] = job.error
            return
        try:
            finished(job)
        except Exception as error:  # the others are to run all the same
            log.exception("%s: complete, but what follows failed", job.name)
            failures[job.name] = f"the study is complete, but what follows failed: {type(error).__name__}: {error}"

    beside = executor != "local" or processes > 1
    submit = _beside(workspace, processes, executor, threads, cluster or {}) if beside else lambda job, running: _Attempt(job, threads)()
    places = processes if executor == "local" else len(jobs)
    with _progress(jobs, places, progress):
        _run_all(jobs, places, submit, settle)
    if failures:
        raise SweepError(failures, [job.study for job in jobs if job.study.complete])
    return [job.study for job in jobs]


# A job, the jobs that run already -> submitit's handle of its process; None: it was run in this one.
Submit = Callable[[Job, list[Job]], submitit.Job | None]


def _run_all(jobs: Sequence[Job], places: int, submit: Submit, settle: Callable[[Job], None]) -> None:
    """At most `places` jobs at a time."""
    waiting, running = list(jobs), dict[Job, submitit.Job | None]()
    try:
        while waiting or running:
            for job, handle in list(running.items()):
                if handle and not handle.done():
                    continue
                del running[job]
                if job.state == "running" or (not handle and job.state == "left"):  # another process was faster
                    waiting.append(job)
                    continue
                if handle:
                    _close(job, handle)
                settle(job)
            while len(running) < places and (taken := _next_job(waiting)):
                if taken.study.complete:
                    settle(taken)
                else:
                    taken.tried_again()
                    running[taken] = submit(taken, list(running))
            if any(running.values()) or (waiting and not running):
                time.sleep(POLL)
    except BaseException:
        _end([handle for handle in running.values() if handle])
        raise


def _next_job(waiting: list[Job]) -> Job | None:
    """Removes and returns the first job that no other process is running; None: all are being run elsewhere, or none is left."""
    for position, job in enumerate(waiting):
        if job.state != "running":
            return waiting.pop(position)
    return None


@dataclass(frozen=True)
class _Attempt(Checkpointable):
    """Runs or loads a job's study. Checkpointable: a cluster that ends it at its time limit queues it again, and the study goes on."""

    job: Job
    threads: int | None

    def __call__(self) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            self.job.workspace.run(self.job.method, progress=False)
        except StudyRunningError:  # another process was faster
            pass
        except Exception as error:  # noted, so that a process which is asked later can tell
            self.job.failed(f"{type(error).__name__}: {error}", traceback.format_exc())
            log.exception("%s failed", self.job.name)
        finally:
            torch.set_num_threads(before)


def _beside(workspace: Workspace, processes: int, executor: Executor, threads: int | None, cluster: Mapping[str, Any]) -> Submit:
    """Runs each job in a process of its own, or submits it to a cluster."""
    on_gpu = workspace.settings.device == "cuda"
    if executor == "local":
        threads = threads or max(1, torch.get_num_threads() // processes)
        gpus, parameters = _gpus() if on_gpu else [], dict[str, Any](timeout_min=YEAR)
    else:
        gpus, parameters = [], {"name": "vfmgl"} | ({"gpus_per_node": 1} if on_gpu else {}) | dict(cluster)
    # What has to be in a process' environment before torch starts: its threads, and this very library.
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, [str(LIBRARY.parent), os.environ.get("PYTHONPATH")]))}
    variables |= {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    folder = (workspace.folder / "sweep" / "jobs").resolve()  # of the processes' logs, numbered by process or by the cluster's job
    places: dict[Job, str] = {}

    def ready(**more: str) -> submitit.AutoExecutor:
        words = ["env", *(f"{name}={value}" for name, value in (variables | more).items()), sys.executable]
        made = submitit.AutoExecutor(folder, cluster=executor, **{f"{executor}_python": shlex.join(words)})
        made.update_parameters(**parameters)
        return made

    def submit(job: Job, running: list[Job]) -> submitit.Job:
        if not gpus:
            return ready().submit(_Attempt(job, threads))
        used = Counter(places[other] for other in running)
        places[job] = min(gpus, key=lambda gpu: used[gpu])
        return ready(CUDA_VISIBLE_DEVICES=places[job]).submit(_Attempt(job, threads))

    try:
        ready()
    except (NameError, AssertionError, ValueError, TypeError, RuntimeError) as error:  # submitit's for a wrong parameter or no SLURM
        raise ConfigError(f"executor {executor}: {error}") from error
    return submit


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _close(job: Job, handle: submitit.Job) -> None:
    """Removes what a finished process leaves behind, or notes a failure that it could not note itself: it was killed, or never began."""
    if not (job.study.complete or job.error or isinstance(handle, submitit.LocalJob)):
        handle.exception()  # waits until a shared file system shows what the job wrote
    if job.study.complete:
        for file in handle.paths.folder.glob(f"{handle.job_id}_*"):
            file.unlink()
    elif not job.error:
        lines = [line for line in (handle.stderr() or "").splitlines() if line.strip()]
        reason = lines[-1] if lines else "it was killed"
        job.failed(f"the process ended before its study was complete: {reason} ({handle.paths.stderr})", "\n".join(lines))


def _end(handles: Sequence[submitit.Job]) -> None:
    """Ends processes that were started here, and a cluster's jobs."""
    started = []
    for handle in handles:
        if isinstance(handle, submitit.LocalJob):
            try:
                process = psutil.Process(int(handle.job_id))
                started += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        handle.cancel(check=False)
    _, alive = psutil.wait_procs(started, timeout=5)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=5)


@contextmanager
def _progress(jobs: Sequence[Job], processes: int, shown: bool) -> Iterator[None]:
    """A bar over the rounds of all jobs, read from disk, whoever runs them; within the block."""
    if not shown:
        yield
        return
    ended = threading.Event()
    # tqdm's own time left takes all rounds for equal; those of VFMGL take several times as long as those of FedAvg.
    form = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} rounds [{elapsed}{postfix}]"
    with tqdm(total=sum(job.study.last_round for job in jobs), desc="sweep", bar_format=form) as bar:

        def look() -> None:
            table = status_table(jobs)
            counts = table["state"].value_counts()
            left = tqdm.format_interval(table["seconds_left"].sum() / processes) if table["seconds_left"].notna().all() else "?"
            states = ", ".join(f"{counts[state]} {state}" for state in ("done", "running", "failed", "left") if state in counts)
            bar.set_postfix_str(f"{states}; about {left} left", refresh=False)
            bar.n = int(table["rounds_done"].sum())
            bar.refresh()

        def watch() -> None:
            while not ended.wait(2 * POLL):
                look()

        watcher = threading.Thread(target=watch, daemon=True)
        bar.initial = bar.n = int(status_table(jobs)["rounds_done"].sum())
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            look()
