"""Other programs that run below this process, and end with it however it ends: Flower's SuperLink and SuperNode, nginx."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
PAUSE = 3.0  # seconds before a program that has ended is started again
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Linux tells the program when its parent has ended (PR_SET_PDEATHSIG); a parent that ended before it was asked for is not there any more.
BOUND = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.argv[2], sys.argv[2:]) if os.getppid() == int(sys.argv[1]) else sys.exit(1)
"""


def flower_program(name: str) -> list[str]:
    """The command of one of Flower's programs: of this very installation, whatever else is on PATH."""
    return [sys.executable, str(Path(sysconfig.get_path("scripts")) / name)]


class Program:
    """A program below this process; one that ends by itself is started again after a pause if `lasting`.

    Args:
        command: its path first.
        heard: told every line that it writes.
        ended: told each time it has ended by itself, with its exit status.
        more: of its environment.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        heard: Callable[[str], object] = lambda line: None,
        ended: Callable[[int], object] = lambda status: None,
        lasting: bool = False,
        more: Mapping[str, str] | None = None,
    ):
        self.command, self.heard, self.ended, self.lasting = list(map(str, command)), heard, ended, lasting
        # A loopback's connections pass no proxy.
        direct = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost"]))
        self.environment = os.environ | {"no_proxy": direct, "NO_PROXY": direct, "PYTHONUNBUFFERED": "1"} | dict(more or {})
        self.process: subprocess.Popen | None = None
        self.starts = 0
        self._stopping = threading.Event()
        # The thread that starts the program is the "parent" of PR_SET_PDEATHSIG: it lasts as long as this object.
        self._thread = threading.Thread(target=self._run, name=Path(self.command[-1]).name, daemon=True)

    def __enter__(self) -> Program:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def over(self) -> bool:
        """It has ended, and is not started again."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def stop(self, patience: float = 30.0) -> None:
        """Ends it: asked first, then forced."""
        self._stopping.set()
        self.again()
        self._thread.join(patience)
        if self._thread.is_alive() and self.process is not None:
            self.process.kill()
            self._thread.join()

    def again(self) -> None:
        """Asks what runs now to end; a lasting program is then started anew."""
        if self.process is not None and self.alive:
            self.process.send_signal(signal.SIGTERM)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.starts += 1
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOUND, str(os.getpid()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self.environment,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            if self._stopping.is_set():  # asked to stop while it was being started
                self.again()
            reader = threading.Thread(target=self._read, args=(self.process,), name="reader", daemon=True)
            reader.start()
            status = self.process.wait()
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # what it had started itself, as nginx its workers
            reader.join()
            if not self._stopping.is_set():
                self.ended(status)
            if not self.lasting:
                return
            self._stopping.wait(PAUSE)

    def _read(self, process: subprocess.Popen) -> None:
        for line in process.stdout or ():
            self.heard(COLOURS.sub("", line).rstrip())


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Whether a condition came true in this time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def must_be_free(host: str, port: int) -> None:
    """Raises: OSError: the port is taken, or this machine has no such address."""
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def free_port(host: str = LOOPBACK) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
