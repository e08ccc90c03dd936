"""From a download as it is handed out to a prepared set: images, `manifest.csv` and what was done, in one folder.

    OUT/manifest.csv, manifest.json    the samples (`data.manifest`)
    OUT/prepared.json                  source and settings, written first; all else that is known of the set, last: then it is complete
    OUT/data/…                         converted images, in the task's own layout; absent where images are read in place
    OUT/cases/…                        one note a converted case, so that an interrupted preparation goes on

Formats whose images can be used as they are (folders of images, CAMELYON17's patches) are read in place; the others are converted to
PNG, volume by volume or tile by tile. The source is only read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from tqdm import tqdm

from vfmgl_lib.base.files import real_path, sha256, write_bytes, write_json
from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.data.divisions import with_held_out
from vfmgl_lib.data.images import Reading, inspect_files, remark_warnings
from vfmgl_lib.data.label_masks import in_words
from vfmgl_lib.data.manifest import COLUMNS, SPLITS, Manifest, ManifestError, check_manifest, read_manifest, table_findings, write_manifest
from vfmgl_lib.data.scan import held
from vfmgl_lib.tasks.cases import Case, Findings, Format, SourceError
from vfmgl_lib.tasks.conversion import convert_case, fingerprint, has_size, note_file, noted_sizes, read_note, remove_unused
from vfmgl_lib.tasks.datasheets import compare_counts, datasheet_of
from vfmgl_lib.tasks.folders import FOLDERS, LAYOUTS, read_folders
from vfmgl_lib.tasks.patients import PATIENTS_FILE, patient_warnings, read_patients
from vfmgl_lib.tasks.records import TASKS, TaskRecord, earlier_reading, find_task

SplitRule = Literal["patient", "source", "image"]
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.2  # 64/16/20: a fifth for the test, then a fifth of the rest
PREPARED, PHANTOMS = "prepared.json", "phantoms.json"
SETTINGS = ("task", "source", "format", "split", "seed", "max_value")  # a folder holds one set of these


def formats_of(record: TaskRecord) -> tuple[Format, ...]:
    """What the task's images may be handed out as; a folder is tried in this order."""
    if record.reader:
        return record.reader.FORMATS
    return (LAYOUTS[record.folders].format,) if record.folders else ()


@dataclass(frozen=True)
class Prepared:
    """A prepared set: its manifest, what was noticed on the way, and whether anything had to be done."""

    manifest: Manifest
    warnings: tuple[str, ...]
    format: str
    reused: bool


def prepare(
    task: str,
    source: Path | str,
    out: Path | str,
    *,
    format: str = "",
    split: SplitRule = "patient",
    seed: int = 42,
    max_value: float | None = None,
    progress: bool = True,
) -> Prepared:
    """Makes a manifest, and images where they have to be converted, of a download; goes on where an earlier call was interrupted.

    Args:
        task: a task by name (`tasks.records.TASKS`).
        source: the download, unpacked; only read.
        out: the prepared set's folder, outside `source`.
        format: one of the task's formats by name (`formats_of`); "": the first that the folder looks like.
        split: "patient": the source's own split where it keeps patients whole, otherwise 64/16/20 by patient within each centre;
            "source": the source's own split even if it divides patients; "image": shuffled images, 64/16/20 (prostate: HarmoFL's order
            of slices where its lists lie in the source). The last two leak; the set says so wherever it is used.
        seed: of the split; 42 is the one the paper names for its endometrial task.
        max_value: what is white in images of more than 8 bits whose files do not declare it; None: as the datasheet says.
    Returns: the set; `reused` if it was complete and its source is unchanged (names, sizes and times of the files).
    Raises: ManifestError: with all problems found, none of which stops before the others are known; or `out` holds another set.
    """
    source, out = Path(source), Path(out)
    record = find_task(task)
    if split not in get_args(SplitRule):
        raise ManifestError(f"unknown split rule {split!r}, expected one of {', '.join(get_args(SplitRule))}")
    if not source.is_dir():
        raise ManifestError(f"{source}: source folder not found, expected the unpacked download of {task}")
    if seed < 0:
        raise ManifestError(f"seed must be 0 or more, got {seed}")
    for one, other in ((out, source), (source, out)):
        if real_path(one).is_relative_to(real_path(other)):
            raise ManifestError(f"{one}: lies in {other}, expected source and --out apart: the source is only read")
    sheet = datasheet_of(task)
    declared, background = (sheet.max_value, sheet.transparent) if sheet else (None, record.background)
    reading = Reading(declared if max_value is None else max_value, background)
    chosen = _format(record, source, format)
    settings = dict(zip(SETTINGS, (task, str(source.resolve()), chosen.name, split, seed, reading.max_value), strict=True))
    done = _earlier(out, settings)

    findings = Findings(reading=reading)
    patients = _patients(source, findings) if record.patient_table else None
    cases = chosen.cases(source, findings) if chosen.cases else None
    state = fingerprint(_listing(record, source.resolve(), chosen, cases), reading, record.stored_mask_values)
    if done.get("state") == state and not findings.problems and (prepared := _whole(out, done)):
        if prepared.manifest.classes == (record.classes or prepared.manifest.classes):
            return prepared
    if cases is not None:
        manifest = _convert(record, source, out, cases, findings, settings, progress)
    else:
        manifest = _read_in_place(record, source, chosen, findings, settings, progress)
    _check(source, manifest, findings, record.patient_rule if chosen.name == FOLDERS else "")
    _finish(task, source, out, manifest, patients, findings, settings | {"state": state})
    return Prepared(manifest, tuple(findings.warnings), chosen.name, reused=False)


