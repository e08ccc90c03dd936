"""Which column of a list of diagnoses is what: by its name, by the images' files, patients and centres in it, or as the user says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import pandas as pd

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.names import same_name
from vfmgl_lib.tasks.classes import ClassWords
from vfmgl_lib.tasks.same_names import file_form, is_file_name, patient_keys, rows_by_file, same_centers
from vfmgl_lib.tasks.words import HEADER_WORDS, MOST_CLASSES, header_words, tells_otherwise

ROLES = ("image", "patient", "center", "label")
BY_VALUES = 0.8  # share of a column's values that have to be patients, or files, where its name does not say so
SHOWN = 3
_WORDS = {role: {header_words(word)[0] for word in (role, *HEADER_WORDS[role].split())} for role in ROLES}
_OPTION = "--list-columns patient=NAME,center=NAME,label=NAME"


def column_choice(text: str) -> dict[str, str]:
    """Role -> column's name, of "patient=Pat.-Nr.,label=Diagnose"; "": the list has no such column.

    Raises: ManifestError: another form.
    """
    pairs = [part.partition("=") for part in re.split(rf",(?=(?:{'|'.join(ROLES)})=)", text)]
    if text and not all(role in ROLES and equals for role, equals, _ in pairs):
        raise ManifestError(f"--list-columns {text!r}: expected {', '.join(ROLES)} as in 'patient=Pat.-Nr.,label=Diagnose'")
    return {role: name.strip() for role, _, name in pairs} if text else {}


def rank(name: str, role: str) -> int:
    """2: the column is called so, 1: one of its words is, 0: no, or it tells an age, a date, ..."""
    if tells_otherwise(name):
        return 0
    whole, *parts = header_words(name)
    return 2 if whole in _WORDS[role] else int(any(part in _WORDS[role] for part in parts))


@dataclass
class ListColumns:
    """A list beside the images, and its columns.

    Attributes:
        images, paths, people, words: as for `diagnosis_list.join_list`.
        file, header, cells: of the list.
        columns: role -> number of its column; None: the list has none.
        told: what was chosen, a line each.
    """

    images: pd.DataFrame
    paths: Sequence[str]
    people: Sequence[str]
    file: Path
    header: list[str]
    cells: list[list[str]]
    words: ClassWords | None
    columns: dict[str, int | None] = field(default_factory=dict, init=False)
    told: list[str] = field(default_factory=list, init=False)

    @cached_property
    def by_file(self) -> dict[str, list[int]]:
        return rows_by_file(self.paths)

    def values(self, column: int | None) -> list[str]:
        return [row[column] if column is not None else "" for row in self.cells]

    def choose(self, given: Mapping[str, str]) -> None:
        """Sets `columns`, and tells how."""
        self.columns = {role: self._called(role, name) for role, name in given.items()}
        for role in (role for role in ROLES if role not in given):
            named = self._named(role)
            fits = {column: self._share(column, role) for column in range(len(self.header)) if column not in self.columns.values()}
            fitting = [column for column in named if fits[column]]
            if fitting:
                self._check_one(role, fits)
                self.columns[role] = max(fitting, key=lambda column: (fits[column], rank(self.header[column], role)))
            else:  # what is called so is it, whatever the names and words in it, where images are found by others
                sure = role in ("center", "label") or (role == "patient" and self.columns["image"] is not None)
                self.columns[role] = self._by_values(role, fits) if not named else named[0] if sure else None
        self._check_columns()
        parts = []
        for role in ROLES:
            if (column := self.columns[role]) is not None:
                how = "as given" if role in given else "by its name" if rank(self.header[column], role) else "by its values"
                parts.append(f"{role} is {self.header[column]!r} ({how}, e.g. {next(filter(None, self.values(column)), '')!r})")
        self.told.append(f"list {self.file.name}, {len(self.cells)} lines: {', '.join(parts)}; another column: {_OPTION}")

    def _called(self, role: str, name: str) -> int | None:
        if not name:
            return None
        for form in (str, same_name, lambda text: header_words(text)[0]):
            if found := [column for column, other in enumerate(self.header) if form(other) == form(name)]:
                return found[0]
        raise ManifestError(f"{self.file}: --list-columns {role}={name}: no such column, expected one of {self._header()}")

    def _named(self, role: str) -> list[int]:
        """Free columns called so; of several, those whose whole name it is."""
        ranks = {column: rank(name, role) for column, name in enumerate(self.header) if column not in self.columns.values()}
        highest = max(ranks.values(), default=0)
        return [column for column, rank in ranks.items() if rank == highest] if highest else []

    def _check_one(self, role: str, fits: Mapping[int, float]) -> None:
        """Of two columns that could be it and differ, none is chosen: a running number is no patient's."""
        ranks = {column: rank(self.header[column], role) for column, share in fits.items() if share}
        least = 1 if role == "patient" else max(ranks.values())
        columns = [column for column, rank in ranks.items() if rank >= least]
        if len({tuple(map(same_name, self.values(column))) for column in columns}) > 1:
            several = " or ".join(repr(self.header[column]) for column in columns)
            self.refuse(f"which column is the {role} cannot be told, {several}")

    def _share(self, column: int, role: str) -> float:
        values = list(dict.fromkeys(filter(None, self.values(column))))
        if role == "label":
            few = 2 <= len({same_name(value) for value in values}) <= MOST_CLASSES
            lines = list(filter(None, self.values(column)))
            return _share(lines, lambda word: self.words is None or self.words.number(word) is not None) if few else 0.0
        if role == "image":
            return _share(values, lambda value: file_form(value) in self.by_file)
        if role == "center":
            return len(same_centers(set(self.images["center"]), values)) / max(1, len(values))
        known = {(level, key) for name in self.people for level, key in enumerate(patient_keys(name)) if key}
        return _share(values, lambda value: any((level, key) in known for level, key in enumerate(patient_keys(value))))

    def _by_values(self, role: str, fits: Mapping[int, float]) -> int | None:
        """The one column that is not called otherwise and whose values fit; None: there is none, or several."""
        free = {
            column: share
            for column, share in fits.items()
            if not tells_otherwise(self.header[column]) and not any(rank(self.header[column], other) for other in ROLES)
        }
        if role == "image":
            free = {column: share for column, share in free.items() if any(map(is_file_name, self.values(column)))}
        if role == "label":
            if self.words is None:
                return None  # sex, side and ward have few words, too
            is_number = self.words.is_number  # 0 and 1 are in many columns
            free = {column: share for column, share in free.items() if not any(map(is_number, self.values(column)))}
        if role == "patient":
            if sum(share > 0 for share in free.values()) > 1:
                return None
            free = {column: share for column, share in free.items() if self._mostly_distinct(column)}
        fitting = [column for column, share in free.items() if share >= (1.0 if role == "center" else BY_VALUES)]
        return fitting[0] if len(fitting) == 1 else None

    def _mostly_distinct(self, column: int) -> bool:
        """As names of people are, of whom some have two lines or are called alike at two centres; no scores or grades."""
        values = list(filter(None, self.values(column)))
        return 2 * len(set(values)) >= len(values)

    def _check_columns(self) -> None:
        if self.columns["label"] is None:
            classes = f" (with words such as {', '.join(self.words.classes)})" if self.words else ""
            self.refuse(f"which column is the diagnosis{classes} cannot be told")
        column = self.columns["label"]
        count = len({same_name(word) for word in self.values(column) if word})
        if self.words is None and not 2 <= count <= MOST_CLASSES:
            self.refuse(f"column {self.header[column]!r} has {count} different diagnoses, expected 2 to {MOST_CLASSES} classes")
        if self.columns["image"] is None and self.columns["patient"] is None:
            self.refuse("no column has the images' files or patients in it")

    def refuse(self, what: str) -> NoReturn:
        """A clear error with what both sides hold."""
        columns = "; ".join(
            f"{name}: {', '.join(list(dict.fromkeys(filter(None, self.values(number))))[:SHOWN])}"
            for number, name in enumerate(self.header)
        )
        centers = ", ".join(sorted(set(self.images["center"]))[:SHOWN])
        files = ", ".join(self.paths[:SHOWN])
        people = ", ".join(list(dict.fromkeys(self.people))[:SHOWN])
        raise ManifestError(
            f"{self.file}: {what}\n  the list's columns: {columns}\n  the images: {files}; patients: {people}; centers: {centers}\n"
            f"  say which column is what: {_OPTION} (or image=NAME); --patient-pattern says who is the patient by the files' names"
        )

    def _header(self) -> str:
        return ", ".join(map(repr, self.header))


def _share(values: Sequence[str], fits: Callable[[str], bool]) -> float:
    return sum(map(fits, values)) / len(values) if values else 0.0
