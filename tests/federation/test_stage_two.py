"""Stage II at a centre: what the teacher is worth, which batches are kept under each rule, and controls that differ in one thing alone."""

import copy
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from vfmgl_lib.federation import stage_two
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.stage_two import Worth, run_stage_two, worth
from vfmgl_lib.kernels.overlap import soft_dice_loss

FROZEN = {"nuclei": ("encoder1", "encoder3"), "endometrial": ("stem", "layer2")}


def test_the_worth_of_more_classes_is_the_mean_auc_of_each_against_the_others():
    logits, truth = torch.randn((30, 3), generator=torch.Generator().manual_seed(0)), np.arange(30) % 3
    chances = stage_two._chances(logits).double().numpy()
    expected = np.mean([roc_auc_score(truth == number, chances[:, number]) for number in range(3)])
    assert stage_two._auc(truth, chances) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(stage_two._auc(np.minimum(truth, 1), chances)), "no sample of the third"
    assert stage_two._chances(logits[:, :2]).shape == (30,)


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _same_client(one, other):
    return _equal(one.student.state_dict(), other.student.state_dict()) and _equal(one.state_dict(), other.state_dict())


def _after_stage_two(federation, method="vfmgl", task="nuclei", kappa=4.0, **changes):
    """A client after stage II of round 2: four batches (nuclei) or more, momenta from a step before, another model as teacher."""
    changes = {"federation__local_epochs": 2, "optimizer__lr": 0.01, "deduction__keep_ratio": kappa} | changes
    (client, _), _ = federation(task, method, **changes)
    generator = torch.Generator().manual_seed(1)
    shared = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) if name.endswith(("weight", "bias")) else tensor
        for name, tensor in client.initial_state.items()
    }
    images, target, batch = next(iter(client.unaugmented()))
    client.task_step(images, target, batch)
    run_stage_two(client, 2, shared, 0.5, FROZEN[task], lambda batches: None)
    return client


def _stage(client):
    """The row of `rounds` and the rows of `steps` of stage II."""
    (row,) = [row for row in client.log.rounds if row["stage"] == "II"]
    return row, [step for step in client.log.steps if step["stage"] == "II"]


def _mixed(federation, **changes):
    """A kappa at which some of the four batches are dropped and some are kept."""
    divergences = sorted(step["divergence"] for step in _stage(_after_stage_two(federation, **changes))[1])
    return (divergences[1] + divergences[2]) / 2 / 0.5


def test_worth_of_a_segmentation_by_hand(federation):
    (client, _), _ = federation("nuclei")
    batch = next(iter(client.unaugmented()))
    with torch.no_grad():
        logits = client.student.eval()(batch[0])
    found = worth(client.student, client)
    assert len(batch[1]) == len(client.data) == 4
    assert found.task_loss == pytest.approx(soft_dice_loss(logits, batch[1]).item())
    dice = [2 * (p * y).sum() / (p + y).sum() for p, y in zip(logits.argmax(1).numpy(), batch[1].numpy(), strict=True)]
    assert 0 < found.score == pytest.approx(np.mean(dice))


def test_worth_of_a_classification_by_hand_and_with_one_class(federation):
    (client, _), _ = federation("endometrial")
    images, target, _ = next(iter(client.unaugmented()))
    with torch.no_grad():
        logits = client.student.eval()(images)
    found = worth(client.student, client)
    assert found.task_loss == pytest.approx(F.cross_entropy(logits, target).item())
    assert found.score == pytest.approx(roc_auc_score(target.numpy(), logits.softmax(1)[:, 1].numpy()))
    client.data.table = client.data.table[client.data.table["label"] == client.data.table["label"][0]].reset_index(drop=True)
    client.data._labels = [0] * len(client.data)
    assert math.isnan(worth(client.student, client).score)


def test_better_is_by_the_score_and_without_one_by_the_loss():
    assert Worth(0.9, 0.5).better_than(Worth(0.1, 0.4)) and not Worth(0.1, 0.4).better_than(Worth(0.9, 0.4))
    assert Worth(0.1, math.nan).better_than(Worth(0.2, 0.9)) and not Worth(0.2, math.nan).better_than(Worth(0.2, math.nan))


