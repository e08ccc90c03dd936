"""The papermill runner: every notebook for every task, in kernels of this very interpreter."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

import papermill
import psutil
import zmq
from nbconvert import HTMLExporter
from tqdm import tqdm
from traitlets.config import Config

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_text
from vfmgl_lib.config import FIRST_VERSION
from vfmgl_lib.models.teacher_names import HUB, TeacherSource
from vfmgl_lib.models.timm_names import check_name
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.records import find_task
from vfmgl_lib.tools.batch.index_page import write_index
from vfmgl_lib.tools.batch.settings import BatchError, BatchSettings

KERNEL = "vfmgl"
TRACEBACK_LINES = 12
COLOR_CODE = re.compile(r"\x1b\[[0-9;]*m")


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
    """Runs every chosen notebook for every task; one that fails does not keep the others from running.

    Args:
        notebooks: the folder with NN_*.ipynb; they run with it as their working directory.
        settings: what to run; its paths must be absolute.
        progress: tqdm bars on stderr.
    Returns: what ran, in order.
    Raises: BatchError: before anything runs, if a notebook or one of its parameters is unknown, or `check_task` refuses a task.
    """
    chosen = find_notebooks(notebooks, settings.only)
    for notebook in chosen:
        check_parameters(notebook, settings.parameters(settings.tasks[0], notebook.stem))
    log = settings.results / "runs.csv"
    folders = {task: folder_name(find_task(task).name, settings.data, read_log(log)) for task in settings.tasks}
    for task in settings.tasks:
        check_task(task, settings)
    jobs = [(task, notebook) for task in settings.tasks for notebook in chosen]
    done: list[NotebookRun] = []
    with kernel_environment(), tqdm(total=len(jobs), unit="notebook", disable=not progress) as bar:
        try:
            for task, notebook in jobs:
                bar.set_description(f"{find_task(task).name} {notebook.stem}")
                run = run_one(notebook, task, settings.results / folders[task], settings, progress)
                append_log(log, run)
                done.append(run)
                bar.update()
        finally:  # also for what an interrupted batch has finished
            if done:
                write_index(settings.results, read_log(log))
    return done


def run_one(notebook: Path, task: str, folder: Path, settings: BatchSettings, progress: bool) -> NotebookRun:
    """Runs one notebook for one task and takes its time and memory."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    clock = time.perf_counter()
    with PeakMemory() as memory:
        error, failure = execute(notebook, folder / "notebooks" / notebook.name, settings.parameters(task, notebook.stem), progress)
    return NotebookRun(
        started=started,
        folder=folder.name,
        task=find_task(task).name,
        notebook=notebook.stem,
        status="failed" if error else "ok",
        seconds=round(time.perf_counter() - clock, 1),
        peak_memory_mib=round(memory.peak / 2**20),
        data="" if settings.data is None else str(settings.data),
        teacher=settings.teacher_of(task),
        device=settings.device,
        seed=settings.seed,
        error=error,
        traceback=failure,
    )


def execute(notebook: Path, target: Path, parameters: Mapping[str, object], progress: bool) -> tuple[str, str]:
    """Runs one notebook from its own folder and writes `target` and its HTML, also if it fails.

    A run that is killed leaves what an earlier one wrote as it was.

    Returns: the error's kind and message in one line, and the traceback's last lines; "" and "" if the notebook ran to its end.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.stem}.partial.ipynb")
    encryption = "auto" if zmq.has("curve") else "disabled"
    message = failure = ""
    try:
        papermill.execute_notebook(
            without_fields(notebook),
            without_fields(partial),
            parameters=dict(parameters),
            kernel_name=KERNEL,
            language="python",
            cwd=str(notebook.parent),
            start_timeout=300,
            progress_bar={"desc": "  cells", "position": 1, "leave": False} if show_cells(progress) else False,
            config=Config(KernelManager={"transport_encryption": encryption}),
        )
    except papermill.PapermillExecutionError as error:
        message = one_line(f"{error.ename}: {error.evalue}")
        failure = last_lines("\n".join(error.traceback) or message)
    except Exception as error:  # a kernel that died or never started: the other notebooks are to run all the same
        message = one_line(f"{type(error).__name__}: {error}")
        failure = last_lines(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        partial.unlink(missing_ok=True)
        raise
    if partial.exists():
        write_html(partial, target.with_suffix(".html"))
        os.replace(partial, target)
    return message, failure


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


def without_fields(path: Path) -> str:
    """A path for papermill, which otherwise takes braces in it for fields to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


