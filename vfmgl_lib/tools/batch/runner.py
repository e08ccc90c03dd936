"""The runner: every notebook for every task, and the log of what ran."""

from __future__ import annotations

import csv
import hashlib
import io
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import papermill
from tqdm import tqdm

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_text
from vfmgl_lib.config import FIRST_VERSION
from vfmgl_lib.models.teacher_names import HUB, TeacherSource
from vfmgl_lib.models.timm_names import check_name
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.records import find_task
from vfmgl_lib.tools.batch.execution import Kernel, execute, kernel_environment, without_fields
from vfmgl_lib.tools.batch.index_page import write_index
from vfmgl_lib.tools.batch.schedule import Step, run_side_by_side, waits_for
from vfmgl_lib.tools.batch.settings import BatchError, BatchSettings


@dataclass(frozen=True)
class NotebookRun:
    """One notebook, run once for one task: a row of runs.csv.

    Attributes:
        started: UTC, ISO 8601.
        folder: the folder under runs/<profile>/ that holds the executed notebook.
        status: "ok" or "failed".
        seconds: wall time.
        peak_memory_mib: highest resident memory of the kernel and its children together, sampled, in MiB.
        error: the error's kind and whole message in one line, empty if there is none.
        version: of the library.
        traceback: the traceback's last lines; not in runs.csv.
    """

    started: str
    folder: str
    task: str
    notebook: str
    status: str
    seconds: float
    peak_memory_mib: int
    data: str
    teacher: str
    device: str
    seed: int
    error: str = ""
    version: str = __version__
    traceback: str = field(default="", repr=False)


COLUMNS = tuple(f.name for f in fields(NotebookRun) if f.name != "traceback")


def run_batch(notebooks: Path, settings: BatchSettings, progress: bool = True) -> list[NotebookRun]:
    """Runs every chosen notebook for every task, `settings.jobs` at a time; one that fails does not keep the others from running.

    Args:
        notebooks: the folder with NN_*.ipynb; they run with it as their working directory.
        settings: what to run; its paths must be absolute.
        progress: tqdm bars on stderr.
    Returns: what ran, task by task in the notebooks' order, however many ran at a time; so are the rows of runs.csv.
    Raises: BatchError: before anything runs, if a notebook or one of its parameters is unknown, or `check_task` refuses a task.
        KeyboardInterrupt: when the kernels have ended; what was finished is in runs.csv and on the page.
    """
    chosen = find_notebooks(notebooks, settings.only)
    for notebook in chosen:
        check_parameters(notebook, settings.parameters(settings.tasks[0], notebook.stem))
    log = settings.results / "runs.csv"
    earlier = read_log(log)
    folders = {task: settings.results / folder_name(find_task(task).name, settings.data, earlier) for task in settings.tasks}
    for task in settings.tasks:
        check_task(task, settings)
    steps = [Step(task, notebook) for task in settings.tasks for notebook in chosen]
    done: dict[Step, NotebookRun] = {}
    stopping = threading.Event()
    with kernel_environment(forked=True) as connections, Progress(len(steps), progress) as shown:

        def run(step: Step) -> NotebookRun:
            kernel = Kernel(connections / f"{steps.index(step)}.json", stopping)
            with shown.cells(step.name) as bar, kernel:
                return run_one(step, folders[step.task], settings, kernel, bar)

        def finished(step: Step, run: NotebookRun) -> None:
            before = [done[other] for other in steps if other in done]
            done[step] = run
            replace_rows(log, before, [done[other] for other in steps if other in done])
            shown.update()

        try:
            run_side_by_side(run, waits_for(steps), settings.jobs, finished, stopping)
        finally:  # also for what an interrupted batch has finished
            if done:
                write_index(settings.results, read_log(log))
    return [done[step] for step in steps]