def read_prepared(folder: Path | str, task: str = "") -> Prepared:
    """A prepared set as `prepare` left it; its files are not looked at (`verify`).

    Args:
        task: what it has to be of; "": any.
    Raises: ManifestError: the folder holds none, an incomplete one, one of another task, or of other values of its classes in masks.
    """
    folder = Path(folder)
    notes = _read_notes(folder)
    if notes is None:
        raise ManifestError(f"{folder}: holds no {PREPARED}, expected a folder made by 'prepare' and completed")
    if "state" not in notes:
        raise ManifestError(
            f"{folder}: its preparation was interrupted, expected a complete set; the same call of 'prepare' goes on with it"
        )
    if task and notes["task"] != task:
        raise ManifestError(f"{folder}: holds a set of the task {notes['task']}, expected one of {task}")
    prepared = _reuse(folder, notes)
    record, found = TASKS.get(notes["task"]), prepared.manifest
    if record and record.is_segmentation and found.classes == record.classes and found.mask_values != record.stored_mask_values:
        named, now = in_words(found.mask_values), in_words(record.stored_mask_values)
        raise ManifestError(f"{folder}: was prepared with masks of {named}, the task's record says {now} (mask_values); prepare it anew")
    return prepared


def patients_of(manifest: Manifest) -> pd.DataFrame | None:
    """The patient table that belongs to a manifest: beside its images or, if they were converted, beside their folder; None: there is none.

    Raises: ManifestError: as `read_patients`.
    """
    above = manifest.root.parent
    return read_patients(above if manifest.root.name == "data" and is_prepared(above) else manifest.root)


def is_prepared(folder: Path | str) -> bool:
    return (Path(folder) / PREPARED).is_file()


def verify(folder: Path | str, progress: bool = True) -> list[str]:
    """Reads every file of a prepared set again and compares it with the manifest.

    Returns: warnings, the datasheet's among them.
    Raises: ManifestError: with everything that is missing, changed or unreadable.
    """
    prepared = read_prepared(folder)
    notes = _read_notes(Path(folder)) or {}
    problems: list[str] = []
    try:
        warnings = check_manifest(prepared.manifest, progress=progress)
    except ManifestError as error:
        problems += error.problems or (str(error),)
    problems += [
        f"{mask}: sha256 differs from the one noted when the set was prepared: changed since"
        for mask, digest in notes.get("masks", {}).items()
        if (prepared.manifest.root / mask).is_file() and sha256(prepared.manifest.root / mask) != digest
    ]
    if problems:
        raise ManifestError.listing(folder, problems)
    return list(dict.fromkeys([*prepared.warnings, *warnings]))


