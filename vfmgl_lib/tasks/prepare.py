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
from typing import Any, Literal, get_args

import pandas as pd
from tqdm import tqdm

from vfmgl_lib.base.files import real_path, sha256, write_bytes, write_json
from vfmgl_lib.data.images import Reading
from vfmgl_lib.data.inspection import inspect_files, remark_warnings
from vfmgl_lib.data.manifest import COLUMNS, GROUP, Manifest, ManifestError, check_manifest, table_findings
from vfmgl_lib.data.manifest_files import read_manifest, write_manifest
from vfmgl_lib.data.patient_notes import few_test_patients
from vfmgl_lib.data.people import PatientNames, matching_names
from vfmgl_lib.data.scan import held
from vfmgl_lib.tasks.cases import Case, Findings, Format, SourceError
from vfmgl_lib.tasks.conversion import convert_case, fingerprint, has_size, note_file, noted_sizes, read_note, remove_unused
from vfmgl_lib.tasks.datasheets import compare_counts, datasheet_of
from vfmgl_lib.tasks.folders import FOLDERS, LAYOUTS, pattern_of, read_folders
from vfmgl_lib.tasks.listed_cases import series_cases, volume_cases
from vfmgl_lib.tasks.patients import PATIENTS_FILE, patient_warnings, read_patients
from vfmgl_lib.tasks.records import TaskRecord, earlier_reading, find_task
from vfmgl_lib.tasks.samples import FILE as SAMPLES_FILE
from vfmgl_lib.tasks.samples import SAMPLES, SampleTable, read_samples, samples_format
from vfmgl_lib.tasks.series import series_format
from vfmgl_lib.tasks.splits import shuffled, told_apart, with_groups, with_splits

SplitRule = Literal["patient", "source", "image"]
PREPARED, PHANTOMS = "prepared.json", "phantoms.json"
# A folder holds one set of these; what a set of before does not say is as here.
SETTINGS = ("task", "source", "format", "split", "seed", "max_value", "samples", "patients", "patient_pattern")
EARLIER = {"samples": "", "patients": "own", "patient_pattern": ""}
RECORD = "record"  # and of a task of one's own what its record said


def formats_of(record: TaskRecord) -> tuple[Format, ...]:
    """What the task's images may be handed out as. A folder is tried in this order, a table of samples before all others."""
    if record.series:
        return (series_format(record), samples_format(record))
    own = record.reader.FORMATS if record.reader else (LAYOUTS[record.folders].format,) if record.folders else ()
    return (*own, samples_format(record))


@dataclass(frozen=True)
class Prepared:
    """A prepared set: its manifest, what was noticed on the way, and whether anything had to be done."""

    manifest: Manifest
    warnings: tuple[str, ...]
    format: str
    reused: bool


