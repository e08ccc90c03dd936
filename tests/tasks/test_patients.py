"""The patient table, its bad input, and the paper's Table 1 from it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.data.manifest import COLUMNS, Manifest, ManifestError
from vfmgl_lib.evaluation.beside_paper import PAPER_TABLE, groups_beside_paper, patients_beside_paper
from vfmgl_lib.tasks.patients import KEYS, QUANTITIES, patient_warnings, read_patients, table_one
from vfmgl_lib.tasks.prepare import patients_of

HEADER = "patient,age,figo,histology"


def write(root, *lines, header=HEADER):
    (root / "patients.csv").write_text("\n".join((header, *lines)) + "\n", encoding="utf-8")


def problems(root):
    with pytest.raises(ManifestError) as caught:
        read_patients(root)
    assert str(root / "patients.csv") in str(caught.value)
    return caught.value.problems or (str(caught.value).removeprefix(f"{root / 'patients.csv'}: "),)


def manifest(rows, classes=("0_NMI", "1_MI"), kind="classification") -> Manifest:
    """From (centre, split, label, patient)."""
    table = [
        (f"{center}/{split}/{number}", f"{number}.png", f"{number:064x}", center, patient, split, label, "")
        for number, (center, split, label, patient) in enumerate(rows)
    ]
    return Manifest("data", kind, classes, pd.DataFrame(table, columns=list(COLUMNS)))


def test_table_is_read(tmp_path):
    write(
        tmp_path,
        " A1 ,54.5,I,II,1,x",
        "",
        '"Müller, 2",0,IV,I,,',
        "A3,120,II,I,3,y",
        header="patient,age,figo,histology,grade,parity",
    )
    table = read_patients(tmp_path)
    assert list(table.columns) == ["patient", "age", "figo", "histology", "grade", "parity"]
    assert table["patient"].tolist() == ["A1", "Müller, 2", "A3"]
    assert table["age"].tolist() == [54.5, 0.0, 120.0] and table["age"].dtype == np.float64
    assert table["grade"].tolist() == ["1", "", "3"] and table["parity"].tolist() == ["x", "", "y"]


def test_columns_may_stand_in_any_order(tmp_path):
    write(tmp_path, "II,A1,III,60", header="histology,patient,figo,age")
    assert read_patients(tmp_path).to_dict("records") == [{"histology": "II", "patient": "A1", "figo": "III", "age": 60.0}]


def test_no_table_is_none(tmp_path):
    assert read_patients(tmp_path) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (",54,I,I", "patient is empty, expected a name"),
        ("A1,54 y,I,I", "age '54 y', expected a number of years from 0 to 120"),
        ('A1,"5,4,5",I,I', "age '5.4.5', expected a number of years from 0 to 120"),
        ("A1,121,I,I", "age '121', expected a number of years from 0 to 120"),
        ("A1,-3,I,I", "age '-3', expected a number of years from 0 to 120"),
        ("A1,nan,I,I", "age 'nan', expected a number of years from 0 to 120"),
        ("A1,,I,I", "age '', expected a number of years from 0 to 120"),
        ("A1,54,IA,I", "figo 'IA', expected one of I, II, III, IV"),
        ("A1,54,1,I", "figo '1', expected one of I, II, III, IV"),
        ("A1,54,I,serous", "histology 'serous', expected one of I, II"),
        ("A0,54,I,I", "patient 'A0' is in line 2 already, expected one row a patient"),
        ("A1,54,I", "3 fields, expected 4"),
    ],
)
def test_bad_row(tmp_path, line, expected):
    write(tmp_path, "A0,50,I,I", line)
    assert problems(tmp_path) == (f"line 3: {expected}",)


def test_bad_grade_and_all_problems_at_once(tmp_path):
    write(tmp_path, "A1,x,V,III,G1", header=HEADER + ",grade")
    assert [text.split(",")[0] for text in problems(tmp_path)] == [
        "line 2: age 'x'",
        "line 2: figo 'V'",
        "line 2: histology 'III'",
        "line 2: grade 'G1'",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("patient|age|figo|histology\nA1|54|I|I\n", "header is 'patient|age|figo|histology', expected 'patient,age,figo,histology'"),
        (HEADER + "\nA1,54,5,I,I\nA2,60,1,I,I\n", "every row has other than the header's 4 fields, the first one 5; are there commas"),
        ("patient,age,figo\nA1,54,I\n", "header is 'patient,age,figo', expected"),
        (HEADER + ",age\nA1,54,I,I,3\n", f"header is '{HEADER},age', expected"),
        (HEADER + ",\nA1,54,I,I,3\n", "line 2: 5 fields, expected 4"),
        (HEADER + ",,x\nA1,54,I,I,,3\n", f"header is '{HEADER},,x', expected"),
        (HEADER + "\n", "has a header only, expected at least one row"),
        ("", "header is '', expected"),
        (HEADER + '\n"A1,54,I,I\n', "is not CSV in UTF-8"),
    ],
)
def test_bad_file(tmp_path, content, expected):
    (tmp_path / "patients.csv").write_text(content, encoding="utf-8")
    (problem,) = problems(tmp_path)
    assert problem.startswith(expected)


def test_a_decimal_comma_in_an_age(tmp_path):
    (tmp_path / "patients.csv").write_bytes("\ufeffpatient;age;figo;histology\r\nMüller;61,5;I;II\r\n".encode())
    (row,) = read_patients(tmp_path).to_dict("records")
    assert row == {"patient": "Müller", "age": 61.5, "figo": "I", "histology": "II"}


def test_table_that_cannot_be_read(tmp_path):
    (tmp_path / "patients.csv").mkdir()
    assert problems(tmp_path)[0].startswith("cannot be read (Is a directory)")


def test_link_out_of_the_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "outside.csv").write_text(f"{HEADER}\nA1,54,I,I\n")
    (tmp_path / "data/patients.csv").symlink_to(tmp_path / "outside.csv")
    assert problems(tmp_path / "data")[0].startswith("links out of the data folder")


def test_warnings_about_patients_of_one_side_only(tmp_path):
    write(tmp_path, "A1,54,I,I", "Mu\u0308ller,54,I,I", *(f"X{number},54,I,I" for number in range(7)))
    found = patient_warnings(
        manifest([("A", "train", 0, "A1"), ("A", "test", 1, "M\u00fcller"), ("B", "test", 1, "B7")]), read_patients(tmp_path)
    )
    assert found == [
        "patients.csv: no images of 'X0', 'X1', 'X2', 'X3', 'X4', … (7 in all)",
        "patients.csv: no row for 'B7', who have images",
    ]
    assert patient_warnings(manifest([("A", "train", 0, "A1")]), pd.DataFrame({"patient": ["A1"]})) == []


def test_table_one(tmp_path):
    rows = [
        ("A", "train", 0, "a1"),
        ("A", "train", 0, "a1"),  # two images, one patient
        ("A", "val", 0, "a2"),  # validation counts as training
        ("A", "train", 1, "a3"),
        ("A", "train", 0, "a3"),  # images of both classes: the higher one
        ("A", "test", 1, "a4"),
        ("A", "test", 1, "a5"),
        ("D", "val", 0, "d\u00fc"),  # trains, if only for validation
        ("E", "test", 0, "e1"),  # no training set: external
        ("E", "test", 1, "e2"),
        ("E", "test", 1, "e3"),
    ]
    write(tmp_path, "a1,50,I,I", "a2,53,III,I", "a3,60,II,II", "a4,61,IV,I", "e1,40,I,I", "e2,70,I,II", "e3,71,I,I", "du\u0308,40,II,II")
    table = table_one(manifest(rows), read_patients(tmp_path)).set_index(list(KEYS))
    assert list(table.index) == [
        ("A", "train", "NMI"),
        ("A", "train", "MI"),
        ("A", "test", "NMI"),
        ("A", "test", "MI"),
        ("D", "train", "NMI"),
        ("D", "train", "MI"),
        ("E", "external", "NMI"),
        ("E", "external", "MI"),
    ]
    assert table["n"].tolist() == [2, 1, 0, 2, 1, 0, 1, 2]
    assert table.loc[("D", "train", "NMI"), "figo_II"] == 1
    assert table.loc[("A", "train", "NMI"), "age_mean"] == 51.5
    assert table.loc[("A", "train", "NMI"), "age_std"] == pytest.approx(np.sqrt(4.5))  # divided by n - 1
    assert table.loc[("E", "external", "MI"), "age_mean"] == 70.5
    # One patient, and two of whom one has a row: a mean would be one person's age.
    assert table.loc[[("A", "train", "MI"), ("A", "test", "MI")], ["age_mean", "age_std"]].isna().all(axis=None)
    counts = [f"figo_{stage}" for stage in ("I", "II", "III", "IV")] + ["histology_I", "histology_II"]
    assert table.loc[("A", "train", "NMI"), counts].tolist() == [1, 0, 1, 0, 2, 0]
    assert table.loc[("A", "train", "MI"), counts].tolist() == [0, 1, 0, 0, 0, 1]
    assert table.loc[("A", "test", "MI"), counts].tolist() == [0, 0, 0, 1, 1, 0]  # a5 has no row


def test_table_one_without_patients():
    table = table_one(manifest([("A", "train", 0, "a"), ("A", "test", 1, "b")]), None)
    assert table["n"].tolist() == [1, 0, 0, 1] and table[list(QUANTITIES[1:])].isna().all(axis=None)
    with pytest.raises(ValueError, match="needs a classification's manifest, got a segmentation's"):
        table_one(manifest([("A", "train", "m.png", "a")], ("background", "nucleus"), "segmentation"), None)


def test_columns_are_those_of_the_paper():
    paper = pd.read_csv(PAPER_TABLE)
    assert list(paper.columns) == [*KEYS, *QUANTITIES]
    assert list(table_one(manifest([("A", "train", 0, "a")]), None).columns) == list(paper.columns)


def test_paper_divides_by_one_less_than_n():
    """Ages are whole years, so n x mean is a whole number, and so is the sum of squares that the SD belongs to."""
    fits = {0: 0, 1: 0}
    rows = pd.read_csv(PAPER_TABLE).dropna()
    for row in rows.itertuples():
        total = round(row.n * row.age_mean)
        assert total / row.n == pytest.approx(row.age_mean, abs=6e-5)
        for ddof in fits:
            squares = row.age_std**2 * (row.n - ddof) + total**2 / row.n
            printed_to = 2 * row.age_std * 5e-5 * (row.n - ddof)
            fits[ddof] += abs(squares - round(squares)) <= printed_to
    assert fits == {0: 2, 1: 17} and len(rows) == 17
    assert np.average(rows["age_mean"], weights=rows["n"]) == pytest.approx(54.73, abs=0.005)  # the paper's 54.7
    training = rows[rows["set"] == "train"]
    assert np.average(training["age_mean"], weights=training["n"]) == pytest.approx(55.02, abs=0.005)


def test_table_one_beside_the_papers(tmp_path):
    write(tmp_path, "a1,50,I,I", "a2,52,III,I")
    ours = table_one(manifest([("A", "train", 0, "a1"), ("A", "train", 0, "a2"), ("Z", "test", 1, "z")]), read_patients(tmp_path))
    both = patients_beside_paper(ours)
    assert list(both.columns) == ["center", "set", "label", "quantity", "paper", "here"]
    assert len(both) == (20 + 2) * len(QUANTITIES)  # all rows of the paper, and two of a centre that it does not have
    first = both.iloc[: len(QUANTITIES)]
    assert first["quantity"].tolist() == list(QUANTITIES)
    assert first.iloc[0].tolist() == ["A", "train", "NMI", "n", 49.0, 2.0]
    assert first.iloc[1].tolist() == ["A", "train", "NMI", "age_mean", 50.3673, 51.0]
    assert both.drop_duplicates(list(KEYS))[list(KEYS)].head(4).agg("".join, axis=1).tolist() == [
        "AtrainNMI",
        "AtrainMI",
        "AtestNMI",
        "AtestMI",
    ]
    last = both[(both["center"] == "Z") & (both["label"] == "MI") & (both["quantity"] == "n")].iloc[0]
    assert np.isnan(last["paper"]) and last["here"] == 1.0


def test_groups_beside_paper(tmp_path):
    write(tmp_path, "a1,50,I,I", "a2,52,III,I")
    ours = table_one(manifest([("A", "train", 0, "a1"), ("A", "train", 0, "a2"), ("Z", "test", 1, "z")]), read_patients(tmp_path))
    groups = groups_beside_paper(patients_beside_paper(ours))
    assert groups.index.tolist() == [("A", "train", "NMI"), ("A", "train", "MI")]  # what both have, in the paper's order
    assert list(groups.columns)[:3] == [("patients", "paper"), ("patients", "measured"), ("mean age (years)", "paper")]
    expected = [49, 2, 50.3673, 51, 46 / 49, 0.5, 42 / 49, 1]
    assert groups.iloc[0].tolist() == pytest.approx(expected)
    assert groups.loc[("A", "train", "MI"), ("patients", "measured")] == 0
    assert groups.loc[("A", "train", "MI"), [(name, "measured") for name in groups.columns.levels[0] if name != "patients"]].isna().all()
    assert not len(groups_beside_paper(patients_beside_paper(ours.query("center == 'Z'"))))


def test_groups_beside_paper_without_a_patient_table():
    groups = groups_beside_paper(patients_beside_paper(table_one(manifest([("A", "train", 0, "a1")]), None)))
    assert groups.iloc[0, :2].tolist() == [49, 1] and groups["mean age (years)", "measured"].isna().all()


def test_patients_of_one_name_at_two_centres(tmp_path):
    rows = [("A", "train", 0, "A/1"), ("B", "train", 0, "B/1"), ("A", "test", 1, "A/2"), ("B", "test", 1, "B/3")]
    ours = manifest(rows)
    (tmp_path / "patients.csv").write_text("patient,age,figo,histology\n1,50,I,I\n2,60,I,I\nB/3,70,I,I\n", encoding="utf-8")
    warnings = patient_warnings(ours, read_patients(tmp_path))
    assert warnings == [
        "patients.csv: no images of '1'",
        "patients.csv: no row for 'A/1', 'B/1', who have images; centers have patients of one name: add a column center, or write"
        " CENTER/NAME",
    ]
    lines = "center,patient,age,figo,histology\nA,1,50,I,I\nB,1,80,I,I\nA,2,60,I,I\nb,3,70,I,I\n"
    (tmp_path / "patients.csv").write_text(lines, encoding="utf-8")
    assert patient_warnings(ours, read_patients(tmp_path)) == []
    found = patients_of(replace(ours, root=tmp_path))
    assert dict(zip(found["patient"], found["age"], strict=True)) == {"A/1": 50.0, "B/1": 80.0, "A/2": 60.0, "B/3": 70.0}
    (tmp_path / "patients.csv").write_text(lines + "A,1,51,I,I\n", encoding="utf-8")
    with pytest.raises(ManifestError, match="line 6: patient '1' is in line 2 already"):
        read_patients(tmp_path)


def test_patients_of_a_converted_set_lie_beside_its_images_folder(tmp_path):
    write(tmp_path, "a1,50,I,I")
    images = tmp_path / "data"
    images.mkdir()
    converted = replace(manifest([("A", "train", 0, "a1")]), root=images)
    assert patients_of(converted) is None, "a folder called data, not prepared here"
    assert patients_of(replace(converted, root=tmp_path))["patient"].tolist() == ["a1"]
    (tmp_path / "prepared.json").write_text("{}", encoding="utf-8")
    assert patients_of(converted)["patient"].tolist() == ["a1"]


def test_a_table_that_is_a_link_in_a_circle_cannot_be_read(tmp_path):
    (tmp_path / "patients.csv").symlink_to("patients.csv")
    with pytest.raises(ManifestError, match=r"patients\.csv: cannot be read"):
        read_patients(tmp_path)
