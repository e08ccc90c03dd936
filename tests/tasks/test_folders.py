"""Readers of the two layouts, each kind of bad input, validation sets and subsets."""

import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vfmgl_lib.data.divisions import fold, resplit, subset, with_validation
from vfmgl_lib.data.manifest import ManifestError, check_manifest
from vfmgl_lib.tasks.folders import read_folders
from vfmgl_lib.tasks.records import TASKS


def write_image(path, seed, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path, values=(0, 255), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.array(values, dtype=np.uint8), (size[1], size[0]))
    Image.fromarray(pixels).save(path)


@pytest.fixture
def endometrial(tmp_path):
    """Three centres, classes MI and NMI, three patients a class and split, an image each."""
    root = tmp_path / "ec"
    seed = 0
    for center in "ABC":
        for split in ("traindata", "testdata"):
            for name in ("MI", "NMI"):
                for number in range(3):
                    seed += 1
                    write_image(root / center / split / name / f"{center}{split[:2]}{name}{number}" / "1.png", seed)
    return root


@pytest.fixture
def nuclei(tmp_path):
    """Two sites, three splits, two images each."""
    root = tmp_path / "nuclei"
    for site in ("SiteA", "SiteB"):
        for split in ("train", "val", "test"):
            for number in range(2):
                stem = f"{site}{split}{number}_0_0"
                write_image(root / site / split / "images" / f"{stem}.png", len(list(root.rglob("*.png"))))
                write_mask(root / site / split / "labels" / f"{stem}.png")
    return root


def problems(root, layout, **options):
    with pytest.raises(ManifestError) as caught:
        read_folders(root, layout, progress=False, **options)
    assert str(root) in str(caught.value)
    return caught.value.problems


def test_endometrial_is_read(endometrial):
    manifest = read_folders(endometrial, "endometrial", progress=False)
    assert (manifest.task_kind, manifest.classes, manifest.centers) == (
        "classification",
        ("MI", "NMI"),
        ("A", "B", "C"),
    )
    assert len(manifest.table) == 36 and check_manifest(manifest) == []
    row = manifest.select("B", "test").iloc[-1]
    assert row["id"] == "B/test/NMI/BteNMI2/1" and row["path"] == "B/testdata/NMI/BteNMI2/1.png"
    assert (row["patient"], row["label"], row["spacing"]) == ("BteNMI2", 1, "")


def test_nuclei_is_read(nuclei):
    manifest = read_folders(nuclei, "nuclei", progress=False)
    assert (manifest.task_kind, manifest.classes) == ("segmentation", ("background", "nucleus"))
    assert manifest.table.groupby(["center", "split"]).size().tolist() == [2] * 6
    row = manifest.select("SiteB", "val").iloc[0]
    assert row["id"] == "SiteB/val/SiteBval0_0_0" and row["patient"] == "SiteBval0"
    assert row["label"] == "SiteB/val/labels/SiteBval0_0_0.png"
    assert check_manifest(manifest) == []


def test_nuclei_patient_of_a_barcode(nuclei):
    for tile in ("0_0", "0_500"):
        stem = f"TCGA-18-5592-01Z-00-DX1_{tile}"
        write_image(nuclei / "SiteA/train/images" / f"{stem}.png", 100 + len(tile))
        write_mask(nuclei / "SiteA/train/labels" / f"{stem}.png")
    table = read_folders(nuclei, "nuclei", progress=False).table
    assert set(table.loc[table["id"].str.contains("TCGA"), "patient"]) == {"TCGA-18-5592"}


def test_patient_with_images_of_both_classes(endometrial):
    write_image(endometrial / "A/traindata/NMI/AtrMI0/2.png", 500)
    table = read_folders(endometrial, "endometrial", progress=False).table
    assert sorted(table.loc[table["patient"] == "AtrMI0", "label"]) == [0, 1]


def test_unusual_names(endometrial):
    write_image(endometrial / "Ö Süd" / "traindata" / "MI" / "Frau Müller, 1" / "schnitt 名 1.PNG", 600)
    write_image(endometrial / "Ö Süd" / "testdata" / "NMI" / "p 9" / "b.jpeg", 601)
    manifest = read_folders(endometrial, "endometrial", progress=False)
    assert manifest.select("Ö Süd", "train")["id"].tolist() == ["Ö Süd/train/MI/Frau Müller, 1/schnitt 名 1"]


