"""The manifest: one table that says which file is which sample, and the checks that make it trustworthy.

Nothing else in the library knows files. A layout reader makes a manifest, `loading` turns its rows into batches, a
study keeps a copy of it beside its results.
"""

import codecs
import csv
import hashlib
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from vfmgl_lib.base.files import write_text
from vfmgl_lib.data.images import PLAIN, Inspection, Reading, inspect_files, remark_warnings
from vfmgl_lib.data.label_masks import values_of
from vfmgl_lib.data.names import name_problems

TaskKind = Literal["classification", "segmentation"]
SplitUnit = Literal["patient", "image"]
COLUMNS = ("id", "path", "sha256", "center", "patient", "split", "label", "spacing")
SPLITS = ("train", "val", "test")
NEEDED_SPLITS = ("train", "test")
SHOWN_PROBLEMS = 20
_RECURRING = ("center", "patient", "split", "label", "spacing")
_PART = 256  # rows worked on at a time: few enough to stay in the processor's cache
_INDEX = re.compile("-?[0-9]{1,9}")
_SHA256 = re.compile("[0-9a-f]{64}")


class ManifestError(ValueError):
    """A manifest, or the data folder behind it, cannot be used. `problems` holds all findings, also those not shown."""

    problems: tuple[str, ...] = ()

    @classmethod
    def listing(cls, where: Path | str, problems: Sequence[str]) -> "ManifestError":
        """One error for all problems found in `where`; the message shows the first 20 and the count of all."""
        count = len(problems)
        lines = [f"{where}: {count} problem{'s' if count != 1 else ''}"]
        lines += [f"  - {problem}" for problem in problems[:SHOWN_PROBLEMS]]
        if count > SHOWN_PROBLEMS:
            lines.append(f"  … and {count - SHOWN_PROBLEMS} more")
        error = cls("\n".join(lines))
        error.problems = tuple(problems)
        return error