def _format(record: TaskRecord, source: Path, name: str) -> Format:
    task, formats = record.name, formats_of(record)
    if name:
        for candidate in formats:
            if candidate.name == name:
                return candidate
        raise ManifestError(f"unknown format {name!r} of {task}, expected one of {', '.join(f.name for f in formats)}")
    for candidate in formats:
        if candidate.recognise(source):
            return candidate
    expected = "; ".join(f"{f.name}: {f.description}" for f in formats)
    raise ManifestError(f"{source}: not recognised as {task}, {held(source)}; expected one of: {expected}")


def _earlier(out: Path, settings: dict) -> dict:
    """Notes of a set begun or completed with these settings, {} where there is none; an error if the folder holds something else."""
    notes = _read_notes(out)
    if notes is None:
        entries = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
        if strange := [name for name in entries if not name.startswith(".")]:
            raise ManifestError(f"{out}: holds other files ({', '.join(strange[:3])}), expected a new folder or a set of 'prepare'")
        return {}
    differing = [f"{key} {notes.get(key)!r} instead of {value!r}" for key, value in settings.items() if notes.get(key) != value]
    if differing:
        raise ManifestError(f"{out}: holds a set prepared otherwise: {'; '.join(differing)}; choose another folder or delete it")
    return notes


def _read_notes(out: Path) -> dict | None:
    try:
        notes = json.loads((out / PREPARED).read_text(encoding="utf-8"))
        if not isinstance(notes, dict):
            raise ValueError(f"holds {type(notes).__name__}")
        return notes
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{out / PREPARED}: cannot be read ({error}); delete {out} and prepare the set again") from error


def _reuse(out: Path, notes: dict) -> Prepared:
    root = (out / "data").resolve() if notes["converted"] else Path(notes["source"])
    manifest = read_manifest(out / "manifest.csv", root, earlier_reading(notes["task"]))
    return Prepared(manifest, tuple(notes["warnings"]), notes["format"], reused=True)


def _whole(out: Path, notes: dict) -> Prepared | None:
    """A complete set; None if its manifest or a converted file is gone or cut short."""
    try:
        prepared = _reuse(out, notes)
    except ManifestError:
        return None
    if notes["converted"]:
        table = prepared.manifest.table
        sizes: dict[str, int] = {}
        for note in (out / "cases").glob("*.json"):
            sizes |= noted_sizes(read_note(note))
        masks = table["label"].tolist() if prepared.manifest.task_kind == "segmentation" else []
        if not all(has_size(prepared.manifest.root / file, sizes.get(file)) for file in [*table["path"], *masks]):
            return None
    return prepared


def _check(source: Path, manifest: Manifest, findings: Findings, patient_rule: str) -> None:
    """Raises what is wrong with the source and with the table made of it, together; the table's warnings come first."""
    problems: list[str] = []
    if len(manifest.table) or not findings.problems:
        problems, warnings = table_findings(manifest, not findings.problems, patient_rule)
        findings.warnings[:0] = warnings
    if findings.problems or problems:
        raise ManifestError.listing(source, list(dict.fromkeys([*findings.problems, *problems])))


def _finish(task: str, source: Path, out: Path, manifest: Manifest, patients: pd.DataFrame | None, findings: Findings, notes: dict) -> None:
    if patients is not None:
        findings.warnings += patient_warnings(manifest, patients)
    sheet = datasheet_of(task)
    if sheet and not (source / PHANTOMS).is_file():  # those have counts of their own choosing
        findings.warnings += compare_counts(manifest, sheet)
    converted = manifest.root != source.resolve()
    masks = {}
    if manifest.task_kind == "segmentation":
        masks = {mask: sha256(manifest.root / mask) for mask in manifest.table["label"]}
    _begin(out, notes)
    if patients is not None:
        write_bytes(out / PATIENTS_FILE, (source / PATIENTS_FILE).read_bytes())
    else:
        (out / PATIENTS_FILE).unlink(missing_ok=True)
    write_manifest(manifest, out / "manifest.csv")
    write_json(out / PREPARED, notes | {"converted": converted, "warnings": findings.warnings, "masks": masks})


