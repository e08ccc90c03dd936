"""Export of a study's models: they reproduce the study, differences are refused, and nothing is written by halves."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from vfmgl_lib import __version__
from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.images import Reading
from vfmgl_lib.study.study import load_study
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools import export
from vfmgl_lib.tools.export import checks, export_model
from vfmgl_lib.tools.export.__main__ import main
from vfmgl_lib.tools.export.checklist import ITEMS, facts
from vfmgl_lib.tools.export.checks import TOLERANCE, ExportError
from vfmgl_lib.tools.export.formats import onnx_model
from vfmgl_lib.tools.export.model_card import model_card, what_left
from vfmgl_lib.tools.predict import KEY, Predictor
from vfmgl_lib.tools.predict.files import predict_files
from vfmgl_lib.tools.predict.inputs import find_inputs

ROOT = Path(__file__).resolve().parents[2]
SMALLEST = ROOT / "tests" / "smallest.yaml"
SAMPLES = {"endometrial": {"train": 8, "test": 8}, "nuclei": {"train": 12, "val": 2, "test": 3}}
# Trained until it tells pixels apart: masks of one value would agree wherever their pixels lie.
TRAINING = {
    "endometrial": {"federation__rounds": 1},
    "nuclei": {"federation__rounds": 4, "optimizer__name": "adam", "optimizer__lr": 0.01},
}
ALLOWED_PIXELS = 0  # that may differ between an exported model's mask and the study's: none did


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """One study a kind, local training alone: which method trained a model is nothing to its export."""
    runs, done = tmp_path_factory.mktemp("runs"), {}
    for task, samples in SAMPLES.items():
        sizes = {"phantoms__samples": samples, "phantoms__image_size": 32, "federation__match_updates": False}
        workspace = open_workspace(task, SMALLEST, runs=runs, phantoms__centers=2, **sizes, **TRAINING[task])
        done[task] = workspace.run("local", progress=False)
    return done


@pytest.fixture(scope="module")
def exported(studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return {
        task: export_model(study, study.manifest.training_centers[0], folder / task, int8=True, torchscript=True)
        for task, study in studies.items()
    }


def _own_rows(study, split):
    """Predictions of the first centre's model on its own samples, with their files."""
    table, center = study.predictions, study.manifest.training_centers[0]
    own = (
        (table["model_center"] == center)
        & (table["test_center"] == center)
        & (table["round"] == study.last_round)
        & (table["split"] == split)
    )
    return table[own].merge(study.manifest.table[["id", "path"]], on="id")


def test_predictions_of_a_classification_are_the_studys(studies, exported, tmp_path):
    study = studies["endometrial"]
    rows = _own_rows(study, "test")
    inputs = [(study.manifest.root / path, str(number)) for number, path in enumerate(rows["path"])]
    found = predict_files(Predictor(exported["endometrial"].files["onnx"]), inputs, tmp_path)
    assert len(rows) == 8 and rows["probability"].astype(float).nunique() > 1
    assert np.abs(found["probability"] - rows["probability"].astype(float)).max() <= 1e-4


def test_masks_of_a_segmentation_are_the_studys(studies, exported, tmp_path):
    study = studies["nuclei"]
    rows = _own_rows(study, "test")
    inputs = [(study.manifest.root / path, str(number)) for number, path in enumerate(rows["path"])]
    found = predict_files(Predictor(exported["nuclei"].files["onnx"]), inputs, tmp_path)
    for name, mask_file in zip(found["mask_file"], rows["mask_file"], strict=True):
        ours, theirs = (np.array(Image.open(path)) > 0 for path in (tmp_path / name, study.folder / mask_file))
        assert 0.02 < theirs.mean() < 0.98, "a mask of one value would prove nothing"
        assert (ours != theirs).sum() <= ALLOWED_PIXELS
        assert (ours.T != theirs).sum() > ALLOWED_PIXELS, "and this comparison sees where the pixels lie"


