"""The manifest: one table that says which file is which sample, and the checks that make it trustworthy.

Nothing else in the library knows files. A layout reader makes a manifest, `loading` turns its rows into batches, a
study keeps a copy of it beside its results.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.inspection import Inspection, inspect_files, remark_warnings
from vfmgl_lib.data.label_masks import values_of
from vfmgl_lib.data.names import name_problems, near_names
from vfmgl_lib.data.patient_notes import two_sides
from vfmgl_lib.data.problems import in_short

TaskKind = Literal["classification", "segmentation"]
SplitUnit = Literal["patient", "image"]
COLUMNS = ("id", "path", "sha256", "center", "patient", "split", "label", "spacing")
GROUP = "group"  # a ninth column, where patients stay together in one split: of one family, say
SPLITS = ("train", "val", "test")
NEEDED_SPLITS = ("train", "test")
SHOWN_PROBLEMS = 20
PART = 256  # rows worked on at a time: few enough to stay in the processor's cache
_INDEX = re.compile("-?[0-9]{1,9}")
_SHA256 = re.compile("[0-9a-f]{64}")


class ManifestError(ValueError):
    """A manifest, or the data folder behind it, cannot be used. `problems` holds all findings, also those not shown."""

    problems: tuple[str, ...] = ()

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message, which says all there is to do, without the calls that led to it."""
        return [str(self)]

    @classmethod
    def listing(cls, where: Path | str, problems: Sequence[str]) -> "ManifestError":
        """One error for all problems found in `where`; the message tells like ones in one line, shows 20, and counts all."""
        count = len(problems)
        lines = [f"{where}: {count} problem{'s' if count != 1 else ''}"]
        short = in_short(problems, SHOWN_PROBLEMS)
        lines += [f"  - {text}" for text, _ in short]
        if left := count - sum(held for _, held in short):
            lines.append(f"  … and {left} more")
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
        table: one row a sample, columns `COLUMNS`, and `GROUP` where a group holds several patients:
            id       unique, "center/split/…/stem", no extension; keeps the split of the folder the file came from
            path     POSIX, relative to root
            sha256   of the image file
            center   centre's name
            patient  unique per person across centres (`data.patients` makes it so)
            split    "train", "val" or "test"
            label    classification: class index (int64); segmentation: path of the mask, POSIX, relative to root
            spacing  "" or mm per pixel, (row, column), as "0.625,0.625"
            group    unique across centres; divisions move whole groups (`division_units`). Intervals and tests are over patients
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
        if tuple(self.table.columns) not in (COLUMNS, (*COLUMNS, GROUP)):
            raise ManifestError(f"columns must be {', '.join(COLUMNS)}, got {', '.join(map(str, self.table.columns))}")
        table = self.table.reset_index(drop=True).astype(dict.fromkeys(self.table.columns, str)).fillna("")
        # Files and folders are named after centres.
        paths = [center for center in table["center"].unique() if center in (".", "..") or "/" in center or "\0" in center]
        if paths:
            raise ManifestError.listing(self.root, [f"center {center!r}, expected a name that is no path" for center in paths])
        if self.task_kind == "classification":
            wrong_rows = table[failing(table["label"], _INDEX.fullmatch)].itertuples()
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
    def columns(self) -> tuple[str, ...]:
        """`COLUMNS`, and `GROUP` where there are groups."""
        return tuple(self.table.columns)

    @property
    def sha256(self) -> str:
        """Hash of the task, the classes, what differs from the default, and the table's rows in their order; not of where root lies.

        What differs: a largest value if there is one, another way than stretching, the values of masks if they are not those of
        `label_masks.values_of`.
        """
        # As json.dumps([task_kind, classes, columns, rows]) writes it, but a part at a time: the whole is larger than the table.
        read: list[float | str] = [] if self.reading.max_value is None else [self.reading.max_value]
        read += [] if self.reading.resize == "stretch" else [self.reading.resize]
        labels = [list(self.mask_values)] if self.mask_values != values_of(len(self.classes)) and self.mask_values else []
        head = json.dumps([self.task_kind, list(self.classes), list(self.columns), *read, *labels], ensure_ascii=False)
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
        """All rows in order, `PART` at a time."""
        columns = {column: self.table[column].tolist() for column in self.columns}
        rows = zip(*(columns | {"label": map(str, columns["label"])}).values(), strict=True)
        while part := list(itertools.islice(rows, PART)):
            yield part

    def _label_range(self) -> str:
        names = ", ".join(f"{index} ({name})" for index, name in enumerate(self.classes))
        return f"one of {names}"