def _begin(out: Path, settings: dict) -> None:
    """Says whose folder this is before anything else is written there, and that what it holds is not complete."""
    write_json(out / PREPARED, {key: settings[key] for key in SETTINGS})


def _patients(source: Path, findings: Findings) -> pd.DataFrame | None:
    try:
        return read_patients(source)
    except ManifestError as error:
        prefix = f"{source / PATIENTS_FILE}: "
        findings.problems += [f"{PATIENTS_FILE}: {text}" for text in error.problems or (str(error).removeprefix(prefix),)]
        return None


def _listing(record: TaskRecord, source: Path, chosen: Format, cases: list[Case] | None) -> Iterator[Path]:
    """What says whether a source has changed: what its cases are read from, or its list of images where it has one; else all its files."""
    if cases is not None:
        yield from (file for case in cases for file in case.files)
        yield from sorted(entry for entry in source.iterdir() if entry.is_file())  # lists and tables beside the centres
        return
    lists = [source / name for name in getattr(record.reader, "LISTS", ()) if (source / name).is_file()]
    yield from lists if lists and chosen.name != FOLDERS else sorted(source.rglob("*"))


def _read_in_place(record: TaskRecord, source: Path, chosen: Format, findings: Findings, settings: dict, progress: bool) -> Manifest:
    home = source.resolve()
    try:
        if chosen.manifest:
            read = chosen.manifest(source, findings)
        else:
            read = read_folders(source, record.name, progress=progress, notes=findings.warnings, reading=findings.reading)
    except ManifestError as error:
        raise ManifestError.listing(source, [*findings.problems, *(error.problems or (str(error),))]) from error
    if isinstance(read, Manifest):  # a layout of folders, checked and hashed by its reader
        return _with_splits(read, settings, findings)
    if record.classes is None:
        raise ManifestError(f"{record.name}: its reader lists images by number of class, but task.yaml names no classes; add them there")
    if findings.problems:  # what is not there is reported already
        read = read.drop_duplicates("path")
        read = read.loc[[(home / path).is_file() for path in read["path"]]]
    masks, labels = read["label"].tolist() if record.is_segmentation else [None] * len(read), record.stored_mask_values
    inspections = inspect_files(home, read["path"].tolist(), masks, progress=progress, reading=findings.reading, mask_values=labels)
    findings.problems += [problem for found in inspections for problem in found.problems]
    findings.warnings += remark_warnings(zip(read["path"], (found.remarks for found in inspections), strict=True), findings.reading)
    table = read.assign(sha256=[found.sha256 for found in inspections], spacing="")[list(COLUMNS)]
    readable = table.loc[[not found.problems for found in inspections]]
    manifest = Manifest(home, record.kind, record.classes, readable, reading=findings.reading, mask_values=labels)
    return _with_splits(manifest, settings, findings)


def _convert(
    record: TaskRecord, source: Path, out: Path, cases: list[Case], findings: Findings, settings: dict, progress: bool
) -> Manifest:
    """Converts the cases that are not converted yet, and makes the manifest of all."""
    if not cases and not findings.problems:
        raise ManifestError(f"{source}: no case found, expected {record.name} images")
    segmentation = record.is_segmentation
    classes = record.classes or tuple(sorted({case.label for case in cases}))
    listed = [
        (f"{c.center}/{c.name}", "", "", c.center, c.patient, c.split, "-" if segmentation else classes.index(c.label), "") for c in cases
    ]
    table, labels = pd.DataFrame(listed, columns=list(COLUMNS)), record.stored_mask_values
    divided = Manifest(out / "data", record.kind, classes, table, reading=findings.reading, mask_values=labels)
    if settings["split"] == "image":  # divided when all images are known
        divided = replace(divided, table=divided.table.replace({"split": {"": "train"}}))
    else:
        divided = _with_splits(divided, settings, findings)
    _begin(out, settings)
    rows, notes = [], set()
    for case, side in zip(
        tqdm(cases, desc=f"preparing {record.name}", unit="case", disable=not progress), divided.table["split"], strict=True
    ):
        case = replace(case, split=side)
        notes.add(note_file(out, case))
        try:
            rows += convert_case(record, out, case, findings.reading)
        except SourceError as error:
            findings.problems += str(error).splitlines()
    findings.warnings += remark_warnings(((r["path"], r["remarks"]) for r in rows), findings.reading)
    columns = [
        (f"{r['center']}/{r['split']}/{r['name']}", r["path"], r["sha256"], r["center"], r["patient"], r["split"], r["label"], r["spacing"])
        for r in rows
    ]
    table = pd.DataFrame(columns, columns=list(COLUMNS))
    if not segmentation:
        table["label"] = [classes.index(label) for label in table["label"]]
    manifest = replace(divided, root=(out / "data").resolve(), table=table)
    if settings["split"] == "image":
        manifest = _shuffled(record, source, manifest, settings["seed"], findings)
    if not findings.problems:
        remove_unused(out, notes, {file for row in rows for file in noted_sizes([row])})
    return manifest


