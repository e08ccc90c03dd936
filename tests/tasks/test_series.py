"""Cases of several series: their files become the channels of one image, in preparation, in a study's model and in prediction alike."""

import shutil

import numpy as np
import pandas as pd
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
from vfmgl_lib.tasks.series import other_series
from vfmgl_lib.tasks.template import guess_samples, write_samples
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


def with_table(data, task):
    """A copy of a set in the documented folders as its owner might have it: other folders and names, and a table; -> its lines."""
    record, lines = read_task(task), []
    mask = ["mask"] if record.is_segmentation else ["label"]
    for number, first in enumerate(sorted(data["from"].rglob("*_T1.png"))):
        parts = first.relative_to(data["from"]).parts
        center, split = parts[0], {"traindata": "train", "testdata": "test"}.get(parts[1], parts[1])
        stem = first.stem.removesuffix("_T1")
        paths = [f"scan {number}/{name}.PNG" for name in (f"{stem}_T1", f"{stem}_t2")]
        (data["to"] / paths[0]).parent.mkdir(parents=True, exist_ok=True)
        for path, file in zip(paths, (first, first.with_name(f"{stem}_t2.png")), strict=True):
            shutil.copy(file, data["to"] / path)
        if record.is_segmentation:
            told, patient = f"outlines/{center} {stem}.png", stem.split("_")[0]
            (data["to"] / "outlines").mkdir(exist_ok=True)
            shutil.copy(first.parent.parent / "labels" / f"{stem}.png", data["to"] / told)
        else:
            told, patient = parts[2], parts[3]
        lines.append([*paths, center, patient, told, split, "yes" if center == "West" else "no"])
    return write_rows(data["to"], ["T1", "t2", "center", "patient", *mask, "split", "external"], lines)


def write_rows(folder, header, lines):
    (folder / "samples.csv").write_text("\n".join(map(",".join, [header, *lines])) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("text", "write"), [(CLASSIFICATION, write_classes), (SEGMENTATION, write_masks)])
def test_a_table_gives_the_set_that_folders_give(text, write, tmp_path):
    task, data = write_task(tmp_path / "own.yaml", text + SERIES), split_series(write(tmp_path / "folders"))
    listed = with_table({"from": data, "to": tmp_path / "listed"}, task)
    one, other = (prepare(task, source, tmp_path / f"out {source.name}", progress=False) for source in (data, listed))
    assert (one.format, other.format) == ("series", "samples") and len(one.manifest.table) in (60, 24)
    columns = ["id", "path", "sha256", "center", "patient", "split", "label"]
    one_table, other_table = (found.manifest.table[columns].sort_values("id", ignore_index=True) for found in (one, other))
    pd.testing.assert_frame_equal(one_table, other_table)
    for path in one_table["path"]:
        assert (one.manifest.root / path).read_bytes() == (other.manifest.root / path).read_bytes()
    assert prepare(task, listed, tmp_path / "out listed", progress=False).reused
    moved = (listed / "samples.csv").rename(tmp_path / "samples elsewhere.csv")
    again = prepare(task, listed, tmp_path / "out named", samples=moved, progress=False)
    pd.testing.assert_frame_equal(again.manifest.table, other.manifest.table)


def test_a_workspace_reads_a_table_of_series_and_says_the_spacing(task, images, tmp_path):
    data = with_table({"from": images, "to": tmp_path / "listed"}, task)
    header, *lines = (data / "samples.csv").read_text(encoding="utf-8").splitlines()
    spaced = [f"{line},0.3515625 x 0.7" for line in lines]
    (data / "samples.csv").write_text("\n".join([f"{header},spacing", *spaced]), encoding="utf-8")
    smallest = __file__.rsplit("/tasks/", 1)[0] + "/smallest.yaml"
    manifest = open_workspace(task, smallest, data=data, runs=tmp_path / "runs").prepared
    assert len(manifest.table) == 48 and set(manifest.table["spacing"]) == {"0.3515625,0.7"}
    (data / "samples.csv").write_text("\n".join([header, *lines]), encoding="utf-8")
    assert set(open_workspace(task, smallest, data=data, runs=tmp_path / "runs").prepared.table["spacing"]) == {""}