def test_system_files_are_ignored_and_nothing_is_written(endometrial):
    for name in (".DS_Store", "A/Thumbs.db", "A/traindata/MI/AtrMI0/.DS_Store", "A/traindata/MI/AtrMI0/._1.png"):
        (endometrial / name).write_bytes(b"x")
    (endometrial / "phantoms.json").write_text("{}")

    def state():
        return sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in endometrial.rglob("*"))

    before = state()
    assert len(read_folders(endometrial, "endometrial", progress=False).table) == 36
    assert state() == before


def test_reading_twice_and_without_verification_is_the_same(endometrial):
    first = read_folders(endometrial, "endometrial", progress=False)
    assert read_folders(endometrial, "endometrial", progress=False).sha256 == first.sha256
    assert read_folders(endometrial, "endometrial", verify=False, progress=False).sha256 == first.sha256


def test_unknown_layout_and_missing_or_empty_root(tmp_path):
    with pytest.raises(ManifestError, match="unknown task 'prostata', expected one of endometrial, camelyon17, prostate, nuclei"):
        read_folders(tmp_path, "prostata")
    with pytest.raises(ManifestError, match="the task prostate has no layout of folders of images"):
        read_folders(tmp_path, "prostate")
    with pytest.raises(ManifestError, match="nowhere: data folder not found, expected a folder with one folder per center"):
        read_folders(tmp_path / "nowhere", "nuclei")
    with pytest.raises(ManifestError, match="data folder is empty, expected a folder with one folder per center"):
        read_folders(tmp_path, "nuclei")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ManifestError, match="file: data folder not found"):
        read_folders(tmp_path / "file", "nuclei")


def test_other_layout(nuclei):
    assert "SiteA/test: unexpected folder, expected traindata and testdata" in problems(nuclei, "endometrial")


@pytest.mark.parametrize("split", ["traindata", "testdata"])
def test_center_without_split(endometrial, split):
    for folder in (endometrial / "B" / split).iterdir():
        shutil.rmtree(folder)
        folder.mkdir()
    name = split.removesuffix("data")
    assert problems(endometrial, "endometrial") == (f"center 'B' has no {name} samples, expected B/{split}/<class>/<patient>/<image>",)


def test_nuclei_needs_train_and_test_but_not_val(nuclei):
    (nuclei / "SiteA/val").rename(nuclei.parent / "val")
    assert len(read_folders(nuclei, "nuclei", progress=False).table) == 10
    (nuclei / "SiteA/test").rename(nuclei.parent / "test")
    assert problems(nuclei, "nuclei") == ("center 'SiteA' has no test samples, expected SiteA/test/images/<image>",)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "cut_jpeg"])
def test_unreadable_image(endometrial, damage):
    path = endometrial / "C/testdata/MI/CteMI1/1.png"
    if damage == "truncated":
        write_image(path, 1000, size=(64, 64))
        path.write_bytes(path.read_bytes()[:3000])
    elif damage == "cut_jpeg":
        path.unlink()
        path = path.with_suffix(".jpg")
        write_image(path, 1000, size=(64, 64))
        path.write_bytes(path.read_bytes()[:1500])
    else:
        path.write_bytes(b"not an image" if damage == "text" else b"")
    (problem,) = problems(endometrial, "endometrial")
    assert problem.startswith(path.relative_to(endometrial).as_posix())
    assert {"empty": "is empty (0 bytes)", "text": "not a readable image"}.get(damage, "damaged or cut short") in problem
    assert "0x" not in problem


def test_mask_missing(nuclei):
    (nuclei / "SiteB/train/labels/SiteBtrain1_0_0.png").unlink()
    (problem,) = problems(nuclei, "nuclei")
    assert problem == ("SiteB/train/images/SiteBtrain1_0_0.png: mask is missing, expected SiteB/train/labels/SiteBtrain1_0_0.png")


def test_mask_without_image(nuclei):
    (nuclei / "SiteB/train/images/SiteBtrain1_0_0.png").unlink()
    (problem,) = problems(nuclei, "nuclei")
    assert problem.startswith("SiteB/train/labels/SiteBtrain1_0_0.png: mask without image, expected SiteB/train/images/")


def test_mask_of_another_size(nuclei):
    write_mask(nuclei / "SiteA/val/labels/SiteAval0_0_0.png", size=(8, 9))
    (problem,) = problems(nuclei, "nuclei")
    assert problem == ("SiteA/val/labels/SiteAval0_0_0.png: mask is 8x9, expected 8x8 as its image SiteA/val/images/SiteAval0_0_0.png")


