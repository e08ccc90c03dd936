"""Cases of several series: their files become the channels of one image, in preparation, in a study's model and in prediction alike."""

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.own_tasks import CLASSIFICATION, SEGMENTATION, write_classes, write_masks, write_task
from vfmgl_lib.data.images import decode_image, decode_mask
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.evaluation.samples import read_samples
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.prepare import prepare
from vfmgl_lib.tasks.records import TaskError, read_task
from vfmgl_lib.tools.export import export_model
from vfmgl_lib.tools.predict import Predictor
from vfmgl_lib.tools.predict.files import predict_files
from vfmgl_lib.tools.predict.inputs import InputError, check_stacked, find_inputs, one_a_case, series_files

SERIES = "channels: series\nseries: [T1, t2]\n"


def split_series(root):
    """Every image as two grey ones: T1 its red channel, T2 its green one, upside down so that the two differ."""
    for file in sorted(root.rglob("*.png")):
        if file.parent.name != "labels":
            pixels = np.asarray(Image.open(file))
            Image.fromarray(pixels[..., 0]).save(file.with_name(f"{file.stem}_T1.png"))
            Image.fromarray(pixels[::-1, :, 1]).save(file.with_name(f"{file.stem}_t2.png"))
            file.unlink()
    return root


@pytest.fixture
def task(tmp_path):
    return write_task(tmp_path / "scans.yaml", CLASSIFICATION + SERIES)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return split_series(write_classes(tmp_path_factory.mktemp("images") / "data", patients=8))


def test_a_case_is_one_image_with_a_series_a_channel(task, images, tmp_path):
    prepared = prepare(task, images, tmp_path / "out", progress=False)
    manifest = prepared.manifest
    assert prepared.format == "series" and len(manifest.table) == 3 * 2 * 8 and manifest.training_centers == ("North", "South")
    row = manifest.table.iloc[0]
    stack = np.asarray(decode_image(manifest.root / row["path"]))
    first = images / row["path"].replace("0.png", "0_T1.png")
    assert np.array_equal(stack[..., 0], np.asarray(Image.open(first)))
    assert np.array_equal(stack[..., 1], np.asarray(Image.open(first.with_name("0_t2.png")))) and not stack[..., 2].any()
    assert manifest.select("North", "test")["patient"].str.startswith("North").all()
    shown = read_samples(manifest, [row["id"]], load_settings(task, "smoke").data)["image"][0]
    assert (shown == shown[..., :1]).all(), "three series are no colours"
    assert prepare(task, images, tmp_path / "out", progress=False).reused


def test_a_segmentation_has_a_mask_a_case(tmp_path):
    data = split_series(write_masks(tmp_path / "data"))
    task = write_task(tmp_path / "cysts.yaml", SEGMENTATION + SERIES)
    manifest = prepare(task, data, tmp_path / "out", progress=False).manifest
    row = manifest.table.iloc[0]
    assert np.array_equal(decode_mask(manifest.root / row["label"]), decode_mask(data / row["label"])) and len(manifest.table) == 24


def test_what_is_wrong_with_series_is_said_together(task, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "data")
    folder = data / "North" / "traindata" / "benign"
    (folder / "Northbenign0" / "0_t2.png").unlink()
    shutil.copy(folder / "Northbenign1" / "0_T1.png", folder / "Northbenign1" / "0_dwi.png")
    shutil.copy(folder / "Northbenign2" / "0_T1.png", folder / "Northbenign2" / "0_T1.tif")
    with pytest.raises(ManifestError) as error:
        prepare(task, data, tmp_path / "out", progress=False)
    assert "Northbenign0/0_T1.png: the case '0' has no t2, expected every series once" in str(error.value)
    assert "Northbenign1/0_dwi.png: names no series, expected <case> and one of _T1, _t2 before the file's ending" in str(error.value)
    assert "the case has series t1 twice" in str(error.value)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [(np.zeros((9, 9), np.uint8), r"9x9 pixels, .*0_T1.png has 64x40"), (np.eye(40, 64)[..., None] * [0, 255, 0], "is in colour")],
)
def test_series_that_do_not_fit_are_refused(task, images, tmp_path, pixels, message):
    data = shutil.copytree(images, tmp_path / "data")
    Image.fromarray(pixels.astype(np.uint8)).save(data / "South" / "testdata" / "malign" / "Southmalign7" / "0_t2.png")
    with pytest.raises(ManifestError, match=f"Southmalign7/0_t2.png: {message}"):
        prepare(task, data, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("channels: series\n", "series: expected the names of one to three series with `channels: series`"),
        ("series: [a]\n", "series: expected the names of one to three series with `channels: series`, and none without"),
        ("channels: series\nseries: [a, A]\n", "series: a, A, expected every name once"),
        ("channels: series\nseries: [a, b, c, d]\n", "series: Tuple should have at most 3 items"),
        ("channels: series\nseries: [a_b]\n", "series.0: String should match pattern"),
    ],
)
def test_a_record_s_series_are_checked(lines, message, tmp_path):
    with pytest.raises(TaskError, match=message):
        read_task(write_task(tmp_path / "scans.yaml", CLASSIFICATION + lines))