def run_one(step: Step, folder: Path, settings: BatchSettings, kernel: Kernel, bar: Mapping[str, object] | None) -> NotebookRun:
    """Runs one notebook for one task and takes its time and memory."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    target = folder / "notebooks" / step.notebook.name
    error, failure = execute(step.notebook, target, settings.parameters(step.task, step.stem), kernel, bar)
    return NotebookRun(
        started=started,
        folder=folder.name,
        task=find_task(step.task).name,
        notebook=step.stem,
        status="failed" if error else "ok",
        seconds=round(time.perf_counter() - clock, 1),
        peak_memory_mib=round(kernel.peak / 2**20),
        data="" if settings.data is None else str(settings.data),
        teacher=settings.teacher_of(step.task),
        device=settings.device,
        seed=settings.seed,
        error=error,
        traceback=failure,
    )


class Progress:
    """A bar over the notebooks that names those that run, and on a terminal one below it over the cells of each; a context manager."""

    def __init__(self, total: int, shown: bool):
        self._bar = tqdm(total=total, unit="notebook", disable=not shown)
        self._cells = shown and sys.stderr.isatty()  # further bars move the cursor, which makes a mess of a file
        self._running: dict[int, str] = {}  # by the line of the bar
        self._lock = threading.Lock()

    @contextmanager
    def cells(self, name: str) -> Iterator[dict[str, object] | None]:
        """tqdm's options of the bar over the cells of a notebook, which is named while the context lasts; None: there is to be none."""
        with self._lock:
            line = next(number for number in count(1) if number not in self._running)
            self._running[line] = name
            self._tell()
        try:
            yield {"desc": f"  {name}", "position": line, "leave": False} if self._cells else None
        finally:
            with self._lock:
                del self._running[line]
                self._tell()

    def _tell(self) -> None:
        self._bar.set_description(", ".join(self._running[line] for line in sorted(self._running)))

    def update(self) -> None:
        """One more notebook has ended."""
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def find_notebooks(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The notebooks NN_*.ipynb of a folder in order, or those in `only` ("4", "04" and "04_name" all name one).

    Raises: BatchError: if there is none, or a number has no notebook; the message lists the numbers there are.
    """
    found = sorted(path for path in folder.glob("[0-9][0-9]_*.ipynb") if path.is_file())
    if not found:
        raise BatchError(f"no notebooks (NN_name.ipynb) in {folder}")
    if not only:
        return found
    by_name = {name: path for path in found for name in (path.stem[:2], path.stem)}
    unknown = [text for text in only if text.zfill(2) not in by_name]
    if unknown:
        numbers = ", ".join(path.stem[:2] for path in found)
        raise BatchError(f"no notebook {', '.join(unknown)} in {folder}; there are {numbers}")
    chosen = {by_name[text.zfill(2)] for text in only}
    return [path for path in found if path in chosen]


def check_parameters(notebook: Path, parameters: Mapping[str, object]) -> None:
    """Checks every name against the notebook's parameters cell.

    Raises: BatchError: if the notebook cannot be read, has no such cell or does not know a name.
    """
    try:
        known = papermill.inspect_notebook(without_fields(notebook))
    except (OSError, ValueError, KeyError, AttributeError) as error:  # what papermill and nbformat raise on no notebook
        raise BatchError(f"{notebook} is not a notebook papermill can read: {type(error).__name__}: {error}") from error
    if not known:
        raise BatchError(f"{notebook} has no parameters: it needs a cell tagged 'parameters' with one literal a line")
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise BatchError(f"{notebook} has no parameter {', '.join(unknown)}; valid are {', '.join(known)}")


def check_task(task: str, settings: BatchSettings) -> None:
    """Opens a task's workspace as every notebook will, so that what needs no training is refused before the first kernel starts.

    Images that are no prepared set are prepared here, phantoms are written: the notebooks find them.

    Raises: BatchError: data, settings or record that `study.workspace.open_workspace` refuses; a teacher's name that timm does not know.
    """
    given = settings.parameters(task)
    try:
        source = TeacherSource.parse(settings.teacher_of(task))
        if source.name and not source.name.startswith(HUB):
            check_name(source.name)
        open_workspace(**given)  # type: ignore[arg-type]
    except ValueError as error:  # every error of the library's about what it was given
        raise BatchError(str(error)) from error


def folder_name(task: str, data: Path | None, log: Sequence[Mapping[str, str]]) -> str:
    """The folder under runs/<profile>/ for a task's executed notebooks.

    It is the task's name, with the data folder's name if there is one. Where the log says that another data folder of
    the same name has it already, a piece of the path's hash keeps the two apart.
    """
    if data is None:
        return task
    name = f"{task}-{data.name or 'data'}"
    if any(row["folder"] == name and row["data"] != str(data) for row in log):
        name += "-" + hashlib.sha256(str(data).encode()).hexdigest()[:8]
    return name


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of runs.csv, oldest first; none if it is not there.

    Raises: BatchError: if its columns are others, or it is in another encoding.
    """
    if not path.exists():
        return []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BatchError(f"{path} is not in UTF-8 any more ({error}); move it away") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = tuple(reader.fieldnames or ())
    if columns not in (COLUMNS, tuple(name for name in COLUMNS if name != "version")):
        raise BatchError(f"{path} has columns {list(columns)}, expected {list(COLUMNS)}; move it away")
    return [{"version": FIRST_VERSION} | row for row in reader]


def replace_rows(path: Path, old: Sequence[NotebookRun], new: Sequence[NotebookRun]) -> None:
    """Puts rows at the end of runs.csv in the place of some that an earlier call has put there; those of others stay."""
    out, rows = [_row(run) for run in old], read_log(path)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*(row for row in rows if row not in out), *map(_row, new)])
    write_text(path, text.getvalue())


def _row(run: NotebookRun) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(run).items() if name in COLUMNS}