@pytest.mark.parametrize(("values", "shown"), [((0, 128, 255), "0, 128, 255"), ((0, 1, 255), "0, 1, 255"), ((7,), "7")])
def test_mask_not_binary(nuclei, values, shown):
    write_mask(nuclei / "SiteA/test/labels/SiteAtest1_0_0.png", values)
    (problem,) = problems(nuclei, "nuclei")
    assert problem.startswith("SiteA/test/labels/SiteAtest1_0_0.png: mask is not binary")
    assert f"found values {shown}; expected only 0 and 255" in problem


def test_mask_of_zero_and_one(nuclei):
    write_mask(nuclei / "SiteA/test/labels/SiteAtest1_0_0.png", (0, 1))
    assert len(read_folders(nuclei, "nuclei", progress=False).table) == 12


def test_stray_class_folder(endometrial):
    write_image(endometrial / "B/traindata/NMI_old/Bx/1.png", 700)
    (problem,) = problems(endometrial, "endometrial")
    assert problem == "B: class folder 'NMI_old' exists in this center only; expected the classes of the others (MI, NMI)"


def test_one_class_in_all(endometrial):
    for folder in endometrial.glob("*/*/NMI"):
        folder.rename(endometrial.parent / "-".join(folder.parts[-3:]))
    (problem,) = problems(endometrial, "endometrial")
    assert "1 class folder(s) (MI) in all centers together, expected at least two" in problem


def test_patient_on_both_sides(endometrial):
    write_image(endometrial / "A/testdata/MI/AtrNMI1/1.png", 701)
    problem, rule = problems(endometrial, "endometrial")
    assert rule.startswith("who is the patient: the patient is the name of the folder") and "list the images in a samples.csv" in rule
    assert "center 'A': patient 'AtrNMI1' is in" in problem
    assert "test (A/testdata/MI/AtrNMI1/1.png)" in problem and "train (A/traindata/NMI/AtrNMI1/1.png)" in problem


def test_a_name_at_two_centers_is_two_patients(endometrial):
    plain = read_folders(endometrial, "endometrial", progress=False).table
    write_image(endometrial / "C/traindata/MI/AtrNMI1/1.png", 702)
    notes = []
    table = read_folders(endometrial, "endometrial", progress=False, notes=notes).table
    assert (
        "1 patient name(s) are at several centers (AtrNMI1 at A and C): taken for different patients, each called CENTER/NAME" in notes[0]
    )
    assert set(table["patient"]) == {f"{row.center}/{row.patient}" for row in plain.itertuples()} | {"C/AtrNMI1"}
    assert (table.groupby("patient")["center"].nunique() == 1).all()


def test_patient_in_two_centers_that_share_their_names(endometrial):
    write_image(endometrial / "C/traindata/MI/AtrNMI1/1.png", 702)
    problem, _ = problems(endometrial, "endometrial", names="shared")
    assert "patient 'AtrNMI1' is in the centers 'A' (A/traindata/NMI/AtrNMI1/1.png) and 'C' (C/traindata/MI" in problem


@pytest.mark.parametrize("verify", [True, False])
def test_same_content_in_train_and_test(endometrial, verify):
    source = endometrial / "A/traindata/MI/AtrMI0/1.png"
    (endometrial / "A/testdata/NMI/AteNMI0/copy.png").write_bytes(source.read_bytes())
    (problem,) = problems(endometrial, "endometrial", verify=verify)
    assert "A/traindata/MI/AtrMI0/1.png (train)" in problem and "A/testdata/NMI/AteNMI0/copy.png (test)" in problem


def test_same_content_in_train_and_val(nuclei):
    source = nuclei / "SiteA/train/images/SiteAtrain0_0_0.png"
    (nuclei / "SiteA/val/images/SiteAval1_0_0.png").write_bytes(source.read_bytes())
    (problem,) = problems(nuclei, "nuclei")
    assert "SiteA/train/images/SiteAtrain0_0_0.png (train), SiteA/val/images/SiteAval1_0_0.png (val)" in problem


