"""Guesses from names: what they make of common trees, what they leave open, and that a table is not lost."""

import pandas as pd
import pytest

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.tasks.template import guess_samples, write_samples
from vfmgl_lib.tasks.words import PATIENT_FORMS


def tree(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")  # nothing is opened
    return root


def guessed(root, **options):
    found = guess_samples(root, **options)
    return found.table.set_index("image").sort_index(), "\n".join(found.told)


def test_classes_below_centers_with_patients(tmp_path):
    names = [f"{c}/{k}/{c}{k}{p}/{i}.png" for c in ("Nord", "Süd") for k in ("benign", "malignant") for p in range(3) for i in range(2)]
    table, told = guessed(tree(tmp_path, *names))
    assert list(table.columns) == ["center", "patient", "label"] and len(table) == 24
    row = table.loc["Süd/malignant/Südmalignant1/0.png"]
    assert (row["center"], row["patient"], row["label"]) == ("Süd", "Südmalignant1", "malignant")
    assert "label: the name of folder 2" in told and "center: the name of folder 1" in told and "3 of" not in told.split("\n")[0]


def test_classes_above_centers_by_the_words_of_the_task(tmp_path):
    numbers = {"Normal": range(3), "1": range(3, 6)}
    names = [f"{k}/{c}/Image_{n:02}{eye}.JPG" for k, own in numbers.items() for c in "AB" for n in own for eye in "LR"]
    table, told = guessed(tree(tmp_path, *names), task="camelyon17")
    row = table.loc["1/B/Image_05R.JPG"]
    assert (row["center"], row["patient"], row["label"]) == ("B", "Image_05", "1")
    assert "patient at A: the name before L or R, 6 patients of 12 images" in told
    table, told = guessed(tmp_path, task="camelyon17", patient_pattern="Image_([0-9]+)")
    assert table.loc["1/B/Image_05R.JPG", "patient"] == "05" and "by the pattern" in told


def test_masks_in_folders_and_endings(tmp_path):
    tree(
        tmp_path,
        *(f"images/A/{n}.tif" for n in (1, 2)),
        *(f"masks/A/{n}_gt.png" for n in (1, 2)),
        *(f"B/x{n}.png" for n in (3, 4)),
        *(f"B/x{n}_mask.png" for n in (3, 9)),
        *(f"B/x{n}_seg.png" for n in (3,)),
        "B/.hidden.png",
        "B/Thumbs.db",
    )
    table, told = guessed(tmp_path)
    assert list(table.columns) == ["center", "patient", "mask"]
    assert table["mask"].to_dict() == {
        "images/A/1.tif": "masks/A/1_gt.png",
        "images/A/2.tif": "masks/A/2_gt.png",
        "B/x3.png": "B/x3_mask.png",
        "B/x4.png": "",
    }
    assert "1 without one, e.g. B/x4.png" in told and "1 images have several" in told and "e.g. B/x9_mask.png" in told


def test_splits_are_taken_over_where_every_image_has_one(tmp_path):
    tree(tmp_path, *(f"A/{s}/images/1{s}_{n}.png" for s in ("training", "test") for n in range(2)), "A/training/labels/1training_0.png")
    table, told = guessed(tmp_path, task="nuclei")
    assert table["split"].value_counts().to_dict() == {"train": 2, "test": 2} and "split: by folders" in told
    assert table.loc["A/test/images/1test_0.png", "patient"] == "1test"
    tree(tmp_path, "A/5.png")
    table, told = guessed(tmp_path, task="nuclei")
    assert "split" not in table and "1 of 5 images lie in no folder such as train or test" in told


def test_what_cannot_be_told_is_left_open(tmp_path):
    tree(tmp_path / "Klinik", "one.png", "two.png")
    table, told = guessed(tmp_path / "Klinik")
    assert set(table["center"]) == {"Klinik"} and set(table["patient"]) == {""} and set(table["label"]) == {""}
    assert told.count("FILL IN") == 2 and "WRITE the centres" in told
    with pytest.raises(ManifestError, match="no image found"):
        guess_samples(tree(tmp_path / "none", "a.txt"))
    with pytest.raises(ManifestError, match="folder not found"):
        guess_samples(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match="unknown task 'liver'"):
        guess_samples(tmp_path, task="liver")


def test_centers_by_the_names_of_files(tmp_path):
    table, told = guessed(tree(tmp_path, *(f"{c}_{n:03}-{k}.png" for c in ("RVA", "UHS") for n in range(3) for k in (1, 2))))
    assert table.loc["UHS_002-1.png", ["center", "patient"]].tolist() == ["UHS", "UHS_002"]
    assert "center: the letters that the file's name begins with: 6 RVA, 6 UHS" in told


def test_a_table_is_never_replaced_unasked(tmp_path):
    file, table = tmp_path / "samples.csv", pd.DataFrame({"image": ["Ä,1.png"], "center": ["A"]})
    write_samples(file, table)
    assert file.read_bytes() == '\ufeffimage,center\n"Ä,1.png",A\n'.encode()
    with pytest.raises(ManifestError, match="is there already and is not replaced; --force replaces it"):
        write_samples(file, table.head(0))
    assert b"1.png" in file.read_bytes()
    write_samples(file, table.head(0), force=True)
    assert file.read_bytes() == b"\xef\xbb\xbfimage,center\n"


def test_one_level_of_folders_is_the_centres_and_never_the_classes(tmp_path):
    tree(tmp_path, *(f"{c}/{n}.png" for c in ("Klinik Nord", "Klinik Süd") for n in range(3)))
    table, told = guessed(tmp_path)
    assert set(table["center"]) == {"Klinik Nord", "Klinik Süd"} and set(table["label"]) == {""}
    assert "(Klinik Nord, Klinik Süd) may be the centers or the classes; it is taken for the centers, FILL IN the label" in told
    assert "give --task FILE" in told and "kind: classification, since 0 of 6 images have a mask" in told


def test_patients_that_return_at_every_centre_are_no_classes(tmp_path):
    table, _ = guessed(tree(tmp_path, *(f"{c}/P{p}/{n}.png" for c in "AB" for p in range(3) for n in range(2))))
    assert set(table["label"]) == {""} and table.loc["B/P2/1.png", ["center", "patient"]].tolist() == ["B", "P2"]


def test_german_and_french_words(tmp_path):
    tree(tmp_path, *(f"Nord/Bilder/{n}.png" for n in range(3)), *(f"Nord/Masken/{n}.png" for n in range(2)))
    tree(
        tmp_path,
        *(f"Sud/{n}_image.png" for n in range(3)),
        *(f"Sud/{n}_masque.png" for n in range(3)),
        "Sud/Clichés/9.png",
        "Sud/masque_9.png",
    )
    table, told = guessed(tmp_path)
    assert table["mask"].to_dict() == {
        "Nord/Bilder/0.png": "Nord/Masken/0.png",
        "Nord/Bilder/1.png": "Nord/Masken/1.png",
        "Nord/Bilder/2.png": "",
        "Sud/0_image.png": "Sud/0_masque.png",
        "Sud/1_image.png": "Sud/1_masque.png",
        "Sud/2_image.png": "Sud/2_masque.png",
        "Sud/Clichés/9.png": "Sud/masque_9.png",
    }
    assert set(table["center"]) == {"Nord", "Sud"} and "kind: segmentation, since 6 of 7 images have a mask" in told


def test_some_masks_are_counted_where_it_is_no_segmentation(tmp_path):
    told = guessed(tree(tmp_path, *(f"A/{n}.png" for n in range(4)), "A/0_mask.png"), patient_pattern=r"^(\d)")[1]
    assert "kind: classification, since 1 of 4 images have a mask" in told and r"by the pattern ^(\d)," in told


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["US_2023-05-11_P15_1", "US_2022-01-30_P15_2", "US_2023-05-11_P3_1"], ["P15", "P15", "P3"]),
        (["US 2021-11 Pat15_1", "US 2021-12 Pat15_2", "US 2021-12 Pat4_1"], ["Pat15", "Pat15", "Pat4"]),
        (["20230511_7_1", "20230511_8_1", "20230512_7_2"], ["7", "8", "7"]),
        (["11.05.2023 12-1", "11.05.2023 12-2", "12.05.2023 13-1"], ["12", "12", "13"]),
        (["2023-05-11", "2023-05-12", "2023-06-01"], ["", "", ""]),
        (["2023_1399_a", "2023_1399_b", "2024_2_a"], ["2023", "2023", "2024"]),  # no month: a number
    ],
)
def test_a_date_says_when_and_not_who(tmp_path, names, patients):
    table, _ = guessed(tree(tmp_path, *(f"A/{name}.png" for name in names)))
    assert table.loc[[f"A/{name}.png" for name in names], "patient"].tolist() == patients