@dataclass(frozen=True, eq=False)
class Manifest:
    """Which file is which sample.

    Args:
        root: the data folder that all paths are relative to.
        task_kind: "classification" or "segmentation".
        classes: class names; a classification label is the index into them.
        table: one row a sample, columns `COLUMNS`:
            id       unique, "center/split/…/stem", no extension; keeps the split of the folder the file came from
            path     POSIX, relative to root
            sha256   of the image file
            center   centre's name
            patient  unique per person across centres
            split    "train", "val" or "test"
            label    classification: class index (int64); segmentation: path of the mask, POSIX, relative to root
            spacing  "" or mm per pixel, (row, column), as "0.625,0.625"
        reading: what is white and what lies behind transparent pixels, where the files do not say it (`images.Reading`).
        split_unit: "patient", or "image" where images of one patient may lie on both sides: leakage, asked for and said aloud.
        mask_values: the value of each class in mask files (`label_masks.values_of`); (): the default of so many classes.
    Raises: ManifestError: wrong columns, an unknown task kind, a class label that is not a whole number.
    """

    root: Path
    task_kind: TaskKind
    classes: tuple[str, ...]
    table: pd.DataFrame
    split_unit: SplitUnit = "patient"
    reading: Reading = PLAIN
    mask_values: tuple[int, ...] = ()

    def __post_init__(self):
        if self.task_kind not in get_args(TaskKind):
            raise ManifestError(f"task_kind must be one of {', '.join(get_args(TaskKind))}, got {self.task_kind!r}")
        if tuple(self.table.columns) != COLUMNS:
            raise ManifestError(f"columns must be {', '.join(COLUMNS)}, got {', '.join(map(str, self.table.columns))}")
        table = self.table.reset_index(drop=True).astype(dict.fromkeys(COLUMNS, str)).fillna("")
        # Files and folders are named after centres.
        paths = [center for center in table["center"].unique() if center in (".", "..") or "/" in center or "\0" in center]
        if paths:
            raise ManifestError.listing(self.root, [f"center {center!r}, expected a name that is no path" for center in paths])
        if self.task_kind == "classification":
            wrong_rows = table[_failing(table["label"], _INDEX.fullmatch)].itertuples()
            wrong = [f"{row.path}: label {row.label!r} is not a class index" for row in wrong_rows]
            if wrong:
                raise ManifestError.listing(self.root, [f"{text}, expected {self._label_range()}" for text in wrong])
            table["label"] = table["label"].astype("int64")
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.task_kind == "segmentation":
            try:
                object.__setattr__(self, "mask_values", values_of(len(self.classes), self.mask_values))
            except (TypeError, ValueError) as error:
                raise ManifestError(f"{self.root}: {error}") from error
        object.__setattr__(self, "table", table)

    @property
    def centers(self) -> tuple[str, ...]:
        """Names of the centres, sorted."""
        return tuple(sorted(self.table["center"].unique()))

    @property
    def training_centers(self) -> tuple[str, ...]:
        """Names of the centres with training samples, sorted; the others are external: they only test."""
        return tuple(sorted(self.table.loc[self.table["split"] == "train", "center"].unique()))

    @property
    def sha256(self) -> str:
        """Hash of the task, the classes, what differs from the default, and the table's rows in their order; not of where root lies.

        What differs: a largest value if there is one, another way than stretching, the values of masks if they are not those of
        `label_masks.values_of`.
        """
        # As json.dumps([task_kind, classes, COLUMNS, rows]) writes it, but a part at a time: the whole is larger than the table.
        read: list[float | str] = [] if self.reading.max_value is None else [self.reading.max_value]
        read += [] if self.reading.resize == "stretch" else [self.reading.resize]
        labels = [list(self.mask_values)] if self.mask_values != values_of(len(self.classes)) and self.mask_values else []
        head = json.dumps([self.task_kind, list(self.classes), list(COLUMNS), *read, *labels], ensure_ascii=False)
        digest = hashlib.sha256(f"{head[:-1]}, [".encode())
        separator = ""
        for rows in self._rows():
            digest.update((separator + json.dumps(rows, ensure_ascii=False)[1:-1]).encode())
            separator = ", "
        digest.update(b"]]")
        return digest.hexdigest()

    def select(self, center: str | None = None, split: str | None = None) -> pd.DataFrame:
        """Rows of a centre and/or a split, index from 0; empty where a known centre has no such split.

        Raises: ValueError: an unknown centre or split; the message lists the known ones.
        """
        table = self.table
        if center is not None:
            chosen = table["center"].to_numpy(object) == center
            if not chosen.any():
                raise ValueError(f"unknown center {center!r}, the manifest has {', '.join(self.centers)}")
            table = table[chosen]
        if split is not None:
            if split not in SPLITS:
                raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
            table = table[table["split"].to_numpy(object) == split]
        return table.reset_index(drop=True)

    def _rows(self) -> Iterator[list[tuple[str, ...]]]:
        """All rows in order, `_PART` at a time."""
        columns = {column: self.table[column].tolist() for column in COLUMNS}
        rows = zip(*(columns | {"label": map(str, columns["label"])}).values(), strict=True)
        while part := list(itertools.islice(rows, _PART)):
            yield part

    def _label_range(self) -> str:
        names = ", ".join(f"{index} ({name})" for index, name in enumerate(self.classes))
        return f"one of {names}"


