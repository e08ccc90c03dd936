"""One notebook run by papermill in a kernel of this very interpreter: the executed notebook, its HTML, its time and memory.

Several may run at a time, each called from a thread of its own: a kernel is a process, and papermill only waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import papermill
import psutil
import zmq
from nbconvert import HTMLExporter
from traitlets.config import Config

from vfmgl_lib.base.files import write_text
from vfmgl_lib.tools.batch.forked import FORKED, provisioner

KERNEL = "vfmgl"
TRACEBACK_LINES = 12
COLOR_CODE = re.compile(r"\x1b\[[0-9;]*m")
PATIENCE = 0.1  # seconds between two looks for kernels that have to end


class Stopped(Exception):
    """The batch was interrupted while a notebook ran."""


def execute(
    notebook: Path, target: Path, parameters: Mapping[str, object], kernel: Kernel, bar: Mapping[str, object] | None
) -> tuple[str, str]:
    """Runs one notebook from its own folder and writes `target` and its HTML, also if it fails.

    A run that is stopped or killed leaves what an earlier one wrote as it was.

    Args:
        kernel: entered.
        bar: tqdm's options of the bar over the cells; None: no bar.
    Returns: the error's kind and message in one line, and the traceback's last lines; "" and "" if the notebook ran to its end.
    Raises: Stopped: the kernel was told to stop.
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
            resources={"metadata": {"path": str(notebook.parent)}},  # papermill's `cwd` is the whole process'
            start_timeout=300,
            progress_bar=dict(bar) if bar else False,
            config=Config(KernelManager={"transport_encryption": encryption, "connection_file": str(kernel.connection)}),
        )
    except papermill.PapermillExecutionError as error:
        message = one_line(f"{error.ename}: {error.evalue}")
        failure = last_lines("\n".join(error.traceback) or message)
    except Exception as error:  # a kernel that died or never started: the other notebooks are to run all the same
        message = one_line(f"{type(error).__name__}: {error}")
        failure = last_lines(f"{type(error).__name__}: {error}")
    if kernel.stopping.is_set():
        partial.unlink(missing_ok=True)
        raise Stopped
    if partial.exists():
        write_html(partial, target.with_suffix(".html"))
        os.replace(partial, target)
    return message, failure


def without_fields(path: Path) -> str:
    """A path for papermill, which otherwise takes braces in it for fields to fill in."""
    return str(path).replace("{", "{{").replace("}", "}}")


@contextmanager
def kernel_environment(forked: bool = False) -> Iterator[Path]:
    """Within it the kernel KERNEL is this very interpreter, whatever kernels the machine has registered; gives a folder for connections.

    It draws into the notebook, is quiet and computes on one thread, unless the user's environment says otherwise: the last bits of a study
    depend on its number of threads, and are to depend neither on the machine nor on what runs beside it.

    Args:
        forked: kernels that this process starts are forked (`forked`); another process, such as papermill's command, knows no such kernels.
    """
    with tempfile.TemporaryDirectory(prefix="vfmgl-kernel-") as folder:
        spec = Path(folder, "kernels", KERNEL, "kernel.json")
        spec.parent.mkdir(parents=True)
        content = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "VFMGL Workbook",
            "language": "python",
            "metadata": {"supported_encryption": "curve", **(provisioner() if forked else {})},
        }
        spec.write_text(json.dumps(content), encoding="utf-8")
        defaults = {
            "OMP_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # the debugger's complaint about frozen modules
            "IPYTHONDIR": str(Path(folder, "ipython")),  # the home may be read-only, and what starts there is not this project's
            "JUPYTER_RUNTIME_DIR": str(Path(folder, "runtime")),
        }
        before = dict(os.environ)
        os.environ.update(defaults | before | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before.get("JUPYTER_PATH")]))
        try:
            yield Path(folder)
        finally:
            os.environ.clear()
            os.environ.update(before)


class Kernel(threading.Thread):
    """Watches the process of a kernel and what it starts, from its start on; a context manager.

    Args:
        connection: a file for the kernel's connection, by whose name its process is known.
        stopping: once it is set the processes are killed.
    Attributes:
        peak: the highest resident memory of all of them together so far, sampled, in bytes. Pages that processes share count once for each.
    """

    def __init__(self, connection: Path, stopping: threading.Event, interval: float = 0.3):
        super().__init__(daemon=True)
        self.connection, self.stopping, self.interval = connection, stopping, interval
        self.peak = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Samples until the context is left."""
        process: psutil.Process | None = None
        while not self._done.wait(PATIENCE if self.stopping.is_set() else self.interval):
            process = process or self._find()
            if process:
                family = self._family(process)
                self.peak = max(self.peak, sum(map(_resident, family)))
                if self.stopping.is_set():
                    _kill(family)

    def _find(self) -> psutil.Process | None:
        with suppress(psutil.Error):  # it ended between being listed and being asked
            if str(self.connection) in FORKED:
                return psutil.Process(FORKED[str(self.connection)])
            for child in psutil.Process().children():
                if str(self.connection) in child.cmdline():
                    return child
        return None

    @staticmethod
    def _family(process: psutil.Process) -> list[psutil.Process]:
        try:
            return [process, *process.children(recursive=True)]
        except psutil.Error:  # it has ended
            return []

    def __enter__(self) -> Kernel:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self.join()


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:  # it ended between being listed and being asked
        return 0


def _kill(family: list[psutil.Process]) -> None:
    for process in family:
        with suppress(psutil.Error):  # it has ended by itself
            process.kill()


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
