"""Flower's own SuperLink for one study, on loopback: started, told of the centres, and given a run whose rounds this process carries.

`flower-superlink` serves three interfaces on one port: for nodes (with a key), for apps (with a token), and control, which needs nothing:
who reaches the port may start runs. So it listens on this machine alone, and `gate` stands between it and the network.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from vfmgl_lib import __version__
from vfmgl_lib.tools.flower import credentials, inside
from vfmgl_lib.tools.flower.programs import LOOPBACK, Program, flower_program, wait_until

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)
START = 600.0  # seconds for it to listen; on a busy machine Python alone can need minutes
SECRET = "secret"
# Flower starts no run without an app. This one has no code: the rounds are carried by `vfmgl federation server`.
APP = f"""\
[project]
name = "vfmgl-study"
version = "{__version__}"
description = "A study of VFMGL Workbook; its rounds are carried by the installed library"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "vfmgl"

[tool.flwr.app.components]
serverapp = "vfmgl_lib.tools.flower.app:server"
clientapp = "vfmgl_lib.tools.flower.app:client"
"""


class SuperLinkEnded(RuntimeError):
    """The SuperLink has ended by itself or does not answer any more, and the run has ended with it."""


@contextmanager
def superlink(folder: Path, port: int, centers: Mapping[str, ec.EllipticCurvePublicKey]) -> Iterator[tuple[Grid, dict[str, int]]]:
    """Serves on this machine's loopback until the block ends. A new start knows nothing of an earlier one; the centres connect anew.

    Args:
        folder: with the certificates (`credentials.write_certificates`).
        centers: the public keys of those that may connect.
    Yields: the grid of a new run, and centre -> node id.
    Raises: OSError: it does not start; with what it said. ValueError: two centres with one key. SuperLinkEnded: while the block ran.
    """
    check_keys(centers)
    inside.hush()
    ca, said, address = (folder / credentials.CA).read_bytes(), list[str](), f"{LOOPBACK}:{port}"
    with ExitStack() as stack:
        home = folder / "flower"  # what the SuperLink writes while it runs; of one that was killed, nothing is of use
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, home)
        secret = write_secret(home)
        program = stack.enter_context(_program(folder, port, home, said))
        try:
            nodes = inside.enter_centers(address, ca, centers)
            inside.start_run(address, ca, APP)
            claimed = inside.Tasks(inside.SERVER, address, secret.read_bytes(), ca).claim()
            if claimed is None:
                raise RuntimeError("the SuperLink has no task of the run that was started")
            task = stack.enter_context(claimed)
            yield stack.enter_context(task.grid()), nodes
        except httpx.HTTPStatusError as error:
            raise RuntimeError(f"the SuperLink answers {error.response.status_code}: the run was stopped; start again to go on") from error
        except (httpx.TransportError, RuntimeError) as error:
            if isinstance(error, httpx.TransportError) or wait_until(lambda: program.over, 1):
                raise SuperLinkEnded(f"the SuperLink does not answer ({error}); its last words: {' / '.join(said[-3:])}") from error
            raise


@contextmanager
def _program(folder: Path, port: int, home: Path, said: list[str]) -> Iterator[Program]:
    options = {
        "--host": LOOPBACK,
        "--port": str(port),
        "--ssl-ca-certfile": folder / credentials.CA,
        "--ssl-certfile": folder / credentials.CERTIFICATE,
        "--ssl-keyfile": folder / credentials.KEY,
        "--isolation": "process",
        "--superexec-auth-secret-file": home / SECRET,
    }
    command = [*flower_program("flower-superlink"), *(str(word) for option in options.items() for word in option)]
    command += ["--enable-supernode-auth", "--disable-runtime-dependency-installation"]
    with Program(command, relay("SuperLink", said), more={"FLWR_HOME": str(home.resolve())}) as program:
        listens = wait_until(lambda: program.over or any("Uvicorn running" in line for line in said), START)
        if not listens or program.over:
            raise OSError(f"{LOOPBACK}:{port}: the SuperLink does not start; is the port taken? It says: {' / '.join(said[-5:])}")
        yield program


def check_keys(centers: Mapping[str, ec.EllipticCurvePublicKey]) -> None:
    """Raises: ValueError: two centres with one key."""
    seen: dict[bytes, str] = {}
    for center, key in centers.items():
        other = seen.setdefault(_openssh(key), center)
        if other != center:
            raise ValueError(f"centres {other} and {center} have the same public key; every centre needs a key of its own")


def write_secret(folder: Path) -> Path:
    """Writes a new secret, which this user alone reads, and returns its file."""
    file = folder / SECRET
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32))
    return file


def relay(name: str, said: list[str]) -> Callable[[str], None]:
    """Passes on what a program of Flower's writes: warnings to this process's log, the last lines to `said`."""

    def heard(line: str) -> None:
        said.append(line)
        del said[:-20]
        level, _, text = line.partition(":")
        if level.strip() in ("WARNING", "ERROR") and "EXPERIMENTAL" not in text:
            log.log(getattr(logging, level.strip()), "%s: %s", name, text.strip())

    return heard


def _openssh(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
