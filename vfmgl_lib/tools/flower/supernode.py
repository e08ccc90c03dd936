"""A centre's side of the connection: Flower's SuperNode, without the part that executes what the server sends.

Flower's own command fetches an app from the server and runs it. Here the same authenticated connection carries messages to the ClientApp of
the installed library, and nothing else is fetched. Nothing listens: a centre only calls out, to one address and port.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectPushError, pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from vfmgl_lib.base.surroundings import about_proxy, direct_to_loopback
from vfmgl_lib.tools.flower.credentials import read_private_key
from vfmgl_lib.tools.flower.messages import FINISH

log = logging.getLogger(__name__)
POLL, LONGEST_POLL = 0.2, 2.0  # seconds between two looks for a message: at first, and after a while without one
HEARTBEAT = 4.0  # seconds between two signs of life
AWAY = 10.0  # promised to the server, which counts this centre as away after twice as long; Flower's least
RECONNECT = 2.0  # seconds from one attempt to connect to the next


def run_supernode(app: ClientApp, address: str, certificate: Path, key: Path, patience: float) -> None:
    """Answers the server's messages until it says that the study is finished. A connection that is lost is taken up again.

    Args:
        app: the centre (`tools.flower.network.client_app`).
        address: the server's, host:port.
        certificate: of the CA, PEM.
        key: the centre's private key.
        patience: seconds without a connection after which this centre gives up.
    Raises: ConnectionError: no connection for so long. ValueError: a key that cannot be used.
    """
    public = public_key_to_bytes(read_private_key(key).public_key())
    last = time.monotonic()
    with _client(address, certificate, key) as client:
        while True:
            try:
                with _activated(client, public) as node:
                    log.info("connected to %s", address)
                    pause = POLL
                    while True:
                        response = client.PullMessages(PullMessagesRequest(node=node))
                        last = time.monotonic()
                        if not response.messages_list:
                            time.sleep(pause)
                            pause = min(1.5 * pause, LONGEST_POLL)
                            continue
                        if _answer(app, client, node, response) == FINISH:
                            return
                        last, pause = time.monotonic(), POLL
            except (httpx.HTTPError, ObjectPullError, ObjectPushError) as error:
                if time.monotonic() - last > patience:
                    raise ConnectionError(f"{address}: no connection for {patience:.0f} s: {_reason(error, address)}") from error
                log.warning("%s: %s; trying again", address, _reason(error, address))
                time.sleep(RECONNECT)


def admitted(address: str, certificate: Path, key: Path) -> bool:
    """Whether the server knows this centre's key; nothing changes there, and a centre that is at work is not disturbed.

    Raises: ConnectionError: no answer, or another one.
    """
    public = public_key_to_bytes(read_private_key(key).public_key())
    try:
        with _client(address, certificate, key) as client:
            # Refused in any case: of a known key because of the interval, which is looked at after the key and before anything is done.
            client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=0))
        raise ConnectionError(f"{address}: another server than this library's")
    except httpx.HTTPError as error:
        code = _error_code(error)
        if code not in (ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED):
            raise ConnectionError(_reason(error, address)) from error
        return code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL


def _client(address: str, certificate: Path, key: Path) -> FleetHttpClient:
    private, host = read_private_key(key), address.rpartition(":")[0]
    interceptors = (RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(private, private.public_key()))
    with direct_to_loopback(host):
        try:
            return FleetHttpClient.from_server_address(address, False, certificate.read_bytes(), interceptors)
        except (ImportError, ValueError) as error:  # of a proxy that httpx cannot use, as one of SOCKS
            raise ValueError(f"{address}: {error}{about_proxy(host)}") from error


def _answer(app: ClientApp, client: FleetHttpClient, node: Node, response: PullMessagesResponse) -> str:
    """Fetches one message, lets the app answer it, and sends the answer; returns the message's type."""
    (tree,), run_id = response.message_object_trees, response.messages_list[0].metadata.run_id
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, run_id),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id),
        return_type=Message,
    )
    message.metadata.__dict__["_message_id"] = tree.object_id  # Flower's content does not hold its own id
    started = time.monotonic()
    context = Context(run_id=run_id, node_id=node.node_id, node_config={}, state=RecordDict(), run_config={})
    reply = app(message, context)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        pushed = client.PushMessages(
            PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[time.monotonic() - started],
            )
        )
        push = make_push_object_fn_protobuf(client.PushObject, node, run_id, pushed.session_id)
        push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(pushed.objects_to_push))
    return message.metadata.message_type


@contextmanager
def _activated(client: FleetHttpClient, public: bytes) -> Iterator[Node]:
    """The node that the server knows by this key, with signs of life while the block lasts: training can take hours."""
    node = Node(node_id=client.ActivateNode(ActivateNodeRequest(public_key=public, heartbeat_interval=AWAY)).node_id)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            try:
                client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=AWAY))
            except httpx.HTTPError as error:
                log.info("no sign of life possible: %s", _reason(error))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield node
    finally:
        stop.set()
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
        except httpx.HTTPError as error:
            log.info("could not say goodbye: %s", _reason(error))


def _reason(error: Exception, address: str = "") -> str:
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            return "the server does not accept this centre's signature; do the clocks of both machines agree?"
        if _error_code(error) == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return "the server does not know this centre's key, or a site with this key is connected, or was within the last minute"
        return f"the server answers {error.response.status_code}: {error.response.text[:200]}"
    return (str(error) or type(error).__name__) + about_proxy(address.rpartition(":")[0])


def _error_code(error: Exception) -> int:
    """Flower's number of an error; 0: none."""
    try:
        return int(error.response.json()["code"]) if isinstance(error, httpx.HTTPStatusError) else 0
    except (ValueError, TypeError, KeyError):
        return 0