@pytest.mark.parametrize("batch_norm", ["recalibrated", "running"])
def test_every_stage_logs_what_its_teacher_is_worth_also_after_resuming(federation, batch_norm):
    clients, server = federation("nuclei", batch_norm=batch_norm)
    initial, messages, rows = copy.deepcopy(clients[0].student), {}, {}
    for done in run_rounds(clients, server, 3):
        if done.number == 2:
            saved = copy.deepcopy([(c.state_dict(), c.student.state_dict(), c.stage_one_state) for c in clients])
        messages[done.number + 1] = copy.deepcopy(done.shared)
        if done.number > 1:
            rows[done.number] = _stage(clients[0])[0]
        else:
            assert "shared_score" not in clients[0].log.rounds[0]
    client = clients[0]
    for number in (2, 3):
        for name, model in (("shared", messages[number]), ("untrained", initial.state_dict())):
            expected = worth(client.teaching_copy(model), client)
            assert (rows[number][f"{name}_task_loss"], rows[number][f"{name}_score"]) == (expected.task_loss, expected.score)
    assert rows[2]["shared_task_loss"] != rows[3]["shared_task_loss"]
    (again, *_), _ = federation("nuclei", batch_norm=batch_norm)
    again.load_state_dict(*saved[0])
    again.run_round(3, messages[3])
    row, _ = _stage(again)
    assert {name: value for name, value in row.items() if name != "seconds"} == {k: v for k, v in rows[3].items() if k != "seconds"}


def test_a_teacher_no_better_than_the_untrained_student_is_warned_of(federation, caplog):
    (client, _), _ = federation("nuclei")
    with caplog.at_level(logging.WARNING, "vfmgl_lib.federation.stage_two"):
        run_stage_two(client, 2, client.initial_state, 0.5, (), lambda batches: None)
        assert "round 2, centre SiteA: the shared model that teaches is no better than the untrained student: score " in caplog.text
        caplog.clear()
        client._untrained = Worth(9.0, -1.0)
        run_stage_two(client, 2, client.initial_state, 0.5, (), lambda batches: None)
    assert not caplog.records


def test_the_gradient_ratio_is_logged_at_every_kth_batch_and_changes_no_bit(federation):
    clients = {every: _after_stage_two(federation, deduction__gradient_every=every) for every in (0, 1, 3)}
    for every, measured in ((0, []), (1, [0, 1, 2, 3]), (3, [0, 3])):
        _, steps = _stage(clients[every])
        assert [step["step"] for step in steps if not math.isnan(step["gradient_ratio"])] == measured
        assert _same_client(clients[every], clients[0])


@pytest.mark.parametrize(("quantile", "kept"), [(0.25, 1), (0.6, 3), (1.0, 4)])
def test_the_quantile_rule_keeps_the_share_it_names(federation, quantile, kept):
    changes = {"deduction__rule": "quantile", "deduction__quantile": quantile, "data__augmentation": "turns_and_flips"}
    client = _after_stage_two(federation, **changes)
    row, steps = _stage(client)
    assert len({step["divergence_before"] for step in steps}) == 4, "no ties"
    assert row["kept_share"] == kept / 4 == sum(step["kept"] for step in steps) / 4
    assert all(step["kept"] == (step["divergence_before"] <= step["threshold"]) for step in steps)
    assert steps[0]["divergence"] == pytest.approx(steps[0]["divergence_before"], rel=1e-6), "the same batch, at the same student"


def test_a_quantile_that_keeps_all_is_distillation_on_all(federation):
    """The pass beforehand leaves no trace."""
    every = {"deduction__rule": "quantile", "deduction__quantile": 1.0}
    assert _same_client(*(_after_stage_two(federation, method, **every) for method in ("vfmgl", "hgkt_kd")))


def test_the_pass_beforehand_sees_the_batches_and_turns_of_the_stage(federation):
    (client, _), _ = federation("nuclei", data__augmentation="turns_and_flips", federation__local_epochs=2)
    first, second = ([images for images, _ in client.stage_two_batches(2)] for _ in range(2))
    assert len(first) == 4 and all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, first[2:], strict=False)), "another order in every epoch"


@pytest.mark.parametrize("start", ["own", "shared", "mix"])
def test_where_stage_one_starts(federation, start):
    (client, _), _ = federation("nuclei", federation__local_start=start, optimizer__name="adam")
    client.task_step(*next(iter(client.unaugmented())))
    own, momenta = copy.deepcopy(client.student.state_dict()), copy.deepcopy(client.state_dict())
    shared = {name: tensor + 1 for name, tensor in client.initial_state.items()}
    client.begin_round(2, shared)
    for name, tensor in client.student.state_dict().items():
        expected = {"own": own[name], "shared": shared[name], "mix": ((own[name].double() + shared[name].double()) / 2).to(tensor.dtype)}
        assert torch.equal(tensor, expected[start]), name
    assert _equal(client.state_dict(), momenta) and any(name.startswith("optimizer.") for name in momenta)


@pytest.mark.parametrize("method", ["hgkt", "metafed"])
def test_only_a_method_with_stage_two_starts_elsewhere(federation, method):
    (client, _), _ = federation("nuclei", method, federation__local_start="shared", comparators__metafed__threshold=0.0)
    client.flag = True
    before = copy.deepcopy(client.student.state_dict())
    client.begin_round(3, {name: tensor + 1 for name, tensor in before.items()})
    assert _equal(client.student.state_dict(), before)