def prepare(
    task: str | Path | TaskRecord,
    source: Path | str,
    out: Path | str,
    *,
    format: str = "",
    split: SplitRule = "patient",
    seed: int = 42,
    max_value: float | None = None,
    samples: Path | str = "",
    patients: PatientNames = "own",
    patient_pattern: str = "",
    progress: bool = True,
) -> Prepared:
    """Makes a manifest, and images where they have to be converted, of a download; goes on where an earlier call was interrupted.

    Args:
        task: a task by name (`tasks.records.TASKS`), the YAML file of one's own, or its record.
        source: the download, unpacked; only read.
        out: the prepared set's folder, outside `source`.
        format: one of the task's formats by name (`formats_of`); "": the first that the folder looks like.
        split: "patient": the source's own split where it keeps patients whole, otherwise 64/16/20 by patient within each centre;
            "source": the source's own split even if it divides patients; "image": shuffled images, 64/16/20 (prostate: HarmoFL's order
            of slices where its lists lie in the source). The last two leak; the set says so wherever it is used.
        seed: of the split; 42 is the one the paper names for its endometrial task.
        max_value: what is white in images of more than 8 bits whose files do not declare it; None: as the datasheet says.
        samples: a table of the images (`tasks.samples`), its paths relative to `source`; "": samples.csv in `source`, if it is there.
        patients: "own": patients belong to their centre, one name at two centres is two patients; "shared": it is one (`data.people`).
        patient_pattern: of folders of images, who is the patient by the file's name (`folders.pattern_of`); "": as the layout says.
    Returns: the set; `reused` if it was complete and its source is unchanged (names, sizes and times of the files).
    Raises: ManifestError: with all problems found, none of which stops before the others are known; or `out` holds another set.
    """
    source, out = Path(source), Path(out)
    record = find_task(task)
    task = record.name
    if patients not in get_args(PatientNames):
        raise ManifestError(f"unknown patients {patients!r}, expected one of {', '.join(get_args(PatientNames))}")
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
    table = _listed_in(source, samples)
    chosen = SAMPLES if samples and format in ("", SAMPLES.name) else _format(record, source, format)
    _check_choice(chosen, samples, patient_pattern)
    values = (task, str(source.resolve()), chosen.name, split, seed, reading.max_value, str(table), patients, patient_pattern)
    settings: dict[str, Any] = dict(zip(SETTINGS, values, strict=True)) | ({} if chosen.name == SAMPLES.name else {"samples": ""})
    settings |= {} if record.is_built_in else {RECORD: record.prepared_as}
    done = _earlier(out, settings)

    findings = Findings(reading=reading)
    people = _patients(source, findings) if record.patient_table else None
    listed = SampleTable(Path(str(settings["samples"])), source, record) if chosen.name == SAMPLES.name else None
    cases: list[Case] | None
    if listed and record.series:
        cases = series_cases(listed, findings, names=patients, may_divide=split != "patient", progress=progress)
    elif listed and listed.has_volumes:
        cases = volume_cases(listed, findings, names=patients, may_divide=split != "patient")
    else:
        cases = chosen.cases(source, findings) if chosen.cases else None
    listing = _listing(record, source.resolve(), chosen, cases, str(settings["samples"]))
    state = fingerprint(listing, reading, record.stored_mask_values)
    if done.get("state") == state and not findings.problems and (prepared := _whole(out, done)):
        if prepared.manifest.classes == (record.classes or prepared.manifest.classes):
            return prepared
    if cases is not None:
        manifest = _convert(record, source, out, cases, findings, settings, progress)
    else:
        manifest = _read_in_place(record, source, chosen, findings, settings, progress, listed)
    rule = record.patient_rule if chosen.name == FOLDERS and not patient_pattern else ""
    _check(Path(str(settings["samples"]) or source), manifest, findings, rule)
    _finish(task, source, out, manifest, people, findings, settings | {"state": state})
    return Prepared(manifest, tuple(findings.warnings), chosen.name, reused=False)


def read_prepared(folder: Path | str, task: str | Path | TaskRecord = "") -> Prepared:
    """A prepared set as `prepare` left it; its files are not looked at (`verify`).

    Args:
        task: what it has to be of, as in `prepare`; "": any.
    Raises: ManifestError: the folder holds none, an incomplete one, or one of another task or of another record of its name.
    """
    folder = Path(folder)
    notes = _read_notes(folder)
    if notes is None:
        raise ManifestError(f"{folder}: holds no {PREPARED}, expected a folder made by 'prepare' and completed")
    if "state" not in notes:
        raise ManifestError(
            f"{folder}: its preparation was interrupted, expected a complete set; the same call of 'prepare' goes on with it"
        )
    if task:
        _check_task(folder, notes, find_task(task))
    return _reuse(folder, notes)


def _check_task(folder: Path, notes: dict, record: TaskRecord) -> None:
    if notes["task"] != record.name:
        raise ManifestError(f"{folder}: holds a set of the task {notes['task']}, expected one of {record.name}")
    then, now = notes.get(RECORD, {}), {} if record.is_built_in else record.prepared_as
    if differing := [f"{key} {then.get(key)!r}, now {now.get(key)!r}" for key in sorted(then | now) if then.get(key) != now.get(key)]:
        raise ManifestError(
            f"{folder}: was prepared with another record of {record.name}: {'; '.join(differing)}; prepare it again in a new folder, "
            "or give the record another name"
        )


