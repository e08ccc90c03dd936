"""From a download as it is handed out to a prepared set: images, `manifest.csv` and what was done, in one folder.

    OUT/manifest.csv, manifest.json    the samples (`data.manifest`)
    OUT/prepared.json                  source, format, settings, warnings; written last: without it the set is not complete
    OUT/data/…                         converted images, in the task's own layout; absent where images are read in place
    OUT/cases/…                        one note a converted case, so that an interrupted preparation goes on

Formats whose images can be used as they are (folders of images, CAMELYON17's patches) are read in place; the others are converted to
PNG, volume by volume or tile by tile. The source is only read.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from vfmgl_lib.data.datasheets import compare_counts, read_datasheet
from vfmgl_lib.data.images import inspect_files
from vfmgl_lib.data.layouts import NUCLEI_CLASSES, read_layout, with_held_out
from vfmgl_lib.data.manifest import COLUMNS, Manifest, ManifestError, check_manifest, read_manifest, table_findings, write_manifest
from vfmgl_lib.data.patients import PATIENTS_FILE, patient_warnings, read_patients
from vfmgl_lib.data.preprocessing import PREPARATION
from vfmgl_lib.data.sources import camelyon17, endometrial, nuclei, prostate
from vfmgl_lib.data.sources.cases import Case, Findings, Format, Picture, SourceError
from vfmgl_lib.files import sha256, write_bytes, write_json
from vfmgl_lib.randomness import seed_sequence

SplitRule = Literal["patient", "source", "image"]
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.2  # 64/16/20: a fifth for the test, then a fifth of the rest
PREPARED, PHANTOMS = "prepared.json", "phantoms.json"
FOLDERS = "folders"


def _folders_format(layout: str, description: str, split_folders: tuple[str, ...]) -> Format:
    def recognise(source: Path) -> bool:
        return any((center / name).is_dir() for center in _subfolders(source) for name in split_folders)

    return Format(FOLDERS, description, recognise, manifest=lambda source, findings: read_layout(source, layout))


def _subfolders(source: Path) -> list[Path]:
    return [entry for entry in source.iterdir() if entry.is_dir() and not entry.name.startswith(".")] if source.is_dir() else []


# Tried in this order: what holds volumes is not a folder of images, though its folders may have the same names.
FORMATS: dict[str, tuple[Format, ...]] = {
    "endometrial": (
        *endometrial.FORMATS,
        _folders_format("endometrial", "<center>/{traindata,testdata}/<class>/<patient>/<images>", ("traindata", "testdata")),
    ),
    "camelyon17": camelyon17.FORMATS,
    "prostate": prostate.FORMATS,
    "nuclei": (
        _folders_format("nuclei", "<center>/{train,val,test}/{images,labels}", ("train", "val", "test")),
        *nuclei.FORMATS,
    ),
}
CLASSES = {"camelyon17": camelyon17.CLASSES, "prostate": ("background", "prostate"), "nuclei": NUCLEI_CLASSES}


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
    progress: bool = True,
) -> Prepared:
    """Makes a manifest, and images where they have to be converted, of a download; goes on where an earlier call was interrupted.

    Args:
        task: "endometrial", "camelyon17", "prostate" or "nuclei".
        source: the download, unpacked; only read.
        out: the prepared set's folder, outside `source`.
        format: one of the task's `FORMATS` by name; "": the first that the folder looks like.
        split: "patient": the source's own split where it keeps patients whole, otherwise 64/16/20 by patient within each centre;
            "source": the source's own split even if it divides patients; "image": shuffled images, 64/16/20 (prostate: HarmoFL's order
            of slices where its lists lie in the source). The last two leak; the set says so wherever it is used.
        seed: of the split; 42 is the one the paper names for its endometrial task.
    Returns: the set; `reused` if it was complete and its source is unchanged (names, sizes and times of the files).
    Raises: ManifestError: with all problems found, none of which stops before the others are known; or `out` holds another set.
    """
    source, out = Path(source), Path(out)
    if task not in FORMATS:
        raise ManifestError(f"unknown task {task!r}, expected one of {', '.join(FORMATS)}")
    if split not in get_args(SplitRule):
        raise ManifestError(f"unknown split rule {split!r}, expected one of {', '.join(get_args(SplitRule))}")
    if not source.is_dir():
        raise ManifestError(f"{source}: source folder not found, expected the unpacked download of {task}")
    if out.resolve().is_relative_to(source.resolve()):
        raise ManifestError(f"{out}: lies in the source {source}, which is only read; give another --out")
    chosen = _format(task, source, format)
    settings = {"task": task, "source": str(source.resolve()), "format": chosen.name, "split": split, "seed": seed, "version": PREPARATION}
    done = _earlier(out, settings)

    findings = Findings()
    if chosen.cases:
        cases = chosen.cases(source, findings)
        state = _fingerprint(file for case in cases for file in case.files)
        if done and done["state"] == state and not findings.problems:
            return _reuse(out, done)
        _raise(source, findings)
        manifest = _convert(task, source, out, cases, findings, split, seed, progress)
    else:
        state = _fingerprint(_listing(source, chosen))
        if done and done["state"] == state:
            return _reuse(out, done)
        manifest = _read_in_place(task, source, chosen, findings, split, seed, progress)
    _finish(task, source, out, manifest, findings, settings | {"state": state})
    return Prepared(manifest, tuple(findings.warnings), chosen.name, reused=False)


def read_prepared(folder: Path | str) -> Prepared:
    """A prepared set as `prepare` left it; its files are not looked at (`verify`).

    Raises: ManifestError: the folder holds none, or an incomplete one.
    """
    folder = Path(folder)
    notes = _read_notes(folder)
    if notes is None:
        raise ManifestError(f"{folder}: holds no {PREPARED}, expected a folder made by 'prepare' and completed")
    return _reuse(folder, notes)


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
    changed = [
        f"{mask}: sha256 differs from the one noted when the set was prepared: changed since"
        for mask, digest in notes.get("masks", {}).items()
        if (prepared.manifest.root / mask).is_file() and sha256(prepared.manifest.root / mask) != digest
    ]
    if changed:
        raise ManifestError.listing(folder, changed)
    return list(dict.fromkeys([*prepared.warnings, *check_manifest(prepared.manifest, progress=progress)]))


def _format(task: str, source: Path, name: str) -> Format:
    formats = FORMATS[task]
    if name:
        for candidate in formats:
            if candidate.name == name:
                return candidate
        raise ManifestError(f"unknown format {name!r} of {task}, expected one of {', '.join(f.name for f in formats)}")
    for candidate in formats:
        if candidate.recognise(source):
            return candidate
    expected = "; ".join(f"{f.name}: {f.description}" for f in formats)
    raise ManifestError(f"{source}: not recognised as {task}, expected one of: {expected}")


def _earlier(out: Path, settings: dict) -> dict | None:
    """Notes of a complete set made with these settings; an error if the folder holds something else."""
    notes = _read_notes(out)
    if notes is None:
        known = ("manifest.csv", "manifest.json", PATIENTS_FILE, "data", "cases")
        entries = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
        if strange := [name for name in entries if name not in known and not name.startswith(".")]:
            raise ManifestError(f"{out}: holds other files ({', '.join(strange[:3])}), expected a new folder or a set of 'prepare'")
        return None
    differing = [f"{key} {notes.get(key)!r} instead of {value!r}" for key, value in settings.items() if notes.get(key) != value]
    if differing:
        raise ManifestError(f"{out}: holds a set prepared otherwise: {'; '.join(differing)}; choose another folder or delete it")
    return notes


def _read_notes(out: Path) -> dict | None:
    try:
        return json.loads((out / PREPARED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{out / PREPARED}: cannot be read ({error}); delete it and prepare the set again") from error


def _reuse(out: Path, notes: dict) -> Prepared:
    root = out / "data" if notes["converted"] else Path(notes["source"])
    return Prepared(read_manifest(out / "manifest.csv", root), tuple(notes["warnings"]), notes["format"], reused=True)


def _finish(task: str, source: Path, out: Path, manifest: Manifest, findings: Findings, notes: dict) -> None:
    problems, warnings = table_findings(manifest)
    if problems:
        raise ManifestError.listing(source, problems)
    findings.warnings[:0] = warnings
    patients = read_patients(source) if task == "endometrial" else None
    if patients is not None:
        findings.warnings += patient_warnings(manifest, patients)
        write_bytes(out / PATIENTS_FILE, (source / PATIENTS_FILE).read_bytes())
    if not (source / PHANTOMS).is_file():  # those have counts of their own choosing
        findings.warnings += compare_counts(manifest, read_datasheet(task))
    converted = manifest.root != source.resolve()
    masks = {}
    if manifest.task_kind == "segmentation":
        masks = {mask: sha256(manifest.root / mask) for mask in manifest.table["label"]}
    write_manifest(manifest, out / "manifest.csv")
    write_json(out / PREPARED, notes | {"converted": converted, "warnings": findings.warnings, "masks": masks})


def _raise(source: Path, findings: Findings) -> None:
    if findings.problems:
        raise ManifestError.listing(source, findings.problems)


def _fingerprint(files: Iterator[Path]) -> str:
    """Hash of names, sizes and times: whether a source has changed, without reading it again."""
    digest = hashlib.sha256()
    for file in files:
        try:
            found = file.stat()
            digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{file}\0missing\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _listing(source: Path, chosen: Format) -> Iterator[Path]:
    """What says whether a set that is read in place has changed: its list where it has one, otherwise all its files."""
    lists = [source / name for name in (camelyon17.METADATA, camelyon17.PICKLE) if (source / name).is_file()]
    yield from lists if lists and chosen.name != FOLDERS else sorted(source.rglob("*"))


def _read_in_place(task: str, source: Path, chosen: Format, findings: Findings, split: SplitRule, seed: int, progress: bool) -> Manifest:
    read = chosen.manifest(source, findings)
    if isinstance(read, Manifest):  # a layout of folders, checked and hashed by its reader
        return _with_splits(read, split, seed, findings)
    _raise(source, findings)
    home = source.resolve()
    inspections = inspect_files(home, read["path"].tolist(), [None] * len(read), progress=progress)
    findings.problems += [problem for found in inspections for problem in found.problems]
    _raise(source, findings)
    table = read.assign(sha256=[found.sha256 for found in inspections], spacing="")[list(COLUMNS)]
    return _with_splits(Manifest(home, "classification", CLASSES[task], table), split, seed, findings)


def _convert(
    task: str, source: Path, out: Path, cases: list[Case], findings: Findings, split: SplitRule, seed: int, progress: bool
) -> Manifest:
    """Converts the cases that are not converted yet, and makes the manifest of all."""
    if not cases:
        raise ManifestError(f"{source}: no case found, expected {task} images")
    segmentation = task in ("prostate", "nuclei")
    classes = CLASSES[task] if segmentation else tuple(sorted({case.label for case in cases}))
    listed = pd.DataFrame(
        [
            (f"{c.center}/{c.name}", "", "", c.center, c.patient, c.split, "-" if segmentation else classes.index(c.label), "")
            for c in cases
        ],
        columns=list(COLUMNS),
    )
    problems, rows = [], []
    kind = "segmentation" if segmentation else "classification"
    divided = _with_splits(Manifest(out / "data", kind, classes, listed), "patient" if split == "image" else split, seed, findings)
    for case, side in zip(tqdm(cases, desc=f"preparing {task}", unit="case", disable=not progress), divided.table["split"], strict=True):
        try:
            rows += _convert_case(task, out, replace(case, split=side))
        except SourceError as error:
            problems.append(str(error))
    if problems:
        raise ManifestError.listing(source, problems)
    columns = [
        (f"{r['center']}/{r['split']}/{r['name']}", r["path"], r["sha256"], r["center"], r["patient"], r["split"], r["label"], r["spacing"])
        for r in rows
    ]
    table = pd.DataFrame(columns, columns=list(COLUMNS))
    if not segmentation:
        table["label"] = [classes.index(label) for label in table["label"]]
    manifest = Manifest((out / "data").resolve(), kind, classes, table)
    return _shuffled(task, source, manifest, seed) if split == "image" else replace(manifest, split_unit=divided.split_unit)


def _convert_case(task: str, out: Path, case: Case) -> list[dict]:
    """The rows of one case's pictures; from its note where neither the case nor its pictures have changed."""
    key = hashlib.sha256(f"{case.center}\0{case.patient}\0{case.name}\0{case.split}\0{case.label}".encode()).hexdigest()[:20]
    note, state = out / "cases" / f"{key}.json", _fingerprint(iter(case.files))
    if note.is_file():
        found = json.loads(note.read_text(encoding="utf-8"))
        files = [(row[kind], row[f"{kind}_bytes"]) for row in found["rows"] for kind in ("path", "label") if f"{kind}_bytes" in row]
        if found["state"] == state and found["version"] == PREPARATION and all(_has_size(out / "data" / f, n) for f, n in files):
            return found["rows"]
    rows = [_write_picture(task, out / "data", case, picture) for picture in case.read()]
    write_json(note, {"state": state, "version": PREPARATION, "rows": rows})
    return rows


