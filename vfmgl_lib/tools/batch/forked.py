"""Kernels that are forked from one process with the library in it, so that eighteen notebooks import torch and timm once.

A fresh kernel takes five seconds of a core to import what nearly every notebook uses, a forked one a twentieth of that. They share nothing
that one could change for another: a fork has a copy of its own. Where processes cannot be forked kernels start as they always do.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from importlib.metadata import EntryPoint
from multiprocessing.context import ForkServerProcess
from typing import Any, Final

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

NAME = "vfmgl-forked"
FORKED: dict[str, int] = {}  # file of the connection -> the kernel's process
METHOD: Final = "forkserver"
# What most notebooks import. Nothing here starts a thread or computes: a fork has only the thread that forked.
PRELOADED = (
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "matplotlib_inline.backend_inline",
    "pandas.io.formats.style",
    "timm",
    "vfmgl_lib.study.workspace",
    "vfmgl_lib.evaluation.samples",
    "vfmgl_lib.figures.heterogeneity",
)


def provisioner() -> dict[str, Any]:
    """What a kernel's specification says in its metadata to be forked; empty where processes cannot be.

    The name is made known to jupyter_client here, since a checkout that is not installed has no entry points.
    """
    if METHOD not in multiprocessing.get_all_start_methods():
        return {}
    KernelProvisionerFactory.instance().provisioners[NAME] = EntryPoint(
        NAME, f"{__name__}:{ForkedKernel.__name__}", KernelProvisionerFactory.GROUP_NAME
    )
    multiprocessing.get_context(METHOD).set_forkserver_preload(list(PRELOADED))
    return {"kernel_provisioner": {"provisioner_name": NAME}}


class ForkedKernel(LocalProvisioner):
    """A kernel on this machine, forked instead of started; everything else is jupyter_client's."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        connection, threads = cmd[cmd.index("-f") + 1], int(kwargs["env"]["OMP_NUM_THREADS"])
        process = multiprocessing.get_context(METHOD).Process(target=_kernel, args=(connection, kwargs["cwd"], kwargs["env"], threads))
        process.start()
        assert process.pid is not None
        self.process = _Handle(process)  # type: ignore[assignment]  # its own is None until there is one
        self.pid = self.pgid = FORKED[connection] = process.pid
        return self.connection_info


class _Handle:
    """The part of subprocess.Popen that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, process: ForkServerProcess):
        self._process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid is not None and self._process.is_alive():
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _kernel(connection: str, folder: str, environment: dict[str, str], threads: int) -> None:
    """Becomes a kernel, in a process group of its own as jupyter_client's are, until it is told to end or the batch is gone."""
    import numpy as np
    import torch
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_the_batch, daemon=True).start()
    # Jupyter interrupts a kernel before it ends it, and that is no error.
    logging.getLogger(IPKernelApp.__name__).addFilter(lambda record: "KeyboardInterrupt caught" not in record.getMessage())
    np.random.seed()  # noqa: NPY002 (a fork continues the random numbers of its origin: none of this library's, perhaps a user's)
    # Without a parent to watch it would say how a console connects to it. This one, from which it was forked, lives as long as a kernel.
    IPKernelApp.launch_instance(["-f", connection, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _end_with_the_batch() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
