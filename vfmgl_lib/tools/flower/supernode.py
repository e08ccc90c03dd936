"""A centre's side of the connection: Flower's own SuperNode, and this process as the only one that takes its tasks.

`flower-supernode` calls out to one address and port, with the centre's key. It fetches the app of a run, as Flower has it; nobody opens it
here. It listens on this machine's loopback alone, for who knows a secret that is made anew at every start: this process, which answers
with the ClientApp of the installed library.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from vfmgl_lib.tools.flower import inside
from vfmgl_lib.tools.flower.credentials import read_private_key
from vfmgl_lib.tools.flower.messages import FINISH
from vfmgl_lib.tools.flower.programs import LOOPBACK, Program, flower_program, free_port
from vfmgl_lib.tools.flower.superlink import write_secret

log = logging.getLogger(__name__)
CONNECTED = "a site with this key is connected, or was within the last minute"
START = 600.0  # seconds for the SuperNode to try, on a busy machine
POLL = 0.3  # seconds between two looks for a task
LINES = {"connected": "SuperNode ID:", "lost": "Connection attempt failed", "again": "Connection successful"}  # what Flower's log says


def run_supernode(app: ClientApp, address: str, certificate: Path, key: Path, patience: float, folder: Path) -> None:
    """Answers the server's messages until it says that the study is finished. A connection that is lost is taken up again.

    Args:
        app: the centre (`tools.flower.network.client_app`).
        address, certificate, key, folder: see `supernode`.
        patience: seconds without a connection after which this centre gives up.
    Raises: ConnectionError: no connection for so long. ValueError: a key that cannot be used.
    """
    with supernode(address, certificate, key, folder) as node:
        while node.answer(app) != FINISH:
            node.check(patience)


@contextmanager
def supernode(address: str, certificate: Path, key: Path, folder: Path) -> Iterator[Node]:
    """Flower's SuperNode while the block lasts; one that ends is started again.

    Args:
        address: the server's, host:port.
        certificate: of the CA, PEM.
        key: the centre's private key.
        folder: for what the SuperNode needs while it runs.
    Raises: ValueError: a key that cannot be used.
    """
    read_private_key(key)
    inside.hush()
    folder.mkdir(parents=True, exist_ok=True)
    secret, port = write_secret(folder), free_port()
    node = Node(address, certificate, key, f"{LOOPBACK}:{port}", secret.read_bytes())
    options = {
        "--superlink": address,
        "--root-certificates": certificate,
        "--auth-supernode-private-key": key,
        "--isolation": "process",
        "--host": LOOPBACK,
        "--port": str(port),
        "--superexec-auth-secret-file": secret,
    }
    command = [*flower_program("flower-supernode"), *(str(word) for option in options.items() for word in option)]
    try:
        with Program(command, node.heard, node.ended, lasting=True, more={"FLWR_HOME": str(folder)}) as node.program:
            yield node
    finally:
        shutil.rmtree(folder)


def _reply(app: ClientApp, message: Message, context: Context) -> Message:
    """The app's answer; whatever comes from the network, the site stays, and the server hears of an error its kind alone."""
    try:
        return app(message, context)
    except Exception as error:
        log.exception("a message of type %s could not be answered", message.metadata.message_type)
        return Message(Error(code=0, reason=type(error).__name__), reply_to=message)


class Node:
    """The SuperNode as this process has it: its tasks, and what its log says of the connection to the server."""

    program: Program

    def __init__(self, address: str, certificate: Path, key: Path, own: str, secret: bytes):
        self.address, self.certificate, self.key = address, certificate, key
        self.tasks = inside.Tasks(inside.SITE, own, secret, None)
        self.connected, self.last = False, time.monotonic()
        self.why = ""

    def answer(self, app: ClientApp) -> str:
        """Answers the message that waits; returns its type, or "" where none waits or the SuperNode is not there."""
        task = None
        try:
            if task := self.tasks.claim():
                with task:
                    message, context = task.message()
                    task.answer(_reply(app, message, context), context)
                return message.metadata.message_type
        except inside.ERRORS as error:
            if task:
                # It would wait for this answer for ever. A new one is asked by the server again, and the answer is on disk.
                log.warning("the SuperNode did not take an answer: %s; it is started again", error)
                self.program.again()
        time.sleep(POLL)
        return ""

    def check(self, patience: float) -> None:
        """Raises: ConnectionError: no connection for so long."""
        if self.connected:
            self.last = time.monotonic()
        elif time.monotonic() - self.last > (patience if self.why else patience + START):
            why = self.why or "the SuperNode says nothing"
            raise ConnectionError(
                f"{self.address}: no connection for {patience:.0f} s: {why}; `vfmgl federation check` says what is missing"
            )

    def heard(self, line: str) -> None:
        if LINES["connected"] in line or LINES["again"] in line:
            self.connected = True
            log.info("connected to %s", self.address)
        elif LINES["lost"] in line:
            self._lost()
        elif line.partition(":")[0].strip() == "ERROR" and not (text := line.partition(":")[2].strip()).startswith("[/v1/"):
            # After an error its connection may be over while the program still runs, deaf. A new one is asked by the server again.
            # What begins with a path is about a request from this machine, as one of a program without the secret.
            log.warning("SuperNode: %s; it is started again", text)
            self._lost()
            self.program.again()

    def ended(self, status: int) -> None:
        log.warning("the SuperNode ended with status %d; it is started again", status)
        self._lost()

    def _lost(self) -> None:
        self.connected = False
        try:
            known = inside.admitted(self.address, self.certificate, self.key)
            self.why = CONNECTED if known else "the server does not know this centre's key"
        except (ConnectionError, ValueError) as error:
            self.why = str(error)
        log.warning("%s: %s; trying again", self.address, self.why)
