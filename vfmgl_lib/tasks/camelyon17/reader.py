"""CAMELYON17 patches (the paper's use case 2), read in place: WILDS' own list of them, or the authors' `data.pkl`.

Both name the images of one download (`patches/patient_<patient>_node_<node>/<image>.png`), and neither is trusted: every image
that is listed has to be there, and what `data.pkl` would have Python do is not done.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from vfmgl_lib.base.files import real_path
from vfmgl_lib.data.scan import Scan, skipped
from vfmgl_lib.data.spreadsheets import TableError, decoded, parsed
from vfmgl_lib.tasks.cases import Findings, Format

CENTERS = ("hospital1", "hospital2", "hospital3", "hospital4", "hospital5")  # as data.pkl calls WILDS' centers 0 to 4
COLUMNS = ("id", "path", "center", "patient", "split", "label")
PATCHES, METADATA, PICKLE = "patches", "metadata.csv", "data.pkl"
NEEDED = ("patient", "node", "x_coord", "y_coord", "tumor", "center")  # of METADATA's columns; WILDS' own split is not used
LIST_BYTES = 2**30  # of a list of half a million images some 100 MB are enough
VALIDATION_SHARE = 0.2  # of the training images, the last of the file: the released code's rule

Row = tuple[str, str, str, str, str, int]


def recognise_wilds(source: Path) -> bool:
    """Whether a folder holds WILDS' list and a folder of patches."""
    return (source / METADATA).is_file() and (source / PATCHES).is_dir()


def recognise_pickle(source: Path) -> bool:
    """Whether a folder holds the authors' lists."""
    return (source / PICKLE).is_file()


def manifest_wilds(source: Path, findings: Findings) -> pd.DataFrame:
    """The images of the WILDS download as `metadata.csv` lists them.

    A byte order mark and patient numbers without their leading zeros are accepted: a spreadsheet leaves both behind. Columns
    may stand in any order, further ones are ignored.

    Returns: one row an image: `COLUMNS`; split is "", label 0 (normal) or 1 (tumor in the central 32 x 32 pixels).
    """
    scan = Scan(source.resolve())
    images = _list_images(scan)
    rows: list[Row] = []
    listed: set[str] = set()
    for line, (number, node, x, y, tumor, center) in _read_metadata(scan):
        patient = f"patient_{number.zfill(3) if number.isdigit() else number}"
        slide = f"{patient}_node_{node}"
        name = f"patch_{slide}_x_{x}_y_{y}"
        path = f"{PATCHES}/{slide}/{name}.png"
        problem = ""
        if path not in images:
            problem = f"lists {path}, which is not there"
        elif path in listed:
            problem = f"lists {path} again, expected one row an image"
        elif tumor not in ("0", "1"):
            problem = f"tumor {tumor!r}, expected 0 or 1"
        elif center not in ("0", "1", "2", "3", "4"):
            problem = f"center {center!r}, expected 0 to 4"
        else:
            home = CENTERS[int(center)]
            rows.append((f"{home}/{name}", path, home, patient, "", int(tumor)))
        if problem:
            scan.problems.append(f"{METADATA} line {line}: {problem}")
        listed.add(path)
    # Where the list itself cannot be read every image would be a surprise.
    unlisted = sorted(images - listed) if listed else []
    scan.problems += [f"{path}: is not in {METADATA}, expected one row an image" for path in unlisted]
    return _finished(scan, findings, rows)


