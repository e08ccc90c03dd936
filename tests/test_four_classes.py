"""A made-up segmentation of four classes at three centres from its folders to a model: study, resume, figures, export, predict, Flower."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.metrics import f1_score

from vfmgl_lib.data.images import decode_mask
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.evaluation.margin import margin_limits
from vfmgl_lib.evaluation.results import compare_methods, per_case, results_table, with_distances
from vfmgl_lib.evaluation.samples import of_each_center, read_samples, sample_counts
from vfmgl_lib.figures import heterogeneity, overview
from vfmgl_lib.interpretation import local_models
from vfmgl_lib.interpretation.features import median_cases, own_cases
from vfmgl_lib.study.study import trivial_baseline
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.prepare import prepare, read_prepared
from vfmgl_lib.tasks.records import TASKS, TaskError, add_tasks_from
from vfmgl_lib.tools.export import export_model
from vfmgl_lib.tools.flower.one_machine import run_rounds_apart
from vfmgl_lib.tools.predict import Predictor
from vfmgl_lib.tools.predict.files import predict_files

pytestmark = pytest.mark.slow
METHODS = ("fedavg", "vfmgl")
TRAINED = {"federation__rounds": 6, "optimizer__name": "adam", "optimizer__lr": 0.02, "optimizer__batch_size": 2}
TASK = "organs"
CLASSES = ("background", "disc", "bar", "corner")
VALUES = (0, 50, 100, 200)
SIDE = 32
COUNTS = {"train": 6, "val": 3, "test": 4}
RECORD = {
    "order": 60,
    "use": "outlines a disc, a bar and a corner",
    "kind": "segmentation",
    "classes": list(CLASSES),
    "student": "unet",
    "loss": "dice",
    "folders": "mask_folders",
    "patient_rule": "the patient is what the name has before its first '_',",
    "settings_like": "nuclei",
    "settings": {
        "data": {"image_size": SIDE, "workers": 0, "validation_share": 0.0},
        "student": {"width": 4, "weights": "none"},
        "optimizer": {"lr": 0.05, "batch_size": 3},
        "federation": {"rounds": 2, "match_updates": False},
        "teacher": {"source": "random:test_vit", "grid": 2},
    },
}


def add_organs(folder: Path, **changes) -> Path:
    """Writes the task's record below `folder` and adds it; the caller removes it from TASKS. Returns the folder of tasks."""
    (folder / "tasks" / TASK).mkdir(parents=True)
    record = yaml.safe_dump(RECORD | changes, allow_unicode=True, sort_keys=False)
    (folder / "tasks" / TASK / "task.yaml").write_text(record, encoding="utf-8")
    add_tasks_from(folder / "tasks")
    return folder / "tasks"