def _write_picture(task: str, root: Path, case: Case, picture: Picture) -> dict:
    name = f"{case.name}_{picture.name}" if picture.name else case.name
    row = {"name": name, "center": case.center, "patient": case.patient, "split": case.split, "label": case.label}
    row["spacing"] = ",".join(f"{mm:g}" for mm in picture.spacing) if picture.spacing else ""
    if task == "endometrial":
        folder = {"test": "testdata"}.get(case.split, "traindata")
        row["name"] = f"{case.label}/{case.patient}/{name}"
        row["path"] = f"{case.center}/{folder}/{case.label}/{case.patient}/{name}.png"
    else:
        # Prostate slices may be divided anew without being written anew, so their folders name no split.
        folder = case.center if task == "prostate" else f"{case.center}/{case.split}"
        row["path"], row["label"] = f"{folder}/images/{name}.png", f"{folder}/labels/{name}.png"
        mask = _png(picture.mask * np.uint8(255))
        write_bytes(root / row["label"], mask)
        row["label_bytes"] = len(mask)
    content = _png(picture.image)
    write_bytes(root / row["path"], content)
    return row | {"path_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _with_splits(manifest: Manifest, rule: SplitRule, seed: int, findings: Findings) -> Manifest:
    """The manifest with every row in a split, by the rule of `prepare`."""
    table = manifest.table
    given = table["split"] != ""
    divides = given.all() and (table.groupby("patient")["split"].nunique() > 1).any()
    if given.all() and (rule == "source" or (rule == "patient" and not divides)):
        return replace(manifest, split_unit="image" if divides else "patient")
    if given.any() and not given.all():
        raise ManifestError(f"{manifest.root}: {given.sum()} of {len(table)} samples have a split, expected all or none")
    if rule == "source":
        raise ManifestError(f"{manifest.root}: --split source: the source names no split; use patient")
    units = table["patient"] if rule == "patient" else table["id"]
    whole = replace(manifest, table=table.assign(split="train", patient=units))
    test = with_held_out(whole, TEST_SHARE, seed, "test", whole.centers)
    divided = with_held_out(test, VALIDATION_SHARE, seed, "val", whole.centers).table["split"]
    if divides and rule == "patient":
        findings.warnings.append("the source's own split divides patients, so it was not used; --split source would keep it")
    return replace(manifest, table=table.assign(split=divided), split_unit="patient" if rule == "patient" else "image")


def _shuffled(task: str, source: Path, manifest: Manifest, seed: int) -> Manifest:
    """Images divided without regard to patients: HarmoFL's order where its lists are in the source, otherwise drawn by the seed."""
    table = manifest.table.copy()
    for center in manifest.centers:
        own = table.index[table["center"] == center]
        names = table.loc[own, "id"].str.rsplit("/", n=1).str[-1]
        order = prostate.harmofl_order(source, center) if task == "prostate" else None
        if order is None:
            order = names.iloc[np.random.default_rng(seed_sequence(seed, "images", center)).permutation(len(own))].tolist()
        elif unknown := sorted(set(order) ^ set(names)):
            raise ManifestError(f"{source}: HarmoFL's list of {center} and its slices differ, e.g. {unknown[:3]}")
        place = dict(zip(order, range(len(order)), strict=True))
        limits = round(len(order) * (1 - TEST_SHARE) * (1 - VALIDATION_SHARE)), round(len(order) * (1 - TEST_SHARE))
        for index, name in names.items():
            table.loc[index, "split"] = "train" if place[name] < limits[0] else "val" if place[name] < limits[1] else "test"
    table["id"] = [f"{row.center}/{row.split}/{row.id.rsplit('/', 1)[-1]}" for row in table.itertuples()]
    return replace(manifest, table=table, split_unit="image")
