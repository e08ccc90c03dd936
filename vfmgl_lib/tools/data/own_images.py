"""The two files that a folder of one's own images needs, a table and a task, in one call: for the tutorial."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.names import same_name
from vfmgl_lib.tasks.diagnosis_list import read_list
from vfmgl_lib.tasks.next_task import class_order, use_of
from vfmgl_lib.tasks.records import find_task
from vfmgl_lib.tasks.samples import FILE, NEEDED
from vfmgl_lib.tasks.template import guess_samples, write_samples
from vfmgl_lib.tools.data.new_task import new_task

SEGMENTATION = ("background", "foreground")


@dataclass(frozen=True)
class OwnImages:
    """Where table and task are; what was guessed or found, a line each; what has to be filled in by hand, "": nothing."""

    table: Path
    task: Path
    told: list[str]
    missing: str

    def check(self) -> None:
        """Raises: ManifestError: something has to be filled in by hand."""
        if self.missing:
            raise ManifestError(self.missing)


def own_images(
    folder: Path | str, task: Path | str, *, classes: str = "", listed: Path | str = "", list_columns: str = "", patient_pattern: str = ""
) -> OwnImages:
    """Writes `samples.csv` into a folder of images, and a task, by guesses; what is there is used as it is.

    Args:
        task: its YAML file.
        classes: "benign,malignant" for a task that is not there, the positive one last, of a segmentation the background first; "":
            those of the table.
        listed, list_columns, patient_pattern: as for `guess_samples`.
    Raises: ManifestError: as `guess_samples`, `new_task`.
    """
    folder, task = Path(folder), Path(task)
    table, is_new = folder / FILE, not task.is_file()
    if classes and not is_new and (known := find_task(task).classes) != (asked := _names(classes)):
        remedy = "delete the file to have it written anew, or give the task another name"
        raise ManifestError(f"{task}: has the classes {', '.join(known or ())}, expected {', '.join(asked)}; {remedy}")
    if table.is_file():
        told = [f"{table} is there and is used as it is; delete it to have it guessed anew"]
        if is_new:
            header, rows = read_list(table)
            names = [same_name(name) for name in header]
            words = [row[names.index("label")] for row in rows] if "label" in names else []
            _write_task(task, classes, words, "mask" in names and "label" not in names)
    else:
        if is_new:
            first = guess_samples(folder, "", patient_pattern, listed, list_columns).table
            _write_task(task, classes, list(first.get("label", [])), "mask" in first)
        try:
            guessed = guess_samples(folder, str(task) if task.is_file() else "", patient_pattern, listed, list_columns)
        except ManifestError:
            if is_new:  # else the next call would take these classes for those that are wanted
                task.unlink(missing_ok=True)
            raise
        write_samples(table, guessed.table)
        told = [*guessed.told, f"{table}: written; correct it where a guess is wrong, and run this again"]
    if task.is_file():
        told.append(
            f"{task}: {'written' if is_new else 'is there and is used as it is'}, classes {', '.join(find_task(task).classes or ())}"
        )
    return OwnImages(table, task, told, _missing(table))


def _names(classes: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in classes.split(","))


def _write_task(task: Path, classes: str, labels: Sequence[str], segmentation: bool) -> None:
    """Not where neither the user nor a label says what the classes are: labels have to be filled in first."""
    names = list(_names(classes)) if classes else list(SEGMENTATION) if segmentation else class_order(labels)
    if len(names) < 2 and not classes:
        return
    kind, use = ("segmentation", f"outlines {', '.join(names[1:])}") if segmentation else ("classification", use_of(names))
    new_task(
        argparse.Namespace(
            file=task, kind=kind, classes=",".join(names), use=use, image_resize="pad", background="black", stained=False, like=""
        )
    )


def _missing(table: Path) -> str:
    header, rows = read_list(table)
    names, lacking = [same_name(name) for name in header], []
    for column in (*NEEDED, "label", "mask"):
        if column in names:
            empty = [row for row in rows if not row[names.index(column)]]
            if empty:
                example = empty[0][names.index("image")] if "image" in names else ""
                lacking.append(f"{column} in {len(empty)} of {len(rows)} rows (e.g. of {example})")
    return f"Fill in {' and '.join(lacking)} in {table}, or take these rows out; then run again." if lacking else ""