@pytest.mark.slow
def test_a_model_of_series_predicts_from_its_files_as_the_study_did(task, images, tmp_path):
    smallest = __file__.rsplit("/tasks/", 1)[0] + "/smallest.yaml"
    workspace = open_workspace(task, smallest, data=images, runs=tmp_path / "runs", federation__match_updates=False)
    study = workspace.run("local", progress=False)
    exported = export_model(study, "North", tmp_path / "model")
    predictor = Predictor(exported.files["onnx"])
    assert predictor.description.series == ("T1", "t2") and "a channel a series" in predictor.description.preprocessing["color"]
    inputs = one_a_case(find_inputs([images / "North" / "testdata"]), predictor.description.series)
    found = predict_files(predictor, inputs, tmp_path / "out", overlay=True)
    own = study.predictions.query("model_center == 'North' and test_center == 'North' and split == 'test'")
    own = own[own["round"] == study.last_round]
    expected = {name.removeprefix("North/test/"): float(value) for name, value in zip(own["id"], own["probability"], strict=True)}
    assert set(found["name"]) == set(expected) and (found["error"] == "").all()
    assert max(abs(row.probability - expected[row.name]) for row in found.itertuples(index=False)) < 1e-4


def test_the_files_of_a_case_are_found_beside_one_of_them(tmp_path):
    for name in ("a_T1.png", "A_t2.PNG", "b_T1.png", "whole.png"):
        Image.new("L", (4, 4)).save(tmp_path / name, format="PNG")
    assert [file.name for file in series_files(tmp_path / "a_T1.png", ("t1", "T2"))] == ["a_T1.png", "A_t2.PNG"]
    assert series_files(tmp_path / "whole.png", ("t1", "T2")) == (tmp_path / "whole.png",)
    with pytest.raises(InputError, match="0 images of series T2, expected one called b_T2 beside it"):
        series_files(tmp_path / "b_T1.png", ("t1", "T2"))
    names = [name for _, name in one_a_case(find_inputs([tmp_path]), ("t1", "t2"))]
    assert names == ["A", "b", "whole"], "a case once, whatever the case of its letters"
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png and .*b_T1\.png: their outputs would both be called b"):
        one_a_case(find_inputs([tmp_path]), ("t1", "t2"))


def test_a_model_of_one_series_sees_it_in_one_channel(tmp_path):
    """As in training: what is stacked follows from the file's name, not from how many files there are."""
    data = split_series(write_classes(tmp_path / "data", patients=8))
    for file in data.rglob("*_t2.png"):
        file.unlink()
    task = write_task(tmp_path / "one.yaml", CLASSIFICATION + "channels: series\nseries: [T1]\n")
    smallest = __file__.rsplit("/tasks/", 1)[0] + "/smallest.yaml"
    workspace = open_workspace(task, smallest, data=data, runs=tmp_path / "runs", federation__match_updates=False, federation__rounds=1)
    study = workspace.run("local", progress=False)
    exported = export_model(study, "North", tmp_path / "model")
    cases = one_a_case(find_inputs([data / "North" / "testdata"]), ("T1",))
    found = predict_files(Predictor(exported.files["onnx"]), cases, tmp_path / "out")
    assert len(found) and not found["error"].any()
    known = study.predictions.query("model_center == 'North' and test_center == 'North' and split == 'test' and round == 1")
    assert np.abs(np.sort(found["probability"]) - np.sort(known["probability"].astype(float))).max() < 1e-4


def test_an_image_that_is_no_stack_of_the_series_is_refused(tmp_path):
    grey, stack = np.full((8, 8, 3), 90, np.uint8), np.dstack([np.full((8, 8), value, np.uint8) for value in (90, 20, 0)])
    check_stacked(stack, ("t1", "t2"), "case.png")
    for pixels, series in ((grey, ("t1", "t2")), (grey, ("t1",)), (stack, ("t1",))):
        with pytest.raises(InputError, match="names no series and is no stack of t1"):
            check_stacked(pixels, series, "case.png")


def test_a_table_of_samples_beside_series_is_refused(task, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "data")
    (data / "samples.csv").write_text("image,center,patient,label\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=r"of several series \(T1, t2\), a table of samples has one image a row; take samples.csv away"):
        prepare(task, data, tmp_path / "out", progress=False)


def test_cases_of_one_name_at_several_patients_are_divided_one_by_one(task, images, tmp_path):
    """`--split image`: every case here is called "0"."""
    table = prepare(task, images, tmp_path / "out", split="image", progress=False).manifest.table
    shares = table.groupby(["center", "split"]).size().unstack()
    assert (shares.loc[["North", "South"], ["train", "val", "test"]] > 0).all(axis=None)
