"""The manifest: one table that says which file is which sample, and the checks that make it trustworthy.

Nothing else in the library knows files. A layout reader makes a manifest, `loading` turns its rows into batches, a
study keeps a copy of it beside its results.
"""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from vfmgl_lib.data.images import Inspection, inspect_files
from vfmgl_lib.files import write_text

TaskKind = Literal["classification", "segmentation"]
COLUMNS = ("id", "path", "sha256", "center", "patient", "split", "label", "spacing")
SPLITS = ("train", "val", "test")
NEEDED_SPLITS = ("train", "test")
SHOWN_PROBLEMS = 20


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
    Raises: ManifestError: wrong columns, an unknown task kind, a class label that is not a whole number.
    """

    root: Path
    task_kind: TaskKind
    classes: tuple[str, ...]
    table: pd.DataFrame

    def __post_init__(self):
        if self.task_kind not in get_args(TaskKind):
            raise ManifestError(f"task_kind must be one of {', '.join(get_args(TaskKind))}, got {self.task_kind!r}")
        if tuple(self.table.columns) != COLUMNS:
            raise ManifestError(f"columns must be {', '.join(COLUMNS)}, got {', '.join(map(str, self.table.columns))}")
        table = self.table.reset_index(drop=True).astype(dict.fromkeys(COLUMNS, str)).fillna("")
        if self.task_kind == "classification":
            wrong = [f"{row.path}: label {row.label!r} is not a class index" for row in _wrong_indices(table)]
            if wrong:
                raise ManifestError.listing(self.root, [f"{text}, expected {self._label_range()}" for text in wrong])
            table["label"] = table["label"].astype("int64")
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "table", table)

    @property
    def centers(self) -> tuple[str, ...]:
        """Names of the centres, sorted."""
        return tuple(sorted(self.table["center"].unique()))

    @property
    def sha256(self) -> str:
        """Hash of the task, the classes and the table's rows in their order; independent of where root lies."""
        content = [self.task_kind, list(self.classes), list(COLUMNS), self._rows()]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def select(self, center: str | None = None, split: str | None = None) -> pd.DataFrame:
        """Rows of a centre and/or a split, index from 0; empty where a known centre has no such split.

        Raises: ValueError: an unknown centre or split; the message lists the known ones.
        """
        table = self.table
        if center is not None:
            if center not in self.centers:
                raise ValueError(f"unknown center {center!r}, the manifest has {', '.join(self.centers)}")
            table = table[table["center"] == center]
        if split is not None:
            if split not in SPLITS:
                raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
            table = table[table["split"] == split]
        return table.reset_index(drop=True)

    def _rows(self) -> list[list[str]]:
        return [[str(value) for value in row] for row in self.table.itertuples(index=False)]

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
        inspections = inspect_files(manifest.root, list(table["path"]), list(masks), progress=progress)
        for row, found in zip(table.itertuples(index=False), inspections, strict=True):
            problems += found.problems
            if found.sha256 and found.sha256 != row.sha256:
                problems.append(f"{row.path}: sha256 {found.sha256[:12]}…, expected {row.sha256[:12]}…: changed since it was listed")
        warnings += foreground_warnings(manifest, inspections)
    if problems:
        raise ManifestError.listing(manifest.root, problems)
    return warnings


def table_findings(manifest: Manifest, need_splits: bool = True) -> tuple[list[str], list[str]]:
    """(problems, warnings) of the table alone, no file is opened.

    Args:
        need_splits: False where the caller has reported centres without train or test samples itself.
    """
    table = manifest.table
    if not len(table):
        return ["the manifest has no samples, expected at least one a centre and split"], []
    problems = _cell_problems(manifest)
    if need_splits:
        problems += _empty_splits(manifest)
    problems += _repeated(table, "id") + _repeated(table, "path") + _patient_problems(table)
    leaks, warnings = _shared_content(manifest)
    return problems + leaks, warnings + _one_class_warnings(manifest)


def foreground_warnings(manifest: Manifest, inspections: Sequence[Inspection]) -> list[str]:
    """A warning for each centre and split whose masks are all empty: one class only."""
    foreground = pd.Series([found.has_foreground for found in inspections], dtype=object)
    warnings = []
    for (center, split), group in foreground.groupby([manifest.table["center"], manifest.table["split"]]):
        if len(group) and all(value is False for value in group):
            warnings.append(f"center {center!r}: all {len(group)} {split} masks are empty, there is no {manifest.classes[-1]}")
    return warnings


def _cell_problems(manifest: Manifest) -> list[str]:
    problems = []
    for row in manifest.table.itertuples(index=False):
        for column in ("id", "path", "center", "patient"):
            if not getattr(row, column).strip():
                problems.append(f"{row.path or row.id}: {column} is empty, expected a name")
        if row.split not in SPLITS:
            problems.append(f"{row.path}: split {row.split!r}, expected one of {', '.join(SPLITS)}")
        if not re.fullmatch(r"[0-9a-f]{64}", row.sha256):
            problems.append(f"{row.path}: sha256 {row.sha256!r}, expected 64 hexadecimal digits")
        if row.spacing and not _is_spacing(row.spacing):
            problems.append(f"{row.path}: spacing {row.spacing!r}, expected '' or two positive numbers as '0.625,0.625'")
        if manifest.task_kind == "classification" and not 0 <= row.label < len(manifest.classes):
            problems.append(f"{row.path}: label {row.label} is not a class, expected {manifest._label_range()}")
        if manifest.task_kind == "segmentation" and not row.label:
            problems.append(f"{row.path}: label is empty, expected the path of its mask")
    return problems


