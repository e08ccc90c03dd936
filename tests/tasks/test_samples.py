"""A set by its table: names of all kinds, patients and groups, what is refused with its line, and sets of every task."""

import importlib.util
import itertools
import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.classes import ClassWords
from vfmgl_lib.tasks.prepare import prepare, verify
from vfmgl_lib.tasks.records import TASKS
from vfmgl_lib.tasks.samples import spacing_of
from vfmgl_lib.tasks.template import guess_samples, write_samples
from vfmgl_lib.tasks.words import lone_patients

spec = importlib.util.spec_from_file_location("prostate_builders", Path(__file__).with_name("test_prostate.py"))
volumes = importlib.util.module_from_spec(spec)
spec.loader.exec_module(volumes)


def picture(path, seed, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format={".jpg": "JPEG", ".tif": "TIFF", ".bmp": "BMP"}.get(path.suffix.lower()[:4], "PNG"))


def outline(path, size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array((0, 255, 255), np.uint8), size[::-1])).save(path, format="PNG")


def write_table(source, lines, name="samples.csv"):
    source.mkdir(parents=True, exist_ok=True)
    (source / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def source(tmp_path):
    """Two centres of four patients each, two images a patient; patients are called alike at both."""
    lines = ["image,center,patient,label"]
    for number, center in enumerate("AB"):
        for patient in range(4):
            for image in range(2):
                path = f"{center}/p{patient} {image}.png"
                picture(tmp_path / "source" / path, 100 * number + 10 * patient + image)
                lines.append(f"{path},{center},{patient},{('normal', 'tumor')[patient % 2]}")
    write_table(tmp_path / "source", lines)
    return tmp_path / "source"


def change(source, *edits, name="samples.csv"):
    text = (source / name).read_text(encoding="utf-8")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    (source / name).write_text(text, encoding="utf-8")


def with_column(source, name, value):
    """A further column; value(line) -> cell, lines counted from 2."""
    header, *lines = (source / "samples.csv").read_text(encoding="utf-8").splitlines()
    write_table(source, [f"{header},{name}", *(f"{line},{value(number)}" for number, line in enumerate(lines, 2))])


def run(source, task="camelyon17", out="out", **options):
    return prepare(task, source, source.parent / out, progress=False, **options)


def problems(source, **options):
    with pytest.raises(ManifestError) as caught:
        run(source, **options)
    return list(caught.value.problems) or [str(caught.value)]


# --- what is read


AWKWARD = [  # names of two hospitals' files: the patient's number and eye, and all that people put into names
    "Image_01L.jpg", "Image_01R.jpg", "Image_02L.JPG", "Image_02R.JPG", "03 left eye.png", "03 right eye.png", "04.2019.OD.v2.PNG",
    "04.2019.OS.v2.PNG", "Müller,Anna (05) L.tif", "Müller,Anna (05) R.TIF", "目_06_左.png", "目_06_右.png", "#07&L%20.bmp", "#07&R%20.BMP",
    "08'L.jpeg", "08'R.JPEG", "sub/deep er/09.png", "sub/deep er/09_.png", "sub.v1/10..L.png", "sub.v1/10..R.png",
]  # fmt: skip


def patient_of(name):
    return re.search(r"(?<!\d)(0\d|10)(?!\d)", name)[1]


def test_forty_awkward_names_have_the_right_patients(tmp_path):
    source, lines = tmp_path / "zwei Kliniken", ["image,center,patient,label"]
    for number, center in enumerate(("Ålesund", "St. Mary's")):
        for place, name in enumerate(AWKWARD):
            stored = unicodedata.normalize("NFD" if place % 4 == 0 else "NFC", name)  # as macOS and Linux keep names
            picture(source / center / stored, 1000 * number + place)
            written = unicodedata.normalize("NFC", f"{center}/{name}").replace('"', '""')
            label = ("normal", "tumor")[int(patient_of(name)) % 2]
            lines.append(f'"{written}",{center},{patient_of(name)},{label}')
    write_table(source, lines)
    assert len(lines) == 41
    done = run(source)
    table = done.manifest.table
    assert len(table) == 40 and table["id"].is_unique and done.format == "samples"
    assert table.groupby("center")["patient"].nunique().to_dict() == {"St. Mary's": 10, "Ålesund": 10}
    for row in table.itertuples():
        assert row.patient == f"{row.center}/{patient_of(row.path.split('/', 1)[1])}"
    assert (table.groupby("patient").size() == 2).all() and (table.groupby("patient")["split"].nunique() == 1).all(), "both eyes together"
    assert table.groupby(["center", "split"])["patient"].nunique().loc["Ålesund"].to_dict() == {"train": 6, "val": 2, "test": 2}
    assert any(text.startswith("10 patient name(s) are at several centers (01 at St. Mary's and Ålesund") for text in done.warnings)
    assert verify(source.parent / "out", progress=False)
    assert problems(source, out="shared", patients="shared")[0].startswith("patient '01' is in the centers ")


def test_columns_in_any_order_and_form(source):
    plain = run(source).manifest
    table = pd.read_csv(source / "samples.csv", dtype=str)
    forms = {
        "semicolons": ("utf-8-sig", ";", "\r\n"),
        "tabs": ("utf-16", "\t", "\n"),
    }
    for name, (encoding, separator, end) in forms.items():
        shuffled = table[["label", "patient", "image", "center"]].rename(columns={"image": "Image", "label": " Label"})
        (source / "samples.csv").write_bytes(shuffled.to_csv(sep=separator, index=False, lineterminator=end).encode(encoding))
        assert run(source, out=name).manifest.sha256 == plain.sha256


def test_the_table_may_lie_elsewhere_and_is_named_without_doubt(source, tmp_path, monkeypatch):
    plain = run(source).manifest
    (tmp_path / "tables").mkdir()
    other = (source / "samples.csv").rename(tmp_path / "tables" / "mine.csv")
    assert run(source, out="b", samples=other).manifest.sha256 == plain.sha256
    monkeypatch.chdir(other.parent)
    assert run(source, out="c", samples="mine.csv").manifest.sha256 == plain.sha256
    (source / "mine.csv").write_bytes(other.read_bytes())
    assert "name it by its whole path" in problems(source, samples="mine.csv", out="d")[0]
    other.unlink()
    assert run(source, out="e", samples="mine.csv").manifest.sha256 == plain.sha256
    assert "no such file, neither from here" in problems(source, samples="yours.csv", out="f")[0]
    assert "the table says where the images are" in problems(source, samples="mine.csv", format="wilds", out="g")[0]
    assert "which says who is the patient" in problems(source, samples="mine.csv", patient_pattern="(.)", out="h")[0]


def test_a_workspace_finds_the_table_and_notices_its_changes(source, tmp_path):
    settings = {"runs": tmp_path / "runs", "data": source, "data__image_size": 32}
    first = open_workspace("camelyon17", **settings)
    assert len(first.prepared.table) == 16 and first.prepared.root == source
    change(source, ("A/p0 0.png,A,0,normal\n", ""))
    again = open_workspace("camelyon17", **settings)
    assert len(again.prepared.table) == 15
    assert "1 image file(s) in the folder are not in samples.csv and not used, e.g. A/p0 0.png" in again.warnings


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_takes_a_table(task, tmp_path):
    record, source = TASKS[task], tmp_path / "source"
    column = "mask" if record.is_segmentation else "label"
    lines = [f"image;center;patient;{column};spacing"]
    for center in ("x", "y"):
        for patient in range(3):
            name = f"{center}{patient}"
            picture(source / f"{name}.png", patient + 10 * (center == "y"))
            if record.is_segmentation:
                outline(source / "truth" / f"{name}.any.png")
            known = record.classes or ("0_no", "1_yes")
            lines.append(f"{name}.png;{center};{patient};{f'truth/{name}.any.png' if column == 'mask' else known[patient % 2]};0,25")
    write_table(source, lines)
    done = prepare(task, source, tmp_path / "out", progress=False)
    table = done.manifest.table
    assert done.manifest.task_kind == record.kind and set(table["spacing"]) == {"0.25,0.25"}
    assert not any("datasheet" in text for text in done.warnings), "the paper's counts are not those of own images"
    if record.is_segmentation:
        assert set(table["label"]) == {f"truth/{center}{patient}.any.png" for center in "xy" for patient in range(3)}
    else:
        assert done.manifest.classes == (record.classes or ("0_no", "1_yes"))
        assert list(table["label"]) == [0, 1, 0] * 2
    numbered = [text for text in done.warnings if "numbered by their sorted names: 0 0_no, 1 1_yes" in text]
    assert len(numbered) == (record.classes is None)


def test_three_classes_by_name_or_number(source, monkeypatch):
    record = TASKS["camelyon17"].model_copy(update={"classes": ("normal", "tumor", "1_itc")})
    monkeypatch.setitem(TASKS, "camelyon17", record)
    assert problems(source) == ["label: no row has class '1_itc' (2), expected images of it, or a task without it"]
    change(source, ("B/p3 1.png,B,3,tumor", "B/p3 1.png,B,3,ITC"), ("A/p0 0.png,A,0,normal", "A/p0 0.png,A,0,Normal"))
    named = run(source, split="image")
    assert named.manifest.table["label"].tolist().count(2) == 1 and named.manifest.classes == record.classes
    assert "one-vs-rest AUC there" in "".join(named.warnings)
    text = (source / "samples.csv").read_text()
    for word, number in (("normal", "0"), ("Normal", "0.0"), ("tumor", "1"), ("ITC", "2")):
        text = text.replace(f",{word}\n", f",{number}\n")
    (source / "samples.csv").write_text(text)
    by_number = run(source, out="b", split="image")
    assert by_number.manifest.sha256 == named.manifest.sha256
    assert "classes are given by number: 0 = normal, 1 = tumor, 2 = 1_itc" in by_number.warnings


def test_numbers_are_names_where_classes_are_called_by_numbers():
    words = ClassWords(("1", "2", "3"))
    assert [words.number(word) for word in ("1", "3", "0", "4")] == [0, 2, None, None] and not words.notes(["1"])
    assert ClassWords(("0_a", "1_b")).number("b") == 1 and ClassWords(("a", "b")).number("2") is None
    both = ClassWords(("x", "0_x", "y"))
    assert both.number("x") is None and both.number("0_x") == 1, "a word that two classes go by is none"


def test_own_splits_and_external_centers(source):
    picture(source / "C/one.png", 900)
    with_column(
        source, "split", lambda line: ("train", "train", "train", "train", "val", "val", "Test", "test")[line - 2] if line < 10 else ""
    )
    with_column(source, "external", lambda line: "no")
    change(source, ("A/p0 0.png,A", "C/one.png,C,9,tumor,,yes\nA/p0 0.png,A"))
    table = run(source).manifest.table
    assert list(table.loc[table["center"] == "A", "split"]) == ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    drawn = table[table["center"] == "B"].groupby("split")["patient"].nunique().to_dict()
    assert drawn == {"train": 2, "val": 1, "test": 1}
    assert list(table.loc[table["center"] == "C", "split"]) == ["test"]
    assert run(source, out="b").manifest.training_centers == ("A", "B")


def test_numbers_of_patients_that_look_alike_are_told(source):
    assert not any("in two ways" in text for text in run(source).warnings)
    change(source, ("A/p1 0.png,A,1", "A/p1 0.png,A,001"), ("B/p2 1.png,B,2", "B/p2 1.png,B,2.0"))
    told = [text for text in run(source, out="b").warnings if "in two ways" in text]
    assert [text.split(" are")[0] for text in told] == [
        "center 'A': patients '001' (line 4) and '1' (line 5)",
        "center 'B': patients '2' (line 14) and '2.0' (line 15)",
    ]


def test_files_of_one_name_with_other_endings(source):
    picture(source / "A/p0 0.png.TIF", 801)
    picture(source / "A/p0 0.jpg", 802)
    change(source, ("A/p0 0.png,A", "A/p0 0.jpg,A,0,normal\nA/p0 0.png.TIF,A,0,normal\nA/p0 0.png,A"))
    table = run(source).manifest.table
    assert table["id"].is_unique and list(table["id"][:3]) == ["A/A/p0 0.jpg", "A/A/p0 0.png.TIF", "A/A/p0 0.png"]


def test_the_folder_above_has_the_table(source):
    assert f"there is a samples.csv in the folder above: give {source}" in problems(source / "A", out="../out")[0]


def test_groups_stay_in_one_split(source):
    with_column(source, "group", lambda line: "siblings" if line in (2, 3, 4, 5, 12, 13, 14, 15) else "")
    for seed in range(6):
        done = run(source, out=f"{seed}", seed=seed)
        table = done.manifest.table
        assert table.columns[-1] == "group"
        assert table[table["group"] == "A/siblings"]["split"].nunique() == 1
        assert set(table.loc[table["group"] == "A/siblings", "patient"]) == {"A/0", "A/1"}
        units = table[table["center"] == "A"].drop_duplicates("group")["split"].tolist()
        assert sorted(units) == ["test", "train", "val"], "three things to divide at A"
    assert any("2 group(s) of several patients stay in one split each; intervals and tests count" in text for text in done.warnings)
    assert any(text.startswith("1 group name(s) are at several centers (siblings at A and B)") for text in done.warnings)
    with_column(source, "split", lambda line: ("train", "train", "test", "test", "train", "train", "test", "test")[(line - 2) % 8])
    assert problems(source, out="x") == [
        "center 'A': group 'A/siblings' is in train (A/p0 0.png, line 2) and test (A/p1 0.png, line 4), expected in one split only",
        "center 'B': group 'B/siblings' is in test (B/p1 0.png, line 12) and train (B/p2 0.png, line 14), expected in one split only",
    ]


def test_volumes_of_the_prostate_task(tmp_path):
    source, lines = tmp_path / "source", ["image,center,patient,mask,group"]
    for number, center in enumerate(("BIDMC", "HK")):
        for case in range(4):
            volumes.write_case(tmp_path / "cases" / center, f"Case{case:02}", image=volumes.volume(100 * number + case))
            for kind, ending in (("T2 volumes", ""), ("drawn", "_segmentation")):
                target = source / kind / f"{center} {case}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "cases" / center / f"Case{case:02}{ending}.nii.gz").rename(target)
            lines.append(f"T2 volumes/{center} {case}.nii.gz,{center},{case},drawn/{center} {case}.nii.gz,{'twins' if case < 2 else ''}")
    write_table(source, lines)
    done = prepare("prostate", source, tmp_path / "out", progress=False)
    table = done.manifest.table
    assert done.format == "samples" and done.manifest.root == (tmp_path / "out" / "data").resolve()
    assert set(table["patient"]) == {f"{center}/{case}" for center in ("BIDMC", "HK") for case in range(4)}
    assert set(table["spacing"]) == {"0.75,0.5"} and (table.groupby("group")["split"].nunique() == 1).all()
    assert table.loc[table["group"] == "HK/twins", "patient"].nunique() == 2
    assert prepare("prostate", source, tmp_path / "out", progress=False).reused
    change(source, ("drawn/HK 3.nii.gz", "drawn/HK 2.nii"), ("BIDMC,0,", ",0,"))
    picture(source / "a.png", 1)
    change(source, ("T2 volumes/HK 0.nii.gz", "a.png"))
    with pytest.raises(ManifestError) as caught:
        prepare("prostate", source, tmp_path / "other", progress=False)
    assert [text.split(",")[0] for text in caught.value.problems] == [
        "line 2: center is empty",
        f"line 9: mask 'drawn/HK 2.nii': file not found in {source}; there is 'drawn/HK 2.nii.gz'",
        "line 6: image 'a.png' is no volume",
    ]
    with pytest.raises(ManifestError, match="is a volume, the task nuclei reads images: write its slices as PNG"):
        prepare("nuclei", source, tmp_path / "other", progress=False)


# --- what is refused


def test_all_problems_come_together_each_with_its_line(source, tmp_path):
    picture(tmp_path / "outside.png", 1)
    (source / "out.png").symlink_to(tmp_path / "outside.png")
    (source / "B/p2 0.png").write_bytes(b"not an image")
    for column, wrong in (("split", {3: "training", 5: "holdout"}), ("external", {6: "maybe"}), ("spacing", {7: "0", 8: "1,5", 9: "wide"})):
        with_column(source, column, lambda line, wrong=wrong: f'"{wrong[line]}"' if line in wrong else "")
    change(
        source,
        ("A/p0 0.png,A", "A/p0.png,A"),
        ("A/p0 1.png,A", "../outside.png,A"),
        ("A/p1 0.png,A,1", f"{source}/A/p1 0.png,A,1"),
        ("A/p1 1.png,A", "out.png,A"),
        ("A/p2 0.png,A", "A,A"),
        ("A/p2 1.png,A,2,normal", "A/p2 1.png,A,,tumour"),
        ("B/p0 0.png,B", "B/p0 0.png,"),
        ("B/p0 1.png,B,0,normal", "B/p0 1.png,B,0,"),
        ("B/p1 0.png,B", "A/p3 0.png,B"),
        ("B/p1 1.png", "P0 1.PNG"),
        ("B/p3 0.png,B,3", "B/p3 0.png,B/2,3"),
        ("B/p3 1.png,B,3,tumor,,,", "B/p3 1.png,B,3,tumor,,,,x"),
    )
    found = problems(source)
    home = source.resolve()
    assert found == [
        "line 17: 8 fields, expected the header's 7; a cell that holds the separator is put in quotes",
        f"line 2: image 'A/p0.png': file not found in {home}",
        f"line 3: image '../outside.png' leads out of its folder by '..', expected a path below the data folder {home}",
        "line 3: split 'training', expected one of train, val, test, or nothing in all rows of the centre; write train",
        f"line 4: image '{source}/A/p1 0.png' is an absolute path, expected one that begins below the data folder {home}, here"
        " 'A/p1 0.png'",
        f"line 5: image 'out.png' leads out of the data folder to {tmp_path / 'outside.png'}, expected a file inside it",
        "line 5: split 'holdout', expected one of train, val, test, or nothing in all rows of the centre",
        "line 6: image 'A' is a folder, expected a file",
        "line 6: external 'maybe', expected yes or no",
        "line 7: patient is empty, expected who it is; a name of its own where each image is another person's",
        "line 7: spacing '0', expected mm per pixel: one number as 0.5, or row and column as '0.5 x 0.7', above 0 and at most 100",
        "line 8: spacing '1,5': 1.5 mm, or 1 and 5 mm? Write 1.5 or '1 x 5'",
        "line 9: spacing 'wide', expected mm per pixel: one number as 0.5, or row and column as '0.5 x 0.7', above 0 and at most 100",
        "line 10: center is empty, expected the centre's name",
        f"line 13: image 'P0 1.PNG': file not found in {home}; 2 files elsewhere are called so, e.g. 'A/p0 1.png' and 'B/p0 1.png'",
        "line 16: center 'B/2', expected a name that is no path; rename it",
        "line 7: label 'tumour' is no class of camelyon17, expected one of normal, tumor, or their numbers 0 to 1; is 'tumor' meant?",
        "line 11: label is empty, expected one of normal, tumor, or their numbers 0 to 1",
        "line 12: image 'A/p3 0.png' is in line 8 already, expected one row an image",
        "line 14: B/p2 0.png: not a readable image (cannot identify image file file), expected a PNG, JPEG, TIFF or BMP",
    ]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            "image,centre,patient,label",
            [
                "header: unknown column 'centre', expected image, center, patient, label, split, external, group, spacing; is 'center'"
                " meant? Then call it so",
                "header: column 'center' is missing, expected image, center, patient, label; got 'image, centre, patient, label'",
            ],
        ),
        ("image,center,patient,mask", ["header: column 'mask' does not belong to camelyon17, a classification: it reads 'label'"]),
        ("image,center,patient,label,age", ["header: unknown column 'age', expected"]),
        ("image,center,patient,label,Label", ["header: column 'label' is there 2 times, expected once"]),
        ("image,center,label", ["header: column 'patient' is missing, expected"]),
    ],
)
def test_wrong_headers(source, header, expected):
    lines = (source / "samples.csv").read_text().splitlines()[1:]
    extra = header.count(",") - 3
    rows = [line + ",7" if extra == 1 else ",".join(line.split(",")[:2] + line.split(",")[3:]) if extra == -1 else line for line in lines]
    write_table(source, [header, *rows])
    found = problems(source)
    assert all(any(text.startswith(words) for text in found) for words in expected)
    assert not any(text.startswith("line") and "center is empty" in text for text in found)


