"""Lists of diagnoses as colleagues write them, joined with folders as hospitals have them."""

import re
import shlex
from pathlib import Path

import pytest

from tests.tasks.test_template import tree
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.tasks.list_columns import column_choice
from vfmgl_lib.tasks.next_task import class_order
from vfmgl_lib.tasks.template import guess_samples
from vfmgl_lib.tools.data.__main__ import main

TASK = "kind: classification\nclasses: [benign, malignant]\nuse: tells them apart\n"
TWO = ("Nord/Image_01L.jpg", "Nord/Image_01R.jpg", "Nord/Image_02L.jpg", "Süd/P-001/a.png", "Süd/P-007/a.png", "Süd/P-007/b.png")
LIST = "Klinik;Pat.-Nr.;Alter;Diagnose\nNord;1;61;gutartig\nNord;2;70;bösartig\nSüd;1;48;Bösartig\nSüd;7;7;gutartig\n"
TWO_PEOPLE = "Patient;Diagnose\n1;good\n2;bad\n"


def joined(root: Path, files: tuple[str, ...], text: str, encoding: str = "utf-8", columns: str = "", task: str = ""):
    """Image -> (center, patient, label), and what was told."""
    tree(root / "set", *files)
    (root / "list.csv").write_text(text, encoding=encoding)
    found = guess_samples(root / "set", task=task, listed=root / "list.csv", list_columns=columns)
    rows = {row.image: (row.center, row.patient, row.label) for row in found.table.itertuples()}
    return rows, "\n".join(found.told)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (LIST, "utf-8"),
        (LIST, "utf-8-sig"),
        ("sep=;\r\n" + LIST.replace("\n", "\r\n"), "utf-8-sig"),
        (LIST.replace(";", "\t"), "utf-16"),
        (LIST.replace(";1;", ";001;").replace(";7;7", ";7,0;7"), "utf-8"),
        (LIST.replace("Süd", "SUED").replace("Nord", "Klinikum Nord"), "utf-8"),
        (LIST.replace("Süd", "Su\u0308d"), "utf-8"),
        ("Diagnose;Klinik;Patienten-Nr\ngutartig;Nord;1\nbösartig;Nord;2\nBösartig;Süd;p1\ngutartig;süd ;P007\n", "utf-8"),
    ],
    ids=["plain", "mark", "sep", "utf-16", "numbers", "centres", "decomposed", "other words"],
)
def test_one_number_at_two_hospitals(tmp_path, text, encoding):
    rows, told = joined(tmp_path, TWO, text, encoding)
    assert [label.casefold() for _, _, label in rows.values()] == ["gutartig"] * 2 + ["bösartig"] * 2 + ["gutartig"] * 2
    assert len({label for _, _, label in rows.values()}) == 2 and "are one class" in told
    assert rows["Süd/P-007/b.png"][:2] == ("Süd", "P-007")
    assert "6 of 6 images got one" in told and "no image" not in told and "no line" not in told


def test_what_it_tells_and_the_command_for_the_task(tmp_path):
    _, told = joined(tmp_path, TWO, LIST)
    assert "patient is 'Pat.-Nr.' (by its name, e.g. '1'), center is 'Klinik' (by its name, e.g. 'Nord'), label is 'Diagnose'" in told
    assert "'P-001' is its '1'" in told
    command = told[told.index("vfmgl data new-task") :]
    words = command.replace("my_task.yaml", str(tmp_path / "my_task.yaml"))
    assert main(shlex.split(words)[2:]) == 0
    assert '["gutartig", "bösartig"]' in (tmp_path / "my_task.yaml").read_text("utf-8")