def test_a_pattern_says_who_is_the_patient(nuclei):
    for file in sorted(nuclei.rglob("*.png")):
        center, split, _, name = file.parts[-4:]
        file.rename(file.with_name(f"Image_{ord(center[-1])}{len(split)}{name[len(center + split)]}{'LR'[len(split) % 2]}.png"))
    with pytest.raises(ManifestError, match="who is the patient: the patient is what the image's name has before its first '_'"):
        read_folders(nuclei, "nuclei", progress=False)
    table = read_folders(nuclei, "nuclei", progress=False, patient_pattern="Image_(?P<patient>[0-9]+)[LR]").table
    assert set(table["patient"]) == {Path(path).stem[6:-1] for path in table["path"]} and len(set(table["patient"])) == 12
    by_path = read_folders(nuclei, "nuclei", progress=False, patient_pattern="(Site./[a-z]+)/").table
    assert set(by_path["patient"]) == {f"Site{c}/{s}" for c in "AB" for s in ("train", "val", "test")}, "a slash: in the path"
    found = problems(nuclei, "nuclei", patient_pattern="Image_(660+)")
    assert len(found) == 12 and all("--patient-pattern Image_(660+) finds no patient in it, expected one" in text for text in found)
    for pattern, words in (("Image_(", "no regular expression"), ("Image_[0-9]+", "has no group, expected the patient in parentheses")):
        with pytest.raises(ManifestError, match=words):
            read_folders(nuclei, "nuclei", progress=False, patient_pattern=pattern)


def test_class_folders_by_number_or_name_of_the_task(endometrial, tmp_path, monkeypatch):
    record = TASKS["endometrial"].model_copy(update={"classes": ("absent", "present")})
    monkeypatch.setitem(TASKS, "endometrial", record)
    found = problems(endometrial, "endometrial")
    assert found[:2] == (
        "class folder 'MI' (center A, B, C) is no class of endometrial, expected one of absent, present, or their numbers 0 to 1",
        "class folder 'NMI' (center A, B, C) is no class of endometrial, expected one of absent, present, or their numbers 0 to 1",
    )
    folders = [path for path in sorted(endometrial.glob("*/*/*")) if path.is_dir()]
    for folder in folders:
        folder.rename(folder.with_name(str(int(folder.name == "MI"))))
    notes = []
    manifest = read_folders(endometrial, "endometrial", progress=False, notes=notes)
    assert manifest.classes == ("absent", "present") and "classes are given by number: 0 = absent, 1 = present" in notes
    assert all(row.label == int(row.path.split("/")[2]) for row in manifest.table.itertuples())
    folder = endometrial / "A/testdata/1"
    folder.rename(folder.with_name("Present"))
    (problem,) = problems(endometrial, "endometrial")
    assert problem == "class folders are called by names ('Present') and by numbers ('0'), expected one way in all"


def test_same_content_inside_a_split_is_a_warning(endometrial, caplog):
    source = endometrial / "A/traindata/MI/AtrMI0/1.png"
    (endometrial / "A/traindata/MI/AtrMI0/copy.png").write_bytes(source.read_bytes())
    with caplog.at_level(logging.WARNING):
        manifest = read_folders(endometrial, "endometrial", progress=False)
    (warning,) = check_manifest(manifest, files=False)
    assert "is there 2 times" in warning and "AtrMI0/copy.png (train)" in warning
    assert warning in caplog.text


def test_center_with_one_class_is_a_warning(endometrial, caplog):
    for folder in endometrial.glob("B/*/NMI"):
        folder.rename(endometrial.parent / folder.parent.name)
    with caplog.at_level(logging.WARNING):
        manifest = read_folders(endometrial, "endometrial", progress=False)
    warnings = check_manifest(manifest)
    assert [text.split(",")[0] for text in warnings] == [
        f"center 'B': all 3 {split} samples are of class 'MI'" for split in ("test", "train")
    ]
    assert manifest.classes == ("MI", "NMI") and "AUC is NaN" in caplog.text


def test_empty_masks_only_is_a_warning(nuclei):
    for path in (nuclei / "SiteB/test/labels").iterdir():
        write_mask(path, (0,))
    manifest = read_folders(nuclei, "nuclei", progress=False)
    assert check_manifest(manifest) == ["center 'SiteB': all 2 test masks are empty, there is no nucleus"]


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "A/list.csv", "A/traindata/x.png", "A/testdata/MI/y.png", "A/traindata/MI/AtrMI0/z.dcm"],
)
def test_file_that_does_not_belong(endometrial, name):
    (endometrial / name).write_bytes(b"x")
    (problem,) = problems(endometrial, "endometrial")
    assert problem.startswith(f"{name}: unexpected file, expected ")


