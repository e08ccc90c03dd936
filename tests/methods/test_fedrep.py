"""FedRep and FedPer: the head stays at home; FedRep trains it first and alone, then the body with the head still."""

import pytest
import torch

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.models.students import part_names

HEAD = {"nuclei": {"head.weight", "head.bias"}, "endometrial": {"net.fc.weight", "net.fc.bias"}}


def _parameters(client):
    return {name: parameter.detach().clone() for name, parameter in client.student.named_parameters()}


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
@pytest.mark.parametrize("method", ["fedrep", "fedper"])
def test_the_head_stays_at_home_and_all_else_is_shared(federation, received, method, task):
    clients, server = federation(task, method, optimizer__lr=0.01)
    assert part_names(clients[0].student, "last_layer") == HEAD[task] == clients[0].kept
    updates = received(server)
    for done in run_rounds(clients, server, 2):
        assert all(update.state.keys() == clients[0].student.state_dict().keys() - HEAD[task] for update in updates)
        own = [_parameters(client) for client in clients]
        for state, client in zip(own, clients, strict=True):
            assert all(torch.equal(state[name], client.stage_one_state[name]) for name in HEAD[task])
            assert all(torch.equal(state[name], done.shared[name]) for name in state.keys() - HEAD[task])
        updates.clear()
    assert not any(torch.equal(own[0][name], own[1][name]) for name in HEAD[task])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fedrep_moves_the_head_alone_and_then_the_body_alone(federation, monkeypatch, optimizer):
    client = federation("nuclei", "fedrep", optimizer__name=optimizer, comparators__fedrep__head_epochs=2)[0][0]
    moved, step = [], client.task_step

    def watched(images, target, batch):
        before = _parameters(client)
        loss = step(images, target, batch)
        after = _parameters(client)
        moved.append({name for name in before if not torch.equal(before[name], after[name])})
        return loss

    monkeypatch.setattr(client, "task_step", watched)
    steps = []
    for number in (1, 2):
        client.run_round(number, None, steps.append)
    batches = len(client.batches(1, "I"))
    one_round = [*[HEAD["nuclei"]] * (2 * batches), *[_parameters(client).keys() - HEAD["nuclei"]] * batches]
    assert moved == one_round * 2, "in the second round the momenta of what stands still exist, and do not move it"
    assert sum(steps) == client.batch_count(1) + client.batch_count(2) == 6 * batches
    assert len(client.log.steps) == batches and len(client.log.rounds) == 1


def test_fedper_trains_head_and_body_together_as_local_training_does(federation):
    (client, *_), _ = federation("nuclei", "fedper")
    (local, *_), _ = federation("nuclei", "local")
    client.run_round(1, None)
    local.run_round(1, None)
    assert all(torch.equal(a, b) for a, b in zip(client.student.parameters(), local.student.parameters(), strict=True))
    assert client.batch_count(1) == local.batch_count(1)
    assert client.settings.comparators.fedrep.head_epochs == 0 and METHODS["fedper"].switches == METHODS["fedrep"].switches
    assert "comparators.fedrep.head_epochs" in set(client.settings.deviations()["setting"])
