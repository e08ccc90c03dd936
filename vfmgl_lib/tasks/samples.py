"""`samples.csv`: a set of images as its owner lists it, whatever its files and folders are called.

    image      path below the data folder; of a task with `channels: series` a column a series instead, called as the series (t1, t2, dwi)
    center     the centre's name
    patient    the patient's name at this centre
    label      classification: the class's name, or its number from 0
    mask       segmentation: path of the mask below the data folder
    split      optional: train, val or test, for all images of a centre or for none
    external   optional: yes where the centre takes no part in training and is tested on only; for all images of a centre alike
    group      optional: what stays in one split together beyond a patient, such as a family; empty: the patient is alone.
               Divisions move whole groups. Intervals and tests count patients: what belongs to one person (two eyes) is one patient.
    spacing    optional: mm per pixel, one number or row and column as "0.5 x 0.7"

In any order, in any of the forms that `data.spreadsheets` reads. The table is checked as a whole: all problems are told together.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from vfmgl_lib.base.files import shown
from vfmgl_lib.data.inspection import inspect_files, remark_warnings
from vfmgl_lib.data.lookup import Files
from vfmgl_lib.data.manifest import GROUP, SPLITS, Manifest, ManifestError, SplitUnit, foreground_warnings, missing_classes, table_findings
from vfmgl_lib.data.names import close_name, same_name
from vfmgl_lib.data.people import PatientNames, with_unique_patients
from vfmgl_lib.data.scan import VOLUME_SUFFIXES
from vfmgl_lib.data.spreadsheets import TableError, decoded, parsed
from vfmgl_lib.tasks.cases import Findings, Format
from vfmgl_lib.tasks.classes import ClassWords
from vfmgl_lib.tasks.datasheets import class_titles
from vfmgl_lib.tasks.records import TaskRecord
from vfmgl_lib.tasks.splits import with_groups
from vfmgl_lib.tasks.words import HEADER_WORDS, lone_patients

FILE = "samples.csv"
NEEDED = ("image", "center", "patient")
OPTIONAL = ("split", "external", GROUP, "spacing")
YES, NO = ("yes", "true", "1"), ("no", "false", "0", "")
LARGEST_SPACING = 100.0  # mm a pixel
SHOWN = 3
_NUMBER = r"[0-9]*[.,]?[0-9]+(?:[eE][-+]?[0-9]+)?"

SAMPLES = Format(
    "samples",
    f"{FILE} with image, center, patient, and label or mask (vfmgl data template writes a first one)",
    lambda source: (source / FILE).is_file(),
)


@dataclass
class Row:
    """A line of the table, as it is understood; None or "" where it is not, or not given.

    Attributes:
        line: in the file, from 1.
        cells: column -> text.
        images: one, or one a series; () where one of them is not found. POSIX, relative to the data folder, as the file system has them.
        mask: in the same way.
        label: number of the class.
    """

    line: int
    cells: dict[str, str]
    images: tuple[str, ...] = ()
    mask: str = ""
    label: int | None = None
    external: bool | None = False
    split: str = ""
    spacing: str = ""

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    @property
    def image(self) -> str:
        return self.images[0] if self.images else ""

    @property
    def is_volume(self) -> bool:
        return self.image.lower().endswith(VOLUME_SUFFIXES)


def label_column(record: TaskRecord) -> str:
    """Where the table has what is to be learnt: "mask" or "label"."""
    return "mask" if record.is_segmentation else "label"


def image_columns(record: TaskRecord) -> tuple[str, ...]:
    """The columns of paths of images: "image", or one a series, as `same_name` writes it.

    Raises: ManifestError: a series that is called as another column.
    """
    names = tuple(same_name(name) for name in record.series)
    if taken := [name for name in names if name in (*NEEDED[1:], "label", "mask", *OPTIONAL)]:
        raise ManifestError(f"{record.name}: series {taken[0]!r} is called as another column of {FILE}; give the series another name")
    return names or NEEDED[:1]


def samples_format(record: TaskRecord) -> Format:
    """`SAMPLES` as it is described for a task."""
    paths = f"a path for each of {', '.join(record.series)}" if record.series else "image"
    text = f"{FILE} with {paths}, center, patient, and {label_column(record)} (vfmgl data template writes a first one)"
    return replace(SAMPLES, description=text)


def read_samples(
    listed: SampleTable, findings: Findings, *, names: PatientNames = "own", may_divide: bool = False, progress: bool = True
) -> Manifest:
    """The manifest of the images that a table lists, read in place; rows without a split have split "".

    Args:
        findings: gets warnings, and `lines`.
        names: whether a patient's name is its centre's or the whole set's (`data.people`).
        may_divide: a patient in several splits is allowed: leakage, asked for.
    Raises: ManifestError: with all problems of the table and of the files that it names.
    """
    listed.raise_header()
    record, rows, problems = listed.record, listed.rows, listed.problems
    findings.lines.update({row.image: row.line for row in rows if row.image})
    usable = [row for row in rows if row.image and (row.mask or not record.is_segmentation)]
    masks, values = [row.mask or None for row in usable], record.stored_mask_values
    inspections = inspect_files(
        listed.home, [row.image for row in usable], masks, progress=progress, reading=findings.reading, mask_values=values
    )
    problems += [f"line {row.line}: {text}" for row, found in zip(usable, inspections, strict=True) for text in found.problems]
    whole = [(row, found) for row, found in zip(usable, inspections, strict=True) if listed.is_whole(row) and not found.problems]
    content, apart = with_unique_patients(manifest_table(record, [(row, found.sha256) for row, found in whole]), names)
    manifest = Manifest(listed.home, record.kind, listed.classes, content, reading=findings.reading, mask_values=values)
    problems += missing_classes(manifest, inspections)
    raise_problems(listed, manifest, may_divide, findings.lines)
    findings.warnings += apart + listed.warnings() + foreground_warnings(manifest, [found for _, found in whole])
    findings.warnings += remark_warnings(((row.image, found.remarks) for row, found in whole), findings.reading)
    return manifest


def raise_problems(listed: SampleTable, manifest: Manifest, may_divide: bool, lines: dict[str, int]) -> None:
    """Raises what was found wrong, with what the table says of patients and equal files; rows without a split are in one for now."""
    problems = list(listed.problems)
    if len(manifest.table):
        known = manifest.table.assign(split=manifest.table["split"].replace("", "train"))
        unit: SplitUnit = "image" if may_divide else "patient"
        problems += table_findings(replace(manifest, table=known, split_unit=unit), False, lines=lines)[0]
    if problems:
        raise ManifestError.listing(listed.table, list(dict.fromkeys(problems)))


def manifest_table(record: TaskRecord, found: Sequence[tuple[Row, str]]) -> pd.DataFrame:
    """The rows of a manifest, each with the hash of its image."""
    stems = [str(PurePosixPath(row.image).with_suffix("")) for row, _ in found]
    if len({(row["center"], stem) for (row, _), stem in zip(found, stems, strict=True)}) < len(found):  # a.png beside a.jpg
        stems = [row.image for row, _ in found]
    rows = []
    for (row, sha256), name in zip(found, stems, strict=True):
        label = row.mask if record.is_segmentation else row.label
        values = (f"{row['center']}/{name}", row.image, sha256, row["center"], row["patient"], row.split, label, row.spacing)
        rows.append((*values, row[GROUP]))
    return with_groups(rows)


class SampleTable:
    """A table of samples, read and checked; of the files it names, only whether they are there."""

    def __init__(self, table: Path, source: Path, record: TaskRecord):
        self.table, self.source, self.record = table, source, record
        self.home = source.resolve()
        self.label_column, self.image_columns = label_column(record), image_columns(record)
        self.needed = (*self.image_columns, *NEEDED[1:], self.label_column)
        self.files = Files(self.home)
        self.problems: list[str] = []
        self.wrong_header = False
        self.rows = self._parsed()
        self.empty = [name for name in self.needed if self.rows and not any(row.cells.get(name, "-") for row in self.rows)]
        self.classes, self.words = self._classes()
        self.problems += [
            f"{name}: empty in all {len(self.rows)} rows, expected {self._expected(name)}; fill in the column, in {table}, then run the "
            "same command again"
            for name in self.empty
        ]
        for row in self.rows:
            self._read_row(row)
        if not record.is_segmentation:
            self._read_labels()
        self._check_repeated()
        self._check_centers()

    def raise_header(self) -> None:
        """Raises what was found, where the header is wrong or a column empty: images are not read for a table that cannot be used."""
        if self.wrong_header or self.empty:
            raise ManifestError.listing(self.table, list(dict.fromkeys(self.problems)))

    def is_whole(self, row: Row) -> bool:
        """Whether a row can be one of a manifest."""
        known = row.mask if self.record.is_segmentation else row.label is not None
        return bool(
            row.image and known and row["center"] and row["patient"] and "/" not in row["center"] and row["center"] not in (".", "..")
        )

    @property
    def has_volumes(self) -> bool:
        return any(row.is_volume for row in self.rows)

    def warnings(self) -> list[str]:
        """What is worth a second look in a table without problems."""
        found = []
        if not self.record.is_segmentation:
            found += self.words.notes(row["label"] for row in self.rows)
            if self.record.classes is None:
                order = ", ".join(f"{number} {name}" for number, name in enumerate(self.classes))
                positive = "; the last one is the positive one" if len(self.classes) == 2 else ""
                found.append(f"the classes are numbered by their sorted names: {order}{positive}")
        found += self._masks_used_again() + self._alike_patients()
        if not self.has_volumes:  # each volume is a person's
            listed = [(row.image, row["center"], row["patient"]) for row in self.rows]
            found += lone_patients(listed, lambda folder: not self.record.is_segmentation and self.words.number(folder) is not None)
        known = [bool(row.spacing) for row in self.rows]
        if any(known) and not all(known):
            found.append(f"{known.count(False)} of {len(known)} images have no spacing: distances will be in pixels everywhere")
        members: dict[tuple[str, str], set[str]] = {}
        for row in self.rows:
            if row[GROUP]:
                members.setdefault((row["center"], row[GROUP]), set()).add(row["patient"])
        several = sum(len(patients) > 1 for patients in members.values())
        if several:
            found.append(
                f"{several} group(s) of several patients stay in one split each; intervals and tests count their patients one by one"
            )
        named = {path for row in self.rows for path in (*row.images, row.mask)}
        alone = [path for path in self.files.images if path not in named]
        if alone:
            found.append(f"{len(alone)} image file(s) in the folder are not in {self.table.name} and not used, e.g. {shown(alone[0])}")
        return found

    def _say(self, row: Row, text: str) -> None:
        self.problems.append(f"line {row.line}: {text}")

    def _parsed(self) -> list[Row]:
        known = (*self.needed, *OPTIONAL)
        try:
            content = self.table.read_bytes()
            header, lines = parsed(decoded(content), lambda names: len({same_name(name) for name in names} & {*known, "label", "mask"}) > 1)
            rows = list(lines)
        except OSError as error:
            raise ManifestError(f"{self.table}: cannot be read ({error.strerror}), expected a CSV with {', '.join(known)}") from error
        except TableError as error:
            raise ManifestError(f"{self.table}: {error}") from error
        columns = [same_name(name) for name in header]
        self._check_header(header, columns, known)
        self.wrong_header = bool(self.problems)
        if not rows:
            self.problems.append(f"has a header only, expected a row {'a case' if self.record.series else 'an image'}")
        found = []
        for line, cells in rows:
            if len(cells) != len(columns):
                remedy = "a cell that holds the separator is put in quotes"
                self.problems.append(f"line {line}: {len(cells)} fields, expected the header's {len(columns)}; {remedy}")
            else:
                found.append(Row(line, dict(zip(columns, cells, strict=True))))
        return found

    def _check_header(self, header: list[str], columns: list[str], known: tuple[str, ...]) -> None:
        missing = [name for name in self.needed if name not in columns]
        for name, column in zip(header, columns, strict=True):
            if column in known:
                continue
            text = f"header: unknown column {name!r}, expected {', '.join(known)}"
            other = {"label", "mask"} - {self.label_column}
            if column in other:
                kind = self.record.kind
                text = f"header: column {name!r} does not belong to {self.record.name}, a {kind}: it reads {self.label_column!r}"
            elif column == NEEDED[0]:
                text = f"header: column {name!r}: {self.record.name} has a column a series, expected {', '.join(self.image_columns)}"
            elif close := self._meant(column, [name for name in known if name not in columns]):
                text += f"; is {close!r} meant? Then call it so"
            else:
                text += "; leave it out"
            self.problems.append(text)
        for column in dict.fromkeys(columns):
            if columns.count(column) > 1:
                self.problems.append(f"header: column {column!r} is there {columns.count(column)} times, expected once")
        self.problems += [
            f"header: column {name!r} is missing, expected {', '.join(self.needed)}; got {', '.join(header)!r}" for name in missing
        ]

    @staticmethod
    def _meant(column: str, lacking: list[str]) -> str:
        """The lacking column that another word for it, or a slip of the pen, means; "": none."""
        return next((name for name in lacking if column in HEADER_WORDS.get(name, "").split()), "") or close_name(column, lacking)

    def _read_row(self, row: Row) -> None:
        images = [self._found(row, column) for column in self.image_columns]
        row.images = tuple(images) if all(images) else ()
        if self.record.is_segmentation:
            row.mask = self._found(row, "mask")
        if row.mask and row.mask in images:
            self._say(row, f"mask {row['mask']!r} is the image itself, expected the file of its mask")
            row.mask = ""
        for column in ("center", "patient"):
            if column in row.cells and not row[column] and column not in self.empty:
                self._say(row, f"{column} is empty, expected {self._expected(column)}")
        if "/" in row["center"] or row["center"] in (".", ".."):
            self._say(row, f"center {row['center']!r}, expected a name that is no path; rename it")
        row.split = same_name(row["split"]) if row["split"] else ""
        if row.split not in ("", *SPLITS):
            close = difflib.get_close_matches(row.split, SPLITS, 1, 0.4)
            remedy = f"; write {close[0]}" if close else ""
            self._say(row, f"split {row['split']!r}, expected one of {', '.join(SPLITS)}, or nothing in all rows of the centre{remedy}")
            row.split = ""
        word = same_name(row["external"]) if row["external"] else ""
        row.external = True if word in YES else False if word in NO else None
        if row.external is None:
            self._say(row, f"external {row['external']!r}, expected yes or no")
        row.spacing, problem = spacing_of(row["spacing"])
        if problem:
            self._say(row, problem)

    def _found(self, row: Row, column: str) -> str:
        """The file that a cell names; "": there is none, which is a problem unless the whole column has been told."""
        if column not in row.cells or column in self.empty:
            return ""
        path, problem = self.files.find(row[column])
        if path and self.record.series and path.lower().endswith(VOLUME_SUFFIXES):
            path, problem = "", f"{row[column]!r} is a volume, series are read from images: write its slices as PNG"
        if problem:
            self._say(row, f"{column} {problem}")
        return path

    def _expected(self, column: str) -> str:
        """What belongs into a cell."""
        if column == "label":
            return self.words.expected if self.classes else "the names of at least two classes"
        people = {"center": "the centre's name", "patient": "who it is; a name of its own where each image is another person's"}
        return people.get(column, "a path below the data folder")

    def _classes(self) -> tuple[tuple[str, ...], ClassWords]:
        """The record's; else those of the table, sorted, one spelling each."""
        if self.record.classes is not None:
            return self.record.classes, ClassWords(self.record.classes, self.record.class_folders or ())
        found = tuple(sorted({row["label"] for row in self.rows} - {""}))
        if len(found) < 2 and "label" not in self.empty and "label" in (self.rows[0].cells if self.rows else ()):
            self.problems.append(f"label: {len(found)} class(es) ({', '.join(found)}), expected at least two")
        return found, ClassWords(found)

    def _read_labels(self) -> None:
        for row in self.rows:
            if "label" not in row.cells or "label" in self.empty:
                continue
            row.label = self.classes.index(row["label"]) if row["label"] in self.classes else self.words.number(row["label"])
            if not row["label"]:
                self._say(row, f"label is empty, expected {self._expected('label')}")
            elif row.label is None:
                close = close_name(same_name(row["label"]), [same_name(title) for title in class_titles(self.classes)])
                remedy = f"; is {close!r} meant?" if close else ""
                self._say(row, f"label {row['label']!r} is no class of {self.record.name}, expected {self.words.expected}{remedy}")
        if self.record.classes is None or not self.rows or "label" not in self.rows[0].cells or "label" in self.empty:
            return
        if mixed := self.words.mixed(row["label"] for row in self.rows):
            places = [next(row.line for row in self.rows if row["label"] == word) for word in mixed]
            self.problems.append(
                f"label: names ({mixed[0]!r}, line {places[0]}) and numbers ({mixed[1]!r}, line {places[1]}) side by side; expected one way"
                " in all rows, so that it is sure what the numbers mean"
            )
        known = {row.label for row in self.rows}
        for number, name in enumerate(self.classes):
            if number not in known:
                self.problems.append(f"label: no row has class {name!r} ({number}), expected images of it, or a task without it")

    def _check_repeated(self) -> None:
        first: dict[Path, tuple[Row, str]] = {}
        for row in self.rows:
            for column, path in zip(self.image_columns, row.images, strict=False):  # none of a row with a problem
                before, earlier = first.setdefault(self.files.real(path), (row, column))
                if (before, earlier) != (row, column):
                    place, once = (f" as {earlier}", "an image in one place") if self.record.series else ("", "one row an image")
                    self._say(row, f"{column} {row[column]!r} is in line {before.line}{place} already, expected {once}")
                    row.images = ()  # else it would be told again of its patient and its content

    def _check_centers(self) -> None:
        centers: dict[str, list[Row]] = {}
        for row in self.rows:
            if row["center"]:
                centers.setdefault(row["center"], []).append(row)
        for center, rows in centers.items():
            yes, no = ([row for row in rows if row.external is value] for value in (True, False))
            if yes and no:
                self.problems.append(
                    f"center {center!r}: external is {yes[0]['external']!r} in line {yes[0].line} and {no[0]['external']!r} in line"
                    f" {no[0].line}, expected one answer for all images of a centre"
                )
            for row in yes:
                if row.split not in ("", "test"):
                    self._say(row, f"split {row['split']!r} of the external center {center!r}, expected test or nothing: it does not train")
                row.split = "test"
            blank = [row for row in rows if not row.split]
            if blank and len(blank) < len(rows):
                lines = ", ".join(str(row.line) for row in blank[:SHOWN]) + (", …" if len(blank) > SHOWN else "")
                self.problems.append(
                    f"center {center!r}: {len(blank)} of {len(rows)} images have no split (line {lines}), expected one for all images of a"
                    " centre, or for none"
                )
        if centers and all(row.external for row in self.rows):
            self.problems.append("external: all centers are, expected at least one that trains")

    def _alike_patients(self) -> list[str]:
        """Numbers that a spreadsheet may have written in two ways: 01 and 1, 1 and 1.0."""
        spellings: dict[tuple[str, str], dict[str, int]] = {}
        for row in self.rows:
            if number := re.fullmatch(r"0*([0-9]+)([.,]0+)?", row["patient"]):
                spellings.setdefault((row["center"], number[1]), {}).setdefault(row["patient"], row.line)
        return [
            f"center {center!r}: patients {' and '.join(f'{name!r} (line {line})' for name, line in names.items())} are taken for different"
            " people; spreadsheets write one number so in two ways"
            for (center, _), names in spellings.items()
            if len(names) > 1
        ]

    def _masks_used_again(self) -> list[str]:
        users: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.mask:
                users.setdefault(row.mask, []).append(row)
        again = {mask: rows for mask, rows in users.items() if len(rows) > 1}
        if not again:
            return []
        mask, rows = next(iter(again.items()))
        lines = " and ".join(str(row.line) for row in rows[:SHOWN])
        return [f"{len(again)} mask(s) belong to several images, e.g. {mask} in lines {lines}: right only where these show the same"]


