"""A study runs, resumes bit-identically after a kill, loads instead of training, and refuses what is broken."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vfmgl_lib.base.checkpoint import CheckpointError
from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.evaluation.home_means import home_means
from vfmgl_lib.evaluation.prediction import predict
from vfmgl_lib.evaluation.results import compare_methods, results_table
from vfmgl_lib.evaluation.rounds import measured_rounds
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import load_settings, with_overrides
from vfmgl_lib.study import training as training_module
from vfmgl_lib.study.assembly import new_student
from vfmgl_lib.study.study import mark_controls, no_comparison, trivial_baseline, trivial_predictions
from vfmgl_lib.study.training import run_study
from vfmgl_lib.study.workspace import open_workspace

SMALL = {
    "teacher": "random:vit_tiny_patch16_224",
    "teacher__grid": 2,
    "teacher__blocks": (1, 2),
    "data__image_size": 32,
    "student__width": 4,
    "federation__rounds": 3,
    "phantoms__centers": 2,
    "phantoms__image_size": 32,
}
SAMPLES = {"nuclei": {"train": 4, "val": 2, "test": 2}, "endometrial": {"train": 6, "test": 4}}


def _workspace(runs, task="nuclei", **changes):
    size = {"phantoms__samples": SAMPLES[task], "optimizer__batch_size": 2, "optimizer__lr": 0.005, "data__validation_share": 0.0}
    return open_workspace(task, "smoke", runs=runs, **(SMALL | size | changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=["nuclei", "endometrial"])
def finished(request, runs):
    workspace = _workspace(runs, request.param)
    return workspace, workspace.run()


def test_tables_hold_what_they_should(finished):
    workspace, study = finished
    own = study.predictions[study.predictions["model_center"] == study.predictions["test_center"]]
    for number, stage in ((0, "untrained"), (1, "I"), (3, "I"), (3, "II")):
        rows = own[(own["round"] == number) & (own["stage"] == stage)]
        known = workspace.manifest.table
        known = known[known["center"].isin(workspace.manifest.training_centers)]
        assert sorted(rows["id"]) == sorted(known["id"]), "every sample exactly once"
    last = study.metrics[(study.metrics["round"] == 3) & (study.metrics["stage"] == "II") & (study.metrics["split"] == "test")]
    assert {(a, b) for a, b in zip(last["model_center"], last["test_center"], strict=True)} == {
        (a, b) for a in workspace.manifest.training_centers for b in workspace.manifest.centers
    }
    assert set(study.metrics[study.metrics["model_center"] == "shared"]["test_center"]) == set(workspace.manifest.centers)
    assert study.stages["pair_weight"].between(0, 6).all() and len(study.stages) > 0
    assert study.rounds.groupby(["round", "center", "stage"]).size().eq(1).all()
    for table in ("predictions", "metrics", "rounds", "steps", "stages", "mean_features"):
        assert getattr(study, table)["teacher"].str.contains("RANDOM").all(), "every output names the teacher"
    config, environment = (json.loads((study.folder / f"{name}.json").read_text()) for name in ("config", "environment"))
    assert config["settings"]["federation"]["rounds"] == 3
    assert {row["setting"] for row in config["deviations_from_paper"]} >= {"teacher.source", "federation.rounds", "data.image_size"}
    assert environment[0]["manifest_sha256"] == workspace.manifest.sha256 and environment[0]["packages"]["torch"]


def test_a_method_of_one_update_a_batch_is_reported_at_matched_rounds_and_at_matched_updates(runs):
    workspace = _workspace(runs, "nuclei", federation__rounds=1)
    study = workspace.run("fedavg")
    assert study.report_rounds == {"rounds": 1, "updates": 3, "hgkt_updates": 2} and study.last_round == 3
    assert workspace.run("vfmgl").report_rounds == {"rounds": 1, "updates": 1}
    assert set(study.metrics["round"]) == {0, 1, 2, 3} and set(study.predictions["round"]) == {0, 1, 2, 3}
    centers = workspace.manifest.training_centers
    for number in (1, 3):
        rows = study.predictions[study.predictions["round"] == number]
        tested = rows[rows["split"] == "test"]
        pairs = {(a, b) for a, b in zip(tested["model_center"], tested["test_center"], strict=True)}
        assert pairs == {(a, b) for a in (*centers, "shared", "adapted") for b in workspace.manifest.centers}
        own = tested[tested["model_center"] == tested["test_center"]]
        assert all((study.folder / name).is_file() for name in own["mask_file"])
        # A centre's model is the shared one, which it has adopted.
        for center in centers:
            mine, shared = (tested[(tested["model_center"] == m) & (tested["test_center"] == center)] for m in (center, "shared"))
            assert mine["tp"].tolist() == shared["tp"].tolist()
    assert set(study.predictions["split_id"]) == {"own"}
    assert (study.folder / "rounds" / "001" / "shared.safetensors").is_file()


def test_rounds_that_are_not_measured_change_no_number_of_those_that_are(runs):
    often = _workspace(runs, "nuclei", federation__rounds=2, federation__match_updates=False).study("fedavg")
    seldom = _workspace(runs, "nuclei", federation__rounds=4, federation__match_updates=False, evaluate_every=3).run("fedavg")
    every = _workspace(runs, "nuclei", federation__rounds=4, federation__match_updates=False, evaluate_every=1).run("fedavg")
    assert set(seldom.metrics["round"]) == measured_rounds(seldom.settings, 4) == {0, 1, 3, 4}
    assert set(seldom.rounds["round"]) == set(every.rounds["round"]) == {1, 2, 3, 4}
    measured = every.metrics[every.metrics["round"].isin([0, 1, 3, 4])].reset_index(drop=True)
    pd.testing.assert_frame_equal(seldom.metrics.reset_index(drop=True), measured)
    assert seldom.folder.name != every.folder.name != often.folder.name, "tables that hold less have a place of their own"


def test_mean_features_are_those_under_the_shared_model(runs):
    study = _workspace(runs, "endometrial", federation__rounds=1).run("fedavg")
    table = study.mean_features
    assert set(zip(table["round"], table["model"], strict=True)) == {(number, "shared") for number in (1, 2, 3)}
    training = study.manifest.training_centers
    rows = table[table["round"] == 3].set_index("center")
    assert rows["split"].to_dict() == {center: "train" if center in training else "test" for center in study.manifest.centers}
    assert "test" in set(rows["split"]), "external centres, too"
    student = new_student(study.settings).eval()
    student.load_state_dict(load_file(study.folder / "rounds" / "003" / "shared.safetensors"))
    for center, row in rows.iterrows():
        data = ImageDataset(study.manifest, study.manifest.select(center, row["split"]), study.settings.data.image_size)
        with torch.no_grad():
            features = torch.cat([student.net.global_pool(student.encode(data[i]["image"][None])[-1]) for i in range(len(data))])
        assert row["n"] == len(data) and features.shape[1] == sum(name[1:].isdigit() for name in rows.columns if name[0] == "f")
        np.testing.assert_allclose(row[[f"f{i}" for i in range(features.shape[1])]].astype(float), features.mean(0), rtol=1e-4, atol=1e-6)


def test_a_method_without_a_shared_model_has_none_in_its_tables(runs):
    study = _workspace(runs, "endometrial", federation__rounds=1).run("frozen_probe")
    assert study.mean_features.empty and "shared" not in set(study.metrics["model_center"])
    assert not list(study.folder.rglob("shared.safetensors")) and study.last_round == 1
    sizes = [file.stat().st_size for file in study.folder.rglob("*.student.safetensors")]
    assert sizes and max(sizes) < 4000, "the frozen teacher is in no checkpoint"


def test_a_fifth_of_the_training_patients_validates_where_a_method_needs_it(runs):
    workspace = _workspace(runs, "endometrial", federation__rounds=1)
    assert "val" not in set(workspace.manifest.table["split"])
    study = workspace.run("metafed")
    table = study.manifest.table
    assert set(table.loc[table["split"] == "val", "center"]) == set(workspace.manifest.training_centers)
    before = workspace.manifest.table
    assert set(table.loc[table["split"] == "test", "id"]) == set(before.loc[before["split"] == "test", "id"])
    assert "val" not in set(workspace.run("fedavg").manifest.table["split"])


def test_metrics_follow_from_the_predictions(finished):
    _, study = finished
    name = "dice" if study.settings.is_segmentation else "auc"
    chosen = {"round": 3, "stage": "II", "metric": name, "split": "test", "model_center": study.manifest.centers[0]}
    metrics = study.metrics[study.metrics["model_center"] == study.metrics["test_center"]]
    row = metrics[(metrics[list(chosen)] == pd.Series(chosen)).all(axis=1)].iloc[0]
    rows = study.predictions
    for column in ("round", "stage", "model_center", "test_center", "split"):
        rows = rows[rows[column] == row[column]]
    if name == "dice":
        assert row["value"] == pytest.approx(rows["dice"].mean())
        mask = rows[rows["mask_file"].notna() & (rows["mask_file"] != "")]
        predicted = np.asarray(Image.open(study.folder / mask["mask_file"].iloc[0])) > 0
        assert predicted.sum() == mask["tp"].iloc[0] + mask["fp"].iloc[0]
    else:
        patients = rows.groupby("patient").agg({"probability": "mean", "label": "first"})
        positive, negative = (patients[patients["label"] == y]["probability"].to_numpy() for y in (1, 0))
        wins = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
        assert row["value"] == pytest.approx(wins) and row["unit"] == "patient"


def test_the_same_call_loads_and_a_changed_setting_trains_anew(finished, monkeypatch):
    workspace, study = finished
    monkeypatch.setattr(training_module, "_train", lambda *arguments: pytest.fail("trained again"))
    assert workspace.run().folder == study.folder
    pd.testing.assert_frame_equal(workspace.run().metrics, study.metrics)
    changed = workspace.settings.model_copy(update={"seed": 1})
    with pytest.raises(pytest.fail.Exception):
        run_study(changed, workspace.manifest, workspace.folder / "studies", progress=False)
    for update in ({"seed": 1}, {"method": "hgkt"}, {"deduction": workspace.settings.deduction.model_copy(update={"keep_ratio": 3.0})}):
        assert workspace.settings.model_copy(update=update).key() != workspace.settings.key()
    faster = workspace.settings.data.model_copy(update={"workers": 7})
    assert workspace.settings.model_copy(update={"data": faster}).key() == workspace.settings.key(), "workers change no number"


def _content(folder: Path) -> dict[str, object]:
    """Everything of a study but wall-clock times and the log of starts."""
    content: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".csv":
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
            content[name] = table.drop(columns="seconds", errors="ignore").to_csv()
        elif file.is_file() and file.name not in ("environment.json", ".lock"):
            content[name] = file.read_bytes()
    return content


# A fork for each, so that the libraries are loaded once; nothing has been computed before it.
KILLED = """
    import json, multiprocessing, os, signal, sys
    from vfmgl_lib.federation.client import Client
    from tests_study import _workspace
    sent_state = Client.sent_state
    def dies(self):
        calls[self.center] = calls.get(self.center, 0) + 1
        if len(calls) == 2 and set(calls.values()) == {last}:  # the round's first centre done, the second before it sends
            os.kill(os.getpid(), signal.SIGKILL)
        return sent_state(self)
    def start(runs, task, method, rounds, number):
        global last
        last = number
        _workspace(runs, task, federation__rounds=rounds).run(method)
    calls = {}
    Client.sent_state = dies
    for case in json.loads(sys.argv[2]):
        process = multiprocessing.get_context("fork").Process(target=start, args=(sys.argv[1], *case))
        process.start()
        process.join()
        print(process.exitcode)