@pytest.mark.parametrize("name", ["A/validation", "A/traindata/MI/AtrMI0/more"])
def test_folder_that_does_not_belong(endometrial, name):
    (endometrial / name).mkdir()
    (problem,) = problems(endometrial, "endometrial")
    assert problem.startswith(f"{name}: unexpected folder, expected ")


def test_nuclei_label_that_is_no_png(nuclei):
    (nuclei / "SiteA/train/labels/SiteAtrain0_0_0.tif").write_bytes(b"x")
    (problem,) = problems(nuclei, "nuclei")
    assert problem.startswith("SiteA/train/labels/SiteAtrain0_0_0.tif: unexpected file, expected images (.png)")


def test_patient_folder_without_image(endometrial):
    (endometrial / "A/traindata/MI/empty").mkdir()
    assert problems(endometrial, "endometrial") == ("A/traindata/MI/empty: holds no image, expected at least one per patient",)


def test_two_images_of_one_stem(nuclei):
    write_image(nuclei / "SiteA/train/images/SiteAtrain0_0_0.bmp", 800)
    (problem,) = problems(nuclei, "nuclei")
    assert "id 'SiteA/train/SiteAtrain0_0_0' occurs 2 times" in problem


@pytest.mark.parametrize("name", ["A/traindata/MI/AtrMI0/2.png", "A/traindata/MI/linked"])
def test_link_that_leaves_the_root(endometrial, name):
    outside = endometrial.parent / "outside" / "1.png"
    write_image(outside, 900)
    (endometrial / name).symlink_to(outside if name.endswith("png") else outside.parent)
    (problem,) = problems(endometrial, "endometrial")
    assert problem.startswith(f"{name}: links out of the data folder to {outside.parent}")


def test_broken_link(endometrial):
    (endometrial / "A/traindata/MI/AtrMI0/2.png").symlink_to(endometrial / "gone.png")
    (problem,) = problems(endometrial, "endometrial")
    assert problem == "A/traindata/MI/AtrMI0/2.png: is a broken link, expected a file or a folder"


def test_root_may_be_a_link(endometrial):
    link = endometrial.parent / "link"
    link.symlink_to(endometrial)
    assert len(read_folders(link, "endometrial", progress=False).table) == 36


def test_name_that_is_not_utf8(endometrial):
    folder = os.fsencode(endometrial / "A/traindata/MI/AtrMI0")
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(b"x")
    (problem,) = problems(endometrial, "endometrial")
    assert problem == r"A/traindata/MI/AtrMI0/\xff.png: name is not valid UTF-8, rename it"


def test_all_kinds_of_problems_come_together(nuclei):
    (nuclei / "SiteA/train/images/SiteAtrain0_0_0.png").write_bytes(b"x")
    write_mask(nuclei / "SiteA/test/labels/SiteAtest0_0_0.png", (0, 9))
    (nuclei / "SiteB/val/labels/SiteBval0_0_0.png").unlink()
    (nuclei / "readme.txt").write_text("x")
    found = problems(nuclei, "nuclei")
    assert len(found) == 4
    for name in ("SiteAtrain0_0_0", "SiteAtest0_0_0", "SiteBval0_0_0", "readme.txt"):
        assert any(name in problem for problem in found)


def large(manifest, patients=20):
    """The manifest's table blown up: so many patients a split, 1 to 4 samples each, every fifth of class 1."""
    rows = []
    first = manifest.table.iloc[0].to_dict()
    for center in ("A", "B"):
        for split in ("train", "test"):
            for patient in range(patients):
                for number in range(1 + patient % 4):
                    name = f"{center}/{split}/{patient}-{number}"
                    values = {"center": center, "split": split, "patient": f"{center}{split}{patient}"}
                    rows.append(first | values | {"id": name, "path": name, "label": int(patient % 5 == 0)})
    return type(manifest)(manifest.root, "classification", manifest.classes, pd.DataFrame(rows))


@pytest.fixture
def big(endometrial):
    return large(read_folders(endometrial, "endometrial", verify=False, progress=False))


def test_validation_takes_whole_patients_of_all_classes(big):
    cut = with_validation(big, 0.2, seed=3)
    for center in big.centers:
        train, val = (set(cut.select(center, split)["patient"]) for split in ("train", "val"))
        assert len(val) == 4 and len(train) == 16 and not train & val
        assert sorted(cut.select(center, "val")["label"].unique()) == [0, 1]
        assert cut.select(center, "test")["id"].tolist() == big.select(center, "test")["id"].tolist()
    assert cut.table["id"].tolist() == big.table["id"].tolist()