def test_all_that_is_wrong_with_a_table_of_series_is_said_together(task, tmp_path):
    for number in range(14):
        Image.fromarray(np.full((8, 8), number * 9, np.uint8)).save(tmp_path / f"{number}.png")
    Image.new("L", (9, 8), 3).save(tmp_path / "large.png")
    Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "color.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = ["0.png,1.png,A,p", "2.png,gone.png,A,q", "3.png,,A,r", "4.png,4.png,B,s", "5.png,1.png,B,t", "6.png,large.png,B,u"]
    rows += ["broken.png,color.png,B,v", "7.png,8.nii.gz,A,w", "large.png,../8.png,B,x"]
    (tmp_path / "8.nii.gz").write_bytes(b"")
    write_rows(tmp_path, ["T1", "T2", "center", "patient", "label"], [[*row.split(","), "benign"] for row in rows])
    with pytest.raises(ManifestError) as caught:
        prepare(task, tmp_path, tmp_path.parent / f"{tmp_path.name} out", progress=False)
    told = "\n".join(caught.value.problems)
    assert str(caught.value).startswith(f"{tmp_path / 'samples.csv'}: ")
    for text in (
        "line 3: t2 'gone.png': file not found in ",
        "line 4: t2 is empty, expected a path below the data folder",
        "line 5: t2 '4.png' is in line 5 as t1 already, expected an image in one place",
        "line 6: t2 '1.png' is in line 2 as t2 already, expected an image in one place",
        "line 7: t2 large.png: 9x8 pixels, t1 6.png has 8x8; the series of a case must lie on one grid",
        "line 8: t1 broken.png: ",
        "line 9: t2 '8.nii.gz' is a volume, series are read from images: write its slices as PNG",
        "line 10: t2 '../8.png' leads out of its folder",
        "label: no row has class 'malign' (1)",
    ):
        assert text in told, text
    assert len(caught.value.problems) == 9


def test_a_table_s_header_names_the_series(task, tmp_path):
    write_rows(tmp_path, ["image", "center", "patient", "label"], [["a.png", "A", "p", "benign"]])
    with pytest.raises(ManifestError) as caught:
        prepare(task, tmp_path, tmp_path.parent / f"{tmp_path.name} out", progress=False)
    assert "header: column 'image': scans has a column a series, expected t1, t2" in str(caught.value)
    assert "header: column 't2' is missing, expected t1, t2, center, patient, label" in str(caught.value)
    other = write_task(tmp_path / "own.yaml", CLASSIFICATION + "channels: series\nseries: [t1, Group]\n")
    with pytest.raises(ManifestError, match=r"own: series 'group' is called as another column of samples\.csv"):
        prepare(other, tmp_path, tmp_path.parent / f"{tmp_path.name} out", progress=False)


def test_what_the_images_of_a_good_table_hold_is_checked_with_its_lines(task, images, tmp_path):
    data = with_table({"from": images, "to": tmp_path / "listed"}, task)
    Image.new("RGB", (64, 40), (9, 0, 0)).save(data / "scan 3" / "0_t2.PNG", format="PNG")
    Image.new("L", (9, 9)).save(data / "scan 7" / "0_T1.PNG", format="PNG")
    with pytest.raises(ManifestError) as caught:
        prepare(task, data, tmp_path / "out", progress=False)
    assert "line 5: t2 scan 3/0_t2.PNG: is in colour" in str(caught.value) and str(data / "samples.csv") in str(caught.value)
    assert "line 9: t2 scan 7/0_t2.PNG: 64x40 pixels, t1 scan 7/0_T1.PNG has 9x9" in str(caught.value)
    for name in ("0_T1.PNG", "0_t2.PNG"):
        shutil.copy(data / "scan 2" / name, data / "scan 3" / name)
        shutil.copy(data / "scan 0" / name, data / "scan 7" / name)
    with pytest.raises(ManifestError, match=r"in several splits: North/testdata/\S+0.png, line 2 \(test\), .*0.png, line 9 \(train\)"):
        prepare(task, data, tmp_path / "out", progress=False)


