"""Two numbers of each site's validation set: measured where the images are, sent with the update, kept by the server."""

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.tools.flower.centres import Grid, joined, rounds, settings
from vfmgl_lib.data.divisions import with_validation
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import Averaging
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.tools.flower.ledger import LEDGER
from vfmgl_lib.tools.flower.running import keep_round
from vfmgl_lib.tools.flower.site import Site, message_hash

PRIVATE = [name for name, method in METHODS.items() if method.private]


@pytest.fixture
def studied(federation, phantoms):
    """(method, **settings) -> clients with a validation set, and the server."""

    def make(method, task="nuclei", **overrides):
        clients, server = federation(task, method, federation__rounds=2, federation__match_updates=False, **overrides)
        divided = with_validation(phantoms[task], 0.4, 0)
        for client in clients:
            client.validation = ImageDataset(divided, divided.select(client.center, "val"), 32, 32)
        return clients, server

    return make


def images_of(client):
    return [client.validation[row] for row in range(len(client.validation))]


def dice(model, client):
    """The mean over the images, by the reader and the kernel's reference alone."""
    model.eval()
    with torch.inference_mode():
        each = [(model(one["image"][None]).argmax(1)[0].numpy() == 1, one["target"].numpy() == 1) for one in images_of(client)]
    return pytest.approx(np.mean([2 * (found & true).sum() / (found.sum() + true.sum()) for found, true in each]), abs=1e-6)


class Through:
    """A client whose rounds go through its site."""

    def __init__(self, site):
        self.site, self.sent = site, []
        self.center, self.settings, self.switches = site.client.center, site.client.settings, site.client.switches

    def run_round(self, number, received, progress):
        self.sent.append(self.site.train(number, received))
        return self.sent[-1]

    def adopt(self, shared):
        self.site.client.adopt(shared)


@pytest.mark.parametrize("method", PRIVATE)
def test_every_method_sends_what_its_models_are_worth_and_trains_as_without(studied, tmp_path, method):
    plain, server = studied(method)
    last = max(report_rounds(plain[0].settings).values())
    expected = [message_hash(done.shared) for done in run_rounds(plain, server, last)]
    clients, server = studied(method)
    sites = [Through(Site(client, tmp_path / client.center, "study", share_validation=True)) for client in clients]
    received, message = [], server.message
    server.message = lambda center, number: received.append(message(center, number)) or received[-1]
    assert [message_hash(done.shared) for done in run_rounds(sites, server, last)] == expected
    for one in sites:
        client, metrics = one.site.client, one.sent[-1].metrics
        if not client.switches.adopts and not client.switches.embeds:
            assert metrics["own_validation"] == dice(client.student, client)
        assert 0 <= metrics["own_validation"] <= 1
        assert ("shared_validation" in metrics) == any(state is not None for state in received[-len(sites) :])


def test_the_numbers_are_those_of_the_models_and_are_the_same_when_asked_again(studied, tmp_path):
    clients, _ = studied("vfmgl")
    site = Site(clients[0], tmp_path, "study", share_validation=True)
    first = site.train(1, None)
    assert "shared_validation" not in first.metrics, "nothing was received"
    shared = first.state | {"head.bias": torch.tensor([100.0, -100.0])}  # nothing is foreground
    second = site.train(2, shared)
    client = site.client
    assert second.metrics["own_validation"] == dice(client.student, client)
    assert second.metrics["shared_validation"] == dice(client.teaching_copy(shared), client)
    assert second.metrics["own_validation"] > second.metrics["shared_validation"] == 0
    again = Site(studied("vfmgl")[0][0], tmp_path, "study", share_validation=False).train(2, shared)
    assert again.metrics.keys() == second.metrics.keys(), "a round is answered once, with the same bytes"
    assert (tmp_path / LEDGER).read_text().count("\n") == 3


def test_a_classification_has_the_auc_of_its_patients(studied, tmp_path):
    (client, *_), _ = studied("fedavg", "endometrial")
    metrics = Site(client, tmp_path, "study", share_validation=True).train(1, None).metrics
    client.student.eval()
    with torch.inference_mode():
        chances = [float(client.student(one["image"][None]).softmax(1)[0, 1]) for one in images_of(client)]
    table = client.validation.table.assign(chance=chances)
    patients = table.groupby("patient").agg({"chance": "mean", "label": "first"})
    assert patients["label"].nunique() == 2
    assert metrics["own_validation"] == pytest.approx(roc_auc_score(patients["label"].astype(int), patients["chance"]))


def test_a_frozen_probe_reads_the_teacher_s_own_resize(studied, tmp_path, monkeypatch):
    """As when a study measures it: of the student's input its tokens would be others, and the number wrong in silence."""
    (client, *_), _ = studied("frozen_probe")
    monkeypatch.setattr(client.student, "forward", lambda images: pytest.fail("it was given the student's input"))
    assert 0 <= Site(client, tmp_path, "study", share_validation=True).train(1, None).metrics["own_validation"] <= 1


def test_they_are_withheld_by_the_site_and_by_a_study_that_shares_no_counts(studied, tmp_path):
    (client, *_), _ = studied("fedavg")
    assert set(Site(client, tmp_path / "a", "study").train(1, None).metrics) == {"task_loss", "kept_share"}
    (client, *_), _ = studied("fedavg", exchange__share_counts=False, federation__weights="uniform")
    assert Site(client, tmp_path / "b", "study", share_validation=True).train(1, None).metrics == {}
    (client, *_), _ = studied("fedavg")
    client.validation = None
    assert "own_validation" not in Site(client, tmp_path / "c", "study", share_validation=True).train(1, None).metrics


@pytest.mark.usefixtures("quick_network")
def test_the_server_keeps_what_each_centre_sent(tmp_path):
    study = settings()
    grid = Grid(study)
    grid.centers["SiteB"].metrics = {"own_validation": 0.75, "shared_validation": 0.5}
    for done in rounds(grid, study, members=joined(grid, study)):
        keep_round(tmp_path, Averaging({}, "uniform"), done)
    with open(tmp_path / "001" / "metrics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["center"] for row in rows] == ["SiteA", "SiteB", "SiteC"]
    assert all(float(row["task_loss"]) == 0.5 for row in rows)
    assert [(row["own_validation"], row["shared_validation"]) for row in rows] == [("", ""), ("0.75", "0.5"), ("", "")]