def test_tables_that_are_none(source):
    (source / "samples.csv").write_bytes(b"PK\x03\x04 a workbook")
    assert "is a workbook of a spreadsheet program" in problems(source)[0]
    write_table(source, ["image,center,patient,label"])
    assert "has a header only, expected a row an image" in problems(source)
    (source / "samples.csv").write_text("")
    assert any("column 'image' is missing" in text for text in problems(source))


def test_leaks_are_told_with_their_lines(source):
    with_column(source, "split", lambda line: ("train", "train", "test", "test", "train", "train", "test", "val")[(line - 2) % 8])
    (source / "A/p2 0.png").write_bytes((source / "A/p1 0.png").read_bytes())
    (source / "B/p0 0.png").write_bytes((source / "A/p1 1.png").read_bytes())
    found = problems(source)
    assert [text.split(" (sha256")[0] for text in found] == [
        "center 'A': patient 'A/3' is in test (A/p3 0.png, line 8) and val (A/p3 1.png, line 9), expected in one split only",
        "center 'B': patient 'B/3' is in test (B/p3 0.png, line 16) and val (B/p3 1.png, line 17), expected in one split only",
        "the same file content",
    ]
    assert "A/p1 0.png, line 4 (test), A/p2 0.png, line 6 (train); expected in one" in found[2]
    picture(source / "A/p2 0.png", 555)
    leaking = run(source, split="source")
    assert leaking.manifest.split_unit == "image" and any(text.startswith("LEAKAGE, as asked for: 2 of 8") for text in leaking.warnings)
    assert any("is at 2 centers with different labels, in several splits" in text for text in leaking.warnings)