def picture(seed: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """(side, side, 3) uint8 and class indices (side, side): a disc, a bar and a corner, each at its own brightness; one may be missing."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    mask = np.zeros((side, side), np.uint8)
    mask[(rows > 0.8) & (columns > 0.7 - 0.1 * random.random())] = 3
    if seed % 3:
        start = 0.55 + 0.1 * random.random()
        mask[(rows > start) & (rows < start + 0.15) & (columns < 0.6)] = 2
    if seed % 4:
        mask[(rows - 0.3) ** 2 + (columns - 0.5) ** 2 < (0.12 + 0.08 * random.random()) ** 2] = 1
    image = np.array([30, 90, 150, 220])[mask][..., None] + random.normal(0, 8, (side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def write_organs(root: Path, values: tuple[int, ...] = VALUES, side: int = SIDE) -> Path:
    """Centres "A", "B", "C" in the layout mask_folders; masks hold `values`."""
    for place, center in enumerate("ABC"):
        for part, (split, count) in enumerate(COUNTS.items()):
            for kind in ("images", "labels"):
                (root / center / split / kind).mkdir(parents=True)
            for number in range(count):
                image, mask = picture(100 * place + 30 * part + number, side)
                name = f"{center}{split}{number}_0.png"
                Image.fromarray(image).save(root / center / split / "images" / name)
                Image.fromarray(np.asarray(values, np.uint16 if max(values) > 255 else np.uint8)[mask]).save(
                    root / center / split / "labels" / name
                )
    return root


@pytest.fixture(scope="module")
def organs(tmp_path_factory):
    """The folder of the record and of the images."""
    folder = tmp_path_factory.mktemp("organs")
    tasks = add_organs(folder, mask_values=list(VALUES))
    write_organs(folder / "data")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VFMGL_TASKS", str(tasks))  # for the processes of the centres
        yield folder
    del TASKS[TASK]


def _workspace(organs, runs="runs", **changes):
    return open_workspace(TASK, "smoke", data=organs / "data", runs=organs / runs, **changes)


@pytest.fixture(scope="module")
def studies(organs):
    """Two methods, trained until they tell the classes apart."""
    workspace = _workspace(organs, **TRAINED)
    return workspace, {method: workspace.run(method, progress=False) for method in METHODS}


@pytest.fixture(scope="module")
def final(studies):
    workspace, done = studies
    tables = [study.final_predictions().assign(method=method) for method, study in done.items()]
    return with_distances(pd.concat(tables, ignore_index=True), workspace.manifest)


@pytest.fixture(scope="module")
def exported(studies, tmp_path_factory):
    _, done = studies
    return export_model(done["vfmgl"], "A", tmp_path_factory.mktemp("exported") / "A", int8=True)


def test_results_are_those_of_the_masks_that_were_kept(studies, final):
    """By scikit-learn from the files alone, to 1e-9."""
    workspace, _ = studies
    table = workspace.manifest.table.set_index("id")
    kept = final[final["mask_path"] != ""].drop_duplicates("mask_path")
    assert len(kept) == 24 and not final["dice"].isna().any()
    found, seen = [], set()
    for row in kept.itertuples():
        stored = np.asarray(Image.open(row.mask_path))
        seen |= set(np.unique(stored))
        predicted = decode_mask(row.mask_path, mask_values=VALUES)
        mask = decode_mask(workspace.manifest.root / table.at[row.id, "label"], mask_values=VALUES)
        assert predicted.shape == mask.shape == (SIDE, SIDE)
        scores = f1_score(mask.ravel(), predicted.ravel(), labels=[0, 1, 2, 3], average=None, zero_division=1.0)
        found.append(scores)
        assert row.dice == pytest.approx(scores[1:].mean(), abs=1e-9)
    assert seen <= set(VALUES) and len(seen) > 2, "the values of the data's own masks"
    for place, name in enumerate(CLASSES[1:], 1):
        assert kept[f"dice[{name}]"].to_numpy() == pytest.approx(np.array(found)[:, place], abs=1e-9)
    results = results_table(final, unit="image")
    home = results[(results["split"] == "test") & (results["model_center"] == "A") & (results["test_center"] == "A")]
    home = home[home["method"] == "vfmgl"].set_index("metric")["value"]
    own = (kept["method"] == "vfmgl") & (kept["test_center"] == "A")
    assert home["dice"] == pytest.approx(np.array(found)[own.to_numpy(), 1:].mean(), abs=1e-9)
    assert home["dice_mean_of_classes"] == pytest.approx(np.array(found)[own.to_numpy()].mean(), abs=1e-9)
    assert {"iou[bar]", "assd", "hd95[corner]", "sensitivity[disc]"} <= set(home.index)


def test_the_models_tell_the_classes_apart(final):
    """Else what follows would compare one class with itself."""
    home = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test") & (final["method"] == "vfmgl")]
    assert home["dice"].mean() > 0.5, home[["dice", "dice[disc]", "dice[bar]", "dice[corner]"]].mean().to_dict()


def test_a_resumed_study_ends_with_the_same_bits(organs, studies):
    workspace, done = studies
    undisturbed = done["vfmgl"]
    copied = organs / "resumed" / workspace.folder.relative_to(organs / "runs") / "studies" / undisturbed.folder.name
    shutil.copytree(undisturbed.folder, copied)
    (copied / "complete.json").unlink()
    shutil.rmtree(copied / "rounds" / f"{undisturbed.last_round:03d}")
    for file in copied.glob("*.csv"):
        if file.name != "manifest.csv":
            file.unlink()
    again = _workspace(organs, "resumed", **TRAINED).run("vfmgl", progress=False)
    assert again.folder == copied and len(json.loads((copied / "environment.json").read_text())) == 2
    for name in ("predictions.csv", "metrics.csv", f"rounds/{again.last_round:03d}/A.student.safetensors"):
        assert (copied / name).read_bytes() == (undisturbed.folder / name).read_bytes(), name


def test_tables_of_the_images(studies):
    manifest = studies[0].manifest
    counts = sample_counts(manifest)
    home = manifest.select("A", "train")["label"]
    masks = [decode_mask(manifest.root / name, mask_values=VALUES) for name in home]
    own = counts[(counts["center"] == "A") & (counts["split"] == "train")].iloc[0]
    for place, name in enumerate(CLASSES[1:], 1):
        assert own[f"share[{name}]"] == pytest.approx(np.mean([(mask == place).mean() for mask in masks]))
    assert f"share[{CLASSES[0]}]" not in counts and len(counts) == 9
    assert overview.counts_chart(counts, CLASSES, True).axes[1].get_xlabel() == "foreground pixels (%)"
    trivial = trivial_baseline(studies[0].settings, manifest)
    assert (trivial.loc[trivial["metric"] == "dice", "value"] > 0.9).all(), "brightness alone tells these classes apart"


def test_tests_limits_and_cases(studies, final):
    tests = compare_methods(final, unit="image", metrics=["dice", "dice[bar]"])
    assert set(tests["metric"]) == {"dice", "dice[bar]"} and tests["difference"].notna().all()
    for metric in ("dice", "iou[corner]", "assd"):
        limits = margin_limits(final, metric, unit="image")
        assert len(limits) == 6
    assert per_case(final)["dice[disc]"].between(0, 1).all()


def test_figures_have_a_colour_and_a_legend_entry_for_each_class(studies, final):
    workspace, _ = studies
    manifest, data = workspace.manifest, workspace.settings.data
    examples = read_samples(manifest, of_each_center(manifest, 3, 0)["id"], data)
    assert all(mask.dtype == np.uint8 for mask in examples["mask"])
    grid = heterogeneity.image_grid(examples, classes=manifest.classes)
    outlined, table = overview.outline_chart(final, manifest, data, "rounds")
    assert len(table) == 3 * len(METHODS)
    for figure in (grid, outlined):
        entries = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert [name for name in entries if name in CLASSES] == list(CLASSES[1:])
    drawn = {line.get_edgecolor()[0][:3].tobytes() for axis in outlined.axes for line in axis.collections}
    assert len(drawn) == 3, "one colour a class"


def test_the_chart_of_the_classes_holds_the_results(final):
    results = results_table(final, unit="image")
    figure, table = overview.class_chart(results, CLASSES, "rounds")
    assert set(table["metric"]) == {"dice", "iou", "assd", "hd95"} and set(table["class"]) == set(CLASSES[1:])
    home = results[(results["model_center"] == "B") & (results["test_center"] == "B") & (results["split"] == "test")]
    row = home[(home["metric"] == "iou[bar]") & (home["method"] == "vfmgl")]
    own = table[(table["center"] == "B") & (table["metric"] == "iou") & (table["class"] == "bar") & (table["method"] == "vfmgl")]
    assert own["value"].item() == row["value"].item()
    assert len(figure.axes) == 3 and [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(CLASSES[1:])
    _, none = overview.class_chart(results[~results["metric"].str.contains("[", regex=False)], CLASSES[:2], "rounds")
    assert none.empty


def test_maps_are_of_the_foreground_or_of_the_class_asked_for(studies):
    workspace, done = studies
    manifest, size = workspace.manifest, SIDE
    tests = {center: ImageDataset(manifest, manifest.select(center, "test"), size) for center in "AB"}
    students = {center: done["vfmgl"].student(center) for center in "AB"}
    found = {label: local_models.maps_of(students, tests, "bottleneck", target=label) for label in (None, 1, 3)}
    first = [np.stack(list(table["map"])) for table in found.values()]
    assert not np.allclose(first[0], first[1]) and not np.allclose(first[1], first[2])
    places = {label: local_models.known_lesions(manifest, found[label]["id"], size, False, label) for label in found}
    for name, whole in places[None].items():
        assert whole.dtype == bool and (places[1][name] <= whole).all() and not (places[1][name] & places[3][name]).any()
    summary = local_models.localise(students, manifest, found[1], places[1], "bottleneck", 0, target=1)
    assert set(summary["model"]) == {"trained", "random weights"} and summary["area"].dropna().between(0, 1).all()


def test_a_case_s_sheet(studies, final):
    workspace, done = studies
    manifest, data = workspace.manifest, workspace.settings.data
    rows = final[final["method"] == "vfmgl"]
    cases = median_cases(rows)
    names, score = overview.case_words(rows, manifest.classes)
    assert score == "mean Dice" and len(own_cases(rows)) == 12
    students = {center: done["vfmgl"].student(center) for center in manifest.centers}
    tests = {center: ImageDataset(manifest, manifest.select(center, "test"), SIDE) for center in manifest.centers}
    maps = local_models.maps_of(students, tests, "bottleneck")
    lesions = local_models.known_lesions(manifest, maps["id"], SIDE, False)
    near = {center: _features(manifest, center) for center in manifest.centers}
    figure = overview.case_drawer(own_cases(rows), (names, score), manifest, data, maps, lesions, near)(list(cases["id"]))
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == list(CLASSES[1:])


def _features(manifest, center):
    rows = manifest.select(center)
    values = np.random.default_rng(0).normal(size=(len(rows), 3))
    table = rows[["id", "patient", "center", "split"]].assign(label=-1)
    return table.join(pd.DataFrame(values, columns=["f0", "f1", "f2"]))


def test_an_exported_model_writes_masks_of_the_ids(studies, exported, tmp_path):
    check = exported.check.set_index("against")
    assert check.at["study", "quantity"] == "pixels of a mask" and check.at["study", "difference"] == 0
    predictor = Predictor(exported.files["onnx"], task=TASK)
    assert predictor.description.mask_values == VALUES and predictor.description.classes == CLASSES
    card = exported.files["card"].read_text()
    for name, value in zip(CLASSES, VALUES, strict=True):
        assert f"| {name} | {value} |" in card
    assert "is the positive one" not in card
    assert {"dice", "dice[bar]"} <= set(exported.int8["metric"])
    inputs = []
    for number, side in enumerate((SIDE, 50)):
        Image.fromarray(picture(7 + number, side)[0]).save(tmp_path / f"{number}.png")
        inputs.append((tmp_path / f"{number}.png", f"image{number}"))
    table = predict_files(predictor, inputs, tmp_path / "out", overlay=True)
    for row, side in zip(table.itertuples(), (SIDE, 50), strict=True):
        mask = np.asarray(Image.open(tmp_path / "out" / row.mask_file))
        assert mask.shape == (side, side) and set(np.unique(mask)) <= set(VALUES) and row.error == ""
        assert row.foreground == (mask > 0).sum()
        assert np.asarray(Image.open(tmp_path / "out" / row.overlay_file)).shape == (side, side, 3)
    for name, value in zip(CLASSES[1:], VALUES[1:], strict=True):
        assert table.loc[1, f"pixels[{name}]"] == (mask == value).sum()
    colors = pd.read_csv(tmp_path / "out" / "overlays" / "colours.csv")
    assert (
        colors["class"].tolist() == list(CLASSES[1:]) and colors["value"].tolist() == list(VALUES[1:]) and colors["colour"].nunique() == 3
    )


def test_a_round_over_flower_changes_no_bit(organs):
    """Two of the centres: each is a process that loads torch."""
    workspace = _workspace(organs, "flower", federation__rounds=1)
    together = workspace.run("fedavg", centers=["A", "B"], progress=False)
    apart = workspace.run("fedavg", centers=["A", "B"], progress=False, network=run_rounds_apart)
    name = "rounds/001/shared.safetensors"
    assert (together.folder / name).read_bytes() == (apart.folder / name).read_bytes() and not len(apart.faults)
    assert (together.folder / "predictions.csv").read_text() == (apart.folder / "predictions.csv").read_text()


def test_a_mask_value_that_is_no_class_stops_the_preparation(organs, tmp_path):
    write_organs(tmp_path / "data", values=(0, 50, 100, 7))
    with pytest.raises(ManifestError, match=r"mask has value 7, expected only 0, 50, 100, 200; .*labels/.*\.png"):
        open_workspace(TASK, "smoke", data=tmp_path / "data", runs=tmp_path / "runs")


def test_a_prepared_set_of_other_values_in_the_record_is_refused(organs, tmp_path):
    root, out = write_organs(tmp_path / "data"), tmp_path / "out"
    assert not prepare(TASK, root, out, progress=False).reused and prepare(TASK, root, out, progress=False).reused
    record = TASKS[TASK]
    TASKS[TASK] = record.model_copy(update={"mask_values": (0, 100, 50, 200)})
    try:
        with pytest.raises(ManifestError, match=r"another record of organs: mask_values \[0, 50, 100, 200\], now \[0, 100, 50, 200\]"):
            read_prepared(out, TASK)
        with pytest.raises(ManifestError, match="record"):
            prepare(TASK, root, out, progress=False)
    finally:
        TASKS[TASK] = record


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_values": [0, 1]}, "mask_values must be 4 different values, one a class, got 0, 1"),
        ({"mask_values": [0, 1, 2, 70000]}, "between 0 and 65535, got 70000"),
        ({"classes": ["background"]}, "classes: .*at least two"),
        ({"kind": "classification", "mask_values": [0, 1, 2, 3]}, "mask_values: a classification has no masks"),
    ],
)
def test_a_wrong_record_is_named(changes, message, tmp_path):
    with pytest.raises(TaskError, match=message):
        add_organs(tmp_path, **changes)
