"""What happens in a round, what leaves a centre, and what may not depend on what."""

import copy

import pytest
import torch

from vfmgl_lib.federation import client as client_module
from vfmgl_lib.federation.rounds import quorum_of, run_rounds
from vfmgl_lib.federation.servers import ROUND_METRICS, WeightedMean


def average(updates, weights="samples"):
    mean = WeightedMean(weights)
    for update in updates:
        mean.add(update)
    return mean.state()


def _states(clients):
    return {client.center: copy.deepcopy(client.student.state_dict()) for client in clients}


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_three_rounds_with_everything(federation, received, task, monkeypatch):
    clients, server = federation(task, optimizer__lr=0.005)
    updates = received(server)
    run_round = client_module.Client.run_round

    def checked(self, *arguments):
        assert _equal(self.student.state_dict(), local_before[self.center]), "a round starts from the local model as it was left"
        return run_round(self, *arguments)

    monkeypatch.setattr(client_module.Client, "run_round", checked)
    local_before = _states(clients)
    for done in run_rounds(clients, server, 3):
        assert _equal(done.shared, average(updates)), "the shared model is the weighted mean of the updates"
        updates.clear()
        assert _equal(done.shared, server.state)
        for client in clients:
            stages = [row["stage"] for row in client.log.rounds]
            assert stages == (["I"] if done.number == 1 else ["I", "II"]), "nothing of DDBL is active in round 1"
            assert not _equal(client.student.state_dict(), local_before[client.center])
            assert not _equal(client.student.state_dict(), done.shared), "the local model is never overwritten by the shared one"
            critical = {row["student_stage"] for row in client.log.stages if row["critical"]}
            assert len(critical) == 2
            scores = {row["student_stage"]: row["stage_score"] for row in client.log.stages}
            assert min(scores[s] for s in critical) >= max(scores[s] for s in scores if s not in critical)
        local_before = _states(clients)


def test_critical_stages_stand_still_in_stage_two_and_are_free_in_the_next_round(federation):
    clients, server = federation("nuclei", batch_norm="running")  # otherwise statistics, not parameters, are those of the centre's images
    client = clients[0]
    list(run_rounds(clients, server, 1))
    for number in (2, 3):
        before = copy.deepcopy(client.student.state_dict())
        client.run_round(number, server.message(client.center, number))
        critical = {row["student_stage"] for row in client.log.stages if row["critical"]}
        for index, block in enumerate(client.student.encoders):
            names = [f"encoders.{index}.{name}" for name in block.state_dict()]
            moved_in_one = [n for n in names if not torch.equal(client.stage_one_state[n], before[n])]
            moved_in_two = [n for n in names if not torch.equal(client.student.state_dict()[n], client.stage_one_state[n])]
            assert moved_in_one == names, "every stage is free in stage I, also after it was frozen"
            assert moved_in_two == ([] if f"encoder{index + 1}" in critical else names)


def test_with_known_pair_weights_the_critical_stages_are_those_with_the_highest(federation):
    clients, _ = federation("nuclei")
    client = clients[0]
    weights = torch.tensor([3.0, 0.5, 2.0, 1.0])
    with torch.no_grad():
        for stack in client.hgkt.meta.pair:
            for linear in stack:
                linear.weight.zero_()
                linear.bias.copy_(weights)
    client.run_round(1, None)
    assert {row["student_stage"] for row in client.log.stages if row["critical"]} == {"encoder1", "encoder3"}


def test_results_do_not_depend_on_the_order_of_the_centres(federation):
    (one, server_one), (other, server_other) = federation("nuclei"), federation("nuclei")
    list(run_rounds(one, server_one, 2))
    list(run_rounds(other[::-1], server_other, 2))
    assert _equal(server_one.state, server_other.state)
    for a, b in zip(one, other, strict=True):
        assert _equal(a.student.state_dict(), b.student.state_dict())


