"""Images and masks read once to be checked and hashed: what is wrong with a set's files, and what is worth a note."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from vfmgl_lib.base.files import real_path
from vfmgl_lib.data.images import PLAIN, REMARKS, ImageError, Reading, decode_mask, read_image


@dataclass(frozen=True)
class Inspection:
    """What the files of one sample hold."""

    sha256: str  # of the image, "" if it cannot be read
    problems: tuple[str, ...]
    has_foreground: bool | None  # of the mask, None without one
    remarks: tuple[str, ...] = ()  # of the image, `remark_warnings`
    classes: tuple[int, ...] = ()  # of the mask's pixels, by index


def inspect_files(
    root: Path,
    paths: Sequence[str],
    masks: Sequence[str | None],
    decode: bool = True,
    progress: bool = False,
    reading: Reading = PLAIN,
    mask_values: Sequence[int] = (),
) -> list[Inspection]:
    """Hash every image and, with `decode`, decode every image and mask once, two files at a time.

    Args:
        paths: images, relative to root.
        masks: as long as `paths`, relative to root, None where a sample has no mask.
        decode: False only hashes the images and looks whether the masks are there.
        progress: draw a progress bar with the time left.
        reading, mask_values: of the set.
    Returns: one Inspection a sample, in order.
    """
    home = root.resolve()
    with ThreadPoolExecutor(max_workers=2) as pool:
        # The pool takes a kilobyte for every file that waits: half a million go in a part at a time.
        parts = [slice(start, start + 256) for start in range(0, len(paths), 256)]
        found = (
            inspection
            for part in parts
            for inspection in pool.map(
                lambda path, mask: _inspect(home, path, mask, decode, reading, mask_values), paths[part], masks[part]
            )
        )
        return list(tqdm(found, total=len(paths), desc="checking images", unit="image", disable=not progress))


def _inspect(root: Path, path: str, mask: str | None, decode: bool, reading: Reading, mask_values: Sequence[int]) -> Inspection:
    problems = [text for text in (_location_problem(root, path), mask and _location_problem(root, mask)) if text]
    if problems:
        return Inspection("", tuple(problems), None)
    sha256, size, foreground = "", None, None
    remarks: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    try:
        with open(root / path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if decode:
            image, remarks = read_image(root / path, path, reading)
            size = image.size
    except (OSError, ImageError) as error:
        problems.append(_with_name(path, error))
    if mask and decode:
        try:
            pixels = decode_mask(root / mask, mask, mask_values)
            foreground, classes = bool(pixels.any()), tuple(np.flatnonzero(np.bincount(pixels.ravel())).tolist())
            problem = size_problem(path, size, mask, pixels) if size else None
            problems += [problem] if problem else []
        except (OSError, ImageError) as error:
            problems.append(_with_name(mask, error))
    return Inspection(sha256, tuple(problems), foreground, remarks, classes)


def size_problem(path: str, size: tuple[int, int], mask: str, pixels: np.ndarray) -> str | None:
    """What is wrong with a mask (H, W) for an image of `size` (width, height); None if they fit."""
    height, width = pixels.shape
    if (width, height) == tuple(size):
        return None
    across = "; it lies across: masks are turned by their own orientation tag, as images are" if (height, width) == tuple(size) else ""
    return f"{mask}: mask is {width}x{height}, expected {size[0]}x{size[1]} as its image {path}{across}"


def remark_warnings(found: Iterable[tuple[str, Sequence[str]]], reading: Reading) -> list[str]:
    """One line for each thing that was done to images: (path, remarks of `read_image`) of each."""
    paths: dict[str, list[str]] = {}
    for path, remarks in found:
        for remark in remarks:
            paths.setdefault(remark, []).append(path)
    return [
        f"{len(paths[remark])} image(s) {what.format(background=reading.background)}, e.g. {paths[remark][0]}"
        for remark, what in REMARKS.items()
        if remark in paths
    ]


def _location_problem(root: Path, path: str) -> str | None:
    relative = PurePosixPath(path)
    if not path or relative.is_absolute() or ".." in relative.parts:
        return f"{path!r}: a path must be relative to the data folder and stay in it"
    file = root / path
    if not real_path(file).is_relative_to(root):
        return f"{path}: leads out of the data folder to {real_path(file)}, expected a file inside it"
    if not file.is_file():
        return f"{path}: file not found in {root}"
    return None


def _with_name(path: str, error: OSError | ImageError) -> str:
    return str(error) if isinstance(error, ImageError) else f"{path}: cannot be read ({error.strerror or error})"