def spacing_of(text: str) -> tuple[str, str]:
    """(spacing as the manifest has it, problem) of a cell: "", "0.5", "0,5", "0.5 x 0.7", "0.5,0.7", "0,5;0,7".

    One comma between whole numbers is refused where it may part two of them or decimals ("1,5").
    """
    expected = "expected mm per pixel: one number as 0.5, or row and column as '0.5 x 0.7'"
    if not text:
        return "", ""
    if re.fullmatch(r"[0-9]+,[0-9]+", text) and int(text.split(",")[0]) and int(text.split(",")[1]):
        decimals, (rows, columns) = text.replace(",", "."), text.split(",")
        return "", f"spacing {text!r}: {decimals} mm, or {rows} and {columns} mm? Write {decimals} or '{rows} x {columns}'"
    one, two = re.fullmatch(_NUMBER, text), re.fullmatch(rf"({_NUMBER})\s*[x×;\s]\s*({_NUMBER})", text, re.IGNORECASE)
    pointed = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*,\s*([0-9]*\.?[0-9]+)", text) if "." in text else None
    found = pointed or two
    parts = found.groups() if found else (text, text) if one else ()
    values = [float(part.replace(",", ".")) for part in parts]
    if not values or not all(math.isfinite(value) and 0 < value <= LARGEST_SPACING for value in values):
        return "", f"spacing {text!r}, {expected}, above 0 and at most {LARGEST_SPACING:g}"
    return ",".join(f"{value:.10g}" for value in values), ""
