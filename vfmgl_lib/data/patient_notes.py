"""Notes on the patients of a set: centres with too few for an interval, and names that may be the two sides of one person."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

# With fewer, limits called 95 % hold the truth far less often: the mean of normal values 50 % with two, 75 % with three, 87 % with five.
# With fewer of a class the test of two AUCs rejects too often: in 12 % of the cases with two, 7 % with three, beside 40 of the other class.
MIN_PATIENTS = 5
MOST_SHOWN = 6  # places in one line
_SIDE = re.compile(r"(?P<person>.*[0-9][ _.-]?|.+[ _.-])(?P<side>l|r|od|os|left|right|links|rechts)", re.IGNORECASE)


def few_test_patients(table: pd.DataFrame, classes: Sequence[str] = ()) -> list[str]:
    """A line that names the test sets of fewer than `MIN_PATIENTS`, or of fewer of a class, though some: what they cannot tell.

    Args:
        table: columns center, patient, split and, of a classification, label.
        classes: of a classification; (): not looked at.
    """
    test = table[table["split"] == "test"]
    people = test.groupby("center")["patient"].nunique()
    few = [f"{_counted(count)} at {center}" for center, count in people.items() if count < MIN_PATIENTS]
    if classes:
        enough = test[test["center"].isin(people.index[people >= MIN_PATIENTS]) & test["label"].between(0, len(classes) - 1)]
        of_class = enough.groupby(["center", "label"])["patient"].nunique().items()
        few += [f"{_counted(count)} of {classes[label]!r} at {center}" for (center, label), count in of_class if count < MIN_PATIENTS]
    lacking = "of a class no test of an AUC, and no interval over several images a patient" if classes else "no interval and no test"
    more = f" and {len(few) - MOST_SHOWN} more" if len(few) > MOST_SHOWN else ""
    return [f"test: {', '.join(few[:MOST_SHOWN])}{more}: below {MIN_PATIENTS} {lacking}"] if few else []


def two_sides(table: pd.DataFrame) -> list[str]:
    """A line where patients of a centre differ by a side at the end of their names alone: L and R, OD and OS, left and right.

    Args:
        table: columns center and patient.
    """
    sides: dict[tuple[str, str], dict[str, str]] = {}
    for row in table.drop_duplicates(["center", "patient"]).itertuples(index=False):
        if match := _SIDE.fullmatch(row.patient):
            sides.setdefault((row.center, match["person"].casefold()), {})[match["side"].casefold()] = row.patient
    pairs = [tuple(own.values()) for own in sides.values() if len(own) > 1]
    if not pairs:
        return []
    remedy = "give them one name under patient in samples.csv, or by --patient-pattern where folders are read"
    return [
        f"{len(pairs)} pair(s) of patients differ by their side alone, e.g. {pairs[0][0]} and {pairs[0][1]}: each counts as a person, and "
        f"one may train while the other tests; if they are one person's two sides, {remedy}"
    ]


def _counted(patients: int) -> str:
    return f"{patients} patient" + "s" * (patients != 1)