def division_units(table: pd.DataFrame) -> pd.Series:
    """(rows,) what a division keeps together: groups where the table has them, else patients."""
    return table[GROUP if GROUP in table else "patient"]


def check_manifest(manifest: Manifest, files: bool = True, progress: bool = False) -> list[str]:
    """Check the table and, with `files`, every file it names (presence, sha256, decoding, masks).

    Args:
        files: False skips the files; right after `read_layout`, which has just looked into each of them.
        progress: draw a progress bar with the time left.
    Returns: warnings: a centre without one of the classes, a file twice inside one split, or at two centres.
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


def table_findings(
    manifest: Manifest, need_splits: bool = True, patient_rule: str = "", lines: Mapping[str, int] | None = None
) -> tuple[list[str], list[str]]:
    """(problems, warnings) of the table alone, no file is opened.

    Args:
        need_splits: False where the caller has reported centres without train or test samples itself.
        patient_rule: what made a file's patient, and how to say it otherwise: told with patients that are in several places.
        lines: path -> its line in the table that somebody wrote, to be told beside it.
    """
    table = _with_lines(manifest.table, lines) if lines else manifest.table
    if not len(table):
        return ["the manifest has no samples, expected at least one a centre and split"], []
    problems, training = _cell_problems(manifest) + unusable_names(manifest), manifest.training_centers
    if need_splits:
        problems += _empty_splits(manifest)
    divided, moved = _patient_problems(table)
    leaks, warnings = _shared_content(manifest.task_kind, table)
    if manifest.split_unit == "image" and divided:
        count = table.groupby("patient")["split"].nunique().gt(1).sum()
        warnings = [f"LEAKAGE, as asked for: {count} of {table['patient'].nunique()} patients have images in several splits", *warnings]
        divided = []
    external = [
        f"center {center!r} has no training samples: an external test center" for center in manifest.centers if center not in training
    ]
    problems += _repeated(table, "id") + _repeated(table, "path") + divided + moved
    warnings = _center_warnings(manifest) + warnings
    problems += [f"who is the patient: {patient_rule}"] if patient_rule and (divided or moved) else []
    return problems + leaks, external + warnings + two_sides(table) + _class_warnings(manifest)


def _center_warnings(manifest: Manifest) -> list[str]:
    """Centres that are probably one in two spellings, and a set with which nothing is federated."""
    warnings = [
        f"centers {one!r} and {other!r} are counted as two; if they are one, give it one name"
        for one, other in near_names(manifest.centers)
    ]
    if len(manifest.training_centers) == 1:
        warnings.append(
            f"one training centre ({manifest.training_centers[0]!r}): nothing is federated, unless this is one site's set of a federation"
            " (`vfmgl federation`); expected at least two centres, look at their names"
        )
    return warnings


def _with_lines(table: pd.DataFrame, lines: Mapping[str, int]) -> pd.DataFrame:
    return table.assign(path=[f"{path}, line {lines[path]}" if path in lines else path for path in table["path"]])


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


def unusable_names(manifest: Manifest) -> list[str]:
    people = manifest.table.drop_duplicates("patient")
    groups = manifest.table.drop_duplicates(GROUP) if GROUP in manifest.table else None
    return name_problems(
        manifest.centers,
        manifest.classes,
        dict(zip(people["patient"], people["path"], strict=True)),
        None if groups is None else dict(zip(groups[GROUP], groups["path"], strict=True)),
    )


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
    wrong |= failing(table["sha256"], _SHA256.fullmatch) | failing(table["spacing"], _is_spacing)
    for column in ("id", "path", "center", "patient"):
        wrong |= failing(table[column], str.strip)
    if manifest.task_kind == "classification":
        return wrong | ~table["label"].between(0, len(manifest.classes) - 1).to_numpy()
    return wrong | (table["label"] == "").to_numpy()


def failing(column: pd.Series, test: Callable[[str], object]) -> np.ndarray:
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
    """Patients (and groups) in several splits, and in several centres."""
    problems, moved = [], []
    for kind in ("patient", *([GROUP] if GROUP in table else [])):
        sides = table.drop_duplicates(["center", kind, "split"])
        several = sides[sides.duplicated(["center", kind], keep=False)]
        for (center, name), rows in several.groupby(["center", kind]):
            found = " and ".join(f"{row.split} ({row.path})" for row in rows.itertuples())
            problems.append(f"center {center!r}: {kind} {name!r} is in {found}, expected in one split only")
        places = sides.drop_duplicates(["center", kind])
        several = places[places.duplicated(kind, keep=False)]
        for name, rows in several.groupby(kind):
            found = " and ".join(f"{row.center!r} ({row.path})" for row in rows.itertuples())
            moved.append(
                f"{kind} {name!r} is in the centers {found}, expected in one only; leave out the images of all but one, or rename the"
                f" {kind}s if these are different"
            )
    if GROUP in table:
        memberships = table.drop_duplicates(["patient", GROUP])
        for patient, rows in memberships[memberships.duplicated("patient", keep=False)].groupby("patient"):
            found = " and ".join(f"{getattr(row, GROUP)!r} ({row.path})" for row in rows.itertuples())
            problems.append(f"patient {patient!r} is in the groups {found}, expected in one")
    return problems, moved


def _shared_content(kind: TaskKind, table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The same content in several splits of a centre is a problem; twice in one split, or at several centres, a warning."""
    problems, warnings = [], []
    again = table[table.duplicated("sha256", keep=False)]
    again = again[again["sha256"] != ""]  # an empty one is reported as such
    for sha256, rows in again.groupby("sha256", sort=False):
        files = ", ".join(f"{row.path} ({row.split})" for row in rows.head(4).itertuples())
        contradicts = kind == "classification" and rows["label"].nunique() > 1
        labels = " with different labels" if contradicts else ""
        content, centers = f"the same file content (sha256 {sha256[:12]}…)", rows["center"].nunique()
        if rows.groupby("center")["split"].nunique().gt(1).any():
            problems.append(f"{content} is in several splits: {files}; expected in one")
        elif centers > 1:
            apart = rows["split"].nunique() > 1
            leak = ", in several splits: what one center trains on another tests on, if these are images of one person" if apart else ""
            warnings.append(f"{content} is at {centers} centers{labels}{leak}: {files}")
        else:
            warnings.append(f"{content} is there {len(rows)} times{labels}: {files}")
    return problems, warnings


def _class_warnings(manifest: Manifest) -> list[str]:
    """The classes that a centre's split lacks: what is measured of them is undefined there."""
    if manifest.task_kind != "classification":
        return []
    warnings, several = [], len(manifest.classes) > 2
    for (center, split), labels in manifest.table.groupby(["center", "split"])["label"]:
        found = [number for number in range(len(manifest.classes)) if (labels == number).any()]
        if len(found) == 1:
            name, auc = manifest.classes[found[0]], "AUC is NaN there" if not several else "no AUC is defined there"
            warnings.append(f"center {center!r}: all {len(labels)} {split} samples are of class {name!r}, {auc}")
        elif len(found) < len(manifest.classes):
            missing = ", ".join(repr(name) for number, name in enumerate(manifest.classes) if number not in found)
            warnings.append(
                f"center {center!r}: none of the {len(labels)} {split} samples is of class {missing}; its one-vs-rest AUC there, and the "
                "means over the classes, are NaN"
            )
    return warnings
