"""Whose statistics of batch normalisation a model carries: in a client, on its way, where it teaches and where it is measured."""

import copy

import pandas as pd
import pytest
import torch

from vfmgl_lib.base.checkpoint import load_tensors
from vfmgl_lib.data.loading import ImageDataset, fixed_batches, load_batches
from vfmgl_lib.evaluation.prediction import predict
from vfmgl_lib.evaluation.rounds import RoundEvaluation
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.models.batch_norm import recalibrate
from vfmgl_lib.tools.flower.site import Site


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _by_hand(client, state):
    """The state with the statistics of one pass over the centre's training images."""
    model = copy.deepcopy(client.student)
    model.load_state_dict(state)
    recalibrate(model, [batch["image"] for batch in load_batches(client.data, fixed_batches(len(client.data)))])
    return model.state_dict()


@pytest.mark.parametrize(("task", "method"), [("nuclei", "vfmgl"), ("endometrial", "fedavg"), ("nuclei", "harmofl"), ("nuclei", "metafed")])
def test_a_centres_own_model_carries_its_own_statistics_after_every_stage_and_where_it_is_sent(federation, received, task, method):
    clients, server = federation(task, method, optimizer__lr=0.005, federation__rounds=3)
    updates = received(server)
    for _ in run_rounds(clients, server, 2):
        for client, update in zip(clients, updates, strict=True):
            for state in (client.student.state_dict(), client.stage_one_state, update.state | update.aggregates):
                assert _equal(state, _by_hand(client, state))
        updates.clear()
    if server.checkpoint == "shared":
        assert not _equal(server.state, _by_hand(clients[0], server.state)), "the shared model's are averages"


def test_the_shared_model_teaches_with_the_statistics_of_the_centre_where_it_teaches(federation, monkeypatch):
    clients, server = federation("nuclei")
    list(run_rounds(clients, server, 1))
    client, taught = clients[0], []
    copy_of = client.teaching_copy
    monkeypatch.setattr(client, "teaching_copy", lambda state: taught.append(copy_of(state)) or taught[-1])
    client.run_round(2, server.message(client.center, 2))
    shared, untrained = taught  # the other is what it is held against
    assert _equal(untrained.state_dict(), _by_hand(client, client.initial_state))
    assert not shared.training and _equal(shared.state_dict(), _by_hand(client, server.state))


def test_running_statistics_stay_as_they_are(federation, monkeypatch):
    clients, server = federation("nuclei", batch_norm="running")
    list(run_rounds(clients, server, 2))
    client = clients[0]
    assert not _equal(client.student.state_dict(), _by_hand(client, client.student.state_dict()))
    assert _equal(client.teaching_copy(server.state).state_dict(), server.state)


@pytest.mark.parametrize("method", ["vfmgl", "fedavg"])
def test_a_batch_that_is_normalised_by_itself_needs_no_statistics(federation, method):
    clients, server = federation("nuclei", method, batch_norm="batch")
    list(run_rounds(clients, server, 2))
    assert not [name for name in server.state if "running" in name]


def test_no_image_is_predicted_as_a_batch_of_one_where_a_batch_is_normalised_by_itself(federation):
    """At 32 px ResNet18 ends in a single place: one image alone could not be normalised at all."""
    (client, *_), _ = federation("endometrial", "local", batch_norm="batch")
    three = ImageDataset.__new__(ImageDataset)
    three.__dict__ = client.data.__dict__ | {"table": client.data.table.head(3)}
    size = client.settings.evaluation_batch_size
    assert size == 2 and len(predict(client.student, three, batch_size=size, device=client.device)) == 3


def test_the_shared_model_is_measured_with_averaged_statistics_and_adapted(federation, phantoms, tmp_path):
    clients, server = federation("endometrial", "fedavg", federation__rounds=1, federation__match_updates=False)
    manifest, settings = phantoms["endometrial"], clients[0].settings
    at, external = manifest.training_centers[0], manifest.centers[-1]
    datasets = {at: {split: ImageDataset(manifest, manifest.select(at, split), 32) for split in ("train", "test")}}
    datasets[external] = {"test": ImageDataset(manifest, manifest.select(external, "test"), 32)}
    evaluation = RoundEvaluation(settings, datasets, "image", torch.device("cpu"))
    (done,) = run_rounds(clients, server, 1)
    tables = evaluation.round(1, clients[:1], clients[0].frozen_copy(done.shared), tmp_path)
    rows = {(row["model_center"], row["test_center"]) for row in tables.tables["metrics"]}
    assert rows == {(at, at), (at, external), ("shared", at), ("shared", external), ("adapted", at)}
    written = pd.concat(tables.predictions).query(f"test_center == '{at}' and split == 'test'")
    scores = {model: part["probability"].tolist() for model, part in written.groupby("model_center")}
    assert scores["adapted"] == scores[at] != scores["shared"], "FedAvg's own model is the shared one, adapted"


@pytest.mark.parametrize("method", ["fedavg", "fedbn"])
@pytest.mark.parametrize("batch_norm", ["recalibrated", "running"])
def test_a_site_keeps_the_last_shared_model_as_received_and_adapted(federation, tmp_path, batch_norm, method):
    clients, server = federation("nuclei", method, batch_norm=batch_norm)
    (done,) = run_rounds(clients, server, 1)
    site = Site(clients[0], tmp_path, "study")
    site.finish({name: torch.zeros_like(tensor) for name, tensor in done.shared.items()})
    site.finish(done.shared)  # told twice: the later one
    received, adapted = (load_tensors(tmp_path / "shared", name) for name in ("shared", "adapted"))
    whole = clients[0].completed(done.shared)
    assert _equal(received, done.shared) and (_equal(whole, received) == (method == "fedavg"))
    assert _equal(adapted, _by_hand(clients[0], whole) if batch_norm == "recalibrated" else whole)
    assert _equal(adapted, received) == (method == "fedavg" and batch_norm == "running")