def _with_splits(manifest: Manifest, settings: dict, findings: Findings) -> Manifest:
    """The manifest with every row in a split, by the rule of `prepare`; external centres stay external."""
    table, rule, seed = manifest.table, settings["split"], settings["seed"]
    given = table["split"] != ""
    divides = given.all() and (table.groupby("patient")["split"].nunique() > 1).any()
    if given.all() and (rule == "source" or (rule == "patient" and not divides)):
        return replace(manifest, split_unit="image" if divides else "patient")
    if given.any() and not given.all():
        raise ManifestError(f"{manifest.root}: {given.sum()} of {len(table)} samples have a split, expected all or none")
    if rule == "source":
        raise ManifestError(f"{manifest.root}: --split source: the source names no split; use patient")
    centers = manifest.training_centers if given.all() else manifest.centers
    units = table["patient"] if rule == "patient" else table["id"]
    whole = replace(manifest, table=table.assign(split=table["split"].mask(table["center"].isin(centers), "train"), patient=units))
    counts = whole.table.groupby("center")["patient"].nunique()
    few = [center for center in centers if counts[center] < len(SPLITS)]
    expected = f"expected at least {len(SPLITS)}, one for each of {', '.join(SPLITS)}"
    findings.problems += [f"center {center!r}: {counts[center]} {rule}(s) to divide, {expected}" for center in few]
    centers = tuple(center for center in centers if center not in few)
    test = with_held_out(whole, TEST_SHARE, seed, "test", centers)
    divided = with_held_out(test, VALIDATION_SHARE, seed, "val", centers).table["split"]
    if divides and rule == "patient":
        findings.warnings.append("the source's own split divides patients, so it was not used; --split source would keep it")
    return replace(manifest, table=table.assign(split=divided), split_unit="patient" if rule == "patient" else "image")


def _shuffled(record: TaskRecord, source: Path, manifest: Manifest, seed: int, findings: Findings) -> Manifest:
    """Images divided without regard to patients: in a published order where the source has one, else drawn by the seed.

    The limits are HarmoFL's, rounded down. External centres stay external.
    """
    table, published = manifest.table.copy(), getattr(record.reader, "image_order", None)
    for center in manifest.training_centers:
        own = table.index[table["center"] == center]
        names = table.loc[own, "id"].str.rsplit("/", n=1).str[-1]
        try:
            order = published(source, center) if published else None
        except SourceError as error:
            findings.problems.append(str(error))
            continue
        if order is None:
            order = names.iloc[np.random.default_rng(seed_sequence(seed, "images", center)).permutation(len(own))].tolist()
        elif unknown := sorted(set(order) ^ set(names)):
            findings.problems.append(f"{center}-dir.npy: HarmoFL's list and the slices of {center} differ, e.g. {', '.join(unknown[:3])}")
            continue
        training = (1 - TEST_SHARE) * len(order) * (1 - VALIDATION_SHARE)
        limits = int(training), int(training + ((1 - TEST_SHARE) * len(order) - training))
        place = {name: position for position, name in enumerate(order)}
        sides = ["train" if place[name] < limits[0] else "val" if place[name] < limits[1] else "test" for name in names]
        table.loc[own, "split"] = sides
    table["id"] = [f"{row.center}/{row.split}/{row.id.split('/', 2)[-1]}" for row in table.itertuples()]
    return replace(manifest, table=table, split_unit="image")
