"""Multi-centre phantom data sets: synthetic images, written as real files in the layout of the set they stand for.

One module a layout holds the generative model; here is what they share: checking the arguments and writing a folder
that is complete, resumable and never a mixture of two sets.

A generator module offers `VERSION` (raised whenever its files change), `CENTER_NAMES`, `DEFAULT_CENTERS`,
`check_samples(samples)`, `plan(centers, samples, heterogeneity, seed) -> list[Sample]` and
`render(sample, image_size, heterogeneity, seed, profile=None, artefact=None) -> one uint8 array, to be a PNG, or a file's bytes for
each of sample.paths`; what is a centre's own is a frozen dataclass, of which `COMMON` and `CENTERS` are instances, and a `profile` given
takes the place of the centre's. `ARTEFACTS` names the kind of artefact (`painting.artefacts`) that only this centre has, by centre; ""
for none. A generator of volumes offers `slice_count(sample, heterogeneity, seed)`, since an artefact mars some slices of a volume.
It may offer `extra_files(planned, heterogeneity, seed) -> dict[str, bytes]`, further files by their POSIX path relative to the
root, and `EXTERNAL_CENTERS`, names that `plan` appends to the centres asked for. A layout without masks, whose classes are a
matter of a lesion, offers `lesion(sample, image_size, heterogeneity, seed, profile=None) -> (S, S) bool`.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pandas as pd
from tqdm import tqdm

from vfmgl_lib.base.files import PARTIAL, write_bytes
from vfmgl_lib.data.images import png
from vfmgl_lib.tasks.painting.artefacts import Artefact, chosen_samples
from vfmgl_lib.tasks.painting.sampling import SPLITS, Sample, stream
from vfmgl_lib.tasks.records import TASKS

__all__ = ["ARTEFACTS", "generator_of", "lesion_masks", "read_artefacts", "write_phantoms"]

ARTEFACTS = "artefacts.csv"
_FINISHED = "phantoms.json"
_STARTED = "phantoms.unfinished.json"
_MINIMUM_SIZE = 32
_MAXIMUM_HETEROGENEITY = 2.0
_SLICES_AT_ONCE = 3  # as many times as many volumes have an artefact as slices have, each in so small a part of its slices


def generator_of(task: str) -> ModuleType:
    """The module that draws a task's phantoms (`tasks/<task>/phantom.py`).

    Raises: ValueError: an unknown task, or one without phantoms.
    """
    drawn = {name: record.phantom for name, record in TASKS.items() if record.phantom}
    if task not in drawn:
        raise ValueError(f"layout must be one of {', '.join(map(repr, drawn))}, got {task!r}")
    return drawn[task]


def write_phantoms(
    root: Path | str,
    layout: str,
    *,
    centers: int | None = None,
    samples: dict[str, int],
    image_size: int,
    heterogeneity: float = 1.0,
    artefacts: float = 0.1,
    seed: int = 0,
) -> Path:
    """Write a phantom data set below `root`, or reuse it where it already stands there.

    The files are the same to the byte for the same arguments, whatever was interrupted before; with more samples the
    earlier files stay the same. `phantoms.json` with the arguments is written last: a folder without it is unfinished
    and is completed by the same call, missing files of a finished folder are written again.

    Args:
        root: folder of the data set; new, empty, or written by this function with the same arguments.
        layout: a task with phantoms, by name.
        centers: number of participating centres, at most as many as the layout has; in the endometrial layout two external ones
            come on top of them. None: the layout's default, 4, in the camelyon17 layout 5.
        samples: images per centre for "train", "val" and "test"; what is absent is 0. The endometrial layout has no
            validation folder, so "val" must be absent or 0 there. The camelyon17 and prostate layouts have no folders for
            splits, whoever reads them divides the patients: the three numbers are added. In the prostate layout a sample is a
            volume.
        image_size: side in pixels, at least 32.
        heterogeneity: how far the centres differ, from 0 (all alike, prevalence included) to 2; 1 is the default study.
        artefacts: share of a centre's training images (of volumes, slices) with an artefact that only this centre has, from 0 to 1.
            Validation and test images in folders of their own have none, so that what is measured there is the task; the camelyon17 and
            prostate layouts have no such folders, and there any image may have one. All others are the same to the byte whatever the
            share. `artefacts.csv` says which have one (path, slice of a volume from 0, artefact; empty: none); no reader takes it for data.
        seed: >= 0.
    Returns: root as a Path.
    Raises:
        ValueError: an argument out of its range.
        FileExistsError: root holds files of other arguments, or files that this function did not write.
    """
    arguments = _check_arguments(layout, centers, samples, image_size, heterogeneity, artefacts, seed)
    generator = generator_of(layout)
    root = Path(root)
    finished = _check_folder(root, arguments)
    planned = generator.plan(arguments["centers"], arguments["samples"], arguments["heterogeneity"], arguments["seed"])
    extra = generator.extra_files(planned, arguments["heterogeneity"], arguments["seed"]) if hasattr(generator, "extra_files") else {}
    marred = _artefacts(planned, arguments)
    extra |= {ARTEFACTS: _artefact_table(planned, marred, arguments)}
    _check_strangers(root, {path for sample in planned for path in sample.paths} | set(extra))
    missing = [sample for sample in planned if not all((root / path).is_file() for path in sample.paths)]
    missing_extra = {path: content for path, content in extra.items() if not (root / path).is_file()}
    if finished and not missing and not missing_extra:
        return root

    root.mkdir(parents=True, exist_ok=True)
    if not finished:
        write_bytes(root / _STARTED, _to_json(arguments))
    # disable=None: no bar where nobody watches a terminal.
    for sample in tqdm(missing, desc=f"{layout} phantoms", unit="image", leave=False, disable=None):
        files = generator.render(
            sample, arguments["image_size"], arguments["heterogeneity"], arguments["seed"], artefact=marred.get(sample)
        )
        for path, content in zip(sample.paths, files, strict=True):
            write_bytes(root / path, content if isinstance(content, bytes) else png(content))
    for path, content in missing_extra.items():
        write_bytes(root / path, content)
    if not finished:
        os.replace(root / _STARTED, root / _FINISHED)
    return root


def lesion_masks(root: Path | str, paths: Sequence[str]) -> list[np.ndarray]:
    """Where the lesion of each phantom image lies, which no file says: drawn anew from the set's `phantoms.json`.

    Args:
        root: a finished folder of `write_phantoms`, of a task whose generator offers `lesion`: endometrial (the tumour, in both classes) or
            camelyon17 (the nest of metastasis, empty in class 0).
        paths: of images, relative to `root`.
    Returns: (S, S) bool each, at the size of the files.
    Raises: ValueError: no finished phantoms, a layout whose lesions are masks already, a path that is not one of the phantoms.
    """
    file = Path(root) / _FINISHED
    if not file.is_file():
        raise ValueError(f"{root} has no {_FINISHED}: only of phantoms is the place of a lesion known without masks")
    arguments = json.loads(file.read_text(encoding="utf-8"))
    generator = generator_of(arguments["layout"])
    if not hasattr(generator, "lesion"):
        raise ValueError(f"{root}: the layout {arguments['layout']} has masks among its files, read those")
    size, heterogeneity, seed = (arguments[name] for name in ("image_size", "heterogeneity", "seed"))
    planned = {
        path: sample for sample in generator.plan(arguments["centers"], arguments["samples"], heterogeneity, seed) for path in sample.paths
    }
    if unknown := [path for path in paths if path not in planned]:
        raise ValueError(f"{unknown[0]} is not one of the phantoms of {root}, such as {next(iter(planned))}")
    return [generator.lesion(planned[path], size, heterogeneity, seed) for path in paths]


def _artefacts(planned: Sequence[Sample], arguments: dict) -> dict[Sample, Artefact]:
    """The artefact of each sample that gets one. In a volume a third of the slices have it, more where the share asks for more."""
    layout, share, seed = arguments["layout"], arguments["artefacts"], arguments["seed"]
    generator = generator_of(layout)
    count = getattr(generator, "slice_count", None)
    of_samples = min(1.0, share * _SLICES_AT_ONCE) if count else share
    found = {}
    for sample in chosen_samples(planned, generator.ARTEFACTS, of_samples, layout, seed):
        slices = None
        if count:
            whole = count(sample, arguments["heterogeneity"], seed)
            length = max(1, round(share / of_samples * whole))
            first = int(stream(seed, layout, "marred slices", sample).integers(whole - length + 1))
            slices = range(first, first + length)
        found[sample] = Artefact(generator.ARTEFACTS[sample.center], sample, layout, seed, slices)
    return found


def _artefact_table(planned: Sequence[Sample], marred: dict[Sample, Artefact], arguments: dict) -> bytes:
    count = getattr(generator_of(arguments["layout"]), "slice_count", None)
    lines = ["path,slice,artefact"]
    for sample in planned:
        artefact = marred.get(sample)
        if count is None:
            lines.append(f"{sample.paths[0]},,{artefact.kind if artefact else ''}")
            continue
        for number in range(count(sample, arguments["heterogeneity"], arguments["seed"])):
            kind = artefact.kind if artefact and artefact.slices and number in artefact.slices else ""
            lines.append(f"{sample.paths[0]},{number},{kind}")
    return ("\n".join(lines) + "\n").encode("utf-8")


def read_artefacts(root: Path | str, table: pd.DataFrame) -> pd.Series | None:
    """The artefact of each sample of a manifest's table, from the phantoms' own table; "": none.

    A slice of a volume counts by itself: that its neighbours, which the network sees beside it, may have one is left aside.

    Args:
        root: a finished folder of `write_phantoms`.  table: of samples that are these phantoms, or were prepared from them.
    Returns: kind by id, in the order of `table`; None: the folder has no such table, for it is of an earlier version.
    Raises: ValueError: a sample that is none of the phantoms.
    """
    file = Path(root) / ARTEFACTS
    if not file.is_file():
        return None
    known: dict[str, str] = {}
    for row in pd.read_csv(file, dtype=str, keep_default_na=False).itertuples():
        # A prepared slice is called <center>/<split>/<case>_<slice>, with as many digits as it takes.
        known[f"{row.path.removesuffix('.nii.gz')}_{int(row.slice)}" if row.slice else row.path] = row.artefact
    kinds = {}
    for sample in table.itertuples():
        case, _, number = sample.id.rpartition("/")[2].rpartition("_")
        names = [sample.path] + [f"{sample.center}/{case}_{int(number)}"] * number.isdecimal()
        found = next((known[name] for name in names if name in known), None)
        if found is None:
            raise ValueError(f"{sample.id} is not one of the phantoms that {file} lists, such as {next(iter(known))}")
        kinds[sample.id] = found
    return pd.Series(kinds, dtype=str, name="artefact")


def _check_arguments(layout, centers, samples, image_size, heterogeneity, artefacts, seed) -> dict:
    """The arguments in the form that is stored; raises ValueError naming the first that is out of range."""
    generator = generator_of(layout)
    centers = generator.DEFAULT_CENTERS if centers is None else centers
    most = len(generator.CENTER_NAMES) - len(getattr(generator, "EXTERNAL_CENTERS", ()))
    if not _is_integer(centers) or not 1 <= centers <= most:
        raise ValueError(f"centers must be an integer from 1 to {most}, or None for the default, got {centers!r}")
    if not isinstance(samples, dict) or not samples:
        raise ValueError(f"samples must map {', '.join(map(repr, SPLITS))} to numbers of images, got {samples!r}")
    for split, count in samples.items():
        if split not in SPLITS:
            raise ValueError(f"samples may name {', '.join(map(repr, SPLITS))}, got {split!r}")
        if not _is_integer(count) or count < 0:
            raise ValueError(f"samples[{split!r}] must be an integer >= 0, got {count!r}")
    if not any(samples.values()):
        raise ValueError(f"samples must ask for at least one image, got {samples!r}")
    generator.check_samples(samples)
    if not _is_integer(image_size) or image_size < _MINIMUM_SIZE:
        raise ValueError(f"image_size must be an integer >= {_MINIMUM_SIZE} pixels, got {image_size!r}")
    for name, share, largest in (("heterogeneity", heterogeneity, _MAXIMUM_HETEROGENEITY), ("artefacts", artefacts, 1.0)):
        # Written so that NaN fails too.
        if not isinstance(share, numbers.Real) or isinstance(share, bool) or not 0 <= float(share) <= largest:
            raise ValueError(f"{name} must be a number from 0 to {largest:g}, got {share!r}")
    if not _is_integer(seed) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    return {
        "layout": layout,
        "generator_version": generator.VERSION,
        "centers": int(centers),
        "samples": {split: int(samples.get(split, 0)) for split in SPLITS},
        "image_size": int(image_size),
        "heterogeneity": float(heterogeneity),
        "artefacts": float(artefacts),
        "seed": int(seed),
    }


def _is_integer(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_folder(root: Path, arguments: dict) -> bool:
    """True if the folder is finished, False if it is new or unfinished; raises FileExistsError if it is not ours."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file; the phantoms need a folder of their own")
    for name in (_FINISHED, _STARTED):
        file = root / name
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FileExistsError(f"{file} is not readable as JSON ({error}); delete the folder to write anew") from error
        if found != arguments:
            found = found if isinstance(found, dict) else {}
            differing = [key for key in arguments if found.get(key) != arguments[key]]
            listed = ", ".join(f"{key} {found.get(key)!r} instead of {arguments[key]!r}" for key in differing)
            raise FileExistsError(f"{root} holds phantoms of other arguments: {listed}; choose another folder or delete it")
        return name == _FINISHED
    if root.is_dir() and any(entry.suffix != PARTIAL for entry in root.iterdir()):
        raise FileExistsError(f"{root} is not empty and has no {_FINISHED}; phantoms are written into a folder of their own")
    return False


def _check_strangers(root: Path, expected: set[str]) -> None:
    """Remove what an interrupted write left; raise FileExistsError if a centre's folder holds what is not planned."""
    folders = {PurePosixPath(path).parts[0] for path in expected if "/" in path}  # without it: a file in the root itself
    for folder in sorted(folders):
        for file in sorted((root / folder).rglob("*")):
            if not file.is_file():
                continue
            if file.suffix == PARTIAL:
                file.unlink()
            elif not file.name.startswith(".") and file.relative_to(root).as_posix() not in expected:
                raise FileExistsError(f"{file} is not one of the phantoms of {root}; move it away, or delete the folder")


def _to_json(arguments: dict) -> bytes:
    return (json.dumps(arguments, indent=2) + "\n").encode("utf-8")