def test_a_doubtful_patient_is_left_empty(tmp_path):
    """Else numbers that are counted anew in each class's folder, or a device's name, would pass for a person."""
    twice = tree(tmp_path / "twice", *(f"{c}/{k}/{n}_1.png" for c in "AB" for k in ("gut", "krank") for n in (1, 2)))
    table, told = guessed(twice)
    assert set(table["patient"]) == {""} and set(table["label"]) == {"gut", "krank"}
    assert "left empty" in told and "2 of 2 patients have several classes, e.g. '1' has A/gut/1_1.png and A/krank/1_1.png" in told
    table, told = guessed(tree(tmp_path / "one", *(f"A/Scan2_{n}.png" for n in range(6)), *(f"B/S{n}_1.png" for n in range(6))))
    assert set(table.loc[table["center"] == "A", "patient"]) == {""} and (table.loc[table["center"] == "B", "patient"] != "").all()
    assert "patient at A: left empty" in told and "all 6 images are of one patient, 'Scan2'; FILL IN" in told


@pytest.mark.parametrize("name", ["Mamma10L_1", "12R_2", "07 left-03", "Image_01L"])
def test_a_counter_behind_the_side_is_no_part_of_the_patient(name):
    """Else the left and the right of one person would be two patients, on two sides of a split."""
    form = PATIENT_FORMS["the name before L or R"]
    assert form.match(name)[1] in ("Mamma10", "12", "07", "Image_01")