def test_splits_and_external_centers_that_contradict(source):
    with_column(source, "split", lambda line: "train" if line in (2, 12) else "")
    with_column(source, "external", lambda line: "yes" if line in (2, 3) or line > 9 else "")
    assert problems(source) == [
        "center 'A': external is 'yes' in line 2 and '' in line 4, expected one answer for all images of a centre",
        "line 2: split 'train' of the external center 'A', expected test or nothing: it does not train",
        "center 'A': 6 of 8 images have no split (line 4, 5, 6, …), expected one for all images of a centre, or for none",
        "line 12: split 'train' of the external center 'B', expected test or nothing: it does not train",
    ]
    write_table(source, [line.rsplit(",", 2)[0] for line in (source / "samples.csv").read_text().splitlines()])
    with_column(source, "external", lambda line: "1")
    assert problems(source) == ["external: all centers are, expected at least one that trains"]


def test_names_and_numbers_of_classes_side_by_side(source):
    change(source, ("A/p1 0.png,A,1,tumor", "A/p1 0.png,A,1,1"))
    assert problems(source) == [
        "label: names ('normal', line 2) and numbers ('1', line 4) side by side; expected one way in all rows, so that it is sure what the"
        " numbers mean"
    ]
    text = (source / "samples.csv").read_text().replace("normal", "1").replace("tumor", "2")
    (source / "samples.csv").write_text(text)
    found = problems(source)
    assert found[0].startswith("line 6: label '2' is no class") or "label '2' is no class of camelyon17" in "".join(found)
    assert "label: no row has class 'normal' (0), expected images of it, or a task without it" in found