def test_the_words_of_a_task(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    text = "site,case,truth\nNord,1,BENIGN\nNord,2,Malignant\nSüd,1,unclear\nSüd,7,benign\nSüd,8,benign\n"
    rows, told = joined(tmp_path, TWO, text, task=str(tmp_path / "task.yaml"))
    assert [row[2] for row in rows.values()] == ["benign", "benign", "malignant", "", "benign", "benign"]
    assert "label is 'truth' (by its values" in told
    assert "'unclear' (1 lines) of the list is no class" in told and "new-task" not in told


def test_other_words_than_the_task_s_are_refused_until_it_knows_them(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    with pytest.raises(ManifestError, match=r"(?s)'gutartig' .*is no class, expected one of benign, malignant.*class_folders"):
        joined(tmp_path, TWO, LIST, task=str(tmp_path / "task.yaml"))
    (tmp_path / "other.yaml").write_text(TASK + "class_folders: [gutartig, bösartig]\n", encoding="utf-8")
    found = guess_samples(tmp_path / "set", task=str(tmp_path / "other.yaml"), listed=tmp_path / "list.csv")
    assert set(found.table["label"]) == {"benign", "malignant"}


def test_without_a_centre_one_number_at_two_hospitals_is_left_empty(tmp_path):
    files = (*TWO, "Nord/Image_12L.jpg", "Süd/P-030/a.png")
    rows, told = joined(tmp_path, files, "Patient;Diagnose\n1;gutartig\n2;bösartig\n7;gutartig\n12;bösartig\n030;bösartig\n")
    labels = {image: row[2] for image, row in rows.items()}
    assert labels["Nord/Image_01L.jpg"] == labels["Süd/P-001/a.png"] == ""
    assert labels["Nord/Image_12L.jpg"] == labels["Süd/P-030/a.png"] == "bösartig"
    assert "at several centers" in told


def test_two_diagnoses_missing_images_and_missing_lines(tmp_path):
    text = LIST + "Nord;2;70;gutartig\nNord;99;50;bösartig\n"
    rows, told = joined(tmp_path, (*TWO, "Nord/Image_55L.jpg"), text)
    assert rows["Nord/Image_02L.jpg"][2] == rows["Nord/Image_55L.jpg"][2] == ""
    assert "1 with two diagnoses, left empty: Image_02 (Nord)" in told
    assert "bösartig and gutartig" in told
    assert "1 patients of it have no image: 99 (Nord)" in told and "1 images have no line in the list: Nord/Image_55L.jpg" in told


def test_numbers_that_two_patients_share_are_not_matched(tmp_path):
    files = ("Nord/P-007/a.png", "Nord/K-7/a.png", "Nord/P-8/a.png")
    rows, told = joined(tmp_path, files, "Patient;Diagnose\n7;gut\n8;schlecht\n9;gut\n")
    assert [row[2] for row in rows.values()] == ["", "", "schlecht"]
    assert "2 cannot be told apart by their numbers" in told
    rows, _ = joined(tmp_path / "other", files, "Patient;Diagnose\nP-007;gut\nK 07;schlecht\n8;schlecht\n")
    assert [row[2] for row in rows.values()] == ["schlecht", "gut", "schlecht"]  # K-7, P-007, P-8


def test_files_tell_centre_and_patient_where_folders_do_not(tmp_path):
    files = ("scan a.png", "scan b.png", "other.JPG")
    text = "Datei,Patient,Klinik,Befund\nscan a.png,p1,Nord,gut\nSCAN B,p1,Nord,gut\nother.jpg,p2,Süd,schlecht\n"
    rows, told = joined(tmp_path, files, text)
    assert rows == {"other.JPG": ("Süd", "p2", "schlecht"), "scan a.png": ("Nord", "p1", "gut"), "scan b.png": ("Nord", "p1", "gut")}
    assert "image is 'Datei'" in told and "patient: 3 images got theirs from the list" in told


def test_files_called_as_patients_in_one_folder(tmp_path):
    rows, told = joined(tmp_path, ("0001.png", "0012.png", "0013.png"), "Centre;No patient;Diagnostic\nA;1;bénin\nB;12;malin\nB;13;malin\n")
    assert rows == {"0001.png": ("A", "1", "bénin"), "0012.png": ("B", "12", "malin"), "0013.png": ("B", "13", "malin")}
    assert "center: taken from the list (A, B)" in told


def test_a_number_of_another_center_is_no_match_where_no_guess_tells_the_centers(tmp_path):
    """The list lacks Nord's patient 109: its images are not those of the Süd's patient of that number."""
    files = ("St. Süd_ID00109-0.png", "St. Süd_ID00109-1.png", "Nord_ID00109-0.png", "Nord_ID00007-0.png")
    listed = "Klinik;Pat.-Nr.;Diagnose\nSt. Süd;109;krank\nNord;7;gesund\nNord;8;krank\n"
    rows, told = joined(tmp_path, files, listed)
    labels = {name: row[2] for name, row in rows.items()}
    assert labels == {files[0]: "krank", files[1]: "krank", files[2]: "", files[3]: "gesund"}
    assert "by their paths they may be another center's: Nord_ID00109-0.png" in told
    rows, _ = joined(tmp_path, files, "Pat.-Nr.;Diagnose\n109;krank\n8;gesund\n7;gesund\n")
    assert {row[2] for name, row in rows.items() if "109" in name} == {""}, "two people may be called so, and the list has one"


def test_columns_as_given(tmp_path):
    text = "Nr;Haus;Diagnose;Zweitbefund\n1;Nord;gut;schlecht\n2;Nord;gut;gut\n7;Süd;schlecht;gut\n"
    rows, told = joined(tmp_path, TWO, text, columns="patient=Nr,label=zweitbefund")
    assert rows["Nord/Image_01L.jpg"][2] == "schlecht" and rows["Süd/P-007/a.png"][2] == "gut" and "as given" in told
    with pytest.raises(ManifestError, match="--list-columns label=Befund: no such column, expected one of 'Nr', 'Haus'"):
        guess_samples(tmp_path / "set", listed=tmp_path / "list.csv", list_columns="label=Befund")
    assert column_choice("label=a, b,center=") == {"label": "a, b", "center": ""}
    with pytest.raises(ManifestError, match="expected image, patient, center, label as in"):
        column_choice("diagnosis=x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Klinik;Pat.-Nr.;Diagnose\nNord;801;gut\nNord;802;schlecht\n",
            "(?s)no column has the images'.*Pat.-Nr.: 801, 802.*Nord/Image_01L",
        ),
        ("Klinik;Pat.-Nr.;Diagnose\nX;1;gut\nY;2;schlecht\n", r"(?s)its centers \(X, Y\) are none of the images' \(Nord, Süd\).*center="),
        ("Klinik;Pat.-Nr.;Sex\nNord;1;m\nNord;2;f\n", "(?s)which column is the diagnosis cannot be told.*Sex: m, f.*--list-columns"),
        ("Klinik;Pat.-Nr.;Diagnose\nNord;1;gut\nNord;2;gut\n", "'Diagnose' has 1 different diagnoses"),
        ("Klinik;Pat.-Nr.;Diagnose\nNord;1\n", "line 2: 2 fields, expected the header's 3"),
        ("Klinik;Pat.-Nr.;Diagnose\n", "has a header only"),
    ],
)
def test_a_list_that_cannot_be_joined(tmp_path, text, words):
    with pytest.raises(ManifestError, match=words):
        joined(tmp_path, TWO, text)


