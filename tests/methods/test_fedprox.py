"""FedProx's gradient: the task's at the shared model, mu (theta - theta_s) more away from it."""

import copy

import pytest
import torch


def _gradients(client, loss):
    return torch.autograd.grad(loss, list(client.student.parameters()))


@pytest.mark.parametrize("round_number", [1, 2])
def test_gradient_at_and_away_from_the_shared_model(federation, round_number):
    clients, server = federation("nuclei", "fedprox", comparators__fedprox__mu=0.5)
    client = clients[0]
    shared = {name: t + 0.01 if t.is_floating_point() else t for name, t in server.state.items()}
    client.begin_round(round_number, shared)
    assert all(torch.equal(client.student.state_dict()[name], shared[name]) for name in shared), "the shared model is where it starts"
    images, target, batch = next(iter(client._load(1, "I", 0)))
    task, loss = client.training_loss(images, target, batch)
    assert torch.equal(task, loss)
    at_shared = zip(_gradients(client, task), _gradients(client, client.training_loss(images, target, batch)[1]), strict=True)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-9) for one, other in at_shared)

    anchor = copy.deepcopy(list(client.student.parameters()))
    with torch.no_grad():
        for parameter in client.student.parameters():
            parameter += 0.02
    task, loss = client.training_loss(images, target, batch)
    parameters = list(client.student.parameters())
    for own, more, p, start in zip(
        torch.autograd.grad(task, parameters, retain_graph=True), torch.autograd.grad(loss, parameters), parameters, anchor, strict=True
    ):
        torch.testing.assert_close(more, own + 0.5 * (p - start), rtol=1e-5, atol=1e-6)
    distance = sum(((p - start) ** 2).sum() for p, start in zip(parameters, anchor, strict=True))
    assert (loss - task).item() == pytest.approx(0.25 * distance.item(), rel=1e-4)


def test_the_shared_model_stands_still_during_a_round(federation):
    clients, server = federation("nuclei", "fedprox")
    client = clients[0]
    client.run_round(1, server.message(client.center, 1))
    names = [name for name, _ in client.student.named_parameters()]
    assert all(torch.equal(start, server.state[name]) for start, name in zip(client.anchor, names, strict=True))
    assert any(not torch.equal(p, start) for p, start in zip(client.student.parameters(), client.anchor, strict=True))


def test_without_mu_it_is_fedavg(federation):
    (prox, one), (avg, other) = federation("nuclei", "fedprox", comparators__fedprox__mu=0.0), federation("nuclei", "fedavg")
    for client, plain in zip(prox, avg, strict=True):
        a = client.run_round(1, one.message(client.center, 1)).state
        b = plain.run_round(1, other.message(plain.center, 1)).state
        assert all(torch.equal(a[name], b[name]) for name in a)