def manifest_pickle(source: Path, findings: Findings) -> pd.DataFrame:
    """The images of the WILDS download in the authors' lists: {"hospital1": {"train": (paths, labels), "test": …}, …}.

    Paths may come from another machine: what counts is their end, `patient_<patient>_node_<node>/<image>`. Images that are
    not listed are left out, with a warning.

    Returns: one row an image: `COLUMNS`; split is the file's own, the last 20 % of "train" being "val" as in the released code.
        It ignores the patients, and a warning says so where it has divided one.
    """
    scan = Scan(source.resolve())
    images = _list_images(scan)
    rows: list[Row] = []
    for center, side, paths, labels in _read_lists(scan):
        validation = math.floor(VALIDATION_SHARE * len(paths)) if side == "train" else 0
        for number, (text, label) in enumerate(zip(paths, labels, strict=True)):
            split = "val" if number >= len(paths) - validation else side
            problem, row = _pickle_row(images, center, side, split, text, label)
            if row:
                rows.append(row)
            else:
                scan.problems.append(f"{PICKLE} {center} {side} {number}: {problem}")
    again = [path for path, count in Counter(row[1] for row in rows).items() if count > 1]
    scan.problems += [f"{PICKLE}: lists {path} more than once, expected once" for path in again]
    if unlisted := len(images - {row[1] for row in rows}):
        findings.warnings.append(f"{unlisted} of {len(images)} images are not in {PICKLE} and left out")
    return _finished(scan, findings, rows)