def test_a_list_of_windows_is_read_and_told(tmp_path):
    tree(tmp_path / "set", *TWO)
    plain, windows = tmp_path / "plain.csv", tmp_path / "windows.csv"
    text = LIST + "Städtisch;99;50;gutartig\n"
    plain.write_text(text, encoding="utf-8")
    windows.write_text(text, encoding="cp1252")
    first, second = (guess_samples(tmp_path / "set", listed=file) for file in (plain, windows))
    assert first.table.equals(second.table) and "Windows-1252" not in "".join(first.told)
    assert any("not UTF-8, read as Windows-1252, e.g. 'bösartig'" in line for line in second.told)
    windows.write_bytes(text.encode("cp1252") + b"\x81;1;50;gutartig\n")  # no letter of Windows-1252
    with pytest.raises(ManifestError, match="CSV UTF-8"):
        guess_samples(tmp_path / "set", listed=windows)


def test_segmentations_are_refused(tmp_path):
    tree(tmp_path / "set", *TWO)
    (tmp_path / "list.csv").write_text(LIST, encoding="utf-8")
    with pytest.raises(ManifestError, match="nuclei is a segmentation"):
        guess_samples(tmp_path / "set", task="nuclei", listed=tmp_path / "list.csv")


def test_the_class_without_disease_comes_first():
    assert class_order(["malignant", "benign", ""]) == ["benign", "malignant"]
    assert class_order(["bösartig", "gutartig"]) == ["gutartig", "bösartig"]
    assert class_order(["yes", "no"]) == ["no", "yes"] and class_order(["b", "a"]) == ["a", "b"]


def test_by_the_command(tmp_path, capsys):
    tree(tmp_path / "set", *TWO)
    (tmp_path / "list.csv").write_text(LIST, encoding="utf-8")
    assert main(["template", str(tmp_path / "set"), "--list", str(tmp_path / "list.csv")]) == 0
    assert "6 of 6 images got one" in capsys.readouterr().out
    assert (tmp_path / "set" / "samples.csv").read_text("utf-8-sig").splitlines()[1] == "Nord/Image_01L.jpg,Nord,Image_01,gutartig"


def labels_of(root: Path, files: tuple[str, ...], text: str) -> tuple[list[str], str]:
    rows, told = joined(root, files, text)
    return [rows[file][2] for file in files], told