"""
# task, method, rounds before they are matched, the round in which it dies: VFMGL in stage II, MetaFed common again after a personalisation
CASES = [("nuclei", "vfmgl", 3, 2), ("endometrial", "harmofl", 1, 2), ("nuclei", "metafed", 2, 5)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of results in which one process after the other died."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "tests_study.py").write_text(Path(__file__).read_text())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])])}
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(folder / "runs"), json.dumps(CASES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(CASES), done.stderr[-2000:]
    return folder / "runs"


@pytest.mark.parametrize(("task", "method", "rounds", "number"), CASES)
def test_killed_in_a_round_and_started_again_ends_bit_identical(task, method, rounds, number, runs, killed):
    undisturbed = _workspace(runs, task, federation__rounds=rounds).run(method)
    folder = next((killed / "smoke" / task / "studies").glob(f"{method}-*"))
    assert folder.name == undisturbed.folder.name
    whole = [f"{done:03d}" for done in range(number)]
    assert sorted(p.name for p in (folder / "rounds").iterdir()) == whole and not (folder / "complete.json").exists()
    threads = torch.get_num_threads()
    resumed = _workspace(killed, task, federation__rounds=rounds).run(method)
    assert torch.get_num_threads() == threads
    one, other = _content(undisturbed.folder), _content(resumed.folder)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    starts = json.loads((resumed.folder / "environment.json").read_text())
    assert [start["after_round"] for start in starts] == [0, number - 1]


def test_a_truncated_checkpoint_is_named(tmp_path, monkeypatch):
    workspace = _workspace(tmp_path, federation__rounds=2, federation__match_updates=False)
    monkeypatch.setattr(training_module, "_join_tables", lambda study: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        workspace.run("fedavg")
    monkeypatch.undo()
    file = next(tmp_path.rglob("002/SiteA.state.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"SiteA.state.safetensors: truncated or altered .* remove the folder .*002 to resume"):
        workspace.run("fedavg")


def test_checkpoints_of_both_stages_are_there_and_old_ones_pruned(finished):
    _, study = finished
    names = {p.name for p in (study.folder / "rounds" / "003").glob("*.safetensors")}
    center = study.manifest.centers[0]
    assert {f"{center}.student.safetensors", f"{center}.stage_one.safetensors", "shared.safetensors"} <= names
    assert not list((study.folder / "rounds" / "001").glob("*.state.safetensors"))
    one, two = (load_file(study.folder / "rounds" / "003" / f"{center}.{part}.safetensors") for part in ("stage_one", "student"))
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_students_come_back_from_their_checkpoints(finished):
    """The model read is the one whose predictions the tables hold, at both stages."""
    workspace, study = finished
    center, settings = workspace.manifest.training_centers[0], workspace.settings
    data = ImageDataset(workspace.manifest, workspace.manifest.select(center, "test"), settings.data.image_size)
    shown = "tp" if settings.is_segmentation else "probability"
    for stage in ("I", "II", "shared"):
        model = "shared" if stage == "shared" else center
        rows = study.predictions.query("round == 3 and stage == @stage and model_center == @model and test_center == @center")
        again = predict(study.student(model, stage), data, batch_size=32, device=torch.device("cpu"))
        expected = rows.set_index("id")[shown].loc[again["id"]]
        np.testing.assert_allclose(again[shown], expected[rows.set_index("id")["split"].loc[again["id"]] == "test"], rtol=1e-5)
    with pytest.raises(ValueError, match=rf"model '{center}' has no stage 'II' in round 1; there is {center}: I; "):
        study.student(center, "II", 1)
    with pytest.raises(ValueError, match=r"there is no such centre: 'Z'; in round 3 there are models of "):
        study.student("Z", "I")
    with pytest.raises(ValueError, match="in round 9; there is no model"):
        study.student(center, "I", 9)


def test_a_study_that_another_process_runs_is_refused(tmp_path):
    workspace = _workspace(tmp_path, federation__rounds=1, federation__match_updates=False)
    folder = workspace.run("local").folder
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(folder / ".lock")], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(RuntimeError, match="another process is running it"):
            workspace.run("local")
    finally:
        other.kill()
        other.wait()
    assert workspace.run("local").folder == folder


def test_a_center_with_one_class_warns_and_has_nan_metrics_with_the_reason(tmp_path):
    workspace = _workspace(tmp_path / "first", "endometrial")
    for folder in workspace.manifest.root.glob("A/*/0_NMI"):
        for file in sorted(folder.rglob("*.png")):
            file.unlink()
        for empty in sorted(folder.rglob("*"), reverse=True):
            empty.rmdir()
        folder.rmdir()
    one_class = _workspace(
        tmp_path / "second", "endometrial", data=workspace.manifest.root, federation__rounds=1, federation__match_updates=False
    )
    assert any("A" in warning and "class" in warning for warning in one_class.warnings)
    # Of those left out another has the client and the steps: VFMGL those of HGKT and its controls, FedRep FedPer's.
    for method in METHODS.keys() - {"hgkt", "hgkt_kd", "hgkt_beta0", "hgkt_random", "fedper"}:
        study = one_class.run(method)
        assert study.metrics["round"].max() == study.last_round, method
    probe = one_class.run("frozen_probe").predictions
    fitted = probe[(probe["model_center"] == "A") & (probe["round"] == 1)]
    assert len(fitted) and np.allclose(fitted["probability"], 1), "the one class's frequency"
    metrics = one_class.run("local").metrics
    auc = metrics[(metrics["model_center"] == "A") & (metrics["test_center"] == "A") & (metrics["metric"] == "auc")]
    assert auc["value"].isna().all() and auc["reason"].str.contains("only one class").all() and len(auc)
    other = metrics[(metrics["model_center"] == "B") & (metrics["test_center"] == "B") & (metrics["metric"] == "auc")]
    assert other["value"].notna().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": "/nonexistent/folder"}, ManifestError, "/nonexistent/folder"),
        ({"teacher__image_size": 50}, ValueError, "teacher.image_size 50: .* multiple of 16"),
        ({"federation__rounds": 0}, ConfigError, "federation.rounds: .*greater than or equal to 1, got 0"),
        ({"optimizer__lrate": 1}, ConfigError, "optimizer.lrate"),
        ({"profile": "tiny"}, ConfigError, "profile tiny: .*paper, pocket_teacher, quick, results, smoke"),
        ({"task": "liver"}, ConfigError, "task 'liver' is not in profile smoke"),
        ({"device": "tpu"}, ConfigError, "device"),
        ({"seed": -1}, ConfigError, "seed: .*got -1"),
        ({"data__image_size": 40}, ConfigError, "multiple of 16"),
    ],
)
def test_bad_settings_are_named(tmp_path, arguments, error, message):
    task, profile = arguments.pop("task", "nuclei"), arguments.pop("profile", "smoke")
    with pytest.raises(error, match=message):
        open_workspace(task, profile, runs=tmp_path, **(SMALL | {"phantoms__samples": SAMPLES["nuclei"]} | arguments)).run()


def test_a_relative_folder_of_results_is_meant_from_where_it_was_opened(tmp_path, monkeypatch):
    """What measures an exported model runs in a folder of its own and is given places below it."""
    monkeypatch.chdir(tmp_path)
    workspace = _workspace("runs")
    assert workspace.folder == tmp_path / "runs" / "smoke" / "nuclei"
    assert workspace.manifest.root.is_absolute()


def test_unknown_method_and_centre_are_named(finished):
    workspace, _ = finished
    with pytest.raises(ConfigError, match="method 'fedsgd': must be one of local, fedavg"):
        workspace.run("fedsgd")
    with pytest.raises(ConfigError, match=r"centers \['Z'\]: the data have"):
        workspace.run(centers=["Z"])


def test_one_centre_alone(finished):
    workspace, _ = finished
    center = workspace.manifest.centers[0]
    study = workspace.run("hgkt", centers=[center])
    assert set(study.rounds["center"]) == {center} and set(study.rounds["stage"]) == {"I"}


def test_batch_ids_are_those_trained_on(finished):
    workspace, study = finished
    center = workspace.manifest.centers[0]
    batches = study.batch_ids(center, 2, "II")
    steps = study.steps[(study.steps["center"] == center) & (study.steps["round"] == 2) & (study.steps["stage"] == "II")]
    assert len(batches) == len(steps)
    assert sorted(name for batch in batches for name in batch) == sorted(workspace.manifest.select(center, "train")["id"])
    orders = {str(study.batch_ids(center, number, stage)) for number in (1, 2, 3) for stage in ("I", "II")}
    assert len(orders) > 1, "every round and stage has an order of its own"
    federation = study.settings.federation.model_copy(update={"local_epochs": 2})
    twice = replace(study, settings=study.settings.model_copy(update={"federation": federation}))
    both = twice.batch_ids(center, 2, "II")
    assert both[: len(batches)] == batches and both[len(batches) :] != batches, "a second local epoch follows, in another order"
    assert sorted(name for batch in both[len(batches) :] for name in batch) == sorted(name for batch in batches for name in batch)


def test_trivial_baseline_reports_every_centre(finished):
    workspace, _ = finished
    table = trivial_baseline(workspace.settings, workspace.manifest)
    assert set(table["test_center"]) == set(workspace.manifest.training_centers) and set(table["split"]) == {"test"}
    assert table[table["metric"].isin(["auc", "dice"])]["value"].between(0, 1).all()


def test_the_trivial_baseline_is_compared_on_the_same_patients_as_a_method(finished):
    """Also where methods are marked as controls or not, which the baseline is not."""
    workspace, study = finished
    unit, metric = ("image", "dice") if workspace.settings.is_segmentation else ("patient", "auc")
    trivial = trivial_predictions(workspace.settings, workspace.manifest)
    final = mark_controls(study.final_predictions(), [study])
    both = pd.concat([final[final["budget"] == "rounds"], trivial])
    table = home_means(results_table(both, unit=unit), compare_methods(both, unit=unit), metric, workspace.settings.seed)
    known = trivial_baseline(workspace.settings, workspace.manifest).query("metric == @metric").set_index("test_center")["value"]
    own = table[(table["method"] == "trivial") & (table["place"] == "center")].set_index("center")
    assert own["value"].to_dict() == known.to_dict() and len(known) == len(workspace.manifest.training_centers)
    of_vfmgl = table[(table["method"] == "vfmgl") & (table["place"] == "center")].set_index("center")["value"]
    assert (own["ahead"] - (of_vfmgl - own["value"])).abs().max() < 1e-12, "the lead is the difference of the two"
    mean = table[(table["method"] == "trivial") & (table["place"] == "mean")].iloc[0]
    assert mean["value"] == pytest.approx(known.mean()) and mean["ahead"] == pytest.approx(own["ahead"].mean())
    assert np.isfinite(mean["ahead_low"]) or mean["ahead_reason"]


def test_what_a_run_proves_is_said_first(tmp_path, finished):
    workspace, _ = finished
    described = workspace.describe()
    assert described.index[0] == "read this first"
    assert "PHANTOM images and a teacher with RANDOM weights: this run shows that the code works" in described.iloc[0]
    own = _workspace(tmp_path, workspace.settings.task, data=workspace.manifest.root, teacher="resnet18=file.safetensors")
    assert "read this first" not in own.describe()


def test_a_bar_shows_the_time_left(tmp_path, capsys):
    started = time.perf_counter()
    _workspace(tmp_path, federation__rounds=1).run("local")
    bar = capsys.readouterr().err
    assert "nuclei local seed 0: 100%" in bar and "batch" in bar and "<00:00" in bar
    assert time.perf_counter() - started < 60


def test_why_a_control_is_none():
    """Of studies that were read: nothing dropped, an order that changed no decision, no stage II, settings that the parent has itself."""

    def study(method, teacher="pocket_vit", **stage_two):
        rounds = pd.DataFrame([{"stage": "I"}, *([{"stage": "II", **stage_two}] * bool(stage_two))])
        settings = with_overrides(load_settings("nuclei", method=method, teacher__source=teacher))
        about = {"teacher_description": settings.teacher.source, "split_id": "own"}
        return SimpleNamespace(settings=settings, rounds=rounds, **about)

    parents = {name: study(name) for name in ("hgkt", "hgkt_kd", "vfmgl")}
    nothing, another = "nothing was dropped: no comparison", "another order changed no decision: no comparison"
    for kept, permuted, reason in ((1.0, 0, nothing), (0.5, 0, another), (0.0, 0, another), (0.5, 1, "")):
        assert no_comparison(study("vfmgl_random", kept_share=kept, permuted=permuted), parents["vfmgl"]) == reason
    assert no_comparison(study("vfmgl_random"), parents["vfmgl"]) == "there was no stage II: no comparison"
    assert no_comparison(study("vfmgl_task", kept_share=1.0), parents["hgkt_kd"]) == ""
    assert no_comparison(study("vfmgl_task"), parents["hgkt_kd"]) == "there was no stage II: no comparison"
    assert no_comparison(study("hgkt_random"), parents["hgkt"]) == no_comparison(study("hgkt_beta0"), parents["hgkt"]) == ""
    random = "random:pocket_vit"
    assert no_comparison(study("hgkt_random", random), study("hgkt", random)) == "HGKT has these settings itself: no comparison"
    table = pd.DataFrame({"method": ["hgkt", "hgkt_random", "vfmgl_random"], "seed": 0, "split_id": "own", "value": 1.0})
    marked = mark_controls(table, [study("hgkt", random), study("hgkt_random", random), study("vfmgl_random")])
    assert marked["no_comparison"].tolist() == ["", "HGKT has these settings itself: no comparison", ""], "without its parent not looked at"
