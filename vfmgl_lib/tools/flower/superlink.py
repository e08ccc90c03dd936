"""Flower's SuperLink with TLS and node authentication, for one study: what centres connect to.

Flower's own command serves three APIs on one port: for nodes, for apps, and for control, and in the free edition whoever reaches the port
may use the last: start a run (whose code the nodes execute), read logs, add nodes. Here control is not served at all. Nodes are entered and
the run is started in this very process, and what belongs to apps needs a token that never leaves it.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, TRANSPORT_TYPE_GRPC_RERE, SubStatus
from flwr.server.superlink.linkstate import LinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.grid import HttpGrid
from flwr.superlink.main import create_app
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vfmgl_lib.base.surroundings import direct_to_loopback, keep_freed_memory
from vfmgl_lib.tools.flower import credentials

log = logging.getLogger(__name__)
NODES, APPS = "/v1/fleet/", "/v1/runtime/"
LOOPBACK = ("127.0.0.1", "::1")
BODY = 8 * 2**20  # bytes of a request: Flower cuts arrays into chunks of 5 MiB
STRANGERS_BODY = 2**16  # of one that names no key of this federation: to be refused needs less
HEARTBEAT = 30.0  # seconds a node may be silent before it counts as away


@contextmanager
def superlink(
    folder: Path, host: str, port: int, centers: Mapping[str, ec.EllipticCurvePublicKey]
) -> Iterator[tuple[Grid, dict[str, int]]]:
    """Serves until the block ends.

    Args:
        folder: with the certificates (`credentials.write_certificates`); state.db in it keeps the nodes over a restart.
        host, port: where to listen.
        centers: the public keys of those that may connect.
    Yields: the grid of a new run, and centre -> node id.
    Raises: OSError: the port is taken. ValueError: two centres with one key, or a key that was taken out before.
    """
    check_keys(centers)
    for talkative in ("flwr", "alembic", "uvicorn", "httpx"):  # a line a request
        logging.getLogger(talkative).setLevel(logging.WARNING)
    app = create_app(_lifespan(folder, host, port), SuperLinkLifespan)
    keys = {center: public_key_to_bytes(key) for center, key in centers.items()}
    server = uvicorn.Server(
        uvicorn.Config(
            _guarded(app, {b64encode(key) for key in keys.values()}),
            ssl_certfile=str(folder / credentials.CERTIFICATE),
            ssl_keyfile=str(folder / credentials.KEY),
            log_config=None,
            access_log=False,
        )
    )
    state = app.state.linkstate_factory.state()
    _remove_others(state, set(keys.values()))  # before anybody can connect
    nodes = {center: _node(state, center, key) for center, key in keys.items()}
    thread = threading.Thread(target=server.run, args=(_sockets(host, port),), name="superlink", daemon=True)
    thread.start()
    while thread.is_alive() and not server.started:
        time.sleep(0.02)
    if not server.started:
        raise OSError(f"{host}:{port}: the SuperLink cannot listen there; is the port taken?")
    keep_freed_memory(False)  # its requests are answered by up to 40 threads, which would each keep what a model needs
    try:
        with _run(state, folder, port) as grid:
            yield grid, nodes
    finally:
        keep_freed_memory(True)
        server.should_exit = True
        thread.join(timeout=5)


@contextmanager
def _run(state: LinkState, folder: Path, port: int) -> Iterator[Grid]:
    """A run of Flower's for as long as the block lasts, and the grid that speaks for it."""
    run_id = state.create_run("vfmgl/study", "1", "", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
    (run,) = state.get_run_info(run_ids=[run_id])
    task = run.primary_task_id
    assert task is not None  # Flower makes it with the run
    # Flower keeps in a global who writes a message.
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, task, SUPERLINK_NODE_ID
    token = state.claim_task(task)
    assert token is not None  # nobody else claims it
    state.activate_task(task)
    beat = HeartbeatSender(lambda: state.acknowledge_task_heartbeat(task))
    beat.start()
    grid = HttpGrid(f"127.0.0.1:{port}", root_certificates=(folder / credentials.CA).read_bytes(), token=token)
    # Its own way of retrying sends this process an interrupt when a request comes after the run's end, as a late one of ours may.
    grid._retry_invoker = None  # type: ignore[assignment]  # its client takes None, too
    with direct_to_loopback("127.0.0.1"):
        grid._connect()  # else at its first message
    grid.set_run(run)
    try:
        yield grid
    finally:
        beat.stop()
        state.finish_task(task, SubStatus.COMPLETED, "")
        grid.close()


def _sockets(host: str, port: int) -> list[socket.socket]:
    """Where to listen: at `host`, and on loopback, where this server's own grid speaks to it. Raises: OSError: the port is taken."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    sockets = [socket.create_server((host, port), family=family, backlog=2048)]
    if host not in ("0.0.0.0", LOOPBACK[0]):
        sockets.append(socket.create_server((LOOPBACK[0], port), backlog=2048))
    return sockets


def _guarded(app: ASGIApp, known: Collection[bytes]) -> ASGIApp:
    """The app as nodes may use it; what is for apps answers this machine alone, all else is not there.

    A body that is too large is refused before it is read: Flower reads and parses it before it looks at the signature.
    """

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path, client, headers = scope["path"], (scope.get("client") or ("",))[0], dict(scope["headers"])
        is_app = path.startswith(APPS) and client in LOOPBACK
        if not (path.startswith(NODES) or is_app):
            await PlainTextResponse("not here", status_code=404)(scope, receive, send)
            return
        limit = BODY if is_app or headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode()) in known else STRANGERS_BODY
        too_large = PlainTextResponse(f"more than {limit} bytes", status_code=413, headers={"connection": "close"})
        if int(headers.get(b"content-length", 0)) > limit:
            await too_large(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            before, read = read, read + len(message.get("body", b""))
            if read <= limit:
                return message
            if before <= limit:  # a body whose length was not told
                await too_large(scope, receive, send)
            return {"type": "http.disconnect"}

        async def unless_refused(message: Message) -> None:
            if read <= limit:
                await send(message)

        await app(scope, counted, unless_refused)

    return guard


def _node(state: LinkState, center: str, key: bytes) -> int:
    known = state.get_node_id_by_public_key(key)
    if known is not None:
        return known
    try:
        return state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT, name=center)
    except ValueError as error:
        raise ValueError(f"centre {center}: its key was taken out of this federation before; it needs a new one") from error


def _remove_others(state: LinkState, keys: set[bytes]) -> None:
    """Forgets the nodes of an earlier start whose keys are not to connect any more."""
    for node in state.get_node_info(statuses=[NodeStatus.REGISTERED, NodeStatus.ONLINE, NodeStatus.OFFLINE]):
        if node.public_key not in keys:
            state.delete_node(NOOP_FLWR_AID, node.node_id)


def check_keys(centers: Mapping[str, ec.EllipticCurvePublicKey]) -> None:
    """Raises: ValueError: two centres with one key."""
    seen: dict[bytes, str] = {}
    for center, key in centers.items():
        other = seen.setdefault(public_key_to_bytes(key), center)
        if other != center:
            raise ValueError(f"centres {other} and {center} have the same public key; every centre needs a key of its own")


def _lifespan(folder: Path, host: str, port: int) -> SuperLinkLifespanConfig:
    ca, certificate, key = ((folder / name).read_bytes() for name in (credentials.CA, credentials.CERTIFICATE, credentials.KEY))
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=host,
        port=port,
        insecure=False,
        certificates=(ca, certificate, key),
        superexec_auth_secret=secrets.token_bytes(32),  # for those who would fetch tasks: nobody
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=str(folder / credentials.CA),
        ssl_certfile=str(folder / credentials.CERTIFICATE),
        ssl_keyfile=str(folder / credentials.KEY),
        database=str(folder / "state.db"),
        isolation="process",
        runtime_dependency_install=False,
    )
