"""What a table of samples lists that is converted before it is used: volumes, slice by slice, and cases of several series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

from tqdm import tqdm

from vfmgl_lib.base.files import portable
from vfmgl_lib.data.manifest import GROUP, Manifest, ManifestError
from vfmgl_lib.data.people import PatientNames, with_unique_patients
from vfmgl_lib.tasks.cases import Case, Findings, Picture, SourceError
from vfmgl_lib.tasks.samples import Row, SampleTable, manifest_table, raise_problems
from vfmgl_lib.tasks.series import case_name, other_series, read_case
from vfmgl_lib.tasks.words import stem_of


def volume_cases(listed: SampleTable, findings: Findings, *, names: PatientNames = "own", may_divide: bool = False) -> list[Case]:
    """The volumes that a table lists, to be converted slice by slice as the task's reader does it; else as `read_samples`."""
    listed.raise_header()
    record, problems = listed.record, listed.problems
    read = getattr(record.reader, "volume_case", None)
    if read is None or "volume" not in record.reads:
        found = next(row for row in listed.rows if row.is_volume)
        text = f"line {found.line}: image {found.image!r} is a volume, the task {record.name} reads images: write its slices as PNG"
        raise ManifestError.listing(listed.table, [*problems, text])
    findings.lines.update({row.image: row.line for row in listed.rows if row.image})
    cases, rows, unspaced = [], [], 0
    taken: set[tuple[tuple[str, ...], str]] = set()
    for row in listed.rows:
        if row.image and not row.is_volume:
            problems.append(f"line {row.line}: image {row.image!r} is no volume, others are; expected one kind in all rows")
        elif row.spacing:
            problems.append(f"line {row.line}: spacing {row['spacing']!r} of a volume, expected nothing: its header has it")
        elif listed.is_whole(row):
            name = _free_name(stem_of(row.image), row, (row["center"],), taken)
            try:
                case, spaced = read(listed.home, row.image, row.mask, name, row["center"], row["patient"])
            except SourceError as error:
                problems += [f"line {row.line}: {text}" for text in str(error).splitlines()]
                continue
            unspaced += not spaced
            cases.append(replace(case, split=row.split, group=row[GROUP], line=row.line))
            rows.append((row, f"{row.line:064x}"))  # content is compared slice by slice, later
    _check(listed, rows, names, may_divide, findings)
    findings.warnings += listed.warnings()
    if unspaced:
        findings.warnings.append(f"{unspaced} of {len(cases)} volumes have no spacing in their header, distances will be in pixels")
    return cases


def series_cases(
    listed: SampleTable, findings: Findings, *, names: PatientNames = "own", may_divide: bool = False, progress: bool = True
) -> list[Case]:
    """The cases of several series that a table lists, to be stacked (`tasks.series`); else as `read_samples`.

    Images are read when a case is converted. Where the table has problems, they are read here, so that theirs are told as well.
    """
    listed.raise_header()
    record = listed.record
    findings.lines.update({row.image: row.line for row in listed.rows if row.image})
    cases, rows = [], []
    taken: set[tuple[tuple[str, ...], str]] = set()
    for row in filter(listed.is_whole, listed.rows):
        label = "" if record.is_segmentation else listed.classes[cast(int, row.label)]
        folder = (row["center"],) if record.is_segmentation else (row["center"], label, row["patient"])  # as `convert_case` writes it
        name = _free_name(case_name(row.images, record.series), row, folder, taken)
        shown = [f"{column} {path}" for column, path in zip(listed.image_columns, row.images, strict=True)]
        files, mask = tuple(listed.home / path for path in row.images), listed.home / row.mask if row.mask else None
        read = partial(read_case, files, mask, findings.reading, record.stored_mask_values, (*shown, row.mask))
        sources = (*files, mask) if mask else files
        read = partial(_with_line, row, read)
        cases.append(Case(name, row["center"], row["patient"], sources, read, label, row.split, row[GROUP], row.spacing, row.line))
        rows.append((row, f"{row.line:064x}"))  # content is compared as it is stacked, later
    if listed.problems:
        for case in tqdm(cases, desc="checking images", unit="case", disable=not progress):
            try:
                case.read()
            except SourceError as error:
                listed.problems += str(error).splitlines()
    _check(listed, rows, names, may_divide, findings)
    findings.warnings += listed.warnings() + _exchanged(listed)
    return cases


def _free_name(name: str, row: Row, folder: tuple[str, ...], taken: set[tuple[tuple[str, ...], str]]) -> str:
    """`name`; where its folder has it already, the image's path as a name; where that too, with the line behind it. It is taken then."""
    by_path = portable(row.image.replace("/", "_"))
    free = next(one for one in (name, by_path, f"{by_path}_{row.line}") if (folder, one) not in taken)
    taken.add((folder, free))
    return free


def _exchanged(listed: SampleTable) -> list[str]:
    """A line on images that are called as another series than that of their column: it would be another channel."""
    series = listed.record.series
    found = [
        f"line {row.line}: {column} is {path}, called as {other}"
        for row in listed.rows
        for column, path, name in zip(listed.image_columns, row.images, series, strict=False)  # none of a row with a problem
        if (other := other_series(path, name, series))
    ]
    return [f"{len(found)} image(s) are called as another series than their column, perhaps exchanged, e.g. {found[0]}"] if found else []


def _with_line(row: Row, read: Callable[[], list[Picture]]) -> list[Picture]:
    try:
        return read()
    except SourceError as error:
        raise SourceError("\n".join(f"line {row.line}: {text}" for text in str(error).splitlines())) from error


def _check(listed: SampleTable, rows: list[tuple[Row, str]], names: PatientNames, may_divide: bool, findings: Findings) -> None:
    """Raises what the table's cells say wrongly."""
    record, table = listed.record, with_unique_patients(manifest_table(listed.record, rows), names)[0]
    raise_problems(listed, Manifest(listed.home, record.kind, listed.classes, table), may_divide, findings.lines)
