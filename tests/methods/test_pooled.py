"""Pooled training: local training on all centres' images at once, taken over by every centre, and refused over a network."""

import copy

import pytest
import torch

from vfmgl_lib.config import ConfigError
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.study.training import run_study
from vfmgl_lib.tools.flower.deployment import init
from vfmgl_lib.tools.flower.one_machine import run_rounds_apart


def test_one_student_is_trained_on_all_images_together(federation):
    clients, server = federation("nuclei", "pooled")
    local = copy.copy(federation("nuclei", "local")[0][0])
    local.data = clients[0].pool
    assert [len(client.data) for client in clients] == [4, 4] and len(local.data) == 8
    assert local.data.table["id"].tolist() == [row for client in clients for row in client.data.table["id"]]
    for done in run_rounds(clients, server, 2):
        local.run_round(done.number, None)
        assert all(torch.equal(done.shared[name], tensor) for name, tensor in local.student.state_dict().items())
        for client in clients:
            again = copy.deepcopy(client.student)
            client.recalibrate(again)
            for name, tensor in client.student.state_dict().items():
                assert torch.equal(tensor, again.state_dict()[name]), "its own centre's statistics, of its own images"
                assert "running" in name or torch.equal(tensor, done.shared[name])
        assert [row["batches"] for client in clients for row in client.log.rounds] == [4, 0]
    assert [client.batch_count(1) for client in clients] == [4, 0]
    assert [len(client.data) for client in clients] == [4, 4], "each centre's own images are its own again"
    images = [local.data[index]["image"] for index in range(len(local.data))]
    own = [client.data[index]["image"] for client in clients for index in range(len(client.data))]
    assert all(torch.equal(a, b) for a, b in zip(images, own, strict=True))


def test_the_centres_that_do_not_train_send_nothing(federation, received):
    clients, server = federation("nuclei", "pooled")
    updates = received(server)
    list(run_rounds(clients, server, 1))
    assert [bool(update.state) for update in updates] == [True, False]


def test_it_is_refused_over_a_network(phantoms, tmp_path):
    message = "method pooled: it pools the centres' images and does not run over a network"
    with pytest.raises(ConfigError, match=message):
        init(tmp_path / "federation", "nuclei", "smoke", "pooled", 0, "localhost", 9092, "")
    assert not (tmp_path / "federation").exists()
    settings = load_settings("nuclei", "smoke", method="pooled", data__image_size=32)
    with pytest.raises(ConfigError, match=message):
        run_study(settings, phantoms["nuclei"], tmp_path / "studies", progress=False, network=run_rounds_apart)
