"""What a sweep consists of, and how far it is, read from disk."""

import fcntl
import json
import math
import os
from dataclasses import replace

import pytest

from vfmgl_lib.config import ConfigError
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.tools.sweep import plan, sweep_status
from vfmgl_lib.tools.sweep.jobs import status_table, wall_seconds


def lay_rounds(study, times, starts=(0,)):
    """A study's folder as if its rounds 0, 1, ... had been written at these seconds, after these starts."""
    for number, second in enumerate(times):
        folder = study.folder / "rounds" / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").touch()
        os.utime(folder / "metrics.csv", (second, second))
    (study.folder / "environment.json").write_text(json.dumps([{"after_round": number} for number in starts]))


def test_a_plan_has_all_methods_of_a_seed_before_the_next(small):
    jobs = plan(small(), ["local", "fedavg", "local"], [0, 3], [None, (0.6, 2)])
    assert [job.name for job in jobs] == [
        "local seed 0",
        "fedavg seed 0",
        "local seed 3",
        "fedavg seed 3",
        "local seed 0 split 0.6-2",
        "fedavg seed 0 split 0.6-2",
        "local seed 3 split 0.6-2",
        "fedavg seed 3 split 0.6-2",
    ]
    assert len({job.study.folder for job in jobs}) == 8
    assert [job.split_id for job in jobs] == ["own"] * 4 + ["0.6-2"] * 4


def test_seeds_are_trained_on_other_images_and_tested_on_the_same(small):
    few = {"train": 2, "test": 2}
    seeds = [small(data__per_center=few).variant(seed=seed).manifest for seed in range(4)]
    assert [len(seeds[0].select(center, split)) for center in seeds[0].centers for split in few] == [2, 2] * 2
    assert len(small().manifest.select("SiteA", "test")) > 2, "there is a choice"
    chosen = {split: {tuple(one.select("SiteA", split)["id"]) for one in seeds} for split in few}
    assert len(chosen["test"]) == 1 and len(chosen["train"]) > 1


def test_a_revised_method_has_a_study_of_another_name(small, monkeypatch):
    workspace = small()
    before = {name: workspace.study(name).folder.name for name in ("local", "fedavg")}
    monkeypatch.setitem(METHODS, "fedavg", replace(METHODS["fedavg"], revision=METHODS["fedavg"].revision + 1))
    assert workspace.study("fedavg").folder.name != before["fedavg"] and workspace.study("local").folder.name == before["local"]


def test_a_variant_has_the_same_images_and_the_study_that_its_settings_name(small):
    workspace = small()
    variant = workspace.variant(seed=2, split=(0.5, 1))
    assert set(variant.manifest.table["sha256"]) == set(workspace.manifest.table["sha256"])
    assert not variant.manifest.table["split"].equals(workspace.manifest.table["split"])
    assert (variant.settings.seed, variant.settings.data.split.name) == (2, "0.5-1")
    assert workspace.variant(seed=0).study("local").folder == workspace.study("local").folder
    again = small(data__split={"train": 0.5, "seed": 1}).variant(seed=2)
    assert again.study("local").folder == variant.study("local").folder, "the setting and the variant are the same"
    assert variant.run("local", progress=False).folder == variant.study("local").folder


def test_an_impossible_plan_is_refused(small):
    workspace = small()
    with pytest.raises(ConfigError, match="methods fedsgd: must be of local, fedavg"):
        plan(workspace, ["local", "fedsgd"], [0])
    with pytest.raises(ConfigError, match="a sweep without seeds"):
        plan(workspace, ["local"], [])
    with pytest.raises(ConfigError, match=r"data.split.train: .*less than 1, got 1.5"):
        plan(workspace, ["local"], [0], [(1.5, 0)])
    with pytest.raises(ConfigError, match=r"seed: .*got -1"):
        plan(workspace, ["local"], [-1])


def test_status_tells_done_running_failed_and_left(small):
    workspace = small()
    jobs = plan(workspace, ["local", "fedavg", "hgkt", "vfmgl"], [0])
    done, running, failed, _ = jobs
    workspace.run("local", progress=False)
    lay_rounds(running.study, [0, 10])
    failed.failed("ValueError: no", "traceback")
    with open(running.study.folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table = sweep_status(workspace, ["local", "fedavg", "hgkt", "vfmgl"], [0])
    assert table["state"].tolist() == ["done", "running", "failed", "left"]
    assert table["rounds_done"].tolist() == [2, 1, 0, 0] and table["rounds"].tolist() == [2, 2, 2, 2]
    assert table["error"].tolist() == ["", "", "ValueError: no", ""]
    assert done.state == "done" and running.state == "left", "nobody holds its lock any more"
    failed.tried_again()
    assert failed.state == "left"


def test_the_time_left_follows_the_same_method_then_all(small):
    jobs = plan(small(federation__rounds=4), ["local", "vfmgl"], [0, 1])
    empty = status_table(jobs)
    assert empty["seconds_left"].isna().all() and (empty["seconds"] == 0).all()
    lay_rounds(jobs[1].study, [100, 110, 120])  # vfmgl, seed 0: two rounds of 10 s
    table = status_table(jobs)
    assert table["seconds_left"].tolist() == [40, 20, 40, 40]
    lay_rounds(jobs[0].study, [100, 102])  # local, seed 0: one round of 2 s
    assert status_table(jobs)["seconds_left"].tolist() == [6, 20, 8, 40]


def test_the_pause_of_an_interrupted_study_does_not_count(small):
    job, other = plan(small(federation__rounds=5), ["local"], [0, 1])
    assert wall_seconds(job.study) == 0
    lay_rounds(job.study, [100, 110, 120, 5000, 5010], starts=[0, 2])  # stopped after round 2, gone on much later
    assert wall_seconds(job.study) == 10 + 10 + 10 + 10
    lay_rounds(other.study, [100, 5000], starts=[0, 0])
    assert math.isnan(wall_seconds(other.study)), "its only round followed an interruption"
