"""What `vfmgl predict` is given: files and folders, without what is no image of theirs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vfmgl_lib.data.scan import IMAGE_SUFFIXES, VOLUME_SUFFIXES, SourceError, counted, held, masks_of_others, skipped, system_kind


class InputError(ValueError):
    """Nothing to predict, or two outputs that would be one; the message names the files and what would have been right."""


def find_inputs(given: Sequence[Path], notes: list[str] | None = None) -> list[tuple[Path, str]]:
    """(file, name) of all inputs: files as they are, folders with everything below them that has a known suffix, in order.

    Args:
        given: files and folders.
        notes: gets what was passed over in the folders: entries of systems, masks of other files (`data.scan`), other endings.
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
        elif path.is_file():
            found.append((path, path.name))
        else:
            raise InputError(f"{path}: {'neither a file nor a folder' if path.exists() else 'no such file or folder'}")
    named = [(file, name.removesuffix(known_suffix(file)) if known_suffix(file) else name) for file, name in found]
    seen: dict[str, Path] = {}
    for file, name in named:
        if name in seen:
            raise InputError(f"{file} and {seen[name]}: their outputs would both be called {name}; predict them separately")
        seen[name] = file
    return named


def _inside(folder: Path) -> tuple[list[Path], list[str]]:
    """The images and volumes below a folder, and what was passed over."""
    files, linked, made, others = [], [], [], []
    systems = Counter[str]()
    below = sorted(_below(folder, systems))
    results = {file.parent / kind for file in below if file.name == "predictions.csv" for kind in ("masks", "overlays")}
    for file in below:
        places = [file, *file.parents[: len(file.relative_to(folder).parts) - 1]]
        if not results.isdisjoint(places):
            made += [file] if file.is_file() else []
        elif file.is_dir():
            linked += [file] if file.is_symlink() else []
        elif known_suffix(file) and (file.is_file() or file.is_symlink()):  # a link that leads nowhere: its row says so
            files.append(file)
        elif file.is_file():
            others.append(file.suffix.lower() or "without ending")
    masks = masks_of_others(files)
    said = [f"{len(masks)} file(s) are masks of others and not predicted, e.g. {next(iter(masks))}"] if masks else []
    said += [f"{len(made)} file(s) are results of an earlier call and not predicted, e.g. {made[0]}"] if made else []
    said += [f"{len(linked)} linked folder(s) are not followed, e.g. {linked[0]}; name them in the call"] if linked else []
    if files and others:
        said.append(f"{len(others)} file(s) do not end as images or volumes and are not predicted: {counted(others)}")
    return [file for file in files if file not in masks], said + skipped(systems)


def _below(folder: Path, systems: Counter[str]) -> Iterator[Path]:
    """Everything below a folder but what is a system's, which is counted, and not looked into.

    Raises: InputError: a folder that cannot be listed: its images would be missing.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}), expected a readable folder")

    for place, folders, files in os.walk(folder, onerror=refuse):
        kinds = {name: system_kind(Path(place, name)) for name in (*folders, *files)}
        systems.update(filter(None, kinds.values()))
        folders[:] = [name for name in folders if not kinds[name]]
        yield from (Path(place, name) for name, kind in kinds.items() if not kind)


def one_a_case(inputs: Sequence[tuple[Path, str]], series: Sequence[str]) -> list[tuple[Path, str]]:
    """The inputs of a model of several series: of a case's images the first that is there, named <case>; other files as they are.

    Args:
        inputs: from `find_inputs`.  series: of the model; none: the inputs as they are.
    Raises: InputError: a case and a file of one name.
    """
    if not series:
        return list(inputs)
    cases: dict[str, tuple[Path, str]] = {}  # by name in small letters, as `series_files` compares them
    for file, name in inputs:
        if case := _case_of(name, series):
            cases.setdefault(case.lower(), (file, case))
    whole = [(file, name) for file, name in inputs if not _case_of(name, series)]
    for file, name in whole:
        if name.lower() in cases:
            raise InputError(f"{file} and {cases[name.lower()][0]}: their outputs would both be called {name}; predict them separately")
    return sorted([*cases.values(), *whole], key=lambda one: one[1])


def series_files(file: Path, series: Sequence[str]) -> tuple[Path, ...]:
    """The images of a case, in the order of the series, beside one of them; the file alone where it names no series: it is stacked already.

    Raises: InputError: a series without an image, or with two.
    """
    case = case_of(file, series)
    if not case:
        return (file,)
    found = []
    for name in series:
        wanted = f"{case}_{name}".lower()
        there = [one for one in sorted(file.parent.iterdir()) if one.name.removesuffix(known_suffix(one)).lower() == wanted]
        there = [one for one in there if known_suffix(one).lower() in IMAGE_SUFFIXES]
        if len(there) != 1:
            raise InputError(f"{file}: {len(there)} images of series {name}, expected one called {case}_{name} beside it")
        found += there
    return tuple(found)


def case_of(file: Path, series: Sequence[str]) -> str:
    """The case that a file is a series of; "" where it names none."""
    return _case_of(file.name.removesuffix(known_suffix(file)), series)


def check_stacked(pixels: np.ndarray, series: Sequence[str], name: str) -> None:
    """Raises: InputError: an image (H, W, 3) whose name has no series and which is no stack of them: a single series, a mask."""
    grey = pixels.any() and (pixels == pixels[..., :1]).all()
    if pixels[..., len(series) :].any() or (len(series) > 1 and grey):
        endings = ", ".join(f"_{one}" for one in series)
        raise InputError(
            f"{name}: names no series and is no stack of {', '.join(series)}; call a case's images <case> and one of {endings}"
        )


def _case_of(name: str, series: Sequence[str]) -> str:
    """ "scan7_t1" -> "scan7"; "" for a name that ends in no series."""
    ending = next((f"_{one}" for one in series if name.lower().endswith(f"_{one.lower()}")), "")
    return name[: -len(ending)] if ending else ""


def known_suffix(file: Path) -> str:
    """The suffix of a known form as the file has it, "" for any other."""
    lower = file.name.lower()
    length = max((len(s) for s in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES) if lower.endswith(s)), default=0)
    return file.name[-length:] if length else ""


def file_state(file: Path) -> list:
    """What changes when a file does, the voxels beside a MetaImage's header included."""
    try:
        with_data = [file]
        if known_suffix(file).lower() == ".mhd":
            from vfmgl_lib.data.volumes import data_file  # here: it takes long to import

            with_data.append(data_file(file, str(file)) or file)
        found = [part.stat() for part in with_data]
    except (SourceError, OSError) as error:  # in its row, too
        return [str(error)]
    return [(part.st_size, part.st_mtime_ns, part.st_ctime_ns) for part in found]