def check_manifest(manifest: Manifest, files: bool = True, progress: bool = False) -> list[str]:
    """Check the table and, with `files`, every file it names (presence, sha256, decoding, masks).

    Args:
        files: False skips the files; right after `read_layout`, which has just looked into each of them.
        progress: draw a progress bar with the time left.
    Returns: warnings: a centre with one class, a file twice inside one split.
    Raises: ManifestError: with all problems; each names the file or patient, the value, and what would have been right.
    """
    problems, warnings = table_findings(manifest)
    if files and len(manifest.table):
        if not manifest.root.is_dir():
            raise ManifestError(f"{manifest.root}: data folder not found, expected the folder of the manifest's files")
        table = manifest.table
        masks = table["label"] if manifest.task_kind == "segmentation" else [None] * len(table)
        reading, labels = manifest.reading, manifest.mask_values
        paths, masks = list(table["path"]), list(masks)
        inspections = inspect_files(manifest.root, paths, masks, progress=progress, reading=reading, mask_values=labels)
        problems += missing_classes(manifest, inspections)
        for row, found in zip(table.itertuples(index=False), inspections, strict=True):
            problems += found.problems
            if found.sha256 and found.sha256 != row.sha256:
                problems.append(f"{row.path}: sha256 {found.sha256[:12]}…, expected {row.sha256[:12]}…: changed since it was listed")
        warnings += foreground_warnings(manifest, inspections)
        warnings += remark_warnings(
            ((path, found.remarks) for path, found in zip(table["path"], inspections, strict=True)), manifest.reading
        )
    if problems:
        raise ManifestError.listing(manifest.root, problems)
    return warnings


def table_findings(manifest: Manifest, need_splits: bool = True, patient_rule: str = "") -> tuple[list[str], list[str]]:
    """(problems, warnings) of the table alone, no file is opened.

    Args:
        need_splits: False where the caller has reported centres without train or test samples itself.
        patient_rule: what made a file's patient, and how to say it otherwise: told with patients that are in several places.
    """
    table = manifest.table
    if not len(table):
        return ["the manifest has no samples, expected at least one a centre and split"], []
    problems, training = _cell_problems(manifest) + _name_problems(manifest), manifest.training_centers
    if need_splits:
        problems += _empty_splits(manifest)
    divided, moved = _patient_problems(table)
    leaks, warnings = _shared_content(manifest)
    if manifest.split_unit == "image" and divided:
        count = table.groupby("patient")["split"].nunique().gt(1).sum()
        warnings = [f"LEAKAGE, as asked for: {count} of {table['patient'].nunique()} patients have images in several splits", *warnings]
        divided = []
    external = [
        f"center {center!r} has no training samples: an external test center" for center in manifest.centers if center not in training
    ]
    problems += _repeated(table, "id") + _repeated(table, "path") + divided + moved
    problems += [f"who is the patient: {patient_rule}"] if patient_rule and (divided or moved) else []
    return problems + leaks, external + warnings + _one_class_warnings(manifest)


def missing_classes(manifest: Manifest, inspections: Sequence[Inspection]) -> list[str]:
    """A problem for each class of more than two that no mask has; none where a mask could not be read."""
    if len(manifest.classes) < 3 or not all(found.classes for found in inspections):
        return []
    there = {place for found in inspections for place in found.classes}
    return [
        f"no mask has class {name!r} (value {manifest.mask_values[place]}), expected each class at one centre at least"
        for place, name in enumerate(manifest.classes)
        if place not in there
    ]


def foreground_warnings(manifest: Manifest, inspections: Sequence[Inspection]) -> list[str]:
    """A warning for each centre and split whose masks are all empty, or of more than two classes lack some: one line."""
    if len(manifest.classes) > 2:
        return _lacking_warnings(manifest, inspections)
    foreground = pd.Series([found.has_foreground for found in inspections], dtype=object)
    warnings = []
    for (center, split), group in foreground.groupby([manifest.table["center"], manifest.table["split"]]):
        if len(group) and all(value is False for value in group):
            warnings.append(f"center {center!r}: all {len(group)} {split} masks are empty, there is no {manifest.classes[-1]}")
    return warnings


def _lacking_warnings(manifest: Manifest, inspections: Sequence[Inspection]) -> list[str]:
    classes = pd.Series([found.classes for found in inspections], dtype=object)
    warnings = []
    for (center, split), group in classes.groupby([manifest.table["center"], manifest.table["split"]]):
        lacking = set(range(len(manifest.classes))) - {place for found in group for place in found}
        if all(group) and lacking:
            names = ", ".join(manifest.classes[place] for place in sorted(lacking))
            warnings.append(f"center {center!r}: none of {len(group)} {split} masks has {names}")
    return warnings