def test_cases_called_alike_and_patients_called_as_no_folder_is_are_kept_apart(tmp_path):
    task, lines = write_task(tmp_path / "own.yaml", CLASSIFICATION + SERIES), []
    people = ["a/b", "..", "n" * 300, "a_b"]
    for number in range(24):
        for name in ("scan_T1", "scan_t2"):
            pixels = np.random.default_rng([number, len(lines), name == "scan_t2"]).integers(0, 255, (8, 8))
            (tmp_path / "data" / str(number)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / str(number) / f"{name}.png")
        center, label = "AB"[number % 2], ("benign", "malign")[number // 2 % 2]
        lines.append([f"{number}/scan_T1.png", f"{number}/scan_t2.png", center, people[number // 4 % 4], label])
    write_rows(tmp_path / "data", ["t1", "t2", "center", "patient", "label"], lines)
    prepared = prepare(task, tmp_path / "data", tmp_path / "out", progress=False)
    table = prepared.manifest.table
    assert len(table) == 24 and table["path"].is_unique and table["id"].is_unique and set(table["patient"]) >= {"A/a/b", "B/.."}
    for number, path in enumerate(table["path"]):
        stack = np.asarray(Image.open(prepared.manifest.root / path))
        assert np.array_equal(stack[..., 1], np.asarray(Image.open(tmp_path / "data" / str(number) / "scan_t2.png")))
    assert all((prepared.manifest.root / path).resolve().is_relative_to((tmp_path / "out" / "data").resolve()) for path in table["path"])


def test_names_made_of_paths_are_kept_apart_too(tmp_path):
    """a/b/s and a_b/s are one name when "/" becomes "_"."""
    task, data = write_task(tmp_path / "own.yaml", SEGMENTATION + SERIES), tmp_path / "data"
    folders, lines = ["top", "a/b", "a_b", *(f"x{number}" for number in range(9))], []
    for number, folder in enumerate(folders):
        (data / folder).mkdir(parents=True)
        for place, name in enumerate(("s_T1", "s_t2", "mask")):
            pixels = np.random.default_rng([number, place]).integers(0, 255, (8, 8))
            Image.fromarray((255 * (pixels > 99) if name == "mask" else pixels).astype(np.uint8)).save(data / folder / f"{name}.png")
        lines.append([f"{folder}/s_T1.png", f"{folder}/s_t2.png", "A", f"p{number}", f"{folder}/mask.png"])
    write_rows(data, ["t1", "t2", "center", "patient", "mask"], lines)
    prepared = prepare(task, data, tmp_path / "out", progress=False)
    table = prepared.manifest.table.set_index("patient")
    assert len(table) == len(folders) and table["path"].is_unique
    for number, folder in enumerate(folders):
        stack = np.asarray(Image.open(prepared.manifest.root / table.at[f"p{number}", "path"]))
        assert np.array_equal(stack[..., 0], np.asarray(Image.open(data / folder / "s_T1.png")))


@pytest.mark.parametrize(
    ("path", "called"),
    [
        ("a/scan7_t2.png", "t2"),
        ("a/scan7_T1.png", ""),
        ("t2/scan7.png", "t2"),
        ("a/scan7-t2.png", "t2"),
        ("t2_scan7.png", "t2"),
        ("t2/scan7_T1.png", ""),
        ("t1/t2/7.png", ""),
        ("scan7.png", ""),
        ("scan7_dwi_t2.png", "dwi_t2"),
    ],
)
def test_a_file_is_called_as_a_series_by_its_ending_or_else_by_a_word_of_its_path(path, called):
    assert other_series(path, "T1", ("T1", "t2", "dwi_t2")) == called


def test_a_template_has_a_row_a_case(tmp_path):
    task = write_task(tmp_path / "own.yaml", SEGMENTATION + SERIES)
    data = split_series(write_masks(tmp_path / "data"))
    for file in sorted(data.rglob("*.png")):
        file.rename(file.with_name(file.name.replace("_a", "")))
    (data / "North" / "test" / "images" / "North11_t2.png").unlink()
    (data / "North" / "test" / "images" / "North11.png").write_bytes(b"")
    guessed = guess_samples(data, str(task))
    assert list(guessed.table.columns) == ["T1", "t2", "center", "patient", "mask", "split"] and len(guessed.table) == 24
    row = guessed.table.set_index("T1").loc["South/train/images/South3_T1.png"]
    assert row.tolist() == ["South/train/images/South3_t2.png", "South", "", "South/train/labels/South3.png", "train"]
    told = "\n".join(guessed.told)
    assert "series: 24 cases by the files' endings _T1, _t2" in told
    assert "1 case(s) without t2, e.g. that of North/test/images/North11_T1.png: FILL IN" in told
    assert "1 file(s) end on none, or on one twice, and are left out, e.g. North/test/images/North11.png" in told
    filled = guessed.table[guessed.table["t2"] != ""]
    write_samples(data / "samples.csv", filled.assign(patient=[f"p{number}" for number in range(len(filled))]))
    assert prepare(task, data, tmp_path / "out", progress=False).manifest.table["split"].value_counts().to_dict()["train"] == 12


def test_cases_of_one_name_at_several_patients_are_divided_one_by_one(task, images, tmp_path):
    """`--split image`: every case here is called "0"."""
    table = prepare(task, images, tmp_path / "out", split="image", progress=False).manifest.table
    shares = table.groupby(["center", "split"]).size().unstack()
    assert (shares.loc[["North", "South"], ["train", "val", "test"]] > 0).all(axis=None)


def test_images_in_each_other_s_column_are_told(task, images, tmp_path):
    """T1 and t2 exchanged in one row: the channels would be, too."""
    data = with_table({"from": images, "to": tmp_path / "listed"}, task)
    assert not any("another series" in line for line in prepare(task, data, tmp_path / "out", progress=False).warnings)
    header, first, *lines = (data / "samples.csv").read_text(encoding="utf-8").splitlines()
    one, other, *rest = first.split(",")
    (data / "samples.csv").write_text("\n".join([header, ",".join([other, one, *rest]), *lines]), encoding="utf-8")
    warnings = "\n".join(prepare(task, data, tmp_path / "out 2", progress=False).warnings)
    assert (
        f"2 image(s) are called as another series than their column, perhaps exchanged, e.g. line 2: t1 is {other}, called as t2"
        in warnings
    )
