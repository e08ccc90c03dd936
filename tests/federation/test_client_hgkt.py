"""HGKT's options inside a centre: where scale, projections and R2 come from, and what a resumed round depends on."""

import numpy as np
import pytest
import torch

from vfmgl_lib.base.checkpoint import load_tensors, save_tensors
from vfmgl_lib.data.feature_cache import FeatureCache
from vfmgl_lib.federation import client as client_module

EVERYTHING = {
    "transfer__teacher_scale": "channel",
    "transfer__projection": "ridge",
    "transfer__pair_init": "zero",
    "transfer__meta_optimizer": "adam",
    "transfer__meta_schedule": "cosine",
    "transfer__hypergradient_every": 2,
    "transfer__meta_lr": 0.01,
    "federation__rounds": 3,
    "data__augmentation": "turns_and_flips",
}


def _state(client):
    return {**client.student.state_dict(), **client.state_dict()}


def _differences(one, other):
    one, other = _state(one), _state(other)
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def _log(client):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in (*client.log.rounds, *client.log.stages)]


def test_resumed_with_everything_on_is_bit_identical_and_needs_no_second_pass(federation, tmp_path, monkeypatch):
    (one, *_), _ = federation("nuclei", "hgkt", **EVERYTHING)
    one.run_round(1, None)
    save_tensors(tmp_path, {"state": one.state_dict(), "student": one.student.state_dict(), "stage_one": one.stage_one_state})
    (other, *_), _ = federation("nuclei", "hgkt", **EVERYTHING)
    other.load_state_dict(*(load_tensors(tmp_path, name) for name in ("state", "student", "stage_one")))
    monkeypatch.setattr(client_module, "channel_scale", lambda stacks: pytest.fail("the scale is in the checkpoint"))
    for number in (2, 3):
        for client in (one, other):
            client.run_round(number, None)
        assert _differences(one, other) == []
        assert str(_log(one)) == str(_log(other))
    assert one.hgkt.meta_optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.25), "the third of three rounds"


def test_scale_and_training_are_equal_with_and_without_the_cache(federation, teacher, tmp_path):
    built = []
    for cached in (False, True):
        (client, *_), _ = federation("nuclei", "hgkt", **EVERYTHING)
        if cached:
            client.cache = FeatureCache(tmp_path, teacher.identity, teacher.stack_shapes, 2**30)
        for number in (1, 2):
            client.run_round(number, None)
        built.append(client)
    assert _differences(*built) == []
    (mean, factor), *_ = built[0].hgkt.scale
    batch = next(iter(built[0].unaugmented()))[2]
    assert batch["orientation"].tolist() == [0] * len(built[0].data)
    features = built[0].teacher_features(batch)[0].double()
    torch.testing.assert_close(mean, features.mean((0, 3, 4)).float())
    torch.testing.assert_close(factor, (1 / (features.var((0, 3, 4), correction=0).sqrt() + 1e-6)).float())


def test_measuring_r_squared_changes_nothing_of_a_round(federation, monkeypatch):
    (one, *_), _ = federation("nuclei", "hgkt")
    one.run_round(1, None)
    (other, *_), _ = federation("nuclei", "hgkt")
    random = torch.get_rng_state()
    monkeypatch.setattr(client_module.Client, "_measured_fit", lambda self, hgkt: (None, ""))
    other.run_round(1, None)
    assert _differences(one, other) == [] and torch.equal(random, torch.get_rng_state())
    measured, skipped = ([row["r2"] for row in client.log.stages] for client in (one, other))
    assert np.isfinite(measured).all() and max(measured) <= 1 and np.isnan(skipped).all()
    assert {row["r2_images"] for row in one.log.stages} == {"validation"}
    own = one.hgkt.r_squared(one._with_features(one.validation, [0, 1]))
    assert measured == own.flatten().tolist()


@pytest.mark.parametrize(("projection", "images"), [("sgd", "training"), ("ridge", "held-out training")])
def test_without_a_validation_set_r_squared_says_on_what_it_was_measured(federation, projection, images):
    (client, *_), _ = federation("endometrial", "hgkt", transfer__projection=projection)
    assert client.validation is None
    table = client.data.table
    table["patient"] = [f"p{row // 2}" for row in range(len(table))]  # three patients: every fifth image
    fitted, features = [], client.teacher_features
    client.teacher_features = lambda batch, data=None: fitted.append(batch["row"].tolist()) or features(batch, data)
    client.run_round(1, None)
    passes = [rows for rows in fitted if rows == sorted(rows)]
    assert [row["r2_images"] for row in client.log.stages] == [images if projection == "sgd" else ""] * len(client.log.stages)
    if projection == "ridge":
        assert [0, 1, 2, 3, 5] in passes, "one image of six is held out"
        assert all(np.isnan(row["r2"]) for row in client.log.stages), "one image alone is not measured"
    else:
        assert fitted[-1] == [0, 1, 2, 3, 4, 5]


def test_hypergradients_are_taken_at_every_nth_batch_and_the_mean_is_of_those(federation):
    (client, *_), _ = federation("nuclei", "hgkt", transfer__hypergradient_every=2, federation__local_epochs=2)
    client.run_round(1, None)
    norms, outer = ([row[name] for row in client.log.steps] for name in ("hypergradient_norm", "outer_loss"))
    assert [bool(np.isnan(norm)) for norm in norms] == [False, True, False, True] == [bool(np.isnan(loss)) for loss in outer]
    summary, *_ = client.log.rounds
    assert summary["outer_loss"] == pytest.approx((outer[0] + outer[2]) / 2)


def test_the_papers_values_are_off(federation):
    transfer = federation("nuclei", "hgkt")[0][0].settings.transfer
    options = ("teacher_scale", "projection", "pair_init", "meta_optimizer", "meta_schedule", "hypergradient_every")
    assert [getattr(transfer, name) for name in options] == ["none", "sgd", "random", "sgd", "constant", 1]


@pytest.mark.parametrize(
    ("width", "chosen", "expected"), [(4, "always", False), (8, "always", True), (8, "gpu", False), (8, "never", False)]
)
def test_a_student_whose_layers_would_damage_memory_is_not_channels_last(federation, width, chosen, expected):
    clients, _ = federation("endometrial", "local", student__width=width, compute__channels_last=chosen)
    assert (clients[0].memory_format is torch.channels_last) == expected
    kernels = [p for p in clients[0].student.parameters() if p.dim() == 4 and p.shape[2] > 1]
    assert all(p.is_contiguous() != expected for p in kernels)