def show_cells(progress: bool) -> bool:
    """Whether a second bar for the cells is shown: it moves the cursor, which makes a mess of a file."""
    return progress and sys.stderr.isatty()


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


@contextmanager
def kernel_environment() -> Iterator[None]:
    """Within it the kernel KERNEL is this very interpreter, whatever kernels the machine has registered.

    It draws into the notebook, is quiet and uses as many threads as there are cores, unless the user's environment says otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="vfmgl-kernel-") as folder:
        spec = Path(folder, "kernels", KERNEL, "kernel.json")
        spec.parent.mkdir(parents=True)
        content = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "VFMGL Workbook",
            "language": "python",
            "metadata": {"supported_encryption": "curve"},
        }
        spec.write_text(json.dumps(content), encoding="utf-8")
        defaults = {
            "OMP_NUM_THREADS": str(physical_cores()),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the debugger's complaint about frozen modules
            "IPYTHONDIR": str(Path(folder, "ipython")),  # the home may be read-only, and what starts there is not this project's
            "JUPYTER_RUNTIME_DIR": str(Path(folder, "runtime")),
        }
        before = dict(os.environ)
        os.environ.update(defaults | before | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before.get("JUPYTER_PATH")]))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def physical_cores() -> int:
    """The physical cores this process may use, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


class PeakMemory(threading.Thread):
    """Samples the resident memory of this process's children, the kernel and what it starts; a context manager.

    Attributes:
        peak: the highest sum so far, in bytes. Pages that processes share count once for each.
    """

    def __init__(self, interval: float = 0.2):
        super().__init__(daemon=True)
        self.interval = interval
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Samples until the context is left."""
        me = psutil.Process()
        while not self._done.wait(self.interval):
            total = 0
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.Error:  # it ended between being listed and being asked
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self.join()


def one_line(text: str) -> str:
    """A message of several lines, such as a list of problems, in one; without colour codes."""
    return " ".join(COLOR_CODE.sub("", text).split())


def last_lines(text: str) -> str:
    """The last lines of a traceback, without colour codes and empty lines."""
    plain = COLOR_CODE.sub("", text)
    return "\n".join([line.rstrip() for line in plain.splitlines() if line.strip()][-TRACEBACK_LINES:])


# Progress bars go to stderr, which nbconvert paints as if it were an error.
CALM_PROGRESS = '<style>.jp-RenderedText[data-mime-type="application/vnd.jupyter.stderr"] { background: transparent; opacity: .6; }</style>'


def write_html(notebook: Path, target: Path) -> None:
    """Writes an executed notebook as one HTML file with its figures in it."""
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # it asks for alternative text at every figure
    exporter = HTMLExporter()
    # A progress bar rewrites its line; without this every state of it becomes a line of the page.
    exporter.register_preprocessor("nbconvert.preprocessors.CoalesceStreamsPreprocessor", enabled=True)
    body, _ = exporter.from_filename(str(notebook), resources={"metadata": {"name": target.stem}})
    write_text(target, body.replace("</head>", f"{CALM_PROGRESS}</head>", 1))


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


def append_log(path: Path, run: NotebookRun) -> None:
    """Adds a row to runs.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*read_log(path), asdict(run)])
    write_text(path, text.getvalue())
