"""What makes each personal method that method: FedAvg's averages with a fine-tuned, a pulled or a partly own model."""

import copy

import pytest
import torch
from torch import nn

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.models.students import part_names


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _copy(state):
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("method", "also"), [("fedavg_ft", {}), ("ditto", {"comparators__ditto__proximity": 0.7})])
def test_the_shared_model_is_fedavg_s_to_the_bit(federation, method, also, optimizer):
    settings = {"optimizer__name": optimizer, "optimizer__lr": 0.01}
    (clients, server), (plain, average) = federation("nuclei", method, **also, **settings), federation("nuclei", "fedavg", **settings)
    for one, other in zip(run_rounds(clients, server, 3), run_rounds(plain, average, 3), strict=True):
        assert _equal(one.shared, other.shared)
    for personal, client in zip(clients, plain, strict=True):
        assert not _equal(personal.student.state_dict(), client.student.state_dict())


def test_fine_tuning_reports_the_model_after_its_local_epoch(federation):
    (clients, server), (plain, average) = federation("nuclei", "fedavg_ft"), federation("nuclei", "fedavg")
    for done, _ in zip(run_rounds(clients, server, 2), run_rounds(plain, average, 2), strict=True):
        for client, other in zip(clients, plain, strict=True):
            own = client.student.state_dict()
            assert _equal(own, client.stage_one_state) and _equal(own, other.stage_one_state) and not _equal(own, done.shared)
    client, message = clients[0], server.message(clients[0].center, 3)
    client.begin_round(3, message)
    assert _equal(client.student.state_dict(), message), "the next local epoch starts from the shared model"


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_fedbn_keeps_all_of_batch_normalisation_at_home(federation, received, task):
    clients, server = federation(task, "fedbn")
    student = clients[0].student
    norms = [name for name, module in student.named_modules() if isinstance(module, nn.BatchNorm2d)]
    names = {f"{norm}.{part}" for norm in norms for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert names == part_names(student, "batch_norm") and names.isdisjoint(server.state)
    assert names | server.state.keys() == student.state_dict().keys()
    updates = received(server)
    for done in run_rounds(clients, server, 2):
        assert all(update.state.keys() == done.shared.keys() == student.state_dict().keys() - names for update in updates)
        trained = [_copy(client.stage_one_state) for client in clients]
        for client, before in zip(clients, trained, strict=True):
            after = client.student.state_dict()
            assert all(torch.equal(after[name], done.shared[name]) for name in done.shared)
            affine = [name for name in names if name.endswith((".weight", ".bias"))]
            assert all(torch.equal(after[name], before[name]) for name in affine)
        updates.clear()
    one, other = (client.student.state_dict() for client in clients)
    differ = {name for name in one if not torch.equal(one[name], other[name])}
    assert differ <= names and all(f"{norm}.weight" in differ and f"{norm}.running_mean" in differ for norm in norms)


def test_ditto_s_gradient_pulls_to_the_received_model_which_stands_still(federation):
    clients, server = federation("nuclei", "ditto", comparators__ditto__proximity=0.5)
    client = clients[0]
    shared = {name: t + 0.01 if t.is_floating_point() else t for name, t in server.state.items()}
    own = _copy(client.student.state_dict())
    client.begin_round(2, shared)
    assert _equal(client.student.state_dict(), own) and _equal(client.sent.state_dict(), shared)
    images, target, batch = next(iter(client._load(1, "I", 0)))
    task, loss = client.training_loss(images, target, batch)
    parameters = list(client.student.named_parameters())
    values = [parameter for _, parameter in parameters]
    plain, pulled = torch.autograd.grad(task, values, retain_graph=True), torch.autograd.grad(loss, values)
    for (name, parameter), a, b in zip(parameters, plain, pulled, strict=True):
        torch.testing.assert_close(b, a + 0.5 * (parameter - shared[name]), rtol=1e-5, atol=1e-6)
    client.task_step(images, target, batch)
    assert not _equal(client.sent.state_dict(), shared)
    anchors = zip(parameters, client.anchor, strict=True)
    assert all(torch.equal(anchor, shared[name]) for (name, _), anchor in anchors)


def test_ditto_sends_the_shared_model_and_keeps_its_own(federation, received):
    clients, server = federation("nuclei", "ditto")
    updates = received(server)
    list(run_rounds(clients, server, 1))
    for client, update in zip(clients, updates, strict=True):
        assert _equal(update.state, client.sent.state_dict()) and not _equal(update.state, client.student.state_dict())
        assert len(client.sent_optimizer.state) == len(client.optimizer.state) > 0
        own = {id(p) for group in client.optimizer.param_groups for p in group["params"]}
        assert own == {id(p) for p in client.student.parameters()}, "each model has its own optimiser"


def test_without_proximity_ditto_s_own_model_is_that_of_local_training(federation):
    ditto, local = federation("nuclei", "ditto", comparators__ditto__proximity=0.0), federation("nuclei", "local")
    for _ in zip(run_rounds(*ditto, 2), run_rounds(*local, 2), strict=True):
        pass
    for one, other in zip(ditto[0], local[0], strict=True):
        assert _equal(one.student.state_dict(), other.student.state_dict())


def test_both_models_and_both_optimisers_are_in_the_checkpoint(federation):
    clients, server = federation("nuclei", "ditto", optimizer__name="adam")
    list(run_rounds(clients, server, 1))
    client, other = clients[0], federation("nuclei", "ditto", optimizer__name="adam")[0][0]
    saved = copy.deepcopy((client.state_dict(), client.student.state_dict(), client.stage_one_state))
    other.load_state_dict(*saved)
    assert _equal(other.sent.state_dict(), client.sent.state_dict()) and _equal(other.state_dict(), client.state_dict())
    assert any(name.startswith("sent_optimizer.") for name in saved[0])


@pytest.mark.parametrize("method", ["fedavg_ft", "fedbn", "ditto"])
def test_what_is_measured_and_sent_carries_the_centre_s_own_statistics(federation, received, method):
    clients, server = federation("nuclei", method)
    updates = received(server)
    list(run_rounds(clients, server, 2))
    for client, update in zip(clients, updates[-2:], strict=True):
        models = [client.student, client.sent] if method == "ditto" else [client.student]
        for model in models:
            again = copy.deepcopy(model)
            client.recalibrate(again)
            assert _equal(again.state_dict(), model.state_dict())
        if method == "ditto":
            assert _equal(update.state, client.sent.state_dict())


def test_the_whole_of_a_received_part_is_the_centre_s_own_model(federation):
    clients, server = federation("nuclei", "fedbn")
    (done,) = run_rounds(clients, server, 1)
    for client in clients:
        assert _equal(client.teaching_copy(done.shared).state_dict(), client.student.state_dict())
