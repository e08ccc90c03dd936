"""The patient table of the endometrial task, and the paper's Table 1 computed from it and a manifest.

`patients.csv` in the data root is optional; one row a patient, in any order of columns:

    patient    the patient's name in the manifest (the name of the folder)
    center     optional: the centre's name, where centres have patients of one name; CENTER/NAME under `patient` says it too
    age        years, 0 to 120; with a decimal point or comma
    figo       FIGO stage: I, II, III or IV, without sub-stages
    histology  histopathologic type: I or II (Table 1 has these two; the paper does not define them, the usual reading is
               endometrioid and non-endometrioid)
    grade      optional: 1, 2, 3, or empty where it is not known. The paper's "well-differentiated endometrioid endometrial
               carcinoma" is grade 1 of type I in the usual reading; type I alone is not it: centres A to E have 463 test
               patients of type I and 157 that are well-differentiated.

Further columns are kept as text.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from vfmgl_lib.base.files import real_path
from vfmgl_lib.data.manifest import Manifest, ManifestError
from vfmgl_lib.data.names import same_name
from vfmgl_lib.data.people import matching_names
from vfmgl_lib.data.spreadsheets import REMEDY, TableError, decoded, parsed
from vfmgl_lib.tasks.datasheets import class_titles

PATIENTS_FILE = "patients.csv"
NEEDED_COLUMNS = ("patient", "age", "figo", "histology")
FIGO = ("I", "II", "III", "IV")
HISTOLOGY = ("I", "II")
GRADES = ("1", "2", "3")
OLDEST = 120  # years
KEYS = ("center", "set", "label")
QUANTITIES = ("n", "age_mean", "age_std", *(f"figo_{stage}" for stage in FIGO), *(f"histology_{kind}" for kind in HISTOLOGY))
SETS = ("train", "test", "external")
SHOWN_NAMES = 5


def read_csv(path: Path, columns: Sequence[str], further: bool = False, optional: Sequence[str] = ()) -> list[tuple[int, dict[str, str]]]:
    """Rows of a CSV typed by people, as (line, {column: text}); surrounding blanks and empty lines are dropped.

    Args:
        columns: the header: exactly these in this order or, with `further`, these and others in any order.
        optional: columns that may stand before or behind the others.
    Raises: ManifestError: what `spreadsheets` refuses, a wrong header, a row of another length, no rows.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}), expected a CSV") from error

    def fits(header: list[str]) -> bool:
        needed = [name for name in header if name not in optional]
        expected = set(columns) <= set(header) if further else needed == list(columns)
        return expected and len(set(header)) == len(header) and "" not in header

    try:
        header, rows = parsed(decoded(content), fits)
        lines = list(rows)
    except TableError as error:
        raise ManifestError(f"{path}: {error}") from error
    if not fits(header):
        rest = " and further columns" if further else ""
        raise ManifestError(f"{path}: header is {','.join(header)!r}, expected {','.join(columns)!r}{rest}, each once")
    uneven = [(number, len(row)) for number, row in lines if len(row) != len(header)]
    if len(uneven) == len(lines) > 1:
        found = f"every row has other than the header's {len(header)} fields, the first one {uneven[0][1]}"
        raise ManifestError(f"{path}: {found}; are there commas in numbers, or two separators? {REMEDY}")
    if uneven:
        raise ManifestError.listing(path, [f"line {number}: {fields} fields, expected {len(header)}" for number, fields in uneven])
    if not lines:
        raise ManifestError(f"{path}: has a header only, expected at least one row")
    return [(number, dict(zip(header, row, strict=True))) for number, row in lines]


def read_patients(root: Path | str) -> pd.DataFrame | None:
    """The patient table of a data root, None where there is none.

    Returns: columns as in the file; age float64 in years, all others text.
    Raises: ManifestError: with all problems found; each names the line, the value, and what would have been right.
    """
    path = Path(root) / PATIENTS_FILE
    if not path.is_symlink() and not path.exists():
        return None
    if not real_path(path).is_relative_to(real_path(root)):
        raise ManifestError(f"{path}: links out of the data folder to {real_path(path)}, expected a file inside it")
    rows = read_csv(path, NEEDED_COLUMNS, further=True)
    for _, row in rows:
        row["age"] = row["age"].replace(",", ".")
    problems = []
    seen: dict[tuple[str, str], int] = {}
    for number, row in rows:
        problems += [f"line {number}: {problem}" for problem in _row_problems(row)]
        first = seen.setdefault((same_name(row.get("center", "")), same_name(row["patient"])), number)
        if first != number:
            problems.append(f"line {number}: patient {row['patient']!r} is in line {first} already, expected one row a patient")
    if problems:
        raise ManifestError.listing(path, problems)
    return pd.DataFrame([row for _, row in rows]).astype({"age": "float64"})