def test_an_update_holds_the_student_counts_and_declared_metrics_only(federation):
    clients, server = federation("nuclei")
    update = clients[0].run_round(1, None)
    assert set(vars(update)) == {"center", "state", "samples", "metrics", "aggregates"}
    expected = server.state
    assert update.state.keys() == expected.keys() and all(update.state[n].shape == expected[n].shape for n in expected)
    assert tuple(update.metrics) == ROUND_METRICS and all(isinstance(v, float) for v in update.metrics.values())
    assert update.samples == len(clients[0].data)
    update.state["head.bias"].fill_(99)
    assert not torch.equal(clients[0].student.state_dict()["head.bias"], update.state["head.bias"]), "an update is a copy"


@pytest.mark.parametrize("method", ["local", "hgkt", "hgkt_kd"])
def test_methods_switch_their_parts(federation, method):
    clients, server = federation("nuclei", method)
    list(run_rounds(clients, server, 2))
    client = clients[0]
    assert (client.hgkt is None) == (method == "local")
    rows = {row["stage"]: row for row in client.log.rounds}
    assert ("match_loss" in rows["I"]) == (method != "local")
    assert ("II" in rows) == (method == "hgkt_kd")
    if method == "hgkt_kd":
        assert rows["II"]["kept_share"] == 1


def test_every_batch_is_dropped_when_the_shared_model_disagrees_beyond_the_threshold(federation):
    clients, server = federation("nuclei", deduction__keep_ratio=1e-12)
    list(run_rounds(clients, server, 2))
    for client in clients:
        assert [row["kept_share"] for row in client.log.rounds if row["stage"] == "II"] == [0]
        assert _equal(client.student.state_dict(), client.stage_one_state), "skipped batches leave no trace"


def test_local_task_loss_is_the_mean_over_stage_one(federation):
    clients, server = federation("nuclei")
    list(run_rounds(clients, server, 2))
    steps = clients[0].log.steps
    losses = [row["task_loss"] for row in steps if row["stage"] == "I"]
    thresholds = [row["threshold"] for row in steps if row["stage"] == "II"]
    assert thresholds == [pytest.approx(4.0 * sum(losses) / len(losses))] * len(losses)
    assert all(row["kept"] == (row["divergence"] <= row["threshold"]) for row in steps if row["stage"] == "II")


def test_the_teacher_is_called_once_a_batch_and_once_for_the_validation_images(federation, teacher, monkeypatch):
    clients, _ = federation("nuclei")
    calls = []
    hook = teacher.register_forward_hook(lambda *arguments: calls.append(1))
    clients[0].run_round(1, None)
    hook.remove()
    assert clients[0].batch_count(1) == 2 and len(calls) == 3


def test_the_next_batch_can_be_the_outer_batch(federation):
    clients, _ = federation("nuclei", transfer__outer_batch="next")
    same, _ = federation("nuclei")
    for client in (clients[0], same[0]):
        client.run_round(1, None)
    outer = [[row["outer_loss"] for row in client.log.steps] for client in (clients[0], same[0])]
    assert outer[0] != outer[1]


def test_diverged_training_says_where_and_what_to_lower(federation):
    clients, _ = federation("nuclei", optimizer__lr=1e6)
    with pytest.raises(FloatingPointError, match=r"centre SiteA, round \d: the task loss is .* lower optimizer.lr \(now 1000000.0\)"):
        for number in range(1, 5):
            clients[0].run_round(number, None)


def test_a_method_with_a_teacher_is_refused_without_one(federation):
    clients, _ = federation("nuclei")
    with pytest.raises(ValueError, match="method vfmgl learns from a frozen teacher; none was given"):
        client_module.Client("A", clients[0].settings, clients[0].switches, clients[1].student, None, clients[0].data, torch.device("cpu"))


def test_binary_rounding_asks_for_no_centre_more():
    assert quorum_of(0.07, 100) == 7 and quorum_of(0.1, 30) == 3 and quorum_of(0.6666666666666667, 3) == 2
    assert quorum_of(0.5, 3) == 2 and quorum_of(1.0, 4) == 4 and quorum_of(0.01, 2) == 1 and quorum_of(0.6667, 3) == 3
    exact = [(part, whole) for whole in range(1, 61) for part in range(1, whole + 1)]
    assert all(quorum_of(part / whole, whole) == part for part, whole in exact)