def test_masks_of_another_size_missing_twice_or_the_image_itself(tmp_path):
    source, lines = tmp_path / "source", ["image,center,patient,mask"]
    for number in range(8):
        picture(source / f"{number}.png", number)
        outline(source / f"m{number}.png", (9, 7) if number != 2 else (7, 9))
        mask = {3: "m9.png", 4: "", 5: "5.png"}.get(number, f"m{number}.png")
        lines.append(f"{number}.png,A,{number},{mask}")
    write_table(source, lines)
    found = problems(source, task="nuclei")
    assert found == [
        f"line 5: mask 'm9.png': file not found in {source.resolve()}",
        "line 6: mask is empty, expected a path below the data folder",
        "line 7: mask '5.png' is the image itself, expected the file of its mask",
        "line 4: m2.png: mask is 7x9, expected 9x7 as its image 2.png; it lies across: masks are turned by their own orientation tag, as"
        " images are",
    ]
    outline(source / "m2.png")
    change(source, ("3.png,A,3,m9.png", "3.png,A,3,m2.png"), ("4.png,A,4,", "4.png,A,4,m4.png"), ("5.png,A,5,5.png", "5.png,A,5,m5.png"))
    done = run(source, task="nuclei")
    assert "1 mask(s) belong to several images, e.g. m2.png in lines 4 and 5: right only where these show the same" in done.warnings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""), ("0.5", "0.5,0.5"), ("0,5", "0.5,0.5"), ("0,00025", "0.00025,0.00025"), ("2.5e-4", "0.00025,0.00025"), ("1", "1,1"),
        ("0.5 x 0.7", "0.5,0.7"), ("0,5×0,7", "0.5,0.7"), ("0.5,0.7", "0.5,0.7"), ("0,5; 0,7", "0.5,0.7"), ("0.5 0.7", "0.5,0.7"),
        ("1, 0.5", "1,0.5"),
    ],
)  # fmt: skip
def test_spacing(text, found):
    assert spacing_of(text) == (found, "")


