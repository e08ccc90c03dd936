"""All that this library uses of Flower beyond its documented interface: work on the tasks that Flower's own programs hand out.

`flower-superlink --isolation process` and `flower-supernode --isolation process` wait for a program that takes their tasks: a run's rounds
at the SuperLink, one message at a time at a SuperNode. Flower's own program unpacks the app that came with the task and runs it. This one
never opens what came along: it answers with the installed library. Its calls are those of `flwr-serverapp`, `flwr-clientapp` and `flwr`.

Whatever is imported here from flwr may change with its version. `tests/tools/flower/test_inside.py` holds on to what is expected of it;
`PASSED` are the versions on which that test and those of the whole federation passed.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_confirm_message_received_fn_protobuf, make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.runtime.run_clientapp import push_message

from vfmgl_lib.base.surroundings import about_proxy, direct_to_loopback
from vfmgl_lib.tools.flower.credentials import read_private_key

if TYPE_CHECKING:
    from flwr.serverapp import Grid

log = logging.getLogger(__name__)
PASSED = ("1.41.0",)
SERVER, SITE = "flwr-serverapp", "flwr-clientapp"  # kinds of task
ERRORS = (httpx.HTTPError, ObjectPullError, ObjectPushError)  # of a connection, or of a message that did not come or go whole
HEARTBEAT = 15.0  # seconds between two signs of life; a task without one for 60 s is given up by Flower


class Task:
    """A task that this process has claimed, with signs of life while the block lasts; at the end Flower hears how it went.

    Args:
        address: host:port on this machine.
        ca: the CA's certificate, PEM; None: the connection, which does not leave the machine, has no TLS.
    """

    def __init__(self, kind: str, address: str, token: str, ca: bytes | None):
        self.kind, self.address, self.token, self.ca = kind, address, token, ca
        self.client = _client(kind, address, ca, RuntimeTokenHttpInterceptor(token))
        self._stop = threading.Event()

    def __enter__(self) -> Task:
        self._input = self.client.PullTaskInput(PullTaskInputRequest())
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        try:
            self.client.PushTaskOutput(PushTaskOutputRequest(sub_status="failed" if error else "completed", details=""))
        except httpx.HTTPError as unsaid:
            log.info("%s: could not say that the task has ended: %s", self.address, unsaid)
        self.client.close()

    def message(self) -> tuple[Message, Context]:
        """What a site is to answer. The app that came with it is left as it is."""
        context, node = context_from_proto(self._input.context), Node(node_id=self._input.context.node_id)
        pulled = self.client.PullMessages(PullAppMessagesRequest())
        if not pulled.messages_list:
            raise ObjectPullError("", "the task's message is not there any more")
        (tree,) = pulled.message_object_trees
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self.client.PullObject, node, context.run_id),
            make_confirm_message_received_fn_protobuf(self.client.ConfirmMessageReceived, node, context.run_id),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id  # Flower's content does not hold its own id
        return message, context

    def answer(self, reply: Message, context: Context) -> None:
        push_message(self.client, reply, context)

    @contextmanager
    def grid(self) -> Iterator[Grid]:
        """What speaks for the run; its requests fail at once where no SuperLink answers."""
        # Flower keeps in a global who writes a message.
        TaskIdentity.task_id, TaskIdentity.run_id = self._input.task_id, self._input.run.run_id
        TaskIdentity.node_id = self._input.context.node_id
        grid = HttpGrid(self.address, self.ca is None, self.ca, token=self.token)
        # Its own way of retrying sends this process an interrupt when a request comes after the run's end, as a late one of ours may.
        grid._retry_invoker = None  # type: ignore[assignment]  # its client takes None, too
        with direct_to_loopback(self.address.rpartition(":")[0]):
            grid._connect()  # else at its first message
        grid.set_run(run_from_proto(self._input.run))
        try:
            yield grid
        finally:
            grid.close()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            try:
                self.client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
                log.info("%s: no sign of life possible: %s", self.address, error)


class Tasks:
    """The tasks that a program of Flower's hands out.

    Args:
        secret: what the program at `address` was started with, so that nobody else on the machine takes its tasks.
    """

    def __init__(self, kind: str, address: str, secret: bytes, ca: bytes | None):
        self.kind, self.address, self.ca = kind, address, ca
        signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={"/flwr.proto.Runtime/AcquireTask"})
        self.client = _client("SuperExec", address, ca, signed)

    def claim(self) -> Task | None:
        """The next one that waits.

        Raises: httpx.HTTPError: no answer, or another secret.
        """
        token = self.client.AcquireTask(AcquireTaskRequest(supported_task_types=[self.kind])).token
        return Task(self.kind, self.address, token, self.ca) if token else None


def hush() -> None:
    """Flower and what it uses write a line a request; from now on warnings alone."""
    for talkative in ("flwr", "alembic", "httpx"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


def enter_centers(address: str, ca: bytes, centers: Mapping[str, ec.EllipticCurvePublicKey]) -> dict[str, int]:
    """Tells a SuperLink who may connect. Returns: centre -> node id. As `flwr supernode register`, which takes seconds for each."""
    with _control(address, ca) as client:
        keys = {center: _spki(key) for center, key in centers.items()}
        return {center: client.RegisterNode(RegisterNodeRequest(public_key=key, name=center)).node_id for center, key in keys.items()}


def start_run(address: str, ca: bytes, project: str) -> None:
    """Starts a run of an app that is nothing but its pyproject.toml; as `flwr run`."""
    content, _ = build_fab_from_files({"pyproject.toml": project.encode()})
    with _control(address, ca) as client:
        client.StartRun(StartRunRequest(fab=Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)))


def admitted(address: str, certificate: Path, key: Path) -> bool:
    """Whether the server knows this centre's key; nothing changes there, and a centre that is at work is not disturbed.

    Raises: ConnectionError: no answer, or another one; says why, as far as is known.
    """
    private, host = read_private_key(key), address.rpartition(":")[0]
    public = _spki(private.public_key())
    interceptors = (RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(private, private.public_key()))
    try:
        with (
            direct_to_loopback(host),
            FleetHttpClient.from_server_address(address, False, certificate.read_bytes(), interceptors) as client,
        ):
            # Refused in any case: of a known key because of the interval, which is looked at after the key and before anything is done.
            client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=0))
    except httpx.HTTPError as error:
        code = _error_code(error)
        if code not in (ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED):
            raise ConnectionError(_reason(error, host)) from error
        return code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL
    except (ImportError, ValueError) as error:  # of a proxy that httpx cannot use, as one of SOCKS
        raise ValueError(f"{address}: {error}{about_proxy(host)}") from error
    raise ConnectionError(f"{address}: another server than this library's")


def _client(
    component: str, address: str, ca: bytes | None, interceptor: RuntimeTokenHttpInterceptor | SuperExecAuthHttpInterceptor
) -> RuntimeHttpClient:
    interceptors = (RuntimeVersionHttpInterceptor(component_name=component), interceptor)
    with direct_to_loopback(address.rpartition(":")[0]):
        return RuntimeHttpClient.from_server_address(address, ca is None, ca, interceptors)


def _control(address: str, ca: bytes) -> ControlHttpClient:
    with direct_to_loopback(address.rpartition(":")[0]):
        return ControlHttpClient.from_server_address(address, False, ca, (RuntimeVersionHttpInterceptor(component_name="flwr"),))


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _reason(error: Exception, host: str) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            return "the server does not know this centre's key, or does not accept its signature; do the clocks of both machines agree?"
        return f"the server answers {error.response.status_code}: {error.response.text[:200]}"
    return (str(error) or type(error).__name__) + about_proxy(host)


def _error_code(error: Exception) -> int:
    """Flower's number of an error; 0: none."""
    try:
        return int(error.response.json()["code"]) if isinstance(error, httpx.HTTPStatusError) else 0
    except (ValueError, TypeError, KeyError):
        return 0
