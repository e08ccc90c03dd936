"""Profiles hold values only; the paper's settings are the paper's; what is wrong is named."""

import pytest

from vfmgl_lib.base.places import profiles_folder
from vfmgl_lib.config import ConfigError, task_names
from vfmgl_lib.methods.settings import load_settings


@pytest.mark.parametrize(
    ("task", "student", "loss", "optimizer", "lr", "decay", "batch", "rounds", "size", "critical", "temperature"),
    [
        ("endometrial", "resnet18", "cross_entropy", "sgd", 1e-4, 1e-4, 25, 20, 224, 3, 5),
        ("nuclei", "unet", "dice", "sgd", 1e-3, 1e-4, 2, 100, 256, 2, 500),
    ],
)
def test_the_papers_settings(task, student, loss, optimizer, lr, decay, batch, rounds, size, critical, temperature):
    settings = load_settings(task, "paper")
    chosen = settings.optimizer
    assert (settings.student.name, settings.loss, chosen.name, chosen.lr) == (student, loss, optimizer, lr)
    assert (chosen.weight_decay, chosen.momentum, chosen.batch_size, settings.federation.rounds) == (decay, 0.9, batch, rounds)
    assert (settings.data.image_size, settings.transfer.critical_stages, settings.deduction.temperature) == (size, critical, temperature)
    transfer = settings.transfer
    assert (transfer.beta, transfer.inner_steps, transfer.meta_lr, transfer.meta_weight_decay) == (0.5, 2, 1e-3, 1e-3)
    assert (settings.deduction.keep_ratio, settings.deduction.task_share, settings.federation.local_epochs) == (4, 0.5, 1)
    assert settings.teacher.source == "vit_base_patch14_dinov2.lvd142m" and settings.teacher.grid == 16
    assert settings.deviations().empty


@pytest.mark.parametrize("profile", sorted(path.stem for path in profiles_folder().glob("*.yaml")))
def test_every_profile_is_valid_for_every_task_and_its_deviations_are_its_lines(profile):
    for task in task_names(profile):
        deviations = load_settings(task, profile).deviations()
        assert (deviations["paper"] != deviations["here"]).all()
        assert deviations.empty == (profile == "paper")


@pytest.mark.parametrize(
    ("setting", "value", "reader"),
    [
        ("transfer__ridge_penalty", 7.0, {"transfer__projection": "ridge"}),
        ("deduction__quantile", 0.1, {"deduction__rule": "quantile"}),
        ("deduction__gradient_every", 0, None),  # what it changes is logged, and no number of a study
    ],
)
def test_a_key_has_no_setting_that_nothing_reads(setting, value, reader):
    def key(**changes):
        return load_settings("nuclei", **({"transfer__projection": "sgd"} | changes)).key()

    assert key() == key(**{setting: value})
    if reader:
        assert len({key(), key(**reader), key(**reader, **{setting: value})}) == 3


def test_overrides_reach_nested_settings():
    settings = load_settings("nuclei", "smoke", seed=7, federation__rounds=2, data__per_center={"train": 3})
    assert (settings.seed, settings.federation.rounds, settings.data.per_center) == (7, 2, {"train": 3})
    assert settings.deviations().set_index("setting").loc["data.per_center", "here"] == {"train": 3}


def test_a_profile_file_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("tasks: {nuclei: {federation: {rounds: 4}}}")
    settings = load_settings("nuclei", tmp_path / "mine.yaml")
    assert settings.profile == "mine" and settings.deviations()["setting"].tolist() == ["federation.rounds"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tasks: {nuclei: {federation: {round: 4}}}", r"federation.round: Extra inputs"),
        ("tasks: {liver: {}}", r"unknown tasks \['liver'\]; there are"),
        ("rounds: 3", "top-level keys must be 'all' and 'tasks', got"),
        ("tasks: [", "mine.yaml: not valid YAML"),
        ("tasks: {nuclei: {optimizer: {lr: fast}}}", "optimizer.lr: .*valid number.*got 'fast'"),
        ("tasks: {nuclei: {student: {name: resnet18}}}", "a segmentation unet with dice"),
    ],
)
def test_a_wrong_profile_is_named(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_settings("nuclei", tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("split", "named"),
    [({"folds": 5, "fold": 0, "seed": 1}, "data.split.fold: "), ({"train": 1.5, "seed": 1}, "data.split.train: ")],
)
def test_a_wrong_division_is_named_as_the_setting_is_called(split, named):
    with pytest.raises(ConfigError, match=f"task nuclei, profile smoke: {named}"):
        load_settings("nuclei", data__split=split)
