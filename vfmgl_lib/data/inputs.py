"""What `vfmgl_lib.predict` is given: files and folders, without what is no image of theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vfmgl_lib.data.scan import IMAGE_SUFFIXES, held, masks_of_others, skipped, system_kind

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mhd", ".mha")


class InputError(ValueError):
    """Nothing to predict, or two outputs that would be one; the message names the files and what would have been right."""


def find_inputs(given: Sequence[Path], notes: list[str] | None = None) -> list[tuple[Path, str]]:
    """(file, name) of all inputs: files as they are, folders with everything below them that has a known suffix, in order.

    Args:
        given: files and folders.
        notes: gets what was passed over in the folders: entries of systems, masks of other files (`data.scan`).
    Returns: names are unique, without suffix, relative to the folder given: outputs are called by them.
    Raises: InputError: nothing there, or two inputs of one name.
    """
    found: list[tuple[Path, str]] = []
    for path in given:
        if path.is_dir():
            inside, passed = _inside(path)
            if not inside:
                endings = ", ".join((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
                raise InputError("; ".join([f"{path}: no image in it, expected files ending in {endings}; {held(path)}", *passed]))
            if notes is not None:
                notes += passed
            found += [(file, file.relative_to(path).as_posix()) for file in inside]
        elif path.exists():
            found.append((path, path.name))
        else:
            raise InputError(f"{path}: no such file or folder")
    named = [(file, name.removesuffix(known_suffix(file)) if known_suffix(file) else name) for file, name in found]
    seen: dict[str, Path] = {}
    for file, name in named:
        if name in seen:
            raise InputError(f"{file} and {seen[name]}: their outputs would both be called {name}; predict them separately")
        seen[name] = file
    return named


def _inside(folder: Path) -> tuple[list[Path], list[str]]:
    """The images and volumes below a folder, and what was passed over."""
    files, systems = [], Counter()
    for file in sorted(folder.rglob("*")):
        places = [file, *file.parents[: len(file.relative_to(folder).parts) - 1]]
        if kind := next(filter(None, map(system_kind, reversed(places))), ""):
            systems[kind] += file.is_file()
        elif file.is_file() and known_suffix(file):
            files.append(file)
    masks = masks_of_others(files)
    said = [f"{len(masks)} file(s) are masks of others and not predicted, e.g. {next(iter(masks))}"] if masks else []
    return [file for file in files if file not in masks], said + skipped(+systems)


def known_suffix(file: Path) -> str:
    """The suffix of a known form as the file has it, "" for any other."""
    lower = file.name.lower()
    length = max((len(s) for s in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES) if lower.endswith(s)), default=0)
    return file.name[-length:] if length else ""
