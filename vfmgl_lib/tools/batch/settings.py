"""What a batch is to run, checked before anything runs, with every path absolute."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil

from vfmgl_lib.base.places import PlaceError, project_folder
from vfmgl_lib.config import ConfigError, task_names
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.models.teacher_names import TeacherError, resolve_teacher
from vfmgl_lib.tasks.records import TASKS, find_task, is_task_file

ENGINE_NOTEBOOK = "04"  # the one that runs over a network on request
DEFAULT_TASKS = tuple(name for name, record in TASKS.items() if record.default)


MEMORY_A_JOB = 2 * 2**30  # bytes; a kernel of the embedded run takes up to 1.4 GiB


class BatchError(ValueError):
    """Something asked for is not possible; nothing has run."""


@dataclass(frozen=True)
class BatchSettings:
    """What to run.

    Attributes:
        profile: a profile's name or the absolute path of a YAML file.
        tasks: the tasks, each of which goes through all notebooks: names, or absolute paths of the YAML files of one's own.
        data: folder of images, None for the embedded phantoms; needs exactly one task.
        teacher: "" (the profile's), pocket_vit, NAME, FILE, NAME=FILE or random:TEXT.
        device: "cpu" or "cuda".
        seed: the study seed.
        runs: folder of all results.
        only: numbers of the notebooks to run ("04"); empty for all.
        jobs: notebooks that run at a time; changes no result.
        engine: how notebook 04 runs its study, "process" or "flower" (`vfmgl_lib.study.training.run_study`).
    """

    profile: str = "smoke"
    tasks: tuple[str, ...] = DEFAULT_TASKS
    data: Path | None = None
    teacher: str = ""
    device: str = "cpu"
    seed: int = 0
    runs: Path = field(default_factory=lambda: project_folder() / "runs")
    only: tuple[str, ...] = ()
    engine: str = "process"
    jobs: int = 1

    @property
    def results(self) -> Path:
        """The profile's folder under `runs`."""
        return self.runs / Path(self.profile).stem

    def teacher_of(self, task: str) -> str:
        """The teacher a task gets: the one asked for, else the profile's; of two choices the one that could be had when first asked."""
        return _available(self._asked_teacher(task))

    def _asked_teacher(self, task: str) -> str:
        from vfmgl_lib.methods.settings import load_settings  # here, and below: it imports torch, which takes seconds

        return self.teacher or load_settings(task, self.profile).teacher.source

    def parameters(self, task: str, notebook: str = "") -> dict[str, str | int]:
        """What a notebook, named by its stem, is given for one task."""
        own: dict[str, str | int] = {"engine": self.engine} if notebook.startswith(ENGINE_NOTEBOOK) else {}
        asked, chosen = self._asked_teacher(task), self.teacher_of(task)
        return own | {
            "task": task,
            "profile": self.profile,
            "data": "" if self.data is None else str(self.data),
            "teacher": self.teacher if chosen == asked else chosen,
            "device": self.device,
            "seed": self.seed,
            "runs": str(self.runs),
        }


def read_settings(
    *,
    profile: str,
    tasks: Sequence[str] | None,
    data: str | None,
    teacher: str,
    device: str,
    seed: int,
    runs: str | None,
    only: Sequence[str],
    engine: str = "process",
    jobs: int | None = 1,
    here: Path,
) -> BatchSettings:
    """Checked settings from what was typed; relative paths are meant from `here`.

    Args:
        tasks: names or YAML files, empty for the two defaults, None for every task of the profile.
        only: numbers or comma lists of numbers.
        jobs: notebooks at a time; None: `default_jobs`.
    Raises: BatchError: naming the value and what would have been right.
    """
    if profile.endswith((".yaml", ".yml")):
        profile = str((here / profile).resolve())
    from vfmgl_lib.methods.settings import load_settings

    try:
        named = [resolve_task(task, here) for task in tasks or DEFAULT_TASKS]
        chosen = tuple(task_names(profile)) if tasks is None else tuple(dict.fromkeys(named))
        for task in chosen:
            load_settings(task, profile, seed=seed, device=device)
        check_phantoms(chosen, data)
        teacher = resolve_teacher(teacher, here) if teacher else ""
    except (ConfigError, ManifestError, PlaceError, TeacherError, OSError, UnicodeDecodeError) as error:
        raise BatchError(str(error)) from error
    if device == "cuda":
        check_cuda()
    numbers = tuple(number.strip() for text in only for number in text.split(",") if number.strip())
    if engine != "process" and numbers and ENGINE_NOTEBOOK not in numbers:
        raise BatchError(f"engine {engine} is for notebook {ENGINE_NOTEBOOK}, which --only leaves out")
    return BatchSettings(
        profile=profile,
        tasks=chosen,
        data=None if data is None else resolve_data(data, chosen, here),
        teacher=teacher,
        device=device,
        seed=seed,
        runs=project_folder(here) / "runs" if runs is None else (here / runs).resolve(),
        only=numbers,
        engine=engine,
        jobs=default_jobs(device) if jobs is None else jobs,
    )


def default_jobs(device: str) -> int:
    """Notebooks at a time: one a core that this process may use, as far as the memory reaches; on a GPU one, which has it to itself."""
    if device == "cuda":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, psutil.virtual_memory().total // MEMORY_A_JOB))


def resolve_task(text: str, here: Path) -> str:
    """A task's name as it is; of the YAML file of a task of one's own its absolute path, seen from `here`."""
    return str((here / text).resolve()) if is_task_file(text) else text


def check_phantoms(tasks: Sequence[str], data: str | None) -> None:
    """Raises: BatchError: no data are given, and a task has no phantoms."""
    for record in map(find_task, tasks):
        if not data and not record.phantom:
            raise BatchError(f"{record.name} has no phantoms: give --data DIR, the folder of its images")


def check_cuda() -> None:
    """Raises: BatchError: if torch finds no CUDA device."""
    import torch  # here: it takes seconds, and most calls do not ask

    if not torch.cuda.is_available():
        raise BatchError("device cuda: torch finds no CUDA device here; use cpu")


def resolve_data(text: str, tasks: Sequence[str], here: Path) -> Path:
    """The data folder as an absolute path.

    Raises: BatchError: if it is missing, no folder or empty, or not exactly one task is to read it.
    """
    if len(tasks) != 1:
        raise BatchError(f"data folder {text} belongs to one task, got {', '.join(tasks)}: name it with --task")
    path = (here / text).resolve()
    if not path.is_dir():
        raise BatchError(f"data folder {path} {'is a file, not a folder' if path.exists() else 'does not exist'}")
    if not any(path.iterdir()):
        raise BatchError(f"data folder {path} is empty")
    return path


@cache
def _available(text: str) -> str:
    """Asked once: all notebooks of a batch have the same teacher, whatever becomes of the network meanwhile."""
    from vfmgl_lib.models.teachers import first_available  # here: it imports timm, which takes seconds

    try:
        return first_available(text)
    except TeacherError as error:
        raise BatchError(str(error)) from error
