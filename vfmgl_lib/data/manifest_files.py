"""A manifest as a file: CSV, and beside it a JSON of what a table cannot say."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from vfmgl_lib.base.files import write_text
from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.manifest import COLUMNS, GROUP, PART, Manifest, ManifestError, SplitUnit, TaskKind, failing, unusable_names

_RECURRING = ("center", "patient", "split", "label", "spacing", GROUP)


def write_manifest(manifest: Manifest, path: Path | str) -> None:
    """Write the table as CSV and, beside it as `<name>.json`, what it cannot say: task, classes and its own hash."""
    path = Path(path)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(manifest.columns)
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
        wrong = table["label"][failing(table["label"], re.compile("[0-9]{1,9}").fullmatch)]
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
    if problems := unusable_names(manifest):
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
    names: tuple[str, ...] = COLUMNS
    header: list[str] = []
    odd: list[tuple[int, int]] = []  # line, fields
    try:
        content.decode("utf-8")  # as a whole, for the error's position; a StringIO of it would take four bytes a letter
        reader = csv.reader(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=""), strict=True)
        header = next(reader, [])
        names = (*COLUMNS, GROUP) if header[len(COLUMNS) :] == [GROUP] else COLUMNS
        columns: dict[str, list[str]] = {name: [] for name in names}
        # Into columns a part at a time: half a million row lists are slow to make and to keep.
        line = 2
        while rows := list(itertools.islice(reader, PART)):
            odd += [(number, len(row)) for number, row in enumerate(rows, line) if len(row) != len(names)]
            line += len(rows)
            for name, values in zip(names, zip(*rows, strict=False), strict=False):
                # One text for all rows that have it: less memory, and faster comparisons ever after.
                columns[name].extend(map(sys.intern, values) if name in _RECURRING else values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: is not CSV in UTF-8 ({error})") from error
    if tuple(header) != names:
        missing = [name for name in COLUMNS if name not in header]
        detail = f"; missing: {', '.join(missing)}" if missing else ""
        raise ManifestError(f"{path}: header is {','.join(header)!r}, expected {','.join(COLUMNS)!r}{detail}")
    if odd:
        raise ManifestError.listing(path, [f"line {line}: {fields} fields, expected {len(names)}" for line, fields in odd])
    return pd.DataFrame(columns, dtype=str)