def _name_problems(manifest: Manifest) -> list[str]:
    patients = manifest.table.drop_duplicates("patient")
    return name_problems(manifest.centers, manifest.classes, dict(zip(patients["patient"], patients["path"], strict=True)))


def _cell_problems(manifest: Manifest) -> list[str]:
    problems = []
    for row in manifest.table[_has_wrong_cell(manifest)].itertuples(index=False):
        for column in ("id", "path", "center", "patient"):
            if not getattr(row, column).strip():
                problems.append(f"{row.path or row.id}: {column} is empty, expected a name")
        if row.split not in SPLITS:
            problems.append(f"{row.path}: split {row.split!r}, expected one of {', '.join(SPLITS)}")
        if not _SHA256.fullmatch(row.sha256):
            problems.append(f"{row.path}: sha256 {row.sha256!r}, expected 64 hexadecimal digits")
        if not _is_spacing(row.spacing):
            problems.append(f"{row.path}: spacing {row.spacing!r}, expected '' or two positive numbers as '0.625,0.625'")
        if manifest.task_kind == "classification" and not 0 <= row.label < len(manifest.classes):
            problems.append(f"{row.path}: label {row.label} is not a class, expected {manifest._label_range()}")
        if manifest.task_kind == "segmentation" and not row.label:
            problems.append(f"{row.path}: label is empty, expected the path of its mask")
    return problems


def _has_wrong_cell(manifest: Manifest) -> np.ndarray:
    """(rows,) bool: the rows that `_cell_problems` has to look at; of half a million they are few."""
    table = manifest.table
    wrong = ~table["split"].isin(SPLITS).to_numpy()
    wrong |= _failing(table["sha256"], _SHA256.fullmatch) | _failing(table["spacing"], _is_spacing)
    for column in ("id", "path", "center", "patient"):
        wrong |= _failing(table[column], str.strip)
    if manifest.task_kind == "classification":
        return wrong | ~table["label"].between(0, len(manifest.classes) - 1).to_numpy()
    return wrong | (table["label"] == "").to_numpy()


def _failing(column: pd.Series, test: Callable[[str], object]) -> np.ndarray:
    """(rows,) bool: where the test fails."""
    return np.array([not test(value) for value in column.tolist()], dtype=bool)


def _is_spacing(text: str) -> bool:
    if not text:  # not known
        return True
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return False
    return len(values) == 2 and all(math.isfinite(value) and value > 0 for value in values)


def _empty_splits(manifest: Manifest) -> list[str]:
    there = manifest.table[["center", "split"]].drop_duplicates()
    found = set(there.itertuples(index=False, name=None))
    empty = [(center, split) for center in manifest.centers for split in NEEDED_SPLITS if (center, split) not in found]
    # A centre with nothing but test samples is external; a set of such centres alone trains nothing.
    external = {center for center, split in empty if split == "train" and (center, "val") not in found and manifest.training_centers}
    wanted = ((center, split) for center, split in empty if not (split == "train" and center in external))
    return [f"center {center!r} has no {split} samples, expected at least one" for center, split in wanted]


def _repeated(table: pd.DataFrame, column: str) -> list[str]:
    again = table[table.duplicated(column, keep=False)]
    return [
        f"{column} {value!r} occurs {len(rows)} times ({', '.join(rows['path'].head(3))}), expected once"
        for value, rows in again.groupby(column)
    ]