def test_masks_of_one_value_are_not_called_a_proof(studies, exported, tmp_path):
    study = studies["nuclei"]
    folder = tmp_path / study.folder.name
    shutil.copytree(study.folder, folder)
    for name in _own_rows(study, "test")["mask_file"]:
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / name)
    row = checks.compare_with_study(Predictor(exported["nuclei"].files["onnx"]), load_study(folder)).iloc[0]
    assert row["quantity"] == checks.ONE_VALUE and row["difference"] > row["tolerance"], "and it is refused all the same"


@pytest.mark.parametrize("task", SAMPLES)
def test_what_is_written_has_been_checked(task, exported, studies):
    done = exported[task]
    assert {path.name for path in done.folder.iterdir()} == {path.name for path in done.files.values()} | {"check.csv", "int8.csv"}
    assert (done.check["difference"] <= done.check["tolerance"]).all()
    numbers, masks = done.check[done.check["quantity"] != "pixels of a mask"], done.check[done.check["quantity"] == "pixels of a mask"]
    assert (numbers.loc[numbers["quantity"] != "map", "tolerance"] == TOLERANCE).all() and (masks["tolerance"] < 0.01 * 32 * 32).all(), (
        "few pixels are undecided"
    )
    assert (masks["difference"] <= ALLOWED_PIXELS).all()
    quantities = {"endometrial": ["logits", "map"], "nuclei": ["logits"]}[task]
    groups = {key: list(rows["quantity"]) for key, rows in done.check.groupby(["model", "against"])}
    assert groups.pop(("onnx", "study")) in (["probability"], ["pixels of a mask"])
    assert groups == {("onnx", "torch"): quantities, ("torchscript", "torch"): quantities}
    about = Predictor(done.files["onnx"]).description
    study = studies[task]
    assert about.task == task and about.classes == study.manifest.classes and about.image_size == 32 and about.precision == "float32"
    assert about.study["key"] == study.folder.name and about.study["stage"] == "I" and about.study["round"] == study.last_round
    assert about.study["manifest_sha256"] == study.manifest.sha256 and "PHANTOM" in about.data
    assert about.reading == study.manifest.reading == Reading(None, {"nuclei": "white", "endometrial": "black"}[task])
    assert (about.cutoff is None) == (task == "nuclei") and about.cutoff_from.startswith("Youden" if task == "endometrial" else "none")


def test_the_cutoff_is_the_studys_training_cutoff(exported, studies):
    study = studies["endometrial"]
    train = _own_rows(study, "train")
    cutoff = Predictor(exported["endometrial"].files["onnx"]).description.cutoff
    means = train.assign(probability=train["probability"].astype(float)).groupby("patient")["probability"].mean()
    assert np.isclose(means, cutoff).any() or cutoff == 1.0, "one of the training patients' scores"


def test_the_file_says_nothing_of_the_machine(exported, studies, tmp_path):
    for done in exported.values():
        content = done.files["onnx"].read_bytes()
        for place in (str(ROOT), str(Path.home()) + "/", "site-packages", "/tmp/"):
            assert place.encode() not in content, place
        onnx.checker.check_model(onnx.load(done.files["onnx"]), full_check=True)


def test_torchscript_carries_the_description(exported):
    extra = {f"{KEY}.json": ""}
    torch.jit.load(str(exported["endometrial"].files["torchscript"]), _extra_files=extra)
    values = json.loads(extra[f"{KEY}.json"])
    assert values == json.loads(Predictor(exported["endometrial"].files["onnx"]).description.to_json())