def test_validation_depends_on_seed_and_own_center_only(big):
    cut = with_validation(big, 0.2, seed=3)
    assert with_validation(big, 0.2, seed=3).sha256 == cut.sha256
    assert with_validation(big, 0.2, seed=4).sha256 != cut.sha256
    alone = with_validation(type(big)(big.root, big.task_kind, big.classes, big.select("B")), 0.2, seed=3)
    assert alone.select("B", "val")["id"].tolist() == cut.select("B", "val")["id"].tolist()
    chosen = [set(cut.select(center, "val")["patient"].str[1:]) for center in "AB"]
    assert chosen[0] != chosen[1]


def test_validation_keeps_the_only_patient_of_a_class_in_training(big):
    table = big.table.copy()
    table["label"] = (table["patient"] == "Atrain7").astype(int)
    for seed in range(5):
        cut = with_validation(type(big)(big.root, big.task_kind, big.classes, table), 0.7, seed)
        assert "Atrain7" in set(cut.select("A", "train")["patient"])
        assert cut.select("A", "val")["patient"].nunique() == 14


def test_validation_leaves_centers_that_have_one(nuclei):
    manifest = read_folders(nuclei, "nuclei", verify=False, progress=False)
    assert with_validation(manifest, 0.5, seed=0).sha256 == manifest.sha256


def test_validation_refuses(big):
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match=f"share must be above 0 and below 1, got {share}"):
            with_validation(big, share, 0)
    table = big.table[(big.table["split"] == "test") | big.table["patient"].isin(["Atrain0", "Btrain0", "Btrain1"])]
    with pytest.raises(ManifestError, match=r"center 'A' has 1 training patient\(s\), expected at least 2"):
        with_validation(type(big)(big.root, big.task_kind, big.classes, table), 0.2, 0)


@pytest.mark.parametrize("train", [0.5, 0.6, 0.8])
def test_resplit_divides_all_patients_anew_in_proportion(big, train):
    cut = resplit(with_validation(big, 0.2, 0), train, seed=3)
    assert cut.table["id"].tolist() == big.table["id"].tolist() and not cut.table.equals(big.table)
    for center in big.centers:
        sides = {split: cut.select(center, split) for split in ("train", "val", "test")}
        patients = {split: set(rows["patient"]) for split, rows in sides.items()}
        assert len(patients["test"]) == round(40 * (1 - train))
        assert len(patients["val"]) == round(40 * train * 0.2), "the centre had a validation set: a fifth of training"
        assert not (patients["train"] & patients["test"] or patients["train"] & patients["val"] or patients["val"] & patients["test"])
        assert {side[1:].rstrip("0123456789") for side in patients["test"]} == {"train", "test"}, "former training patients test too"
        positive = sides["test"].groupby("patient")["label"].first().sum()
        assert positive == round(0.2 * len(patients["test"])), "a fifth of the patients is of class 1"


def test_resplit_makes_no_validation_where_there_was_none(big):
    assert set(resplit(big, 0.6, seed=3).table["split"]) == {"train", "test"}


def test_resplit_depends_on_seed_and_own_center_only(big):
    cut = resplit(big, 0.6, seed=3)
    assert resplit(big, 0.6, seed=3).sha256 == cut.sha256 != resplit(big, 0.6, seed=4).sha256
    alone = resplit(type(big)(big.root, big.task_kind, big.classes, big.select("B")), 0.6, seed=3)
    assert alone.select("B", "test")["id"].tolist() == cut.select("B", "test")["id"].tolist()
    assert resplit(resplit(big, 0.8, seed=1), 0.6, seed=3).sha256 == cut.sha256, "the split before does not matter"


def test_resplit_leaves_external_centers(big):
    table = big.table[(big.table["center"] == "A") | (big.table["split"] == "test")]
    external = type(big)(big.root, big.task_kind, big.classes, table)
    cut = resplit(external, 0.5, seed=0)
    assert cut.training_centers == ("A",)
    assert cut.select("B").equals(external.select("B"))


def test_resplit_refuses(big):
    for share in (0, 1, 1.2):
        with pytest.raises(ValueError, match=f"training share of a split must be above 0 and below 1, got {share}"):
            resplit(big, share, 0)
    by_image = type(big)(big.root, big.task_kind, big.classes, big.table, "image")
    with pytest.raises(ManifestError, match="divided by image, expected a set divided by patient"):
        resplit(by_image, 0.6, 0)
    table = big.table[big.table["patient"].isin(["Atrain0", "Btrain0", "Btrain1"])]
    with pytest.raises(ManifestError, match=r"center 'A' has 1 training patient\(s\), expected at least 2 to set one aside for test"):
        resplit(type(big)(big.root, big.task_kind, big.classes, table), 0.6, 0)