@pytest.mark.parametrize(
    ("people", "listed", "expected"),
    [
        ("K-1 P-2", "P-1;bad P-2;good", ["", "good"]),  # both sides call people P
        ("P-1 K-2 P-3", "Pat 1;bad Pat 2;good Pat 3;good", ["", "", ""]),  # one word would mean two
        ("12a 13a", "12b;bad 13a;good", ["", "good"]),
        ("01 02", "1R;bad 2;good", ["", "good"]),
        ("Image_01 Image_02", "Pat 1;bad Pat 2;good", ["bad", "good"]),
        ("P001 P011 P111", "1;bad 11;good 111;bad", ["bad", "good", "bad"]),
    ],
)
def test_letters_beside_equal_numbers(tmp_path, people, listed, expected):
    files = tuple(f"Nord/{name}/a.png" for name in (*people.split(), "Q 77"))  # somebody whom the list has in the same words
    lines = [";".join(line) for line in re.findall(r"([^;]+);(\w+) ?", listed)]
    found, told = labels_of(tmp_path, files, "\n".join(["Patient;Diagnose", *lines, "Q 77;good", "Q 78;bad", ""]))
    assert found == [*expected, "good"]
    assert ("cannot be told apart by their numbers" in told) == ("" in expected)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("Nord/P1/visit1/a.png Nord/P2/visit1/a.png Nord/P2/visit2/a.png", ["good", "bad", "bad"]),
        ("Nord/1/2024-01-05/a.png Nord/1/2024-02-05/a.png Nord/2/2024-01-05/a.png", ["good", "good", "bad"]),
        ("Nord/sub-01/ses-02/anat/a.png Nord/sub-02/ses-01/anat/a.png", ["good", "bad"]),
        ("Nord/ward_2/P1/a.png Nord/ward_1/P2/a.png", ["good", "bad"]),
    ],
)
def test_visits_dates_and_wards_are_no_patients(tmp_path, paths, expected):
    assert labels_of(tmp_path, tuple(paths.split()), TWO_PEOPLE)[0] == expected


def test_folders_of_which_either_may_be_the_patient(tmp_path):
    files = tuple(f"Nord/{outer}/{inner}/a.png" for outer in ("x1", "x2") for inner in ("y1", "y2"))
    with pytest.raises(ManifestError, match="no column has the images' files or patients"):
        joined(tmp_path, files, TWO_PEOPLE)
    found = guess_samples(tmp_path / "set")
    assert set(found.table["patient"]) == {""} and "which may be the patient as well" in "\n".join(found.told)


@pytest.mark.parametrize(
    "header", ["Nr;Alter", "Nr;Patient age", "Name;Patientenalter", "Kennung;Datum der Untersuchung", "Patient Name;Patient Age"]
)
def test_ages_and_dates_are_no_patients(tmp_path, header):
    files = tuple(f"Nord/{age}/a.png" for age in range(40, 46))
    lines = [f"{700 + age};{age};{'good' if age % 2 else 'bad'}" for age in range(40, 46)]
    with pytest.raises(ManifestError, match="no column has the images' files or patients"):
        joined(tmp_path, files, "\n".join([f"{header};Diagnose", *lines]))


def test_scores_are_no_patients(tmp_path):
    files = tuple(f"Nord/{number}/a.png" for number in range(1, 5))
    lines = [f"{700 + number};{number % 4 + 1};{'good' if number % 3 else 'bad'}" for number in range(30)]
    with pytest.raises(ManifestError, match="no column has the images' files or patients"):
        joined(tmp_path, files, "\n".join(["Nr;Score;Diagnose", *lines]))


def test_an_age_at_diagnosis_is_no_diagnosis(tmp_path):
    found, _ = labels_of(tmp_path, ("N/1/a.png", "N/2/a.png"), "Patient;Alter bei Diagnose;Befund histologisch\n1;50;good\n2;60;bad\n")
    assert found == ["good", "bad"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Fall;Patient;Diagnose\n2;1;good\n1;2;bad\n", "which column is the patient cannot be told, 'Fall' or 'Patient'"),
        ("Patient;Befund;Diagnose\n1;good;bad\n2;bad;good\n", "which column is the label cannot be told, 'Befund' or 'Diagnose'"),
    ],
)
def test_two_columns_that_could_be_it(tmp_path, text, words):
    with pytest.raises(ManifestError, match=words):
        joined(tmp_path, ("N/1/a.png", "N/2/a.png"), text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Patient;Diagnose\n1;1\n2;2\n", "numbers up to 2, expected one of benign, malignant, or their numbers 0 to 1"),
        ("Patient;Diagnose\n1;benign\n2;1\n", "names .'benign'. and numbers .'1'. side by side"),
        ("Patient;treated;truth\n1;0;b\n2;1;m\n", "which column is the diagnosis"),
    ],
)
def test_numbers_that_may_count_otherwise(tmp_path, text, words):
    (tmp_path / "task.yaml").write_text(TASK)
    with pytest.raises(ManifestError, match=words):
        joined(tmp_path, ("N/1/a.png", "N/2/a.png"), text, task=str(tmp_path / "task.yaml"))


