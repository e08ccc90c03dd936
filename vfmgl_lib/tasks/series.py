"""Cases of up to three series, e.g. T1, T2 and DWI of one slice, as the three channels of one image.

A record with `channels: series` and `series: [t1, t2, dwi]` reads the folders that it names (`folders`), where each case has a grey image a
series side by side, called <case>_<series>: `scan7_t1.png`, `scan7_t2.png`, `scan7_dwi.png`. A segmentation's mask is `labels/scan7.png`.
The first series becomes red, the second green, the third blue; a channel without a series is 0. The images of a case have one size: they
lie on one grid, nothing is registered here. A table of samples has a column a series instead, and any names (`tasks.listed_cases`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from vfmgl_lib.data.images import Reading, decode_mask, read_image
from vfmgl_lib.data.inspection import size_problem
from vfmgl_lib.data.preprocessing import stacked_series
from vfmgl_lib.data.scan import IMAGE_SUFFIXES, Scan
from vfmgl_lib.tasks.cases import Case, Findings, Format, Picture, SourceError
from vfmgl_lib.tasks.folders import LAYOUTS, ROOT_FILES, class_number, of_classes
from vfmgl_lib.tasks.records import TaskRecord
from vfmgl_lib.tasks.words import stem_of

T = TypeVar("T")


def ending_of(series: Sequence[str]) -> re.Pattern[str]:
    """Takes a file's name without its suffix apart: (case, series); of b0 and dwi_b0 the longer one where both fit."""
    return re.compile(f"(.+?)_({'|'.join(map(re.escape, series))})", re.IGNORECASE)


def case_name(images: Sequence[str], series: Sequence[str]) -> str:
    """What the images of a case are called in common, <case> where they are <case>_<series>; else as the first of them."""
    found = [ending_of([name]).fullmatch(stem_of(path)) for path, name in zip(images, series, strict=True)]
    cases = [match[1] for match in found if match]
    return cases[0] if len(cases) == len(images) and len(set(cases)) == 1 else stem_of(images[0])


def other_series(path: str, name: str, series: Sequence[str]) -> str:
    """The series that a file is called as, where it stands for another one; "": it is not called so."""
    if called := ending_of(series).fullmatch(stem_of(path)):
        return called[2] if called[2].casefold() != name.casefold() else ""
    words = re.split(r"[^a-z0-9]+", path.rpartition(".")[0].lower())  # t2/scan7.png, scan7-t2.png
    named = [one for one in series if one.lower() in words]
    return named[0] if len(named) == 1 and named[0] != name else ""


def cases_by_name(paths: Sequence[str], series: Sequence[str]) -> tuple[dict[str, tuple[str, list[str]]], list[str]]:
    """(first file of a case -> its name and its files in the order of the series, "" for one that is not there; files of no series)."""
    ending, others = ending_of(series), []
    cases: dict[tuple[str, str], dict[str, str]] = {}
    for path in paths:
        named = ending.fullmatch(stem_of(path))
        own = cases.setdefault((path.rpartition("/")[0], named[1]), {}) if named else {}
        if not named or own.setdefault(named[2].lower(), path) != path:
            others.append(path)
    found = {case: [own.get(one.lower(), "") for one in series] for case, own in cases.items()}
    return {next(filter(None, files)): (name, files) for (_, name), files in found.items()}, others


class SeriesScan(Scan):
    """A scan to which the images of a case are one, <case>.png, which is not on disk; `files` has those that are.

    Attributes:
        files: the case's place -> its images, in the order of the series.
    """

    def __init__(self, root: Path, series: Sequence[str]):
        super().__init__(root)
        self.files: dict[Path, tuple[Path, ...]] = {}
        self._series = tuple(series)
        self._ending = ending_of(series)

    def images(self, folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
        found = super().images(folder, suffixes)
        if suffixes != IMAGE_SUFFIXES:  # masks, one a case
            return found
        cases: dict[str, dict[str, Path]] = {}
        for file in found:
            named = self._ending.fullmatch(file.stem)
            if not named:
                endings = ", ".join(f"_{name}" for name in self._series)
                self.problems.append(f"{self.name(file)}: names no series, expected <case> and one of {endings} before the file's ending")
                continue
            own, name = cases.setdefault(named[1], {}), named[2].lower()
            if name in own:
                self.problems.append(f"{self.name(file)}: the case has series {name} twice, the other is {own[name].name}; keep one")
            own[name] = file
        for case, own in cases.items():
            if missing := [name for name in self._series if name.lower() not in own]:
                there = next(iter(own.values()))
                self.problems.append(f"{self.name(there)}: the case {case!r} has no {', '.join(missing)}, expected every series once")
        whole = [case for case, own in cases.items() if len(own) == len(self._series)]
        self.files |= {folder / f"{case}.png": tuple(cases[case][name.lower()] for name in self._series) for case in whole}
        return [folder / f"{case}.png" for case in sorted(whole)]


def series_format(record: TaskRecord) -> Format:
    """The one form in which images of a record with series are read: its folders, converted to one image a case."""
    layout = LAYOUTS[record.folders]
    names = ", ".join(f"<case>_{name}" for name in record.series)
    return Format("series", f"{layout.format.description}, images called {names}", layout.format.recognise, cases=partial(_cases, record))


def _cases(record: TaskRecord, source: Path, findings: Findings) -> list[Case]:
    home = source.resolve()
    scan = SeriesScan(home, record.series)
    samples = LAYOUTS[record.folders].scan(scan, scan.folders(home, "one folder per center", files=ROOT_FILES))
    labels = sorted({sample.label for sample in samples})
    classes, number = record.classes or tuple(labels), class_number(record, labels)
    if not record.is_segmentation:
        samples = of_classes(samples, scan, record)
    findings.problems += scan.problems
    cases = []
    for sample in samples:
        mask = home / sample.label if record.is_segmentation else None
        files = scan.files[sample.path]
        label = "" if mask else classes[cast(int, number(sample.label))]
        read = partial(read_case, files, mask, findings.reading, record.stored_mask_values)
        sources = (*files, mask) if mask else files
        cases.append(Case(sample.path.stem, sample.center, sample.patient, sources, read, label, sample.split))
    return cases


def read_case(
    files: tuple[Path, ...], mask: Path | None, reading: Reading, mask_values: tuple[int, ...], names: Sequence[str] = ()
) -> list[Picture]:
    """The stack of a case's images, with its mask.

    Args:
        names: what the images, and behind them the mask, are called in errors; (): by their paths.
    Raises: SourceError: all that is wrong with them, a line each.
    """
    shown = tuple(names) or tuple(map(str, (*files, mask)))
    problems: list[str] = []
    read = [_tried(problems, partial(read_image, file, name, reading)) for file, name in zip(files, shown, strict=False)]
    images = [image for image, _ in filter(None, read)]
    stack = _tried(problems, partial(stacked_series, images, shown[: len(files)])) if len(images) == len(files) else None
    labels = None if mask is None else _tried(problems, partial(decode_mask, mask, shown[-1], mask_values))
    if labels is not None and images and (problem := size_problem(shown[0], images[0].size, shown[-1], labels)):
        problems.append(problem)
    if problems or stack is None:
        raise SourceError("\n".join(problems))
    return [Picture("", stack, labels, remarks=tuple(dict.fromkeys(remark for _, remarks in filter(None, read) for remark in remarks)))]


def _tried(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return None