@pytest.mark.parametrize("task", ["nuclei", "endometrial"])
def test_without_the_kl_a_stage_differs_in_the_kl_alone(federation, task):
    """At alpha = 1 the KL has no weight: the control's bits are those of HGKT+KD, and of VFMGL, which drops nothing here."""
    control, *parents = (
        _after_stage_two(federation, method, task, 1e6, deduction__task_share=1.0) for method in ("vfmgl_task", "hgkt_kd", "vfmgl")
    )
    assert all(_same_client(control, parent) for parent in parents)
    control, parent = (_after_stage_two(federation, method, task) for method in ("vfmgl_task", "hgkt_kd"))
    assert not _same_client(control, parent)
    row, steps = _stage(control)
    assert row["kept_share"] == 1 and len(steps) == len(_stage(parent)[1]) and "permuted" not in row
    assert steps[0]["divergence"] == _stage(parent)[1][0]["divergence"] > 0, "measured all the same"


@pytest.mark.parametrize("kappa", [1e-12, 1e6])
def test_where_nothing_or_everything_is_dropped_random_dropping_is_ddbl(federation, kappa):
    parent, control = (_after_stage_two(federation, method, kappa=kappa) for method in ("vfmgl", "vfmgl_random"))
    assert _same_client(parent, control)
    assert _stage(control)[0]["permuted"] == 0 and "permuted" not in _stage(parent)[0]


def test_random_dropping_keeps_as_many_batches_as_ddbl_in_another_order(federation, monkeypatch):
    kappa = _mixed(federation)
    parent = _after_stage_two(federation, kappa=kappa)
    decided = [step["kept"] for step in _stage(parent)[1]]
    assert 0 < sum(decided) < 4
    for order in (decided[::-1], [1 - kept for kept in decided], decided):
        monkeypatch.setattr(stage_two, "_permuted", lambda kept, *_, order=order: [bool(one) for one in order])
        client = _after_stage_two(federation, "vfmgl_random", kappa=kappa)
        row, steps = _stage(client)
        assert [step["kept"] for step in steps] == order
        assert row["permuted"] == int(order != decided) and _same_client(client, parent) == (order == decided)


def test_the_seconds_of_random_dropping_are_of_the_run_that_is_kept(federation, monkeypatch):
    kappa, now, distil = _mixed(federation), [0.0], stage_two._distil

    def distilled(*arguments):
        now[0] += 100
        return distil(*arguments)

    monkeypatch.setattr(stage_two, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(stage_two, "_distil", distilled)
    monkeypatch.setattr(stage_two, "_permuted", lambda kept, *_: [not one for one in kept])
    client = _after_stage_two(federation, "vfmgl_random", kappa=kappa)
    assert now[0] == 200 and _stage(client)[0]["seconds"] == 100


def test_the_permutation_is_drawn_from_centre_and_round_alone(federation):
    (one, other), _ = federation("nuclei", "vfmgl_random")
    kept = [True] * 10 + [False] * 10
    drawn = stage_two._permuted(kept, one, 2)
    assert sorted(drawn) == sorted(kept) and drawn != kept and drawn == stage_two._permuted(kept, one, 2)
    assert drawn != stage_two._permuted(kept, one, 3) and drawn != stage_two._permuted(kept, other, 2)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_run_that_finds_ddbls_decisions_is_taken_back_whole(federation, monkeypatch, name):
    """With decisions that keep every batch the second run is HGKT+KD's, to the bit: weights, statistics and momenta."""
    changes = {"optimizer__name": name, "optimizer__lr": 0.001}
    kappa = _mixed(federation, **changes)
    monkeypatch.setattr(stage_two, "_permuted", lambda kept, *_: [True] * len(kept))
    control, parent = (_after_stage_two(federation, method, kappa=kappa, **changes) for method in ("vfmgl_random", "hgkt_kd"))
    assert _same_client(control, parent) and _stage(control)[0]["permuted"] == 1
    assert [step["divergence"] for step in _stage(control)[1]] == [step["divergence"] for step in _stage(parent)[1]]


@pytest.mark.parametrize("rule", ["kappa", "quantile"])
def test_a_divergence_that_is_no_number_is_an_error_and_not_a_dropped_batch(federation, rule):
    (client, _), _ = federation("nuclei", deduction__rule=rule)
    broken = {name: tensor * torch.nan if name == "head.weight" else tensor for name, tensor in client.initial_state.items()}
    with pytest.raises(
        FloatingPointError, match=r"centre SiteA, round 2: the KL from the shared model is nan at step 0 of stage II.*lower optimizer\.lr"
    ):
        run_stage_two(client, 2, broken, 0.5, FROZEN["nuclei"], lambda batches: None)