def _patient_problems(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Patients in several splits, and patients in several centres."""
    problems = []
    sides = table.drop_duplicates(["center", "patient", "split"])
    several = sides[sides.duplicated(["center", "patient"], keep=False)]
    for (center, patient), rows in several.groupby(["center", "patient"]):
        found = " and ".join(f"{row.split} ({row.path})" for row in rows.itertuples())
        problems.append(f"center {center!r}: patient {patient!r} is in {found}, expected in one split only")
    places, moved = sides.drop_duplicates(["center", "patient"]), []
    several = places[places.duplicated("patient", keep=False)]
    for patient, rows in several.groupby("patient"):
        found = " and ".join(f"{row.center!r} ({row.path})" for row in rows.itertuples())
        moved.append(
            f"patient {patient!r} is in the centers {found}, expected in one only; rename the patients if these are different people"
        )
    return problems, moved


def _shared_content(manifest: Manifest) -> tuple[list[str], list[str]]:
    problems, warnings = [], []
    again = manifest.table[manifest.table.duplicated("sha256", keep=False)]
    again = again[again["sha256"] != ""]  # an empty one is reported as such
    for sha256, rows in again.groupby("sha256", sort=False):
        files = ", ".join(f"{row.path} ({row.split})" for row in rows.head(4).itertuples())
        if rows["split"].nunique() > 1:
            problems.append(f"the same file content (sha256 {sha256[:12]}…) is in several splits: {files}; expected in one")
        else:
            contradicts = manifest.task_kind == "classification" and rows["label"].nunique() > 1
            labels = " with different labels" if contradicts else ""
            warnings.append(f"the same file content (sha256 {sha256[:12]}…) is there {len(rows)} times{labels}: {files}")
    return problems, warnings


def _one_class_warnings(manifest: Manifest) -> list[str]:
    if manifest.task_kind != "classification":
        return []
    warnings = _absent_classes(manifest) if len(manifest.classes) > 2 else []
    labels = manifest.table.groupby(["center", "split"])["label"].agg(["min", "max", "size"])
    for (center, split), low, high, count in labels.itertuples():
        if low == high and 0 <= low < len(manifest.classes):
            name = manifest.classes[low]
            warnings.append(f"center {center!r}: all {count} {split} samples are of class {name!r}, AUC is NaN there")
    return warnings


def _absent_classes(manifest: Manifest) -> list[str]:
    """Of more than two classes: which ones a centre's split lacks; two or more of the others are there."""
    warnings = []
    for (center, split), labels in manifest.table.groupby(["center", "split"])["label"]:
        absent = [name for number, name in enumerate(manifest.classes) if not (labels == number).any()]
        if absent and labels.nunique() > 1:
            named = ", ".join(map(repr, absent))
            warnings.append(
                f"center {center!r}: none of the {len(labels)} {split} samples is of class {named}; its one-vs-rest AUC there, and the "
                "means over the classes, are NaN"
            )
    return warnings


def write_manifest(manifest: Manifest, path: Path | str) -> None:
    """Write the table as CSV and, beside it as `<name>.json`, what it cannot say: task, classes and its own hash."""
    path = Path(path)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rows in manifest._rows():
        writer.writerows(rows)
    notes: dict[str, Any] = {"task_kind": manifest.task_kind, "classes": list(manifest.classes), "sha256": manifest.sha256}
    notes |= {"split_unit": manifest.split_unit} if manifest.split_unit != "patient" else {}
    notes |= {"mask_values": list(manifest.mask_values)} if manifest.mask_values else {}
    notes["reading"] = manifest.reading.written()  # always: a missing one is that of 0.1.0's set of the task, which may be another
    # The notes go first: if the second write never happens, the hash shows that the two do not belong together.
    write_text(path.with_suffix(".json"), json.dumps(notes, ensure_ascii=False, indent=2) + "\n")
    write_text(path, buffer.getvalue())


def read_manifest(path: Path | str, root: Path | str, reading: Reading = PLAIN) -> Manifest:
    """A manifest as `write_manifest` left it. Files are not looked at: that is `check_manifest`.

    Args:
        path: the CSV; `<name>.json` with "task_kind" and "classes" stands beside it. Its "sha256" may be missing
            (a manifest written by hand); if there it must be the table's.
        root: the data folder.
        reading: of a manifest that does not say it, as those of 0.1.0 (`tasks.records.earlier_reading`).
    Raises: ManifestError: naming the file, the line and what was expected; or the names that cannot be used (`data.names`).
    """
    path = Path(path)
    notes = _read_notes(path.with_suffix(".json"))
    table = _read_table(path)
    if notes["task_kind"] == "classification":
        wrong = table["label"][_failing(table["label"], re.compile("[0-9]{1,9}").fullmatch)]
        if len(wrong):
            lines = [f"line {row + 2}: label {label!r}, expected a class index (0, 1, …)" for row, label in wrong.items()]
            raise ManifestError.listing(path, lines)
    unit, labels = notes.get("split_unit", "patient"), tuple(notes.get("mask_values", ()))
    manifest = Manifest(Path(root), notes["task_kind"], tuple(notes["classes"]), table, unit, notes["reading"] or reading, labels)
    if "sha256" in notes and (found := manifest.sha256) != notes["sha256"]:
        raise ManifestError(
            f"{path}: sha256 of the content is {found[:12]}…, {path.with_suffix('.json').name} says"
            f" {notes['sha256'][:12]}…: the file was cut short or changed; write it anew with write_manifest"
        )
    if problems := _name_problems(manifest):
        raise ManifestError.listing(path, problems)
    return manifest


def _read_notes(path: Path) -> dict:
    expected = 'expected {"task_kind": …, "classes": […]} as write_manifest writes it'
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read ({error}), {expected}") from error
    if not isinstance(notes, dict) or notes.get("task_kind") not in get_args(TaskKind):
        raise ManifestError(f"{path}: no valid task_kind, {expected}")
    classes = notes.get("classes")
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ManifestError(f"{path}: classes are {classes!r}, {expected} with at least two names")
    if notes.get("split_unit", "patient") not in get_args(SplitUnit):
        raise ManifestError(f"{path}: split_unit is {notes['split_unit']!r}, expected one of {', '.join(get_args(SplitUnit))}")
    try:
        notes["reading"] = Reading(**notes["reading"]) if "reading" in notes else None
    except (TypeError, ValueError) as error:
        raise ManifestError(f"{path}: reading is {notes['reading']!r} ({error}), {expected}") from error
    labels = notes.get("mask_values", [])
    if not isinstance(labels, list) or not all(type(value) is int for value in labels):
        raise ManifestError(f"{path}: mask_values are {labels!r}, expected a list of whole numbers, one a class")
    if not isinstance(notes.get("sha256", ""), str):
        raise ManifestError(f"{path}: sha256 is {notes['sha256']!r}, expected text")
    return notes


def _read_table(path: Path) -> pd.DataFrame:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}), expected a manifest as CSV") from error
    content = content.removeprefix(codecs.BOM_UTF8)
    header: list[str] = []
    columns: dict[str, list[str]] = {name: [] for name in COLUMNS}
    odd: list[tuple[int, int]] = []  # line, fields
    try:
        content.decode("utf-8")  # as a whole, for the error's position; a StringIO of it would take four bytes a letter
        reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=""), strict=True)
        header = next(reader, [])
        # Into columns a part at a time: half a million row lists are slow to make and to keep.
        line = 2
        while rows := list(itertools.islice(reader, _PART)):
            odd += [(number, len(row)) for number, row in enumerate(rows, line) if len(row) != len(COLUMNS)]
            line += len(rows)
            for name, values in zip(COLUMNS, zip(*rows, strict=False), strict=False):
                # One text for all rows that have it: less memory, and faster comparisons ever after.
                columns[name].extend(map(sys.intern, values) if name in _RECURRING else values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: is not CSV in UTF-8 ({error})") from error
    if tuple(header) != COLUMNS:
        missing = [name for name in COLUMNS if name not in header]
        detail = f"; missing: {', '.join(missing)}" if missing else ""
        raise ManifestError(f"{path}: header is {','.join(header)!r}, expected {','.join(COLUMNS)!r}{detail}")
    if odd:
        raise ManifestError.listing(path, [f"line {line}: {fields} fields, expected {len(COLUMNS)}" for line, fields in odd])
    return pd.DataFrame(columns, dtype=str)