def patients_of(manifest: Manifest) -> pd.DataFrame | None:
    """The patient table that belongs to a manifest, with its names for the patients; None: there is none.

    It lies beside the images or, if they were converted, beside their folder.

    Raises: ManifestError: as `read_patients`.
    """
    above = manifest.root.parent
    listed = read_patients(above if manifest.root.name == "data" and is_prepared(above) else manifest.root)
    return None if listed is None else listed.assign(patient=matching_names(listed, manifest.table))


def phantoms_of(manifest: Manifest) -> Path | None:
    """The folder of the phantoms that a manifest's images are, or were prepared from; None: they are no phantoms."""
    notes = (_read_notes(manifest.root.parent) if manifest.root.name == "data" else None) or {}
    places = (manifest.root, Path(notes.get("source", manifest.root)))
    return next((place for place in places if (place / PHANTOMS).is_file()), None)


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
    for candidate in (SAMPLES, *formats):
        if candidate.recognise(source):
            return candidate
    expected = "; ".join(f"{f.name}: {f.description}" for f in formats)
    above = source.resolve().parent
    hint = f"; there is a {SAMPLES_FILE} in the folder above: give {above}" if SAMPLES.recognise(above) else ""
    raise ManifestError(f"{source}: not recognised as {task}, {held(source)}; expected one of: {expected}{hint}")


def _earlier(out: Path, settings: dict) -> dict:
    """Notes of a set begun or completed with these settings, {} where there is none; an error if the folder holds something else."""
    notes = _read_notes(out)
    if notes is None:
        entries = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
        if strange := [name for name in entries if not name.startswith(".")]:
            raise ManifestError(f"{out}: holds other files ({', '.join(strange[:3])}), expected a new folder or a set of 'prepare'")
        return {}
    notes = EARLIER | notes
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
        problems, warnings = table_findings(manifest, not findings.problems, patient_rule, findings.lines)
        findings.warnings[:0] = warnings
    if findings.problems or problems:
        raise ManifestError.listing(source, list(dict.fromkeys([*findings.problems, *problems])))


def _finish(task: str, source: Path, out: Path, manifest: Manifest, patients: pd.DataFrame | None, findings: Findings, notes: dict) -> None:
    if patients is not None:
        findings.warnings += patient_warnings(manifest, patients)
    sheet = datasheet_of(task)
    own = notes["format"] == SAMPLES.name or (source / PHANTOMS).is_file()  # these have counts of their own choosing
    if sheet and not own:
        findings.warnings += compare_counts(manifest, sheet)
    if not (source / PHANTOMS).is_file():  # of phantoms there are as many as one asks for
        findings.warnings += few_test_patients(manifest.table, manifest.classes if manifest.task_kind == "classification" else ())
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
    write_json(out / PREPARED, {key: settings[key] for key in (*SETTINGS, RECORD) if key in settings})


def _patients(source: Path, findings: Findings) -> pd.DataFrame | None:
    try:
        return read_patients(source)
    except ManifestError as error:
        prefix = f"{source / PATIENTS_FILE}: "
        findings.problems += [f"{PATIENTS_FILE}: {text}" for text in error.problems or (str(error).removeprefix(prefix),)]
        return None


def _listed_in(source: Path, samples: Path | str) -> Path:
    """The table of samples: a file of this name from here, else in the source.

    Raises: ManifestError: there is none, or one here and another one in the source.
    """
    if not samples:
        return source.resolve() / SAMPLES_FILE
    found = list(dict.fromkeys(path.resolve() for path in (Path(samples), source / samples) if path.is_file()))
    if len(found) > 1:
        raise ManifestError(f"--samples {samples}: is {found[0]} or {found[1]}; name it by its whole path")
    if not found:
        raise ManifestError(f"--samples {samples}: no such file, neither from here ({Path.cwd()}) nor in {source}")
    return found[0]


def _check_choice(chosen: Format, samples: Path | str, patient_pattern: str) -> None:
    if samples and chosen.name != SAMPLES.name:
        raise ManifestError(f"--samples {samples} and --format {chosen.name}: expected one of them, the table says where the images are")
    if patient_pattern:
        pattern_of(patient_pattern)
        if chosen.name != FOLDERS:
            raise ManifestError(
                f"--patient-pattern is for folders of images, the format here is {chosen.name}, which says who is the patient"
            )