def test_folds_test_every_patient_once_and_in_proportion(big):
    whole = with_validation(big, 0.2, 0)
    parts = [fold(whole, 3, number, seed=5) for number in (1, 2, 3)]
    for center in big.centers:
        tested = [set(part.select(center, "test")["patient"]) for part in parts]
        assert sorted(map(len, tested)) == [13, 13, 14] and set.union(*tested) == set(big.select(center)["patient"])
        assert sum(map(len, tested)) == big.select(center)["patient"].nunique(), "nobody tests twice"
        for part in parts:
            sides = {split: part.select(center, split) for split in ("train", "val", "test")}
            patients = {split: set(rows["patient"]) for split, rows in sides.items()}
            assert len(patients["val"]) == 5 and not patients["train"] & patients["test"] and not patients["val"] & patients["test"]
            assert sides["test"].groupby("patient")["label"].first().sum() in (2, 3), "a fifth of the patients is of class 1"
    assert set(fold(big, 3, 1, seed=5).table["split"]) == {"train", "test"}, "no validation where there was none"
    assert fold(whole, 3, 1, seed=5).sha256 == parts[0].sha256 != fold(whole, 3, 1, seed=6).sha256
    assert fold(resplit(whole, 0.5, 1), 3, 1, seed=5).sha256 == parts[0].sha256, "the split before does not matter"


def test_folds_leave_external_centers_and_refuse(big):
    external = type(big)(big.root, big.task_kind, big.classes, big.table[(big.table["center"] == "A") | (big.table["split"] == "test")])
    assert fold(external, 5, 2, seed=0).select("B").equals(external.select("B"))
    for number, folds in ((0, 5), (6, 5), (1, 1)):
        with pytest.raises(ValueError, match=f"fold must be 1 to {folds} of at least 2 folds, got {number} of {folds}"):
            fold(big, folds, number, 0)
    with pytest.raises(ManifestError, match=r"center 'A' has 40 patient\(s\), expected at least 41, one a fold"):
        fold(big, 41, 1, 0)
    with pytest.raises(ManifestError, match="divided by image, expected a set divided by patient"):
        fold(type(big)(big.root, big.task_kind, big.classes, big.table, "image"), 5, 1, 0)


def test_subset_spreads_over_classes_and_patients(big):
    part = subset(big, {"train": 8}, seed=1)
    for center in big.centers:
        rows = part.select(center, "train")
        assert rows["label"].value_counts().to_dict() == {0: 4, 1: 4}
        assert rows["patient"].nunique() == 8
        assert part.select(center, "test")["id"].tolist() == big.select(center, "test")["id"].tolist()
    order = [big.table["id"].tolist().index(name) for name in part.table["id"]]
    assert order == sorted(order)


def test_subset_larger_than_a_class_takes_all_of_it(big):
    rows = subset(big, {"train": 40}, seed=1).select("A", "train")
    whole = big.select("A", "train")
    assert len(rows) == 40 and (rows["label"] == 1).sum() == (whole["label"] == 1).sum()
    assert rows["patient"].nunique() == 20
    assert subset(big, {"train": 10**6}, seed=1).sha256 == big.sha256


def test_subset_depends_on_seed_and_own_center_and_is_nested(big):
    part = subset(big, {"train": 12, "test": 5}, seed=1)
    assert subset(big, {"train": 12, "test": 5}, seed=1).sha256 == part.sha256
    assert subset(big, {"train": 12, "test": 5}, seed=2).sha256 != part.sha256
    alone = subset(type(big)(big.root, big.task_kind, big.classes, big.select("B")), {"train": 12}, seed=1)
    assert alone.select("B", "train")["id"].tolist() == part.select("B", "train")["id"].tolist()
    smaller = subset(big, {"train": 6}, seed=1)
    assert set(smaller.select("A", "train")["id"]) < set(part.select("A", "train")["id"])


def test_subset_refuses(big):
    with pytest.raises(ValueError, match="unknown split 'training' in per_center, expected train, val, test"):
        subset(big, {"training": 3}, 0)
    with pytest.raises(ValueError, match=r"per_center\['train'\] must be a whole number of at least 1, got 0"):
        subset(big, {"train": 0}, 0)


