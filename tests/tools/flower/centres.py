"""A Grid of Flower's without a network, and the centres behind it: for tests of the server's rounds."""

from types import SimpleNamespace

import torch
from flwr.app import ConfigRecord, RecordDict

from vfmgl_lib import __version__
from vfmgl_lib.federation.servers import Averaging, Update
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.tools.flower.members import Members
from vfmgl_lib.tools.flower.messages import ABOUT, update_records
from vfmgl_lib.tools.flower.network import network_rounds, wait_for_centers

CENTERS = ("SiteA", "SiteB", "SiteC")
MODEL = {"w": torch.zeros(3), "bn.running_var": torch.ones(2)}
SILENT = object()


def settings(deadline=0.5, **overrides):
    return load_settings("nuclei", "smoke", method="fedavg", faults__deadline=deadline, **overrides)


class Centre:
    """A centre that answers as it should; a test changes what it says."""

    def __init__(self, name, study, samples=10, value=1.0):
        self.name, self.samples, self.value = name, samples, value
        self.identity = {"center": name, "study": study.key(), "vfmgl_lib": __version__, "teacher": "none", "samples": samples}
        self.asked, self.metrics = [], {}

    def answer(self, kind, content):
        self.asked.append((kind, dict(content.get(ABOUT, {})).get("round")))
        return RecordDict({ABOUT: ConfigRecord(self.identity)}) if kind == "query" else self.update()

    def update(self):
        state = {"w": torch.full((3,), self.value), "bn.running_var": torch.ones(2)}
        return update_records(Update(self.name, state, self.samples, {"task_loss": 0.5, "kept_share": 1.0, **self.metrics}))


class Grid:
    """Flower's Grid as the rounds use it, and the centres behind it."""

    def __init__(self, study, centers=CENTERS, **named):
        self.centers = {name: Centre(name, study) for name in centers} | named
        self.nodes = {name: number for number, name in enumerate(self.centers, 1)}
        self.away, self.answers = set(), {}

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, last_activated_at="once") for name, node in self.nodes.items() if name not in self.away]

    def push_messages(self, messages):
        identifiers = []
        for message in messages:
            (name,) = (name for name, node in self.nodes.items() if node == message.metadata.dst_node_id)
            identifiers.append(f"{name}-{len(self.answers)}")
            self.answers[identifiers[-1]] = self.centers[name].answer(message.metadata.message_type, message.content)
        return identifiers

    def pull_messages(self, identifiers):
        (identifier,) = identifiers
        answer = self.answers[identifier]
        if answer is SILENT:
            return []
        if callable(answer):
            answer = answer()  # as Flower's own Grid puts an answer together when it is pulled
        return [SimpleNamespace(content=answer, has_error=lambda: False)]


def rounds(grid, study, number=1, **more):
    server = Averaging(MODEL, study.federation.weights)
    return list(network_rounds(grid, grid.nodes, server, number, settings=study, **more))


def joined(grid, study):
    members = Members(study)
    assert wait_for_centers(grid, grid.nodes, members, 5) == []
    return members