@pytest.mark.parametrize("task", SAMPLES)
def test_int8_is_smaller_and_its_cost_is_measured(task, exported, studies):
    done, study = exported[task], studies[task]
    small, full = Predictor(done.files["int8"]), Predictor(done.files["onnx"])
    assert small.description.precision == "int8" and done.files["int8"].stat().st_size < done.files["onnx"].stat().st_size
    # Real images: noise lies outside the range that int8 was calibrated on.
    pixels = checks._pixels(study, study.manifest.select(study.manifest.training_centers[0], "test"))
    before, after = full.run(pixels)[0], small.run(pixels)[0]
    # Measured: 0.083 (endometrial, after one round), 0.005 (nuclei, on earlier phantoms).
    assert 0 < np.abs(after - before).mean() < 0.1 * np.ptp(before), "another arithmetic, the same model"
    table = done.int8.set_index(["split", "metric"])
    main_metric = "auc" if task == "endometrial" else "dice"
    for split in ("val", "test"):
        row = table.loc[(split, main_metric)]
        assert np.isfinite(row["cost"]) or row["reason"]
        assert row["cost"] == pytest.approx(row["float32"] - row["int8"], nan_ok=True)
    written = pd.read_csv(done.folder / "int8.csv")
    assert len(written) == len(done.int8)


def test_int8_is_calibrated_on_training_images(studies, exported, monkeypatch):
    seen, pixels = [], checks._pixels
    monkeypatch.setattr(checks, "_pixels", lambda study, table: seen.append(set(table["split"])) or pixels(study, table))
    exported["nuclei"]
    checks.calibration_images(studies["nuclei"], "SiteA")
    assert seen == [{"train"}]


def test_the_card_says_what_has_to_be_said(exported, studies):
    for task, done in exported.items():
        text = done.files["card"].read_text()
        head = ModelCard(text).data
        assert head.tags[-2:] == [task, "local"] and head.pipeline_tag == f"image-{Predictor(done.files['onnx']).description.kind}"
        assert "{{" not in text and "None" not in text and text.endswith(".\n")
        for words in (
            "## Intended use",
            "## Data",
            "## Performance",
            "## What int8 costs",
            "## Limits",
            "PHANTOM images",
            "no medical device",
            "Each centre trained alone",
        ):
            assert words in text, words
        for center in studies[task].manifest.centers:
            assert f"| {center} |" in text or f"| {center} (own) |" in text
        assert studies[task].manifest.sha256[:16] in text and str(ROOT) not in text
    assert "external: test only" in exported["endometrial"].files["card"].read_text()


def test_the_checklists_say_what_the_study_knows_and_leave_the_rest(exported, studies):
    for task, done in exported.items():
        text, table = done.files["checklist"].read_text(), studies[task].manifest.table
        rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d", line)]
        assert len(rows) == 52 + 44 and [row[0] for row in rows[52:]] == [str(number) for number in range(1, 45)]
        assert "{{" not in text and "None" not in text.replace(" None", " none") and " ." not in text and "PHANTOM images" in text
        counted = re.search(r"\n(\d+) of 96 items are filled from the study, (\d+) in part, (\d+) are yours", text)
        assert sum(map(int, counted.groups())) == 96 and min(map(int, counted.groups())) > 20
        for split in ("train", "test"):
            part = table[table["split"] == split]
            people = part[["center", "patient"]].drop_duplicates()
            assert f"{split} {len(part)} images of {len(people)} patients" in text
        shown = re.search(r"\| test set.*?\n\n", done.files["card"].read_text(), re.DOTALL)[0]
        number = next(row.split(" | ") for row in shown.splitlines() if "(own)" in row and re.search(r"0[.]\d{3}", row))
        assert f"{number[1]} {number[2]}" in text, "the card's own numbers"
    assert "18b | conflicts of interest |  | **all of it** |" in text
    assert ["Images a class: train: " in exported[task].files["checklist"].read_text() for task in ("endometrial", "nuclei")] == [
        True,
        False,
    ]


def test_every_fact_of_the_checklists_is_asked_for_and_none_is_missing(exported, studies):
    words = ITEMS.read_text("utf-8")
    about = Predictor(exported["nuclei"].files["onnx"]).description
    results = pd.DataFrame(columns=["test_center", "metric", "value", "low", "high", "interval", "n", "reason"])
    known = facts(studies["nuclei"], about, results)
    assert set(re.findall(r"{{ (\w+) }}", words)) == set(known)
    assert known["results"] == "" and known["external"] == "No external centre."