def _listing(record: TaskRecord, source: Path, chosen: Format, cases: list[Case] | None, samples: str) -> Iterator[Path]:
    """What says whether a source has changed: what its cases are read from, or its list of images where it has one; else all its files."""
    if samples:
        yield Path(samples)
    if cases is not None:
        yield from (file for case in cases for file in case.files)
        yield from sorted(entry for entry in source.iterdir() if entry.is_file())  # lists and tables beside the centres
        return
    lists = [source / name for name in getattr(record.reader, "LISTS", ()) if (source / name).is_file()]
    yield from lists if lists and chosen.name not in (FOLDERS, SAMPLES.name) else sorted(source.rglob("*"))


def _read_in_place(
    record: TaskRecord, source: Path, chosen: Format, findings: Findings, settings: dict, progress: bool, listed: SampleTable | None
) -> Manifest:
    home = source.resolve()
    try:
        if listed:
            rules = {"names": settings["patients"], "may_divide": settings["split"] != "patient"}
            read = read_samples(listed, findings, progress=progress, **rules)
        elif chosen.manifest:
            read = chosen.manifest(source, findings)
        else:
            rules = {"names": settings["patients"], "patient_pattern": settings["patient_pattern"]}
            read = read_folders(source, record, progress=progress, notes=findings.warnings, reading=findings.reading, **rules)
    except ManifestError as error:
        where = settings["samples"] or source
        raise ManifestError.listing(where, [*findings.problems, *(error.problems or (str(error),))]) from error
    if isinstance(read, Manifest):  # a layout of folders, checked and hashed by its reader
        return with_splits(read, settings, findings)
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
    return with_splits(told_apart(manifest, settings, findings), settings, findings)


def _convert(
    record: TaskRecord, source: Path, out: Path, cases: list[Case], findings: Findings, settings: dict, progress: bool
) -> Manifest:
    """Converts the cases that are not converted yet, and makes the manifest of all."""
    if not cases and not findings.problems:
        raise ManifestError(f"{source}: no case found, expected {record.name} images")
    segmentation = record.is_segmentation
    classes = record.classes or tuple(sorted({case.label for case in cases}))
    listed = [
        (f"{c.center}/{c.name}", "", "", c.center, c.patient, c.split, "-" if segmentation else classes.index(c.label), "", c.group)
        for c in cases
    ]
    table, labels = with_groups(listed), record.stored_mask_values
    divided = Manifest(out / "data", record.kind, classes, table, reading=findings.reading, mask_values=labels)
    divided = told_apart(divided, settings, findings)
    if settings["split"] == "image":  # divided when all images are known
        divided = replace(divided, table=divided.table.replace({"split": {"": "train"}}))
    else:
        divided = with_splits(divided, settings, findings)
    _begin(out, settings)
    rows, notes = [], set()
    for case, side in zip(
        tqdm(cases, desc=f"preparing {record.name}", unit="case", disable=not progress), divided.table["split"], strict=True
    ):
        case = replace(case, split=side)
        notes.add(note_file(out, case))
        try:
            told = {"group": case.group} | ({"spacing": case.spacing} if case.spacing else {})
            rows += (converted := [row | told for row in convert_case(record, out, case, findings.reading)])
            findings.lines.update({row["path"]: case.line for row in converted if case.line})
        except SourceError as error:
            findings.problems += str(error).splitlines()
    findings.warnings += remark_warnings(((r["path"], r["remarks"]) for r in rows), findings.reading)
    columns = [(f"{r['center']}/{r['split']}/{r['name']}", *(r[name] for name in (*COLUMNS[1:], GROUP))) for r in rows]
    table = with_groups(columns)
    if not segmentation:
        table["label"] = [classes.index(label) for label in table["label"]]
    manifest = told_apart(replace(divided, root=(out / "data").resolve(), table=table), settings, findings)
    if settings["split"] == "image":
        manifest = shuffled(record, source, manifest, settings["seed"], findings)
    if not findings.problems:
        remove_unused(out, notes, {file for row in rows for file in noted_sizes([row])})
    return manifest