@pytest.mark.parametrize("text", ["-1", "0", "1,5", "0.5,", "nan", "1e3", "0.5 mm", "0.5 x 0.5 x 3", "1 x 0", "0,0"])
def test_wrong_spacing(text):
    found, problem = spacing_of(text)
    assert found == "" and problem.startswith(f"spacing {text!r}")


def test_few_and_odd_names_are_told(source):
    change(source, ("A/p0 0.png,A,0", "A/p0 0.png,=A,0"), ("B/p1 0.png,B,", "B/p1 0.png,b,"))
    found = problems(source)
    assert any("begins with '=', a formula to spreadsheets" in text for text in found)
    assert any("center 'B' and 'b': one name in 2 spellings" in text for text in found)


@pytest.mark.parametrize("folders", ["['1', '0']", "[ben, mal]"])
def test_folders_called_otherwise_mean_the_same_in_a_table(tmp_path, folders):
    """One tree and one record: read by its folders, and by the table that is guessed of them."""
    task, data = tmp_path / "t.yaml", tmp_path / "data"
    task.write_text(f"kind: classification\nclasses: [benign, malignant]\nclass_folders: {folders}\nuse: x\n")
    words = yaml.safe_load(folders)
    for number, (center, split, word) in enumerate(itertools.product("AB", ("traindata", "testdata"), words)):
        for patient in range(3):
            picture(data / center / split / word / f"{split}{word}{patient}" / "x.png", 10 * number + patient)
    by_folders = prepare(task, data, tmp_path / "one", progress=False).manifest.table
    write_samples(tmp_path / "s.csv", guess_samples(data, str(task)).table)
    by_table = prepare(task, data, tmp_path / "two", samples=str(tmp_path / "s.csv"), progress=False).manifest.table
    assert by_folders.set_index("path")["label"].to_dict() == by_table.set_index("path")["label"].to_dict()
    assert set(by_table["label"]) == {0, 1}


