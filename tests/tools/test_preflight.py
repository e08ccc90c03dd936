"""vfmgl run --check: what it counts is what a run does; what would stop the run stops the check."""

import dataclasses
import math
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from vfmgl_lib.data.feature_cache import GIB
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.batch import preflight
from vfmgl_lib.tools.batch.__main__ import main
from vfmgl_lib.tools.batch.real_steps import RealSteps, measure

SMALLEST = Path(__file__).resolve().parents[1] / "smallest.yaml"
STEPS = RealSteps(
    images=4, update=1.0, stage_one=10.0, stage_two=5.0, teacher=2.0, predict=0.5, model_bytes=1000, shared_bytes=500, state_bytes=700,
    plain_state_bytes=300, feature_bytes=GIB // 64, row_bytes=0, mask_bytes=0, step_bytes=0, peak_bytes=GIB, gpu_bytes=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def workspace(runs):
    return open_workspace("nuclei", SMALLEST, runs=runs)


@pytest.fixture(scope="module")
def measured(runs) -> RealSteps:
    return measure({"task": "nuclei", "profile": str(SMALLEST), "runs": str(runs), "device": "cpu"})


def study(workspace, method):
    return next(one for one in preflight.planned(workspace, "05_comparison") if one.settings.method == method)


def test_a_batch_costs_the_stages_that_its_method_has(workspace):
    seconds = {name: preflight.batch_seconds(workspace.study(name), STEPS) for name in ("fedavg", "hgkt", "hgkt_kd", "vfmgl", "ditto")}
    assert seconds["fedavg"] == 1.0 and seconds["hgkt"] == 10.0
    assert seconds["hgkt_kd"] == seconds["vfmgl"] == 10.0 + 5.0 / 2, "two rounds, the first without stage II"
    assert seconds["ditto"] > 1.0, "it trains a second model"
    rare = workspace.variant(changes={"transfer.hypergradient_every": 4}).study("hgkt")
    assert 1.0 < preflight.batch_seconds(rare, STEPS) < 5.0


def test_training_grows_with_images_and_rounds_and_ends_with_what_is_done(workspace, monkeypatch):
    vfmgl = study(workspace, "vfmgl")
    batches = sum(math.ceil(n / 3) for n in vfmgl.manifest.table.query("split == 'train'").groupby("center").size())
    whole = preflight.training_seconds(vfmgl, STEPS)
    assert whole > 2 * batches * 12.5
    assert preflight.training_seconds(vfmgl, dataclasses.replace(STEPS, predict=0.0)) == 2 * batches * 12.5
    monkeypatch.setattr(type(vfmgl), "rounds_done", 1)
    assert preflight.training_seconds(vfmgl, dataclasses.replace(STEPS, predict=0.0)) == batches * 12.5


def test_features_beyond_the_cache_are_computed_again(workspace):
    def teacher(limit: float, **changes):
        settings = workspace.settings
        small = dataclasses.replace(
            workspace, settings=settings.model_copy(update={"teacher": settings.teacher.model_copy(update={"cache_gib": limit})})
        )
        row = preflight.costs(small.variant(changes=changes) if changes else small, ["03_ddbl"], STEPS).rows[-1]
        return row["hours"] * 3600, row["disk (GiB)"]

    images = int(workspace.manifest.table["split"].isin(["train", "val"]).sum())
    assert teacher(50) == (pytest.approx(2.0 * images), pytest.approx(images / 64))
    seconds, disk = teacher(images / 128)
    assert disk == pytest.approx(images / 128) and seconds == pytest.approx(2.0 * (images / 2 + 2 * images / 2))
    assert teacher(50, **{"data.augmentation": "turns_and_flips"})[1] > images / 64


def test_a_study_counts_once_and_not_when_it_is_done(workspace, monkeypatch):
    found = preflight.costs(workspace, ["02_hgkt", "03_ddbl", "04_federated_rounds", "05_comparison", "06_generalization", "mine"], STEPS)
    counts = {row["notebook"]: row["studies"] for row in found.rows}
    assert list(counts.values()) == [3, 1, 0, 13, 2, 0, 0], counts
    assert preflight.costs(workspace, ["04_federated_rounds"], STEPS, "flower").rows[0]["studies"] == 1
    monkeypatch.setattr(type(study(workspace, "vfmgl")), "complete", True)
    done = preflight.costs(workspace, ["03_ddbl", "05_comparison"], STEPS)
    assert done.hours == done.disk == 0 and [row["done"] for row in done.rows] == [1, 13, 0]


def test_the_disk_foretold_is_the_disk_used(workspace, measured):
    """Of a study that keeps everything: two rounds."""
    foretold = preflight.study_bytes(workspace.study("vfmgl"), measured)
    made = workspace.run("vfmgl", progress=False)
    used = sum(file.stat().st_size for file in made.folder.rglob("*") if file.is_file())
    assert 0.8 < foretold / used < 1.25, (foretold, used)


def test_steps_are_measured(measured):
    assert measured.images == 4 and measured.stage_one > measured.update > 0 and measured.stage_two > 0
    assert measured.teacher > 0 and measured.predict > 0 and measured.feature_bytes > 72 and measured.peak_bytes > 100 * 2**20
    assert measured.state_bytes > measured.plain_state_bytes > 0 and measured.gpu_bytes == 0


@pytest.mark.parametrize(("free", "status", "words"), [(2**40, 0, "enough"), (1000, 1, "NOT enough")])
def test_the_command_says_what_it_takes_and_runs_nothing(runs, measured, monkeypatch, capsys, free, status, words):
    monkeypatch.setattr(preflight, "measure_apart", lambda given: measured)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("usage", "free")(free))
    place = runs / "apart"
    assert main(["--check", "--profile", str(SMALLEST), "--task", "nuclei", "--only", "03", "--runs", str(place), "--jobs", "1"]) == status
    said = capsys.readouterr().out
    assert "stage I" in said and " 03_ddbl " in said and f"free at {place}: {words}\n" in said and " hours one after another" in said
    assert not list(place.rglob("*.safetensors")) and not (place / "smallest" / "runs.csv").exists()


def test_what_would_stop_the_run_stops_the_check(runs, capsys):
    given = ["--check", "--profile", str(SMALLEST), "--task", "nuclei", "--runs", str(runs), "--only", "03"]
    assert main([*given, "--teacher", "nosuch_vit"]) == 2
    said = capsys.readouterr().err
    assert "\nvfmgl run: " in said and "nosuch_vit" in said and "Traceback" not in said