def test_the_card_names_class_and_unit_and_why_there_is_no_interval(exported, studies):
    """A test set of few patients has no interval for its own reason, which is not that the study kept no predictions."""
    study, text = studies["endometrial"], exported["endometrial"].files["card"].read_text()
    about = Predictor(exported["endometrial"].files["onnx"]).description
    assert (
        f"Cutoff: {about.cutoff:.6f}, the probability of {about.classes[1]} from which on a {about.unit} is called {about.classes[1]}"
        in text
    )
    assert " a image" not in text and "class 1" not in text and "kept no predictions" not in text
    results = export._card_results(study, about)
    assert set(results["reason"]) - {""}, "phantoms of so few patients have no intervals"
    for reason in set(results.loc[results["low"].isna(), "reason"]):
        assert f"| – ({reason}) |" in text or f"| undefined: {reason} | – |" in text, reason
    assert ("95 % intervals." in text) == results["low"].notna().any()
    few = exported["nuclei"].files["card"].read_text()
    assert "Without intervals; why not, the table says." in few and "| – (no interval: 2 patients, at least 5 are needed) |" in few
    earlier = load_study(studies["nuclei"].folder)
    vars(earlier)["predictions"] = earlier.predictions.iloc[:0]
    about = export._describe(earlier, earlier.student("SiteA", "I"), "SiteA", "I", earlier.last_round)
    counts, files = {"parameters": 1, "macs": 1, "flops": 2}, pd.DataFrame([{"file": "m.onnx", "bytes": 1, "sha256": "0"}])
    text = model_card(earlier, about, files, pd.DataFrame(), pd.DataFrame(), counts, export._card_results(earlier, about))
    assert "Without intervals; why not, the table says." in text and f"| – ({export.NO_PREDICTIONS}) |" in text


@pytest.mark.parametrize(("task", "metric"), [("endometrial", "auc"), ("nuclei", "dice")])
def test_the_card_has_this_very_models_numbers_with_intervals(task, metric, studies):
    study = studies[task]
    center = study.manifest.training_centers[0]
    last = export._describe(study, study.student(center, "I"), center, "I", study.last_round)
    found = export._card_results(study, last).set_index(["test_center", "metric"]).loc[(center, metric)]
    own = study.metrics.query("model_center == test_center and split == 'test' and stage == 'I'")
    own = own[(own["test_center"] == center) & (own["metric"] == metric)].set_index("round")["value"]
    assert found["value"] == pytest.approx(own[study.last_round], nan_ok=True)
    assert (found["low"] <= found["value"] <= found["high"] and found["interval"]) or found["reason"]
    if task == "nuclei":
        first = export._describe(study, study.student(center, "I", 1), center, "I", 1)
        earlier = export._card_results(study, first).set_index(["test_center", "metric"]).loc[(center, metric)]
        assert own[1] != own[study.last_round], "two rounds of one value would not tell them apart"
        assert earlier["value"] == pytest.approx(own[1]), "not the last round's"