def warned(source, words, **options):
    return [warning for warning in run(source, **options).warnings if words in warning]


def test_a_centre_where_every_image_is_another_patient_is_told(source):
    assert warned(source, "every image is another patient") == []
    header, *lines = (source / "samples.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    write_table(source, [header, *(f"{c[0]},{c[1]},{n if c[1] == 'A' else c[2]},{c[3]}" for n, c in enumerate(cells))])
    assert warned(source, "every image is another patient", out="other") == [
        "at A every image is another patient; if some are of one person, give them one name (perhaps A/p0 0.png and A/p0 1.png)"
    ]


def test_folders_of_people_and_of_classes():
    def alone(*paths):
        return lone_patients([(path, "A", path) for path in paths], lambda folder: folder == "benign")

    assert "(perhaps A/Meyer/x.png and A/Meyer/y.png)" in alone("A/Meyer/x.png", "A/Meyer/y.png", "A/Huber/z.png")[0]
    assert alone("A/benign/x.png", "A/benign/y.png", "A/train/z.png", "A/train/w.png") == [
        "at A every image is another patient; if some are of one person, give them one name"
    ]
    assert alone("A/x.png") == []


def test_a_misspelt_centre_is_told(source):
    for center, name in (("A", "Uniklinik Köln"), ("B", "Bonn")):
        text = (source / "samples.csv").read_text(encoding="utf-8")
        (source / "samples.csv").write_text(text.replace(f".png,{center},", f".png,{name},"), encoding="utf-8")
    change(source, ("p3 0.png,Uniklinik Köln", "p3 0.png,Uniklinik Koeln"), ("p3 1.png,Uniklinik Köln", "p3 1.png,Uniklinik Koeln"))
    assert problems(source) == [
        "center 'Uniklinik Koeln': 1 patient(s) to divide, expected at least 3, one for each of train, val, test; is it 'Uniklinik Köln' in"
        " another spelling? Then give both one name"
    ]
    with_column(source, "split", lambda line: ("train", "train", "train", "train", "test", "test", "train", "train")[(line - 2) % 8])
    text = (source / "samples.csv").read_text(encoding="utf-8").replace("Koeln,3,tumor,train", "Koeln,3,tumor,test")
    (source / "samples.csv").write_text(text, encoding="utf-8")
    assert warned(source, "counted as two", out="other") == [
        "centers 'Uniklinik Koeln' and 'Uniklinik Köln' are counted as two; if they are one, give it one name"
    ]


def test_a_wrong_header_is_told_before_images_are_read(source, monkeypatch):
    def read(*arguments, **options):
        raise AssertionError("images are read")

    monkeypatch.setattr("vfmgl_lib.tasks.samples.inspect_files", read)
    lines = (source / "samples.csv").read_text().splitlines()[1:]
    write_table(source, ["bild;klinik;patient;diagnose", *(line.replace(",", ";") for line in lines)])
    found = problems(source)
    assert [text.rsplit("; ", 1)[1] for text in found[:3]] == [
        f"is {name!r} meant? Then call it so" for name in ("image", "center", "label")
    ]
    assert [text.split(" is missing")[0] for text in found[3:]] == [f"header: column {name!r}" for name in ("image", "center", "label")]


def test_a_prepared_set_says_where_there_are_few_test_patients(source):
    (told,) = [text for text in run(source).warnings if text.startswith("test: ")]
    assert told.startswith("test: 1 patient at A, 1 patient at B: below 5 of a class no test of an AUC")


def test_a_column_that_is_empty_everywhere_is_told_once_and_first(source):
    lines = (source / "samples.csv").read_text(encoding="utf-8").splitlines()
    emptied = [lines[0], *(f"{line.split(',')[0]},{line.split(',')[1]},," for line in lines[1:])]
    emptied[3] = "gone.png,A,,"
    write_table(source, emptied)
    table = source / "samples.csv"
    then = f"fill in the column, in {table}, then run the same command again"
    found = problems(source)
    assert found[:2] == [
        f"patient: empty in all 16 rows, expected who it is; a name of its own where each image is another person's; {then}",
        f"label: empty in all 16 rows, expected one of normal, tumor, or their numbers 0 to 1; {then}",
    ]
    assert len(found) == 3 and found[2].startswith("line 4: image 'gone.png': file not found"), "and no more: no class without rows"
    with pytest.raises(ManifestError) as caught:
        run(source, task="endometrial")  # which names no classes
    assert f"label: empty in all 16 rows, expected the names of at least two classes; {then}" in caught.value.problems