def _is_spacing(text: str) -> bool:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        return False
    return len(values) == 2 and all(math.isfinite(value) and value > 0 for value in values)


def _empty_splits(manifest: Manifest) -> list[str]:
    counts = manifest.table.groupby(["center", "split"]).size()
    return [
        f"center {center!r} has no {split} samples, expected at least one"
        for center in manifest.centers
        for split in NEEDED_SPLITS
        if (center, split) not in counts.index
    ]


def _repeated(table: pd.DataFrame, column: str) -> list[str]:
    again = table[table.duplicated(column, keep=False)]
    return [
        f"{column} {value!r} occurs {len(rows)} times ({', '.join(rows['path'].head(3))}), expected once"
        for value, rows in again.groupby(column)
    ]


def _patient_problems(table: pd.DataFrame) -> list[str]:
    problems = []
    for (center, patient), rows in table.groupby(["center", "patient"]):
        first = rows.drop_duplicates("split")
        if len(first) > 1:
            sides = " and ".join(f"{row.split} ({row.path})" for row in first.itertuples())
            problems.append(f"center {center!r}: patient {patient!r} is in {sides}, expected in one split only")
    for patient, rows in table.groupby("patient"):
        first = rows.drop_duplicates("center")
        if len(first) > 1:
            places = " and ".join(f"{row.center!r} ({row.path})" for row in first.itertuples())
            problems.append(
                f"patient {patient!r} is in the centers {places}, expected in one only; rename the patients if these are different people"
            )
    return problems


def _shared_content(manifest: Manifest) -> tuple[list[str], list[str]]:
    problems, warnings = [], []
    listed = manifest.table[manifest.table["sha256"] != ""]  # an empty one is reported as such
    again = listed[listed.duplicated("sha256", keep=False)]
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
    warnings = []
    for (center, split), rows in manifest.table.groupby(["center", "split"]):
        labels = rows["label"].unique()
        if len(labels) == 1 and 0 <= labels[0] < len(manifest.classes):
            name = manifest.classes[labels[0]]
            warnings.append(f"center {center!r}: all {len(rows)} {split} samples are of class {name!r}, AUC is NaN there")
    return warnings


def _wrong_indices(table: pd.DataFrame) -> list:
    return [row for row in table.itertuples(index=False) if not re.fullmatch(r"-?[0-9]{1,9}", row.label)]


def write_manifest(manifest: Manifest, path: Path | str) -> None:
    """Write the table as CSV and, beside it as `<name>.json`, what it cannot say: task, classes and its own hash."""
    path = Path(path)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(manifest._rows())
    notes = {"task_kind": manifest.task_kind, "classes": list(manifest.classes), "sha256": manifest.sha256}
    # The notes go first: if the second write never happens, the hash shows that the two do not belong together.
    write_text(path.with_suffix(".json"), json.dumps(notes, ensure_ascii=False, indent=2) + "\n")
    write_text(path, buffer.getvalue())


def read_manifest(path: Path | str, root: Path | str) -> Manifest:
    """A manifest as `write_manifest` left it. Files are not looked at: that is `check_manifest`.

    Args:
        path: the CSV; `<name>.json` with "task_kind" and "classes" stands beside it. Its "sha256" may be missing
            (a manifest written by hand); if there it must be the table's.
        root: the data folder.
    Raises: ManifestError: naming the file, the line and what was expected.
    """
    path = Path(path)
    notes = _read_notes(path.with_suffix(".json"))
    rows = _read_rows(path)
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=str)
    if notes["task_kind"] == "classification":
        labels = [(number, row[COLUMNS.index("label")]) for number, row in enumerate(rows, 2)]
        lines = [f"line {number}: label {label!r}" for number, label in labels if not re.fullmatch("[0-9]{1,9}", label)]
        if lines:
            raise ManifestError.listing(path, [f"{line}, expected a class index (0, 1, …)" for line in lines])
    manifest = Manifest(Path(root), notes["task_kind"], tuple(notes["classes"]), table)
    if notes.get("sha256", manifest.sha256) != manifest.sha256:
        raise ManifestError(
            f"{path}: sha256 of the content is {manifest.sha256[:12]}…, {path.with_suffix('.json').name} says"
            f" {notes['sha256'][:12]}…: the file was cut short or changed; write it anew with write_manifest"
        )
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
    if not isinstance(notes.get("sha256", ""), str):
        raise ManifestError(f"{path}: sha256 is {notes['sha256']!r}, expected text")
    return notes


def _read_rows(path: Path) -> list[list[str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}), expected a manifest as CSV") from error
    if content.startswith(b"\xef\xbb\xbf"):
        raise ManifestError(f"{path}: begins with a byte order mark, expected UTF-8 without one ('CSV UTF-8' adds it)")
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: is not CSV in UTF-8 ({error})") from error
    header = rows[0] if rows else []
    if tuple(header) != COLUMNS:
        missing = [name for name in COLUMNS if name not in header]
        detail = f"; missing: {', '.join(missing)}" if missing else ""
        raise ManifestError(f"{path}: header is {','.join(header)!r}, expected {','.join(COLUMNS)!r}{detail}")
    short = [f"line {number}: {len(row)} fields" for number, row in enumerate(rows, 1) if len(row) != len(COLUMNS)]
    if short:
        raise ManifestError.listing(path, [f"{line}, expected {len(COLUMNS)}" for line in short])
    return rows[1:]
