"""nginx between the network and the SuperLink on loopback: the paths that nodes need, bodies of a limited size, and nothing else.

flwr 1.41 serves its control interface, which asks for no credentials, on the port that nodes need, and reads a request's body before it
looks at the signature.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vfmgl_lib.base.files import write_text
from vfmgl_lib.tools.flower.programs import Program, must_be_free, wait_until

log = logging.getLogger(__name__)
TEMPLATE = Path(__file__).with_name("nginx.conf")
PATHS = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "get-run", "get-fab"),
    *("pull-messages", "push-messages", "pull-object", "push-object", "confirm-message-received"),
)
CERTIFICATES = ("server.pem", "server.key", "ca.pem")
START = 30.0  # seconds for nginx to listen
ENDING = 5.0  # seconds for the nginx of a server that was killed to end
MISSING = (
    "nginx is not installed here (Debian and Ubuntu: apt install nginx-light); or let a proxy of your own stand before the SuperLink, "
    "as deploy/README.md says, and write nginx: false into server.yaml"
)


def nginx_program() -> str:
    """Raises: FileNotFoundError: there is none; says what to do."""
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"]))
    if not found:
        raise FileNotFoundError(MISSING)
    return found


@contextmanager
def gate(folder: Path, host: str, port: int, inner: int) -> Iterator[Program]:
    """Lets nodes through to the SuperLink on `inner` while the block lasts; an nginx that ends is started again.

    Args:
        folder: with the certificates.
        host, port: where to listen.
    Raises: OSError: there is no nginx, or it cannot listen; with what it said.
    """
    command, said = nginx_program(), list[str]()
    wait_until(lambda: not _answers(host, port), ENDING)
    must_be_free(host, port)  # what answers there later is this nginx
    scratch = Path(tempfile.mkdtemp(prefix="vfmgl-nginx-"))
    try:
        scratch.chmod(0o711)  # started by root, nginx works as another user, who has to reach what it buffers
        for name in CERTIFICATES:  # under names that nginx cannot misread, whatever the folder is called
            (scratch / name).symlink_to(folder.resolve() / name)
        write_text(scratch / "nginx.conf", configuration(host, port, inner))
        with Program([command, "-e", "stderr", "-p", scratch, "-c", scratch / "nginx.conf"], _heard(said), lasting=True) as program:
            listens = wait_until(lambda: bool(said) or _answers(host, port), START)
            if not listens or said:
                raise OSError(f"{host}:{port}: nginx does not listen there; is the port taken? It says: {' / '.join(said[:3])}")
            yield program
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # files of the other user's go with the folder, or stay empty


def configuration(host: str, port: int, inner: int) -> str:
    """The template, filled in; files are named relative to it."""
    listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.format(listen=listen, inner=inner, paths="|".join(PATHS))


def _heard(said: list[str]) -> Callable[[str], None]:
    def heard(line: str) -> None:
        log.warning("nginx: %s", line)
        if "[emerg]" in line and len(said) < 20:
            said.append(line)

    return heard


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), timeout=1):
            return True
    except OSError:
        return False
