"""A made-up task of three classes goes all the way: study, resume, every method, figures, export, predict, a federation of processes."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from tests.three_classes import CENTERS, EXTERNAL, write_images, write_task
from vfmgl_lib.config import ConfigError
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.evaluation import samples
from vfmgl_lib.evaluation.classification import by_patient
from vfmgl_lib.evaluation.comparison import cases_of
from vfmgl_lib.evaluation.home_means import home_means
from vfmgl_lib.evaluation.prediction import predict, scoring_unit
from vfmgl_lib.evaluation.results import compare_methods, results_table
from vfmgl_lib.figures import comparison, interpretation, overview
from vfmgl_lib.interpretation import cam, local_models
from vfmgl_lib.interpretation.features import features_of, median_cases, score_table, score_tests
from vfmgl_lib.methods.pooled import pool_data
from vfmgl_lib.methods.registry import METHODS, new_server
from vfmgl_lib.methods.settings import load_settings, with_overrides
from vfmgl_lib.study.assembly import center_datasets, new_client, new_student, study_teacher, with_needed_validation
from vfmgl_lib.study.study import trivial_baseline, trivial_predictions
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.records import TASKS, add_tasks_from
from vfmgl_lib.tools.export import export_model
from vfmgl_lib.tools.export.checks import TOLERANCE, agreement
from vfmgl_lib.tools.flower import sandbox
from vfmgl_lib.tools.flower.__main__ import main as federation_command
from vfmgl_lib.tools.flower.deployment import UNNAMED, own_data, read_site
from vfmgl_lib.tools.flower.one_machine import run_rounds_apart, write_site_data
from vfmgl_lib.tools.predict import FORMAT_OF_CLASSES, ModelError, Predictor
from vfmgl_lib.tools.predict.__main__ import main as predict_command

SMALLEST = "tests/smallest.yaml"
NAMES = ("dark", "grey", "bright")
COLUMNS = [f"probability[{name}]" for name in NAMES]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    add_tasks_from(write_task(folder / "tasks"))
    write_images(folder / "data")
    yield folder
    del TASKS["shades"]


@pytest.fixture(scope="module")
def workspace(place, request):
    profile = request.config.rootpath / SMALLEST
    return open_workspace("shades", profile, data=place / "data", runs=place / "runs", deduction__temperature=5.0)


@pytest.fixture(scope="module")
def study(workspace):
    return workspace.run("vfmgl", progress=False)


@pytest.fixture(scope="module")
def final(workspace, study):
    return pd.concat([study.final_predictions(), workspace.run("fedavg", progress=False).final_predictions()], ignore_index=True)


def test_results_are_scikit_learn_s(workspace, study, final):
    assert study.settings.data.classes == NAMES, "as the record has them, not sorted"
    assert scoring_unit(workspace.manifest.table, False) == "patient"
    assert np.allclose(study.predictions[COLUMNS].sum(axis=1), 1)
    results = results_table(final, unit="patient")
    for key, rows in final.groupby(["method", "budget", "model_center", "test_center", "split"]):
        units = by_patient(rows)
        truth, chances = units["label"].to_numpy(), units[COLUMNS].to_numpy()
        called = chances.argmax(1)
        expected = {
            "auc": sk.roc_auc_score(truth, chances, multi_class="ovr"),
            "auc[grey]": sk.roc_auc_score(truth == 1, chances[:, 1]),
            "accuracy": sk.accuracy_score(truth, called),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, called),
            "macro_f1": sk.f1_score(truth, called, average="macro", zero_division=0),
            "kappa_quadratic": sk.cohen_kappa_score(truth, called, weights="quadratic", labels=[0, 1, 2]),
        }
        found = results.set_index(["method", "budget", "model_center", "test_center", "split", "metric"]).sort_index()["value"].loc[key]
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), (key, name)
    while_training = study.metrics.query("round == @study.last_round and split == 'test' and metric == 'auc'").drop_duplicates()
    assert while_training["value"].notna().all()
    assert not set(results["metric"]) & {"cutoff", "sensitivity", "kappa"}


def test_a_resumed_study_ends_with_the_same_bits(workspace, study, tmp_path):
    before = {name: (study.folder / name).read_bytes() for name in ("predictions.csv", "metrics.csv")}
    state = (study.folder / "rounds" / f"{study.last_round:03d}" / "shared.safetensors").read_bytes()
    shutil.rmtree(study.folder / "rounds" / f"{study.last_round:03d}")
    (study.folder / "complete.json").unlink()
    again = workspace.run("vfmgl", progress=False)
    assert again.folder == study.folder and before == {name: (study.folder / name).read_bytes() for name in before}
    assert (study.folder / "rounds" / f"{study.last_round:03d}" / "shared.safetensors").read_bytes() == state


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_round_with_three_classes(method, workspace):
    overrides = {"data__classes": NAMES, "optimizer__batch_size": 5, "student__width": 4, "data__image_size": 32, "data__workers": 0}
    given = {"student__weights": "none", "teacher__source": "random:test_vit", "teacher__grid": 2, "federation__rounds": 2}
    settings = with_overrides(load_settings("shades", method=method, **overrides | given))
    manifest = with_needed_validation(workspace.manifest, settings)
    teacher, centers = study_teacher(settings), manifest.training_centers[:2]
    sets = {center: center_datasets(settings, manifest, center, teacher) for center in centers}
    clients = [new_client(settings, center, sets[center], teacher, None) for center in centers]
    pool_data(clients)
    server = new_server(settings, list(centers), new_student(settings))
    for client in clients:
        update = client.run_round(1, server.message(client.center, 1))
        if METHODS[method].switches.sends:
            server.receive(update)
        table = predict(client.student, sets[client.center]["test"], batch_size=32, device=torch.device("cpu"))
        assert list(table.filter(like="probability")) == COLUMNS and np.allclose(table[COLUMNS].sum(axis=1), 1)


def test_the_trivial_baseline_and_the_counts(workspace):
    table = trivial_baseline(workspace.settings, workspace.manifest)
    auc = table[table["metric"] == "auc"]
    assert list(auc["test_center"]) == sorted(CENTERS) and auc["value"].mean() > 0.7, "brightness tells them apart"
    counts = samples.sample_counts(workspace.manifest)
    assert np.allclose(counts.filter(like="share[").sum(axis=1), 1)
    assert list(samples.prevalence(counts, NAMES).columns) == ["centre", "split", "images", "patients", *NAMES]
    assert overview.counts_chart(counts, NAMES, False).axes


def test_the_trivial_baseline_beside_the_methods(workspace, final):
    vfmgl = final[(final["method"] == "vfmgl") & (final["budget"] == "rounds")]
    both = pd.concat([vfmgl, trivial_predictions(workspace.settings, workspace.manifest)])
    table = home_means(results_table(both, unit="patient"), compare_methods(both, unit="patient"), "auc", workspace.settings.seed)
    mean = table[table["place"] == "mean"].set_index("method")
    assert mean.loc["trivial", "ahead"] == pytest.approx(mean.loc["vfmgl", "value"] - mean.loc["trivial", "value"])
    assert mean.loc["trivial", "ahead_low"] < mean.loc["trivial", "ahead"] < mean.loc["trivial", "ahead_high"]


def test_figures_of_the_comparison(final, tmp_path):
    results, tests = results_table(final, unit="patient"), compare_methods(final, unit="patient")
    assert set(tests["metric"]) == {"auc"} and tests["patients"].eq(15).all()
    charts = {
        "roc": overview.roc_chart(final, results, "patient", "rounds"),
        "external": overview.external_roc_chart(final, results, "patient", {EXTERNAL: CENTERS[0]}, CENTERS),
        "decision": overview.decision_chart(final, "patient", "rounds"),
        "reliability": overview.reliability_chart(final, "patient", "rounds"),
    }
    for name, (figure, table) in charts.items():
        centers = {EXTERNAL} if name == "external" else set(CENTERS)
        assert set(table["center"]) == centers and set(table["class"]) == set(NAMES), name
        titles = [axis.get_title("left") for axis in figure.axes]
        assert sum(title.endswith(" · grey") for title in titles) == len(centers), name
    figure, table = overview.confusion_chart(final, "patient", "rounds")
    assert {axis.get_title("left") for axis in figure.axes} >= {f"centre {center}" for center in CENTERS}
    assert table.groupby(["method", "budget", "center"])["count"].sum().eq(15).all()
    truth = by_patient(
        final.query("method == 'vfmgl' and budget == 'rounds' and model_center == 'West' == test_center and split == 'test'")
    )
    counted = table.query("method == 'vfmgl' and budget == 'rounds' and center == 'West'")["count"].to_numpy(dtype=int).reshape(3, 3)
    assert (counted == sk.confusion_matrix(truth["label"], truth[COLUMNS].to_numpy().argmax(1), labels=[0, 1, 2])).all()
    radar = comparison.radar(results)
    assert "AUC of grey" in {text.get_text() for axis in radar.axes for text in axis.texts}
    for metric in ("auc", "auc[grey]", "kappa_quadratic"):
        assert comparison.both_budgets(results, metric).axes
    overview.write_budgets(results, tests, tmp_path, "")
    printed = (tmp_path / "statistics_at_matched_rounds.html").read_text()
    assert "AUC of grey" in printed and "macro F1" in printed and "bootstrap over patients" in printed and "Cohen" in printed
    cases, typical = cases_of(final)
    assert set(COLUMNS) <= set(cases) and set(typical.index.get_level_values("label")) == set(NAMES)


def test_maps_are_for_the_class_asked_for(study, workspace):
    student = study.student("North")
    data = ImageDataset(workspace.manifest, workspace.manifest.select("North", "test"), 32)
    of_class = [cam.activation_maps(student, data, "layer4", target=number) for number in range(3)]
    weight, bias = student.net.fc.weight.detach(), student.net.fc.bias.detach()
    with torch.inference_mode():
        logits = student(torch.stack([torch.as_tensor(data[row]["image"]) for row in range(len(data))]))
    for number, maps in enumerate(of_class):
        means = np.array([found.mean() for found in maps["map"]]) + float(cam.against_others(bias, number))
        others = [other for other in range(3) if other != number]
        np.testing.assert_allclose(means, (logits[:, number] - logits[:, others].mean(1)).numpy(), atol=1e-4)
        by_gradient = cam.activation_maps(student, data, "layer3", target=number)
        assert np.isfinite(np.stack(list(by_gradient["map"]))).all()
        images = torch.stack([torch.as_tensor(data[row]["image"]) for row in range(2)])
        places = of_class[0]["map"][0].size
        again = cam.grad_cam(student, images, "layer4", number) * places
        np.testing.assert_allclose(again, np.stack(list(maps["map"]))[:2], atol=1e-4)
    own = cam.activation_maps(student, data, "layer4")
    for found, label, row in zip(own["map"], data.table["label"], range(len(data)), strict=True):
        np.testing.assert_allclose(found, of_class[label]["map"][row], atol=1e-5, err_msg="each image's own class")
    predictions = study.predictions.query(
        "round == @study.last_round and stage == 'II' and model_center == 'North' == test_center and split == 'test'"
    )
    assert (local_models.logit_gaps(student, data, predictions) < 1e-3).all()
    assert weight.shape[0] == 3
    with pytest.raises(ValueError, match=r"class 3 is none of the data's, expected 0 to 2 \(dark, grey, bright\)"):
        cam.activation_maps(student, data, "layer4", target=3)


def test_figures_of_the_interpretation(study, workspace):
    last = study.predictions.query("round == @study.last_round and stage == 'II'")
    scores = score_table(last, "patient")
    tests = score_tests(scores)
    assert len(tests) == len(CENTERS) * 2 * 3 or set(tests["split"]) == {"train", "val", "test"}
    figure, _ = overview.score_chart(scores, tests, NAMES, 0)
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == [
        f"probability of {name}" for name in NAMES for _ in range(2)
    ]
    row = tests.query("center == 'North' and split == 'test' and `class` == 'grey'").iloc[0]
    assert (row["n_1"], row["n_0"]) == (5, 10) and math.isfinite(row["p"])
    cases = median_cases(last)
    assert list(cases.query("center == 'North'")["label"]) == [2, 1, 0]
    manifest, size = workspace.manifest, 32
    students = {center: study.student(center) for center in CENTERS}
    data = {center: ImageDataset(manifest, manifest.select(center, "test"), size) for center in CENTERS}
    maps = local_models.maps_of(students, data, "layer3")
    words, score = overview.case_words(last, NAMES)
    table = cam.case_table(cases, samples.read_samples(manifest, cases["id"], workspace.settings.data), maps, size)
    figure = interpretation.overlays(table, words, score)
    assert [title for axis in figure.axes if (title := axis.get_title("left"))] == ["bright", "grey", "dark"]
    trained = manifest.table[manifest.table["center"].isin(CENTERS) & manifest.table["split"].isin(["train", "test"])]
    features = {"II": {center: features_of(students[center], ImageDataset(manifest, trained, size)) for center in CENTERS}}
    points, explained = local_models.components(features)
    assert interpretation.principal_components(points, explained, NAMES).axes
    selection = local_models.select(features, 6, 3)
    engines, said = local_models.compare_engines(features["II"]["North"])
    assert len(engines) == 2 and said.startswith("equal"), "pymrmr and ours, with three labels"
    charts = overview.correlation_charts(local_models.feature_maps(features, selection), NAMES)
    assert list(charts) == ["heatmaps_class_0", "heatmaps_class_1", "heatmaps_class_2"]
    assert all(len(table) for _, table in charts.values())


def test_an_exported_model_gives_the_study_s_probabilities(study, workspace, tmp_path, capsys):
    exported = export_model(study, "North", tmp_path / "export", int8=True, torchscript=True)
    assert (exported.check["difference"] <= TOLERANCE).all() and "study" in set(exported.check["against"])
    predictor = Predictor(exported.files["onnx"], task="shades")
    about = predictor.description
    assert about.classes == NAMES and about.format == FORMAT_OF_CLASSES and about.cutoff is None and about.unit == "patient"
    card = exported.files["card"].read_text()
    assert "Classes: dark, grey, bright. It is no" in card and "positive one" not in card and "kappa_quadratic" in card
    assert {"auc[grey]", "kappa_quadratic"} <= set(exported.int8["metric"])
    both = agreement(predictor, study)
    np.testing.assert_allclose(both["study"], both["predicted"], atol=TOLERANCE)
    images = workspace.manifest.root / "North" / "testdata"
    assert predict_command([str(exported.files["onnx"]), str(images), "--out", str(tmp_path / "out"), "--overlay"]) == 0
    found = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False)
    patients = pd.read_csv(tmp_path / "out" / "patients.csv", keep_default_na=False)
    truth = study.predictions.query(
        "round == @study.last_round and stage == 'II' and model_center == 'North' == test_center and split == 'test'"
    )
    expected = (
        truth.assign(name=truth["patient"].map(lambda name: f"{name.split('-')[1]}/{name}/image")).set_index("name").loc[found["name"]]
    )
    np.testing.assert_allclose(found[COLUMNS].to_numpy(), expected[COLUMNS].to_numpy(), atol=TOLERANCE)
    assert (found["predicted"] == "").all(), "the class belongs to patients"
    called = [NAMES[number] for number in patients[COLUMNS].to_numpy().argmax(1)]
    assert list(patients["predicted"]) == called
    assert list(found["evidence_for"]) == [NAMES[number] for number in found[COLUMNS].to_numpy().argmax(1)]
    assert predict_command([str(exported.files["onnx"]), str(images), "--out", str(tmp_path / "grey"), "--overlay", "--class", "grey"]) == 0
    grey = pd.read_csv(tmp_path / "grey" / "predictions.csv")
    assert set(grey["evidence_for"]) == {"grey"} and not np.allclose(grey["evidence"], found["evidence"])
    assert predict_command([str(exported.files["onnx"]), str(images), "--out", str(tmp_path / "none"), "--class", "red"]) == 2
    assert "has the classes dark, grey, bright" in capsys.readouterr().err


def test_a_model_of_three_classes_is_not_read_by_who_knows_two(study, tmp_path):
    """0.1.0 reads format 1 alone; another number is refused here, too."""
    exported = export_model(study, "North", tmp_path / "export")
    about = Predictor(exported.files["onnx"]).description
    values = json.loads(about.to_json())
    assert values["format"] == 2
    with pytest.raises(ModelError, match="have format 3, this library reads 1 and 2"):
        about.from_json(json.dumps(values | {"format": 3}), "model")


def test_data_with_other_classes_are_refused(place, tmp_path, request):
    profile = request.config.rootpath / SMALLEST
    with pytest.raises(
        ConfigError, match=r"has the classes dark, grey, bright; task shades has grey, dark, bright \(data.classes\), in this order"
    ):
        open_workspace("shades", profile, data=place / "data", runs=tmp_path / "runs", data__classes=("grey", "dark", "bright"))
    with pytest.raises(ConfigError, match="one class alone leaves nothing to tell apart"):
        open_workspace("shades", profile, data=place / "data", runs=tmp_path / "runs", data__classes=("grey",))
    (tmp_path / "data" / "North" / "traindata" / "red" / "p1").mkdir(parents=True)
    shutil.copytree(place / "data", tmp_path / "data", dirs_exist_ok=True)
    shutil.copy(
        place / "data" / "North" / "testdata" / "grey" / "North-grey-5" / "image.png",
        tmp_path / "data" / "North" / "traindata" / "red" / "p1",
    )
    with pytest.raises(ManifestError, match=r"class folder 'red' .center North. is no class of shades, expected one of dark, grey, bright"):
        open_workspace("shades", profile, data=tmp_path / "data", runs=tmp_path / "runs")


def test_a_centre_that_lacks_a_class_is_said(place, tmp_path, request):
    data = write_images(tmp_path / "data", train=2, test=2, lacking=("South", "bright"))
    workspace = open_workspace("shades", request.config.rootpath / SMALLEST, data=data, runs=tmp_path / "runs", federation__rounds=1)
    said = [text for text in workspace.warnings if "center 'South'" in text]
    assert len(said) == 2 and "none of the 4 train samples is of class 'bright'; its one-vs-rest AUC there" in said[1]
    study = workspace.run("fedavg", progress=False)
    rows = study.metrics.query("round == 1 and test_center == 'South' and split == 'test'").set_index("metric")
    assert (rows.loc["auc", "reason"] == "no sample of class 'bright'").all() and rows.loc["auc", "value"].isna().all()
    assert rows.loc["auc[dark]", "value"].notna().all() and rows.loc["accuracy", "value"].notna().all()


def test_a_site_is_held_to_the_study_s_classes(place, workspace, tmp_path, monkeypatch, request):
    """Names and order: two centres that number their classes otherwise would train one model on two meanings."""
    monkeypatch.chdir(request.config.rootpath)
    made = tmp_path / "fed"
    assert federation_command(["init", str(made), "--task", "shades", "--profile", SMALLEST, "--host", "127.0.0.1", "--port", "9999"]) == 0
    assert json.loads((made / "site" / "study.json").read_text())["data"]["classes"] == list(NAMES)
    site = made / "site"
    (site / "site.yaml").write_text((site / "site.yaml").read_text().replace(UNNAMED, "North"))
    write_site_data(workspace.manifest, "North", site / "data")
    assert set(own_data(read_site(site)).table["label"]) == {0, 1, 2}
    for classes in (("bright", "dark", "grey"), ("dark", "grey"), (*NAMES, "black")):
        shutil.rmtree(site / "data")
        table = workspace.manifest.table.assign(label=workspace.manifest.table["label"].clip(upper=len(classes) - 1))
        write_site_data(replace(workspace.manifest, classes=classes, table=table), "North", site / "data")
        with pytest.raises(
            ManifestError, match=rf"has the classes {', '.join(classes)}; the study is of the classes dark, grey, bright, in this"
        ):
            own_data(read_site(site))


@pytest.mark.slow
@pytest.mark.skipif(not sandbox.landlock_version(), reason="this kernel has no Landlock: a process cannot be kept to its own files")
def test_a_federation_of_processes_equals_one_process(place, workspace, study, monkeypatch):
    monkeypatch.setenv("VFMGL_TASKS", str(place / "tasks"))
    apart = workspace.run("vfmgl", progress=False, network=run_rounds_apart)
    for number in range(1, study.last_round + 1):
        name = f"rounds/{number:03d}/shared.safetensors"
        assert (study.folder / name).read_bytes() == (apart.folder / name).read_bytes()
    assert (study.folder / "predictions.csv").read_text() == (apart.folder / "predictions.csv").read_text()
    assert set(apart.traffic["center"]) == set(CENTERS) and not len(apart.faults)