def test_a_second_diagnosis_that_is_no_class_leaves_it_empty(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK)
    text = "Patient;Diagnose\n1;benign\n1;unclear\n2;malignant\n2;\n"
    rows, told = joined(tmp_path, ("N/1/a.png", "N/2/a.png"), text, task=str(tmp_path / "task.yaml"))
    assert [row[2] for row in rows.values()] == ["", "malignant"] and "1 with two diagnoses" in told


def test_a_file_of_two_patients_or_of_another_centre(tmp_path):
    text = "Datei;Klinik;Patient;Diagnose\na.png;Nord;1;good\na.png;Nord;2;good\nb.png;Nord;3;bad\nc.png;Nord;4;bad\nd.png;Süd;5;good\n"
    rows, told = joined(tmp_path, ("Nord/a.png", "Nord/b.png", "Süd/c.png", "Süd/d.png"), text)
    assert [row[2] for row in rows.values()] == ["", "bad", "", "good"]
    assert rows["Nord/a.png"][1] == "" and "Nord/a.png is of 1 (Nord) and 2 (Nord)" in told
    assert "1 of the list are at another center there, left empty: c.png" in told


def test_one_person_keeps_one_name_where_the_list_renames_some(tmp_path):
    files = ("Nord/P-7/a.png", "Nord/P-7/b.png", "Nord/P-8/c.png")
    text = "Datei;Patient;Diagnose\na.png;7;good\nb.png;;good\nc.png;8;bad\n"
    rows, told = joined(tmp_path, files, text)
    assert [row[1] for row in rows.values()] == ["7", "", "8"] and "1 images have none in the list" in told
    rows, told = joined(tmp_path / "spelled", files, text.replace("b.png;;", "b.png;P7;"))
    assert [row[1] for row in rows.values()] == [
        "7",
        "7",
        "8",
    ] and "1 have several spellings in the list and get one, e.g. '7' and 'P7'" in told
    rows, _ = joined(tmp_path / "two", files, text.replace("b.png;;", "b.png;9;"))
    assert [row[1] for row in rows.values()] == ["7", "9", "8"], "the list says that they are two"
    rows, _ = joined(tmp_path / "same", files, text.replace(";7;", ";P-7;").replace(";8;", ";P-8;"))
    assert [row[1] for row in rows.values()] == ["P-7", "P-7", "P-8"]


@pytest.mark.parametrize(("own", "listed"), [("Nord", "Nord-Ost"), ("UKE", "UKE 2"), ("Klinik Süd", "Klinik"), ("Haus Eck", "Haus Eck B")])
def test_neighbouring_houses_are_not_one(tmp_path, own, listed):
    found, told = labels_of(tmp_path, (f"{own}/1/a.png", "X/1/a.png"), f"Klinik;Patient;Diagnose\n{listed};1;bad\nX;1;good\n")
    assert found == ["", "good"] and f"is the list's {listed!r}" not in told


def test_cases_of_series_in_one_folder(tmp_path):
    (tmp_path / "task.yaml").write_text(TASK + "channels: series\nseries: [t1, t2]\n")
    tree(tmp_path / "set", *(f"scan{number}_{name}.png" for number in (1, 2) for name in ("t1", "t2")))
    (tmp_path / "list.csv").write_text("Patient;Diagnose\n1;benign\n2;malignant\n")
    found = guess_samples(tmp_path / "set", task=str(tmp_path / "task.yaml"), listed=tmp_path / "list.csv")
    rows = found.table[["t1", "t2", "patient", "label"]].to_numpy().tolist()
    assert rows == [["scan1_t1.png", "scan1_t2.png", "1", "benign"], ["scan2_t1.png", "scan2_t2.png", "2", "malignant"]]
