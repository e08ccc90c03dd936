"""What the tests of the networked federation share."""

import socket
import threading

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from vfmgl_lib.tools.flower import collection, credentials, network
from vfmgl_lib.tools.flower.network import client_app, finish, network_rounds
from vfmgl_lib.tools.flower.site import Site
from vfmgl_lib.tools.flower.superlink import superlink
from vfmgl_lib.tools.flower.supernode import run_supernode


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Wire:
    """A SuperLink and, in threads of this process, a site for each client."""

    def __init__(self, folder, clients):
        self.folder, self.clients, self.port = folder, clients, _free_port()
        self.address = f"127.0.0.1:{self.port}"
        credentials.write_certificates(folder, ["127.0.0.1"], days=1)
        for client in clients:
            credentials.write_key_pair(folder / client.center)
        self.keys = {client.center: credentials.read_public_key(folder / f"{client.center}.pub") for client in clients}
        self.threads = []

    def connect(self):
        for client in self.clients:
            site = Site(client, self.folder / f"site-{client.center}", client.settings.key())
            key = self.folder / client.center
            arguments = (client_app(site), self.address, self.folder / credentials.CA, key, 20.0)
            self.threads.append(threading.Thread(target=run_supernode, args=arguments, daemon=True))
            self.threads[-1].start()

    def run(self, server, rounds):
        settings = self.clients[0].settings
        with superlink(self.folder, "127.0.0.1", self.port, self.keys) as (grid, nodes):
            self.connect()
            done = list(network_rounds(grid, nodes, server, rounds, settings=settings))
            finish(grid, nodes, done[-1].shared, deadline=20)
        for thread in self.threads:
            thread.join(timeout=20)
            assert not thread.is_alive(), "a site goes when the study is finished"
        return done


@pytest.fixture
def wire():
    """(folder, clients) -> a federation over TLS whose sites are threads of this process."""
    return Wire


@pytest.fixture
def message():
    """(content, kind) -> a message as a centre receives it."""

    def make(content, kind):
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        made = Message(content, 2, kind)
        made.metadata.__dict__["_message_id"] = "m"
        return made

    return make


@pytest.fixture
def quick_network(monkeypatch):
    """Rounds over a Grid without a network look for answers all the time."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(collection, "POLL", 0.01)
    monkeypatch.setattr(network, "POLL", 0.01)
    monkeypatch.setattr(collection, "COLLECT", 1.0)