def _row_problems(row: dict[str, str]) -> list[str]:
    problems = []
    if not row["patient"]:
        problems.append("patient is empty, expected a name")
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", row["age"]) or float(row["age"]) > OLDEST:
        problems.append(f"age {row['age']!r}, expected a number of years from 0 to {OLDEST}")
    for column, known in (("figo", FIGO), ("histology", HISTOLOGY), ("grade", ("", *GRADES))):
        if column in row and row[column] not in known:
            problems.append(f"{column} {row[column]!r}, expected one of {', '.join(filter(None, known))}")
    return problems


def patient_warnings(manifest: Manifest, patients: pd.DataFrame) -> list[str]:
    """Warnings: patients of the table without images, patients with images but without a row."""
    own = dict(zip(matching_names(patients, manifest.table), patients["patient"], strict=True))
    listed = {same_name(name): written for name, written in own.items()}
    pictured = {same_name(name): name for name in manifest.table["patient"]}
    missing = [listed[key] for key in sorted(listed.keys() - pictured.keys())]
    unlisted = [pictured[key] for key in sorted(pictured.keys() - listed.keys())]
    warnings = [f"{PATIENTS_FILE}: no images of {_names(missing)}"] if missing else []
    ambiguous = {key.split("/", 1)[-1] for key in pictured.keys() - listed.keys() if "/" in key} & listed.keys()
    remedy = "; centers have patients of one name: add a column center, or write CENTER/NAME" if ambiguous else ""
    return warnings + ([f"{PATIENTS_FILE}: no row for {_names(unlisted)}, who have images{remedy}"] if unlisted else [])


def _names(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(repr, names[:SHOWN_NAMES])) + more


def table_one(manifest: Manifest, patients: pd.DataFrame | None) -> pd.DataFrame:
    """Counts of patients per centre, set and class, with their ages, stages and types (paper, Table 1).

    Args:
        manifest: of a classification. A patient with images of several classes counts in the highest of them.
        patients: from `read_patients`; None leaves all columns but n empty.
    Returns: columns `KEYS` and `QUANTITIES`, the columns of data_manifests/table1_endometrial_patients.csv.
        set: "train" (with the validation patients), "test", or "external" in a centre that trains with nothing.
        label: the class's name without a number that only orders the folders ("0_NMI" → "NMI").
        n: patients; every centre and set has a row for every class, if need be of 0.
        age_mean, age_std: years, over the patients with a row; standard deviation with n - 1, which is the paper's: its
            printed values fit whole years in 17 of 17 rows, those with n in 2. NaN below two patients, where the paper
            prints nothing either: it would be one person's age.
        figo_*, histology_*: patients with a row; missing (NA) without a table.
    """
    if manifest.task_kind != "classification":
        raise ValueError(f"table_one needs a classification's manifest, got a {manifest.task_kind}'s")
    rows = manifest.table.sort_values("label").drop_duplicates("patient", keep="last")
    trains = set(rows.loc[rows["split"] != "test", "center"])
    sets = [("test" if row.split == "test" else "train") if row.center in trains else "external" for row in rows.itertuples()]
    people = pd.DataFrame({"center": rows["center"], "set": sets, "label": rows["label"], "patient": rows["patient"].map(same_name)})
    if patients is not None:
        table = patients.assign(patient=patients["patient"].map(same_name))[list(NEEDED_COLUMNS)]
        people = people.merge(table, on="patient", how="left")
    found = []
    for center in manifest.centers:
        for name in SETS:
            group = people[(people["center"] == center) & (people["set"] == name)]
            for label, title in enumerate(class_titles(manifest.classes)):
                if len(group):
                    own = group[group["label"] == label]
                    found.append((center, name, title, len(own), *_description(own, patients is not None)))
    table = pd.DataFrame(found, columns=[*KEYS, *QUANTITIES])
    counts = [name for name in QUANTITIES if not name.startswith("age")]
    return table.astype(dict.fromkeys(counts, "Int64") | {"age_mean": "float64", "age_std": "float64"})


def _description(people: pd.DataFrame, known: bool) -> list:
    if not known:
        return [None] * (len(QUANTITIES) - 1)
    ages = people["age"].dropna()
    age = [ages.mean(), ages.std(ddof=1)] if len(ages) > 1 else [None, None]
    stages = [(people["figo"] == stage).sum() for stage in FIGO]
    return age + stages + [(people["histology"] == kind).sum() for kind in HISTOLOGY]