def _finished(scan: Scan, findings: Findings, rows: list[Row]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    if not rows and not scan.problems:
        scan.problems.append(f"{scan.root}: lists no image, expected at least one")
    homes = table.drop_duplicates(["patient", "center"])
    for patient, own in homes[homes.duplicated("patient", keep=False)].groupby("patient"):
        places = " and ".join(f"{row.center} ({row.path})" for row in own.itertuples())
        scan.problems.append(f"patient {patient!r} is in {places}, expected in one center only")
    splits = table.groupby("patient")["split"].nunique()
    if count := int((splits > 1).sum()):
        findings.warnings.append(
            f"the source's own split leaks: {count} of {len(splits)} patients are in more than one of train, val and test, with"
            " patches of the same slides; divided by patient they are not"
        )
    findings.problems += scan.problems
    findings.warnings += skipped(scan.skipped)
    return table


def _list_images(scan: Scan) -> set[str]:
    """Paths of all images, relative to the source."""
    folder = scan.root / PATCHES
    found: set[str] = set()
    if not folder.is_dir():
        scan.problems.append(f"{PATCHES}: folder not found, expected the images in {PATCHES}/patient_<patient>_node_<node>/")
        return found
    if not folder.resolve().is_relative_to(scan.root):
        scan.problems.append(f"{PATCHES}: links out of the data folder to {folder.resolve()}, expected a folder inside it")
        return found
    for slide in scan.folders(folder, "one folder per slide, patient_<patient>_node_<node>"):
        found.update(f"{PATCHES}/{slide.name}/{image.name}" for image in scan.images(slide, (".png",)))
    return found


def _read_file(scan: Scan, name: str) -> bytes | None:
    """Content of a file of the source; None where there is a problem with it."""
    path = scan.root / name
    try:
        if not real_path(path).is_relative_to(scan.root):
            scan.problems.append(f"{name}: links out of the data folder to {real_path(path)}, expected a file inside it")
        elif (size := path.stat().st_size) > LIST_BYTES:
            scan.problems.append(f"{name}: {size} bytes, the limit is {LIST_BYTES}")
        else:
            return path.read_bytes()
    except OSError as error:
        scan.problems.append(f"{name}: cannot be read ({error.strerror or error})")
    return None


def _read_metadata(scan: Scan) -> Iterator[tuple[int, list[str]]]:
    """(line, the values of `NEEDED`) of each row that has them."""
    content = _read_file(scan, METADATA)
    if content is None:
        return
    try:
        header, rows = parsed(decoded(content), lambda header: all(header.count(name) == 1 for name in NEEDED))
        if wrong := [name for name in NEEDED if header.count(name) != 1]:
            found = f"{METADATA}: header is {','.join(header)!r}, expected the columns {', '.join(NEEDED)}, separated by commas"
            scan.problems.append(f"{found}; missing or repeated: {', '.join(wrong)}")
            return
        places = [header.index(name) for name in NEEDED]
        for line, row in rows:
            if len(row) == len(header):
                yield line, [row[place] for place in places]
            else:
                scan.problems.append(f"{METADATA} line {line}: {len(row)} fields, expected {len(header)}")
    except TableError as error:
        scan.problems.append(f"{METADATA}: {error}")


def _pickle_row(images: set[str], center: str, side: str, split: str, text: object, label: object) -> tuple[str, Row | None]:
    """("", the row) or (what is wrong, None)."""
    if not isinstance(text, str):
        return f"path {text!r}, expected text", None
    parts = text.replace("\\", "/").split("/")
    slide = re.fullmatch(r"(patient_.+)_node_.+", parts[-2]) if len(parts) > 1 else None
    if not slide or ".." in parts:
        return f"path {text!r}, expected …/patient_<patient>_node_<node>/<image>", None
    path = "/".join([PATCHES, *parts[-2:]])
    if path not in images:
        return f"lists {path}, which is not there", None
    if not isinstance(label, int | float) or label not in (0, 1):
        return f"label {label!r} of {path}, expected 0 or 1", None
    return "", (f"{center}/{side}/{Path(path).stem}", path, center, slide[1], split, int(label))


def _read_lists(scan: Scan) -> Iterator[tuple[str, str, list, list]]:
    """(center, "train" or "test", paths, labels), the two lists as long as each other."""
    expected = f'expected {{"{CENTERS[0]}": {{"train": (paths, labels), "test": (paths, labels)}}, …}}'
    content = _read_file(scan, PICKLE)
    if content is None:
        return
    try:
        lists = _ArrayUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # broken bytes lead the unpickler anywhere
        scan.problems.append(f"{PICKLE}: cannot be read ({str(error) or type(error).__name__}), {expected}")
        return
    if not isinstance(lists, dict) or not lists or not set(lists) <= set(CENTERS):
        found = f"the keys {', '.join(map(repr, lists))}" if isinstance(lists, dict) else type(lists).__name__
        scan.problems.append(f"{PICKLE}: holds {found}, {expected}")
        return
    for center, sides in sorted(lists.items()):
        if not isinstance(sides, dict) or set(sides) != {"train", "test"}:
            found = ", ".join(map(repr, sides)) if isinstance(sides, dict) else type(sides).__name__
            scan.problems.append(f"{PICKLE} {center}: holds {found}, {expected}")
            continue
        for side in ("train", "test"):
            try:
                paths, labels = (_values(part) for part in _values(sides[side], nested=True))
            except ValueError as error:
                scan.problems.append(f"{PICKLE} {center} {side}: {error}, expected paths and labels")
                continue
            if len(paths) == len(labels):
                yield center, side, paths, labels
            else:
                scan.problems.append(f"{PICKLE} {center} {side}: {len(paths)} paths and {len(labels)} labels, expected as many of each")


# A pickle is a program: it may name any function and have it called. This one may name what numpy's arrays are made of,
# and even that is not called: what it was to be called with is noted, and read as data once the program has ended.
_KINDS = {
    ("numpy", "ndarray"): "class",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "bytes",  # of the protocols 0 to 2, which know no bytes
    ("builtins", "bytes"): "no bytes",
    ("__builtin__", "bytes"): "no bytes",
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "array" for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): "scalar" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "buffer" for core in ("core", "_core")},  # of protocol 5
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, text, numbers and numpy arrays, these as `_Noted`. Raises UnpicklingError at any other name.

    No library does this: those that read pickles call what the file names, and pickletools only lists its instructions.
    """

    def find_class(self, module: str, name: str) -> _Name:
        if (module, name) not in _KINDS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, and only numpy arrays, lists and text are read")
        return _Name(_KINDS[module, name])


class _Name:
    """What the pickle gets in place of a function: called, it only notes with what."""

    __slots__ = ("kind",)

    def __init__(self, kind: str):
        self.kind = kind

    def __call__(self, *arguments: object) -> _Noted:
        return _Noted(self.kind, arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function, and only numpy arrays, lists and text are read")


class _Noted:
    """A numpy object as the pickle describes it: what it would be made with, and the state it would then be given."""

    __slots__ = ("arguments", "kind", "state")

    def __init__(self, kind: str, arguments: tuple):
        self.kind, self.arguments, self.state = kind, arguments, ()

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, tuple) else ()


def _values(noted: object, nested: bool = False) -> list:
    """Plain values of a list, a tuple or an array with one dimension longer than 1; as they are where `nested`.

    Raises: ValueError: anything else.
    """
    if isinstance(noted, list | tuple):
        return list(noted) if nested else [_scalar(value) for value in noted]
    match noted:
        case _Noted(kind="array", state=(_, tuple(shape), dtype, _, content)):
            pass
        case _Noted(kind="buffer", arguments=(content, dtype, tuple(shape), *_)):
            pass
        case _:
            raise ValueError(f"found {_described(noted)} where a list or an array was expected")
    if not all(isinstance(size, int) and size >= 0 for size in shape) or sum(size != 1 for size in shape) > 1:
        raise ValueError(f"found an array of shape {shape}, expected one dimension")
    values = content if isinstance(content, list) and _code(dtype) == "O8" else _decoded(content, dtype)
    if len(values) != math.prod(shape):
        raise ValueError(f"found an array of {len(values)} values for a shape of {shape}")
    return values if nested else [_scalar(value) for value in values]


def _scalar(value: object) -> object:
    match value:
        case str() | int() | float():
            return value
        case _Noted(kind="scalar", arguments=(dtype, content)):
            (value,) = _decoded(content, dtype)
            return value
    raise ValueError(f"found {_described(value)} among the values, expected text or numbers")


def _decoded(content: object, dtype: object) -> list:
    """Values of the raw bytes of an array of text or numbers."""
    if not re.fullmatch(r"U[1-9]\d{0,3}|b1|[iu][1248]|f[248]", _code(dtype)):
        raise ValueError(f"found an array of {_code(dtype) or _described(dtype)}, expected text or numbers")
    match content:
        case _Noted(kind="bytes", arguments=(str(text), "latin1")):
            content = text.encode("latin1")
        case _Noted(kind="no bytes", arguments=()):
            content = b""
        case bytes() | bytearray():
            pass
        case _:
            raise ValueError(f"found {_described(content)} where an array's bytes were expected")
    state = dtype.state if isinstance(dtype, _Noted) else ()
    order: Literal["<", ">", "="] = state[1] if len(state) > 1 and state[1] in ("<", ">") else "="
    if not content:
        return []
    if _code(dtype).startswith("U") and np.frombuffer(content, f"{order}u4").max() > sys.maxunicode:
        raise ValueError("found an array of text whose letters are none")
    return np.frombuffer(content, np.dtype(_code(dtype)).newbyteorder(order)).tolist()


def _code(dtype: object) -> str:
    """numpy's short name of a type, such as "U73" or "i8"; "" where it is not one."""
    match dtype:
        case _Noted(kind="dtype", arguments=(str(code), *_)):
            return code
    return ""


def _described(value: object) -> str:
    return f"a numpy {value.kind}" if isinstance(value, _Noted | _Name) else type(value).__name__


FORMATS = (
    Format(
        "wilds",
        f"the WILDS download: {METADATA} and {PATCHES}/patient_<patient>_node_<node>/<image>.png",
        recognise_wilds,
        manifest=manifest_wilds,
    ),
    Format(
        "pkl",
        f"the authors' lists, {PICKLE}, beside {PATCHES}/ of the WILDS download",
        recognise_pickle,
        manifest=manifest_pickle,
    ),
)
LISTS = (METADATA, PICKLE)  # what says whether the source has changed, where one of them is there
