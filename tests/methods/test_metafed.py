"""MetaFed: ring order and phases, copying once a visit, flags that only switch on, the personal weight."""

import copy

import pytest
import torch
import torch.nn.functional as F

from vfmgl_lib.config import ConfigError
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.servers import Update
from vfmgl_lib.methods import metafed
from vfmgl_lib.methods.metafed import Ring, personal_weight, phase, validation_score
from vfmgl_lib.methods.settings import load_settings


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _settings(rounds, **changes):
    return load_settings("nuclei", method="metafed", federation__rounds=rounds, **changes)


@pytest.mark.parametrize(
    ("rounds", "match", "phases"),
    [(5, False, "icccp"), (5, True, "icccpcccccccccp"), (1, True, "icp"), (2, False, "ip"), (10, False, "iicccccccp")],
)
def test_phases(rounds, match, phases):
    settings = _settings(rounds, federation__match_updates=match)
    assert "".join(phase(settings, number)[0] for number in range(1, len(phases) + 1)) == phases


def test_messages_of_the_ring():
    """Each state holds a number: 10 * round + position of the centre that sent it."""
    server, got = Ring(_settings(5, federation__match_updates=False), ["A", "B", "C"], {"w": torch.zeros(())}), {}
    for number in range(1, 6):
        order = server.order(["A", "B", "C"], number)
        assert order == ["A", "B", "C"]
        for position, center in enumerate(order):
            message = server.message(center, number)
            got[number, center] = None if message is None else int(message["w"])
            server.receive(Update(center, {"w": torch.tensor(10.0 * number + position)}, 1, {}))
        assert server.finish_round() is None
    assert [got[1, center] for center in "ABC"] == [None, None, None], "each alone"
    assert [got[2, center] for center in "ABC"] == [None, 20, 21], "the previous centre's model of this very round; the first: none yet"
    assert [got[3, center] for center in "ABC"] == [22, 30, 31], "the first centre's: the last's"
    assert [got[5, center] for center in "ABC"] == [42, 42, 42], "personalisation: all from the last centre"


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (0.4, 0.4, 0.0),  # no better and under 0.5
        (0.4, 0.3, 0.0),
        (0.7, 0.6, 2 * 10**-0.5 / 10),  # no better, but over 0.5
        (0.6, 0.6, 2 / 10),
        (0.3, 0.4, 2 * 10**0.5 / 10),
        (0.5, 0.9, 2.0),  # the exponent ends at 1
    ],
)
def test_personal_weight(student, teacher, expected):
    assert personal_weight(2.0, student, teacher) == pytest.approx(expected)


def _after_init(federation, score, monkeypatch, **changes):
    monkeypatch.setattr(metafed, "validation_score", lambda *arguments: score)
    clients, server = federation("nuclei", "metafed", optimizer__lr=0.005, federation__rounds=5, **changes)
    list(run_rounds(clients, server, 1))
    return clients, server


def test_a_centre_below_the_threshold_copies_once_a_visit_and_trains_the_task(federation, monkeypatch):
    clients, server = _after_init(federation, 0.6, monkeypatch, federation__local_epochs=2)
    assert not clients[1].flag, "the threshold 0.6 has to be exceeded"
    received = copy.deepcopy(server.models["SiteA"])
    copies, copy_model = [], clients[1].copy
    monkeypatch.setattr(clients[1], "copy", lambda state: (copies.append(1), copy_model(state)))
    clients[1].begin_round(2, received)
    assert _equal(clients[1].student.state_dict(), received) and clients[1].lesson is None
    clients[1].run_round(2, received)
    assert len(copies) == 2, "once in each of the two visits, though each has two epochs"
    assert not clients[1].optimizer.state_dict()["state"] == {}
    assert not _equal(clients[1].student.state_dict(), received)


def test_batch_normalisation_is_kept_out_of_the_copy_on_request(federation, monkeypatch):
    clients, server = _after_init(federation, 0.1, monkeypatch, comparators__metafed__copy_bn=False)
    before, received = copy.deepcopy(clients[1].student.state_dict()), server.models["SiteA"]
    clients[1].begin_round(2, received)
    after = clients[1].student.state_dict()
    norms = {name for name in after if name.startswith("bottleneck.1.") or name.startswith("encoders.0.4.")}
    assert len(norms) == 10 and all(torch.equal(after[name], before[name]) for name in norms)
    assert torch.equal(after["bottleneck.0.weight"], received["bottleneck.0.weight"]) and torch.equal(
        after["head.bias"], received["head.bias"]
    )
    assert not torch.equal(before["bottleneck.0.weight"], received["bottleneck.0.weight"])


