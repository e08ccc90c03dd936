"""Cases into pictures of a prepared set, each with a note from which an interrupted preparation goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vfmgl_lib.base.files import LONGEST_NAME, file_name, write_bytes, write_json
from vfmgl_lib.data.images import Reading, png
from vfmgl_lib.data.label_masks import encoded
from vfmgl_lib.tasks.cases import Case, Picture
from vfmgl_lib.tasks.records import TaskRecord

VERSION = 2  # raised when files are read or converted otherwise than before: prepared sets are then made again


def fingerprint(files: Iterator[Path], reading: Reading, mask_values: Sequence[int] = ()) -> str:
    """Hash of names, sizes and times: whether a source, or how it is read, has changed, without reading it again."""
    labels = f" mask values {tuple(mask_values)}" if mask_values else ""
    digest = hashlib.sha256(f"version {VERSION} {reading}{labels}\n".encode())
    for file in files:
        try:
            found = file.stat()
            digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{file}\0missing\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def convert_case(record: TaskRecord, out: Path, case: Case, reading: Reading) -> list[dict]:
    """The rows of one case's pictures; from its note where neither the case nor its pictures have changed."""
    note, state = note_file(out, case), fingerprint(iter(case.files), reading, record.stored_mask_values)
    rows = read_note(note, state)
    if not rows or not all(has_size(out / "data" / file, size) for file, size in noted_sizes(rows).items()):
        rows = [_write_picture(record, out / "data", case, picture) for picture in case.read()]
        write_json(note, {"state": state, "version": VERSION, "rows": rows})
    return rows


def note_file(out: Path, case: Case) -> Path:
    """Where it is written down that, and from what, a case was converted."""
    key = hashlib.sha256(f"{case.center}\0{case.patient}\0{case.name}\0{case.split}\0{case.label}".encode()).hexdigest()[:20]
    return out / "cases" / f"{key}.json"


def read_note(note: Path, state: str = "") -> list[dict]:
    """The rows of a converted case; none if there is no note, or one of another state of its files or an earlier preparation."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return found["rows"] if found["version"] == VERSION and found["state"] == (state or found["state"]) else []


def noted_sizes(rows: list[dict]) -> dict[str, int]:
    """Converted file -> its bytes."""
    return {row[kind]: row[f"{kind}_bytes"] for row in rows for kind in ("path", "label") if f"{kind}_bytes" in row}


def remove_unused(out: Path, notes: set[Path], files: set[str]) -> None:
    """Deletes the notes and pictures of cases that the source no longer has, or has on another side."""
    for note in set((out / "cases").glob("*.json")) - notes:
        for file in noted_sizes(read_note(note)).keys() - files:
            (out / "data" / file).unlink(missing_ok=True)
        note.unlink()


def _write_picture(record: TaskRecord, root: Path, case: Case, picture: Picture) -> dict:
    name = f"{case.name}_{picture.name}" if picture.name else case.name
    if len(f"{name}.png".encode()) > LONGEST_NAME:  # as the source has it, it was shorter
        name = file_name(name, ".png").removesuffix(".png")
    row: dict[str, Any] = {"name": name, "center": case.center, "patient": case.patient, "split": case.split, "label": case.label}
    row["spacing"] = ",".join(f"{mm:g}" for mm in picture.spacing) if picture.spacing else ""
    if not record.is_segmentation:
        folder = "testdata" if case.split == "test" else "traindata"
        row["name"] = f"{case.label}/{case.patient}/{name}"
        row["path"] = f"{case.center}/{folder}/{case.label}/{_folder_name(case.patient)}/{name}.png"
    else:
        folder = record.stored.format(center=case.center, split=case.split)
        row["path"], row["label"] = f"{folder}/images/{name}.png", f"{folder}/labels/{name}.png"
        assert picture.mask is not None  # in a segmentation
        mask = png(encoded(picture.mask, record.stored_mask_values))
        write_bytes(root / row["label"], mask)
        row["label_bytes"] = len(mask)
    content = png(picture.image)
    write_bytes(root / row["path"], content)
    return row | {"path_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "remarks": list(picture.remarks)}


def _folder_name(patient: str) -> str:
    """As the patient is called, but for what no folder can be called: a table's patients may be."""
    fits = "/" not in patient and patient not in (".", "..") and len(patient.encode()) <= LONGEST_NAME
    return patient if fits else file_name(patient, mark=True)


def has_size(file: Path, size: int | None) -> bool:
    """Whether a file is there and not cut short."""
    return file.is_file() and file.stat().st_size == size