@pytest.mark.real_data
def test_real_patches(real_data_root):
    manifest = read_folders(real_data_root / "idc_patches", "endometrial", progress=False)
    assert manifest.centers == ("A", "B", "C", "D", "E") and manifest.classes == ("0", "1")
    assert len(manifest.table) == sum(1 for _ in (real_data_root / "idc_patches").rglob("*.png"))
    assert check_manifest(manifest, files=False) == []
    name_says = manifest.table["id"].str[-1].astype(int)  # these files end in _class0 or _class1
    assert (name_says == manifest.table["label"]).all()
    assert check_manifest(with_validation(manifest, 0.2, 0), files=False) == []


@pytest.mark.real_data
def test_real_nuclei(real_data_root):
    manifest = read_folders(real_data_root / "nuclei", "nuclei", progress=False)
    assert manifest.table.groupby("center").size().to_dict() == {"SiteA": 50, "SiteB": 28, "SiteC": 28, "SiteD": 64}
    assert manifest.table.groupby("center")["patient"].nunique().to_dict() == {
        "SiteA": 11,
        "SiteB": 7,
        "SiteC": 7,
        "SiteD": 16,
    }
    assert check_manifest(manifest, files=False) == []


def test_a_patient_in_two_spellings_is_one(endometrial):
    write_image(endometrial / "A/traindata/MI/Mu\u0308ller/1.png", 800)
    write_image(endometrial / "A/testdata/MI/Müller/1.png", 801)
    (problem,) = problems(endometrial, "endometrial")
    assert "A/traindata/MI/Mu\u0308ller/1.png" in problem and "A/testdata/MI/Müller/1.png" in problem and "2 spellings" in problem


def test_a_class_in_two_spellings_is_one(endometrial):
    for center in "AB":
        (endometrial / center / "testdata/MI").rename(endometrial / center / "testdata/mi")
    found = "\n".join(problems(endometrial, "endometrial"))
    assert "class 'MI' and 'mi': one name in 2 spellings" in found


def test_a_centre_in_two_spellings_and_one_with_a_word_of_ours(endometrial):
    (endometrial / "B").rename(endometrial / "a")
    (endometrial / "C").rename(endometrial / "Shared")
    clash, word = sorted(problems(endometrial, "endometrial"), key=lambda problem: "own word" in problem)
    assert "center 'A' and 'a': one name in 2 spellings" in clash and "rename one as the other" in clash
    assert "center 'Shared': the library's own word for the server's model" in word


def test_patients_by_the_name_of_the_file_say_so(nuclei):
    for split in ("train", "test"):
        for number in (1, 2):
            write_image(nuclei / f"SiteA/{split}/images/Image_0{number}{split}.png", 900 + number + 10 * len(split))
            write_mask(nuclei / f"SiteA/{split}/labels/Image_0{number}{split}.png")
    problem, rule = problems(nuclei, "nuclei")
    assert "patient 'Image' is in" in problem
    assert (
        "before its first '_' (Image_01L.png: 'Image')" in rule
        and "--patient-pattern, e.g. 'Image_([0-9]+)', or list the images in a samples.csv" in rule
    )


def test_system_folders_are_counted_at_every_level(endometrial, caplog):
    for place in ("", "A", "C", "A/traindata", "A/traindata/MI", "A/traindata/MI/AtrMI0"):
        write_image(endometrial / place / "@eaDir" / "SYNOPHOTO_THUMB_M.jpg", 1)
    shutil.rmtree(endometrial / "C" / "traindata")
    notes = []
    manifest = read_folders(endometrial, "endometrial", progress=False, notes=notes)
    assert len(manifest.table) == 30 and manifest.training_centers == ("A", "B"), "and C is still a centre that only tests"
    assert notes == ["6 file(s) and folder(s) of file servers and systems are not read: 6 @eaDir"]
    assert "@eaDir" not in caplog.text
    read_folders(endometrial, "endometrial", progress=False)
    assert "6 @eaDir" in caplog.text


def test_a_mask_among_the_images_of_a_classification(endometrial):
    write_mask(endometrial / "A/traindata/MI/AtrMI0/1_segmentation.png")
    (problem,) = problems(endometrial, "endometrial")
    assert problem.startswith(
        "A/traindata/MI/AtrMI0/1_segmentation.png: is called as the mask of 1.png, expected images alone; move it out"
    )
