"""Notes on patients: too few for an interval where evaluation gives none, and names that differ by a side."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.data.manifest import COLUMNS, Manifest, table_findings
from vfmgl_lib.data.patient_notes import MIN_PATIENTS, few_test_patients, two_sides
from vfmgl_lib.evaluation import statistics


def patients_of(**counts):
    """Test patients of class 0 and 1 a centre, two images each, and training patients that do not count."""
    rows = [(c, f"{c}{k}{p}", "test", k) for c, of in counts.items() for k, n in enumerate(of) for p in range(n) for _ in range(2)]
    rows += [(center, f"{center} trains {number}", "train", number % 2) for center in counts for number in range(20)]
    return pd.DataFrame(rows, columns=["center", "patient", "split", "label"])


def test_centres_with_too_few_test_patients_are_told_in_one_line():
    table = patients_of(A=(5, 5), X=(1, 1), Y=(2, 2), Z=(9, 3), W=(0, 1))
    assert few_test_patients(table, ("benign", "malign")) == [
        "test: 1 patient at W, 2 patients at X, 4 patients at Y, 3 patients of 'malign' at Z: below 5 of a class no test of an AUC, and no "
        "interval over several images a patient"
    ]
    assert few_test_patients(table) == ["test: 1 patient at W, 2 patients at X, 4 patients at Y: below 5 no interval and no test"]
    many = few_test_patients(patients_of(**{f"c{number:02}": (1, 1) for number in range(9)}))
    assert len(many) == 1 and "2 patients at c05 and 3 more: below 5 no" in many[0]
    assert few_test_patients(patients_of(A=(5, 5)), ("benign", "malign")) == []
    assert few_test_patients(patients_of(A=(9, 0)), ("benign", "malign")) == [], "a class that is not there is told elsewhere"


@pytest.mark.parametrize("patients", [MIN_PATIENTS - 1, MIN_PATIENTS])
def test_the_note_is_given_where_evaluation_has_no_interval(patients):
    table = patients_of(A=(8, patients))
    images = table[table["split"] == "test"].assign(split="test")
    scores, owners = np.random.default_rng(0).random((2, len(images))), images["patient"].to_numpy()
    by_class = statistics.delong_test(*scores, images["label"].to_numpy(), owners)
    assert bool(few_test_patients(table, ("benign", "malign"))) == ("needed" in by_class.reason)
    own = images["label"] == 1
    interval = statistics.ratio_interval(scores[0][own], np.ones(own.sum()), owners[own])
    assert bool(few_test_patients(images[own])) == ("needed" in interval.reason)


def test_patients_that_differ_by_a_side_are_told():
    names = ["Image_01L", "Image_01R", "Image_02L", "03 OD", "03 os", "07", "08", "Karl", "Karr", "Meyer left", "Meyer Right"]
    table = pd.DataFrame({"center": "North", "patient": names})
    (told,) = two_sides(table)
    assert told.startswith("3 pair(s) of patients differ by their side alone, e.g. Image_01L and Image_01R: ")
    assert "give them one name under patient in samples.csv, or by --patient-pattern where folders are read" in told
    apart = pd.DataFrame({"center": ["North", "South"], "patient": ["Image_01L", "Image_01R"]})
    assert two_sides(apart) == []


def test_sides_are_said_of_a_set_and_a_wrong_label_stays_a_problem(tmp_path):
    sides = [("A", f"{number}{side}", split) for number, split in ((1, "train"), (2, "test")) for side in "LR"]
    rows = [(f"{c}/{s}/{p}", f"{p}.png", f"{n:064x}", c, p, s, n % 2, "") for n, (c, p, s) in enumerate(sides)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    _, warnings = table_findings(Manifest(tmp_path, "classification", ("benign", "malign"), table))
    assert any(text.startswith("2 pair(s) of patients differ by their side alone, e.g. 1L and 1R: ") for text in warnings)
    problems, _ = table_findings(Manifest(tmp_path, "classification", ("benign", "malign"), table.assign(label=7)))
    assert any("label 7 is not a class" in text for text in problems)
    assert few_test_patients(table.assign(label=7), ("benign", "malign")), "which is told elsewhere"
