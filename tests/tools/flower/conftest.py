"""What the tests of the networked federation share."""

import threading
from contextlib import ExitStack, contextmanager

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from vfmgl_lib.tools.flower import collection, credentials, network
from vfmgl_lib.tools.flower.messages import FINISH
from vfmgl_lib.tools.flower.network import client_app, finish, network_rounds
from vfmgl_lib.tools.flower.programs import free_port, wait_until
from vfmgl_lib.tools.flower.site import Site
from vfmgl_lib.tools.flower.superlink import superlink
from vfmgl_lib.tools.flower.supernode import supernode

CENTERS = ("SiteA", "SiteB")
SPARE = ("Spare1", "Spare2")  # may connect; no SuperNode does by itself


class Line:
    """Flower's SuperLink, a run on it, and a SuperNode for each of two centres, for all tests of a process: they start in half a minute."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.apps, self.answered = {}, []
        credentials.write_certificates(folder, ["127.0.0.1", "localhost"], days=1)
        for center in (*CENTERS, *SPARE):
            credentials.write_key_pair(folder / center)
        self.keys = {center: credentials.read_public_key(folder / f"{center}.pub") for center in (*CENTERS, *SPARE)}

    @contextmanager
    def site(self, center, address=None):
        """A SuperNode, and a thread that answers its messages with the app that is set just now."""
        with supernode(address or self.address, self.folder / credentials.CA, self.folder / center, self.folder / f"node-{center}") as node:
            ended = threading.Event()

            def answer():
                while not ended.is_set():
                    self.answered.append((center, node.answer(lambda *message: self.apps[center](*message))))

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            yield node
            ended.set()
            thread.join()


class Wire:
    """The line with the sites of these clients at its ends."""

    def __init__(self, line, folder, clients):
        self.line, self.folder, self.clients = line, folder, clients

    def connect(self):
        for name, client in zip(CENTERS, self.clients, strict=False):
            self.line.apps[name] = client_app(Site(client, self.folder / f"site-{client.center}", client.settings.key()))

    def run(self, server, rounds):
        self.connect()
        grid, nodes = self.line.grid, {center: self.line.nodes[center] for center in CENTERS}
        done = list(network_rounds(grid, nodes, server, rounds, settings=self.clients[0].settings))
        self.line.answered.clear()
        finish(grid, nodes, done[-1].shared, deadline=0)
        assert wait_until(lambda: {(center, FINISH) for center in CENTERS} <= set(self.line.answered), 120)
        return done


IDENTITY = ("_task_id", "_run_id", "_node_id")  # Flower keeps in a global at which task a process is


@pytest.fixture(scope="session")
def started_line(tmp_path_factory):
    made = Line(tmp_path_factory.mktemp("line"))
    with superlink(made.folder, made.port, made.keys) as (made.grid, made.nodes), ExitStack() as stack:
        made.task = {name: getattr(TaskIdentity, name) for name in IDENTITY}
        made.sites = {center: stack.enter_context(made.site(center)) for center in CENTERS}
        assert wait_until(lambda: all(node.connected for node in made.sites.values()), 300)
        yield made


@pytest.fixture
def line(started_line, monkeypatch):
    """The line, and this process at its task, whatever other tests have set."""
    for name, value in started_line.task.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    return started_line


@pytest.fixture
def wire(line):
    """(folder, clients) -> a federation over TLS whose sites are threads of this process."""
    return lambda folder, clients: Wire(line, folder, clients)


@pytest.fixture
def some_task(monkeypatch):
    """This process is at some task of Flower's; afterwards at the one before, such as `line`'s."""
    for name in IDENTITY:
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def message(some_task):
    """(content, kind) -> a message as a centre receives it."""

    def make(content, kind):
        made = Message(content, 2, kind)
        made.metadata.__dict__["_message_id"] = "m"
        return made

    return make


@pytest.fixture
def quick_network(monkeypatch, some_task):
    """Rounds over a Grid without a network look for answers all the time."""
    monkeypatch.setattr(collection, "POLL", 0.01)
    monkeypatch.setattr(network, "POLL", 0.01)
    monkeypatch.setattr(collection, "COLLECT", 1.0)
