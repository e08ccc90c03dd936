"""Controls: what they are held against, with one thing changed and named by the study's key and deviations."""

from dataclasses import replace

import pytest
import torch

from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.methods.controls import with_random_weights
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import load_settings, with_overrides
from vfmgl_lib.models.teachers import load_teacher
from vfmgl_lib.study import training
from vfmgl_lib.study.study import find_study

CONTROLS = {
    "hgkt_beta0": {"transfer.beta": (0.5, 0.0)},
    "hgkt_random": {"teacher.source": ("pocket_vit", "random:pocket_vit")},
}

SWITCHES = {"vfmgl_task": {"task_only": True, "deduction": False}, "vfmgl_random": {"permuted": True}}


def _flat(values, prefix=""):
    for name, value in values.items():
        yield from _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def test_controls_are_these():
    controls = [name for name, method in METHODS.items() if method.is_control]
    assert controls == [*CONTROLS, *SWITCHES] == [name for name, method in METHODS.items() if method.source.startswith("control: ")]
    assert [METHODS[name].parent for name in controls] == ["hgkt", "hgkt", "hgkt_kd", "vfmgl"]


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.is_control])
def test_a_control_differs_from_its_parent_in_the_named_setting_or_switch_alone(method):
    parent = METHODS[method].parent
    one, other = (with_overrides(load_settings("nuclei", "smoke", method=name)) for name in (parent, method))
    before, after = dict(_flat(one.model_dump())), dict(_flat(other.model_dump()))
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert changed == {"method": (parent, method)} | CONTROLS.get(method, {})
    assert METHODS[method].switches == replace(METHODS[parent].switches, **SWITCHES.get(method, {})) and (method in CONTROLS) != (
        method in SWITCHES
    )
    assert METHODS[method].updates == METHODS[parent].updates
    assert with_overrides(other) == other, "applied again it changes nothing"
    assert set(METHODS[method].overrides) <= set(other.deviations()["setting"])


def test_the_study_of_a_control_is_made_of_its_settings(phantoms, tmp_path):
    settings = load_settings("nuclei", "smoke", method="hgkt_beta0", data__image_size=32)
    study, teacher = find_study(settings, phantoms["nuclei"], tmp_path)
    assert study.settings.transfer.beta == 0 and teacher is not None
    random, other = find_study(settings.model_copy(update={"method": "hgkt_random"}), phantoms["nuclei"], tmp_path)
    assert "RANDOM weights" in random.teacher_description and other.stack_shapes == teacher.stack_shapes
    assert random.folder != find_study(settings.model_copy(update={"method": "hgkt"}), phantoms["nuclei"], tmp_path)[0].folder


@pytest.mark.parametrize(
    ("method", "changes", "idle"),
    [
        ("hgkt_random", {"teacher__source": "random:pocket_vit"}, "teacher.source is random:pocket_vit already"),
        ("hgkt_random", {}, ""),
        ("hgkt_beta0", {"transfer__beta": 0}, "transfer.beta is 0.0 already"),
        ("hgkt", {"teacher__source": "random:pocket_vit"}, ""),
        ("vfmgl_task", {}, ""),
    ],
)
def test_a_control_that_changes_nothing_is_said_to_be_its_parent(phantoms, tmp_path, monkeypatch, caplog, method, changes, idle):
    monkeypatch.setattr(training, "_train", lambda *arguments: None)
    settings = load_settings("nuclei", "smoke", method=method, data__image_size=32, **changes)
    training.run_study(settings, phantoms["nuclei"], tmp_path, progress=False)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ([f"{method}: {idle}, so that this control is hgkt itself under another title"] if idle else [])


def test_without_its_teacher_hgkt_follows_the_task_alone(federation):
    """beta = 0: the teacher's features change nothing, and lambda's hypergradient is zero; the steps are as many."""
    clients, server = federation("nuclei", "hgkt_beta0")
    others, other_server = federation("nuclei", "hgkt_beta0")
    for client in others:
        client.teacher_features = lambda *batch, own=client.teacher_features: [torch.randn_like(stack) for stack in own(*batch)]
    list(run_rounds(clients, server, 2)), list(run_rounds(others, other_server, 2))
    for one, other in zip(clients, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True))
        steps = [row for row in one.log.steps if row["stage"] == "I"]
        assert len(steps) == len(one.batches(2, "I")) and all(row["match_loss"] == row["hypergradient_norm"] == 0 for row in steps)


@pytest.mark.parametrize("text", ["pocket_vit", "test_vit", "resnet18"])
def test_a_random_teacher_has_the_architecture_and_always_the_same_weights(text):
    source = with_random_weights(text)
    assert source == with_random_weights(source)
    one, other = (load_teacher(source, grid=2) for _ in range(2))
    assert one.identity == other.identity and "RANDOM" in one.description and "pre-trained" not in one.description
    if text == "pocket_vit":
        trained = load_teacher(text, grid=2)
        assert trained.identity != one.identity and trained.block_names == one.block_names and torch.equal(trained.mean, one.mean)
        assert trained.stack_shapes == one.stack_shapes
        trained_weights, random_weights = trained.backbone.state_dict(), one.backbone.state_dict()
        assert trained_weights.keys() == random_weights.keys()