def test_a_centre_above_the_threshold_keeps_its_model_and_learns_from_the_features_in_one_pass(federation, monkeypatch):
    clients, server = _after_init(federation, 0.61, monkeypatch, comparators__metafed__distillation=3.0)
    client, received = clients[1], server.models["SiteA"]
    assert client.flag
    before = copy.deepcopy(client.student.state_dict())
    client.begin_round(2, received)
    assert _equal(client.student.state_dict(), before)
    client.student.train()
    images, target, batch = next(iter(client._load(2, "I", 0)))
    calls = []
    hook = client.student.register_forward_hook(lambda *arguments: calls.append(1))
    counter = client.student.state_dict()["bottleneck.1.num_batches_tracked"].item()
    task, loss = client.training_loss(images, target, batch)
    hook.remove()
    assert client.student.state_dict()["bottleneck.1.num_batches_tracked"] == counter + 1, "one forward pass a batch"
    teacher = copy.deepcopy(client.student)
    teacher.load_state_dict(received)
    client.recalibrate(teacher)
    taught = teacher.eval().forward_features(images)[1]
    own = copy.deepcopy(client.student).train().forward_features(images)[1]
    assert (loss - task).item() == pytest.approx(3.0 * F.mse_loss(own, taught).item(), rel=1e-4)
    loss.backward()
    assert all(p.grad is None for p in client.lesson.parameters())


def test_a_flag_only_switches_on(federation, monkeypatch):
    clients, server = _after_init(federation, 0.9, monkeypatch)
    assert clients[0].flag
    monkeypatch.setattr(metafed, "validation_score", lambda *arguments: 0.0)
    list(run_rounds(clients, server, 2, start=1))
    assert clients[0].flag, "a worse score later does not switch it off"
    below, server = _after_init(federation, 0.1, monkeypatch)
    monkeypatch.setattr(metafed, "validation_score", lambda *arguments: 0.9)
    list(run_rounds(below, server, 2, start=1))
    assert all(client.flag for client in below), "looked at again after a visit"


def test_personalisation_weighs_the_lesson_by_both_scores(federation, monkeypatch):
    clients, server = _after_init(federation, 0.9, monkeypatch)
    client, scores = clients[0], iter([0.5, 0.6])
    monkeypatch.setattr(metafed, "validation_score", lambda *arguments: next(scores))
    client.begin_round(5, server.models["SiteB"])
    assert client.lesson_weight == pytest.approx(10**0.5 / 10) and client.lesson is not None
    scores = iter([0.4, 0.3])
    client.begin_round(5, server.models["SiteB"])
    assert client.lesson_weight == 0 and client.lesson is None


def test_a_teacher_that_is_the_student_itself_teaches_only_by_its_batch_statistics(federation, monkeypatch):
    """In eval mode student and teacher have the same features, so that the distance is zero."""
    clients, _ = _after_init(federation, 0.9, monkeypatch)
    client = clients[0]
    client.begin_round(2, copy.deepcopy(client.student.state_dict()))
    client.student.eval()
    images, target, batch = next(iter(client._load(2, "I", 0)))
    task, loss = client.training_loss(images, target, batch)
    assert torch.equal(task, loss)


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_validation_score_by_hand(federation, task):
    client = federation(task, "metafed")[0][0]
    student, data = client.student.eval(), client.validation
    values = []
    for index in range(len(data)):
        item = data[index]
        predicted = student(item["image"][None])[0].argmax(0)
        if task == "endometrial":
            values.append(float(predicted == item["target"]))
        else:
            values.append(2 * int((predicted & item["target"]).sum()) / int(predicted.sum() + item["target"].sum()))
    assert validation_score(student, data, client.settings, client.device) == pytest.approx(sum(values) / len(values))


def test_without_a_validation_set_it_says_what_to_set(federation):
    client = federation("nuclei", "metafed")[0][0]
    client.validation = None
    with pytest.raises(ConfigError, match=r"centre SiteA: .* set data.validation_share, e\.g\. 0\.2"):
        client.run_round(1, None)