@pytest.mark.parametrize("break_it", ["other weights", "not finite"])
def test_a_model_that_differs_is_refused_and_nothing_stays(break_it, studies, tmp_path, monkeypatch, capsys):
    def wrong(student, about=None):
        with torch.no_grad():
            changed = study.student(center, "I")
            changed.net.fc.bias[0] += 3e-4 if break_it == "other weights" else float("nan")
        return onnx_model(changed, about)

    study = studies["endometrial"]
    center = study.manifest.training_centers[0]
    monkeypatch.setattr(export, "onnx_model", wrong)
    message = {
        "other weights": r"\.onnx: refused, its logits differ from torch by up to 0.0003.*expected at most 0.0001",
        "not finite": r"\.onnx: refused, its logits are NaN or infinite on some of \d+ test images",
    }[break_it]
    with pytest.raises(ExportError, match=message):
        export_model(study, center, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_study_whose_predictions_are_others_is_refused(studies, tmp_path):
    study = studies["endometrial"]
    folder = tmp_path / study.folder.name
    shutil.copytree(study.folder, folder)
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    changed = table["split"] == "test"
    table.loc[changed, "probability"] = (table.loc[changed, "probability"].astype(float) * 0.99).astype(str)
    table.to_csv(folder / "predictions.csv", index=False)
    with pytest.raises(ExportError, match="its probability differ from study by up to"):
        export_model(load_study(folder), study.manifest.training_centers[0], tmp_path / "out")


def test_the_command_line_refuses_with_reasons(studies, tmp_path, capsys):
    study = studies["nuclei"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    for arguments, message in (
        ([str(tmp_path), "--center", "SiteA", "--out", str(tmp_path / "x")], "not a study's folder"),
        (
            [str(study.folder), "--center", "Nowhere", "--out", str(tmp_path / "x")],
            "there is no such centre: 'Nowhere'; in round 4 there are",
        ),
        ([str(study.folder), "--center", "siteB", "--out", str(tmp_path / "x")], "models of SiteA, SiteB; did you mean 'SiteB'?"),
        (
            [str(study.folder), "--center", "shared", "--out", str(tmp_path / "x")],
            "has no shared model; in round 4 there are models of SiteA",
        ),
        (
            [str(study.folder), "--center", "SiteA", "--stage", "II", "--out", str(tmp_path / "x")],
            "has no stage 'II' in round 4; there is SiteA: I",
        ),
        ([str(study.folder), "--center", "SiteA", "--out", str(tmp_path / "full")], "is there already and not empty"),
        ([str(study.folder), "--center", "SiteA", "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "x")], "images are not in"),
    ):
        assert main(arguments) == 1, message
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_which_statistics_a_model_carries_is_said(exported, studies):
    for task, count in (("endometrial", 7), ("nuclei", 12)):
        center = studies[task].manifest.training_centers[0]
        said = f"re-estimated on the {count} training images of {center}, without labels"
        assert Predictor(exported[task].files["onnx"]).description.batch_norm == said
        assert Predictor(exported[task].files["int8"]).description.batch_norm == said
        assert f"| batch normalisation | {said} |" in exported[task].files["card"].read_text()
    study = studies["nuclei"]
    assert export._statistics(study, "shared").startswith("mean over the centres of those that each re-estimated")
    running = replace(study, settings=study.settings.model_copy(update={"batch_norm": "running"}))
    assert export._statistics(running, "SiteA") == "running averages of training"
    assert export._statistics(running, "shared") == "mean over the centres of running averages of training"


def _of(study, method, batch_norm="recalibrated", **exchange):
    changed = {"method": method, "batch_norm": batch_norm, "exchange": study.settings.exchange.model_copy(update=exchange)}
    return replace(study, settings=study.settings.model_copy(update=changed))


def test_a_pooled_model_s_statistics_are_of_the_pool_and_an_adopted_one_s_the_mean(studies):
    study, mean = studies["nuclei"], "mean over the centres of running averages of training"
    own = "re-estimated on the 12 training images of SiteA, without labels"
    assert export._statistics(_of(study, "pooled"), "SiteA") == own
    assert export._statistics(_of(study, "pooled"), "shared") == (
        "re-estimated in one pass over the training images of all centres, without labels"
    )
    pool = "running averages of training on the images of all centres"
    assert {export._statistics(_of(study, "pooled", "running"), center) for center in ("SiteA", "shared")} == {pool}
    for method, said in {
        "fedavg": mean,
        "fedrep": mean,
        "fedbn": "running averages of training",
        "fedavg_ft": "running averages of training",
        "ditto": "running averages of training",
        "proxyfl": "running averages of training",
        "vfmgl": "running averages of training",
    }.items():
        assert export._statistics(_of(study, method, "running"), "SiteA") == said, method
        assert export._statistics(_of(study, method), "SiteA") == own, method


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("pooled", "**Not private: the training images of all centres were put in one place.**"),
        ("local", "Each centre trained alone: no image and no parameter left it."),
        (
            "vfmgl",
            "What left a centre, parameters and statistics of batch normalisation; the number of its images and its training loss.",
        ),
        ("fedbn", "What left a centre, parameters but those of the layers that normalise, whose statistics stayed too; the number"),
        ("fedrep", "What left a centre, parameters but the last layer's, and statistics of batch normalisation; the number"),
        ("proxyfl", "What left a centre, of a second model that learnt beside this one, which stayed: parameters and statistics"),
    ],
)
def test_the_card_says_what_left_a_centre(studies, method, said):
    found = what_left(_of(studies["nuclei"], method).settings, "SiteA")
    assert said in found and ("No image did" in found or method in ("pooled", "local"))
    assert "number of its images" not in what_left(_of(studies["nuclei"], method, share_counts=False).settings, "SiteA")
    own, shared = (what_left(_of(studies["nuclei"], "ditto").settings, center) for center in ("SiteA", "shared"))
    assert "second model" in own and "second model" not in shared


def test_a_model_that_normalises_each_batch_by_itself_is_refused(studies, tmp_path):
    study = studies["nuclei"]
    batch = replace(study, settings=study.settings.model_copy(update={"batch_norm": "batch"}))
    with pytest.raises(ExportError, match="batch_norm batch, so that a prediction depends on the images beside it"):
        export_model(batch, "SiteA", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_loads_from_its_folder(studies, tmp_path):
    study = studies["nuclei"]
    again = load_study(study.folder)
    assert (again.settings, again.teacher_description) == (study.settings, study.teacher_description)
    assert again.manifest.sha256 == study.manifest.sha256 and again.manifest.root == study.manifest.root.resolve()
    shutil.copytree(study.folder, tmp_path / "begun", ignore=shutil.ignore_patterns("complete.json"))
    with pytest.raises(ConfigError, match="the study is not complete"):
        load_study(tmp_path / "begun")


def test_a_study_of_another_version_is_refused_before_its_settings_are_read(studies, tmp_path):
    """Complete or begun, and although its settings lack what has come since: one sentence."""
    old = tmp_path / "old"
    shutil.copytree(studies["nuclei"].folder, old)
    starts, config = (json.loads((old / f"{name}.json").read_text()) for name in ("environment", "config"))
    (old / "environment.json").write_text(json.dumps([start | {"vfmgl_lib": "0.1.0"} for start in starts]))
    del config["settings"]["transfer"], config["settings"]["federation"]["rounds"]
    (old / "config.json").write_text(json.dumps(config))
    message = f"{old}: was made with vfmgl_lib 0.1.0, this is {__version__}; run the study anew, or read it with the version that made it"
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            load_study(old)
        assert main([str(old), "--center", "SiteA", "--out", str(tmp_path / "x")]) == 1 and not (tmp_path / "x").exists()
        (old / "complete.json").unlink(missing_ok=True)
    (old / "environment.json").unlink()
    with pytest.raises(ConfigError, match=r"not a whole study's folder, it has no environment\.json; copy the folder whole"):
        load_study(old)


def test_inputs_named_for_predict_are_the_manifests(studies):
    study = studies["endometrial"]
    center = study.manifest.training_centers[0]
    folder = study.manifest.root / center / "testdata"
    assert len(find_inputs([folder])) == len(study.manifest.select(center, "test"))


def test_a_map_s_tolerance_grows_with_its_values():
    small, large = np.full((2, 3, 4, 4), 0.5), np.full((2, 3, 4, 4), -40.0)
    assert checks._compared("onnx", "map", small, small + 5e-5)["tolerance"] == TOLERANCE
    row = checks._compared("onnx", "map", large, large + 1e-3)
    assert row["tolerance"] == pytest.approx(40 * TOLERANCE) and row["images"] == 2 and row["difference"] == pytest.approx(1e-3)
    assert checks._compared("onnx", "logits", large, large)["tolerance"] == TOLERANCE
