"""ProxyFL: mutual distillation of a private model and a proxy; proxies mixed by PushSum, which loses nothing and biases nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import Update
from vfmgl_lib.methods.proxyfl import PushSum, distance
from vfmgl_lib.methods.registry import new_server
from vfmgl_lib.methods.settings import load_settings


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_model_learns_from_the_other_s_predictions(federation):
    also = {"comparators__proxyfl__distillation_share": 0.3, "optimizer__momentum": 0.0, "optimizer__weight_decay": 0.0}
    client = federation("nuclei", "proxyfl", **also)[0][0]
    client.begin_round(1, None)
    client.student.train()
    with torch.no_grad():
        for parameter in client.sent.parameters():
            parameter += 0.02
    images, target, batch = next(iter(client._load(1, "I", 0)))
    models = {"private": copy.deepcopy(client.student), "proxy": copy.deepcopy(client.sent)}
    logits = {name: model(images) for name, model in models.items()}
    client.task_step(images, target, batch)
    lr = client.settings.optimizer.lr
    for name, other, moved in (("private", "proxy", client.student), ("proxy", "private", client.sent)):
        taught = logits[other].detach().double().softmax(1)
        divergence = F.kl_div(logits[name].double().log_softmax(1), taught, reduction="none").sum(1).mean()
        loss = 0.7 * client.task_loss(logits[name], target) + 0.3 * divergence
        parameters = list(models[name].parameters())
        for new, old, gradient in zip(moved.parameters(), parameters, torch.autograd.grad(loss, parameters), strict=True):
            torch.testing.assert_close(new, old - lr * gradient, rtol=1e-4, atol=1e-6)


def test_the_proxy_goes_round_and_the_private_model_stays(federation, received):
    clients, server = federation("nuclei", "proxyfl")
    updates = received(server)
    for done in run_rounds(clients, server, 2):
        assert done.shared is None
        for client, update in zip(clients, updates, strict=True):
            assert _equal(update.state, client.sent.state_dict()) and not _equal(update.state, client.student.state_dict())
            assert _equal(client.stage_one_state, client.student.state_dict()), "after the round it is as it was trained"
        sent = [update.state for update in updates]
        updates.clear()
        for client in clients:  # two centres: half of each
            message = server.message(client.center, done.number + 1)
            for name in ("head.weight", "bottleneck.1.running_var"):
                torch.testing.assert_close(message[name], (sent[0][name] + sent[1][name]) / 2)
    first = [new_server(client.settings, ["SiteA", "SiteB"], client.student).message("SiteA", 1) for client in clients]
    assert _equal(*first) and not torch.equal(first[0]["head.weight"], federation("nuclei", "proxyfl")[0][0].student.head.weight)
    private = copy.deepcopy(clients[0].student.state_dict())
    clients[0].begin_round(3, server.message(clients[0].center, 3))
    assert _equal(clients[0].student.state_dict(), private) and _equal(clients[0].sent.state_dict(), server.message(clients[0].center, 3))


@pytest.fixture
def push_sum():
    centers = ["A", "B", "C", "D", "E"]
    settings = load_settings("nuclei", "paper", method="proxyfl", faults__largest_norm=1e9)
    return PushSum(settings, centers, {"w": torch.zeros(3), "counter": torch.tensor(0)})


def _send(server, number, absent=(), values=None):
    """One round without training: every centre sends the proxy it has, in the first round its own value."""
    for place, center in enumerate(server.centers):
        message = server.message(center, number)
        state = {"w": torch.full((3,), float(values[place])), "counter": torch.tensor(4)} if values else message
        if center not in absent:
            server.receive(Update(center, state, 1, {}))
    assert server.finish_round() is None


def test_mass_is_conserved_and_the_proxies_reach_the_mean(push_sum):
    _send(push_sum, 1, values=[1, 2, 4, 8, 16])
    for number in range(2, 40):
        _send(push_sum, number)
        assert sum(float(sums["w"][0]) for sums in push_sum.sums.values()) == pytest.approx(31, rel=1e-6)
        assert sum(push_sum.weights.values()) == pytest.approx(5)
    for center in push_sum.centers:
        torch.testing.assert_close(push_sum.proxy(center)["w"], torch.full((3,), 31 / 5), rtol=1e-4, atol=0)
        assert push_sum.proxy(center)["counter"] == 4 and push_sum.proxy(center)["counter"].dtype == torch.int64


def test_centres_that_are_away_bias_nothing(push_sum):
    """With absent senders the weights leave 1; without the division by them the proxies would shrink and grow."""
    _send(push_sum, 1, values=[1, 2, 4, 8, 16])
    for number in range(2, 60):
        _send(push_sum, number, absent=push_sum.centers[number % 3 : number % 3 + 2])
        if number == 6:
            assert max(push_sum.weights.values()) - min(push_sum.weights.values()) > 0.2
    for center in push_sum.centers:
        torch.testing.assert_close(push_sum.proxy(center)["w"], torch.full((3,), 31 / 5), rtol=1e-3, atol=0)


def test_one_round_by_hand_and_the_exponential_graph(push_sum):
    assert [distance(number, 5) for number in range(1, 7)] == [2, 4, 1, 2, 4, 1] and distance(3, 1) == 0
    assert [distance(number, 2) for number in range(3)] == [1, 1, 1] and {distance(number, 4) for number in range(9)} == {1, 2}
    _send(push_sum, 1, values=[1, 2, 4, 8, 16], absent=["B"])  # B keeps its initial proxy, zero
    # Round 1 goes two places: A -> C -> E, D -> A, E -> B, and B passes nothing on to D.
    expected = {"A": (0.5 + 4, 1.0), "B": (0 + 8, 1.5), "C": (2 + 0.5, 1.0), "D": (4, 0.5), "E": (8 + 2, 1.0)}
    for center, (total, weight) in expected.items():
        assert push_sum.weights[center] == weight
        torch.testing.assert_close(push_sum.proxy(center)["w"], torch.full((3,), total / weight))


def test_its_state_is_all_that_the_next_round_depends_on(push_sum):
    _send(push_sum, 1, values=[1, 2, 4, 8, 16], absent=["B"])
    other = PushSum(push_sum.settings, push_sum.centers, push_sum.initial)
    other.load_state_dict(copy.deepcopy(push_sum.state_dict()))
    for server in (push_sum, other):
        _send(server, 2)
    assert _equal(push_sum.state_dict(), other.state_dict())
