"""A colleague's list of diagnoses, joined with the images of a first `samples.csv` (`tasks.template`). Each guess is told.

columns  by their names (`words.HEADER_WORDS`), and by whose values are the images' files, patients and centres; `given` overrules
centre   the same name; else umlauts written out or a slip of the pen; else one name within the other ("Klinik Nord", "nord")
patient  the same name at the same centre; else the same words and numbers (P007, p-7); else the same numbers (P-007, 7). The second and
         third only where one patient of the images and one of the list are left that could be meant. Of images whose names tell no
         patient, the file's name is compared
label    the list's word in the spelling that is there most often, or the task's class. Two diagnoses of one patient, and words that
         are no class of the task, leave it empty
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import pandas as pd

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.names import plain_words, same_name
from vfmgl_lib.data.spreadsheets import REMEDY, TableError, decoded, parsed
from vfmgl_lib.tasks.classes import ClassWords
from vfmgl_lib.tasks.same_names import file_form, is_file_name, loosest_key, patient_keys, rows_by_file, same_centers, same_patients
from vfmgl_lib.tasks.words import HEADER_WORDS, MOST_CLASSES, NEGATIVE_WORDS, folder_word, header_words, stem_of

ROLES = ("image", "patient", "center", "label")
BY_VALUES = 0.8  # share of a column's values that have to be patients, or files, where its name does not say so
SHOWN = 3
SHORTEST = 3  # letters of a centre's name that is looked for within the words of a path
WINDOWS = "cp1252"  # what Excel's ordinary CSV is in, in Western Europe and America
_WORDS = {role: {header_words(word)[0] for word in (role, *HEADER_WORDS[role].split())} for role in ROLES}
_OPTION = "--list-columns patient=NAME,center=NAME,label=NAME"


@dataclass(frozen=True)
class _Line:
    """A line of the list, "" where it has no such column."""

    image: str
    patient: str
    center: str
    label: str


def column_choice(text: str) -> dict[str, str]:
    """Role -> column's name, of "patient=Pat.-Nr.,label=Diagnose"; "": the list has no such column.

    Raises: ManifestError: another form.
    """
    pairs = [part.partition("=") for part in re.split(rf",(?=(?:{'|'.join(ROLES)})=)", text)]
    if text and not all(role in ROLES and equals for role, equals, _ in pairs):
        raise ManifestError(f"--list-columns {text!r}: expected {', '.join(ROLES)} as in 'patient=Pat.-Nr.,label=Diagnose'")
    return {role: name.strip() for role, _, name in pairs} if text else {}


def join_list(
    images: pd.DataFrame, paths: Sequence[str], file: Path | str, home: str, words: ClassWords | None = None, columns: str = ""
) -> list[str]:
    """Fills in the label of images by a list of diagnoses; centre and patient too, where only the list tells them.

    Args:
        images: center, patient, label; changed in place.
        paths: of the rows' images, below the folder.
        home: the folder's own name, which the centre is called where no name tells it.
        words: of the task's classes; None: the list's words are the classes.
        columns: as `column_choice` reads it.
    Returns: what was guessed and found, a line each.
    Raises: ManifestError: no CSV, a column that is not there or cannot be guessed, nothing to join by, no image with a diagnosis.
    """
    file = Path(file)
    header, cells = read_list(file, WINDOWS)
    joined = _Join(images, paths, file, header, cells, home, words)
    joined.choose(column_choice(columns))
    joined.spell()
    joined.match()
    filled = joined.fill()  # it adds to what is told before
    return _other_encoding(file, [header, *cells]) + joined.told + filled


def _other_encoding(file: Path, cells: Iterable[Sequence[str]]) -> list[str]:
    """A line where the list was not in UTF-8, with a word by which one sees whether it was read rightly."""
    try:
        decoded(file.read_bytes())
    except TableError:
        word = next((cell for row in cells for cell in row if not cell.isascii()), "")
        return [f"list {file.name}: not UTF-8, read as Windows-1252, e.g. {word!r}; if that is wrong, save it as 'CSV UTF-8'"]
    return []


def read_list(file: Path, other: str = "") -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table whose columns may be called in any way.

    Args:
        other: encoding of a list that is no UTF-8; "": it is refused.
    Raises: ManifestError: no CSV, rows of another length than the header, no rows.
    """

    def fits(names: list[str]) -> bool:
        return sum(any(_rank(name, role) for role in ROLES) for name in names) > 1

    try:
        header, lines = parsed(decoded(file.read_bytes(), other), fits)
        rows = list(lines)
    except OSError as error:
        raise ManifestError(f"{file}: cannot be read ({error.strerror}), expected a CSV with patients and diagnoses") from error
    except TableError as error:
        raise ManifestError(f"{file}: {error}") from error
    uneven = [f"line {line}: {len(row)} fields, expected the header's {len(header)}" for line, row in rows if len(row) != len(header)]
    if uneven:
        remedy = f"the first line holds the columns' names; a cell that holds the separator is put in quotes; {REMEDY}"
        raise ManifestError.listing(file, [*uneven, remedy])
    if not rows:
        raise ManifestError(f"{file}: has a header only, expected a line a patient or image")
    return header, [row for _, row in rows]


def _rank(name: str, role: str) -> int:
    """2: the column is called so, 1: one of its words is, 0: no."""
    whole, *parts = header_words(name)
    return 2 if whole in _WORDS[role] else int(any(part in _WORDS[role] for part in parts))


class _Join:
    def __init__(
        self,
        images: pd.DataFrame,
        paths: Sequence[str],
        file: Path,
        header: list[str],
        cells: list[list[str]],
        home: str,
        words: ClassWords | None,
    ) -> None:
        self.images, self.file, self.header, self.cells, self.home, self.words = images, file, header, cells, home, words
        self.paths = list(paths)
        self.columns: dict[str, int | None] = {}
        self.told: list[str] = []
        self.people = [patient or stem_of(path) for path, patient in zip(paths, images["patient"], strict=True)]
        self.by_file = rows_by_file(paths)
        self.found: list[list[_Line]] = [[] for _ in self.people]  # of each image
        self.notes: list[str] = []

    def values(self, column: int | None) -> list[str]:
        return [row[column] if column is not None else "" for row in self.cells]

    # Which column is what.

    def choose(self, given: Mapping[str, str]) -> None:
        """Sets `columns`, and tells how."""
        self.columns = {role: self._called(role, name) for role, name in given.items()}
        for role in (role for role in ROLES if role not in given):
            named = self._named(role)
            fits = {column: self._share(column, role) for column in range(len(self.header)) if column not in self.columns.values()}
            fitting = [column for column in named if fits[column]]
            if fitting:
                self.columns[role] = max(fitting, key=lambda column: (fits[column], _rank(self.header[column], role)))
            else:  # what is called so is it, whatever the names and words in it, where images are found by others
                sure = role in ("center", "label") or (role == "patient" and self.columns["image"] is not None)
                self.columns[role] = self._by_values(role, fits) if not named else named[0] if sure else None
        self._check_columns()
        parts = []
        for role in ROLES:
            if (column := self.columns[role]) is not None:
                how = "as given" if role in given else "by its name" if _rank(self.header[column], role) else "by its values"
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
        ranks = {column: _rank(name, role) for column, name in enumerate(self.header) if column not in self.columns.values()}
        highest = max(ranks.values(), default=0)
        return [column for column, rank in ranks.items() if rank == highest] if highest else []

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
        free = {column: share for column, share in fits.items() if not any(_rank(self.header[column], other) for other in ROLES)}
        if role == "image":
            free = {column: share for column, share in free.items() if any(map(is_file_name, self.values(column)))}
        if role == "label" and self.words is None:
            return None  # sex, side and ward have few words, too
        fitting = [column for column, share in free.items() if share >= (1.0 if role == "center" else BY_VALUES)]
        return fitting[0] if len(fitting) == 1 else None

    def _check_columns(self) -> None:
        if self.columns["label"] is None:
            classes = f" (with words such as {', '.join(self.words.classes)})" if self.words else ""
            self._refuse(f"which column is the diagnosis{classes} cannot be told")
        column = self.columns["label"]
        count = len({same_name(word) for word in self.values(column) if word})
        if self.words is None and not 2 <= count <= MOST_CLASSES:
            self._refuse(f"column {self.header[column]!r} has {count} different diagnoses, expected 2 to {MOST_CLASSES} classes")
        if self.columns["image"] is None and self.columns["patient"] is None:
            self._refuse("no column has the images' files or patients in it")

    def _refuse(self, what: str) -> NoReturn:
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

    # One spelling a class.

    def spell(self) -> None:
        """Writes each diagnosis in one spelling: the task's class, or the most frequent one; "" for what is no class."""
        spellings = _spellings(self.values(self.columns["label"]))
        most = _most_frequent(spellings)
        if self.words:
            numbers = {key: self.words.number(word) for key, word in most.items()}
            if foreign := [f"{most[key]!r} ({spellings[key].total()} lines)" for key, number in numbers.items() if number is None]:
                what = f"label: {_some(foreign)} of the list is no class, expected {self.words.expected}"
                if len(foreign) == len(most):
                    self._refuse(f"{what}; the task's key class_folders takes other words for its classes, in their order")
                self.notes.append(f"{what}; left empty, FILL IN")
            self.notes += self.words.notes(most.values())
            most = {key: "" if number is None else self.words.classes[number] for key, number in numbers.items()}
        else:
            several = [" and ".join(map(repr, sorted(words))) for words in spellings.values() if len(words) > 1]
            self.notes += [f"label: {text} are one class" for text in several]
        chosen = {role: self.values(self.columns[role]) for role in ROLES}
        centers = _most_frequent(_spellings(chosen["center"]))
        chosen["center"] = [centers[same_name(name)] if name else "" for name in chosen["center"]]
        chosen["label"] = [most[same_name(word)] if word else "" for word in chosen["label"]]
        self.lines = [_Line(*row) for row in zip(*chosen.values(), strict=True)]

    # Which line is which image's.

    def match(self) -> None:
        """Sets `found`: by the files' names where the list has them, else by centre and patient."""
        if self.columns["image"] is not None:
            self._match_files()
            return
        centers = self._centers()
        groups = [""] if centers is None else sorted(set(self.images["center"]))
        for center in groups:
            mine = [place for place, name in enumerate(self.images["center"]) if centers is None or name == center]
            lines = [line for line in self.lines if line.patient and (centers is None or line.center == centers.get(center))]
            self._match_people(mine, lines, center)

    def _match_files(self) -> None:
        centers = same_centers(set(self.images["center"]), {line.center for line in self.lines} - {""})
        several = []
        for line in self.lines:
            places = self.by_file.get(file_form(line.image), []) if line.image else []
            if len(places) > 1:  # one file's name at several centres
                places = [place for place in places if line.center and centers.get(self.images["center"][place]) == line.center]
            if len(places) == 1:
                self.found[places[0]].append(line)
            elif len(self.by_file.get(file_form(line.image), ())) > 1:
                several.append(line.image)
        if several:
            self.notes.append(f"image: {len(several)} of the list may be several files, left empty: {_some(several)}; FILL IN")

    def _centers(self) -> dict[str, str] | None:
        """Centre of the images -> the list's one; None: centres are not compared."""
        column, own = self.columns["center"], set(self.images["center"])
        if column is None:
            return None
        listed = sorted({line.center for line in self.lines} - {""})
        pairs = same_centers(own, listed)
        if not pairs:
            if own == {self.home}:  # no name tells the centres
                return None
            self._refuse(
                f"its centers ({', '.join(listed[:SHOWN])}) are none of the images' ({', '.join(sorted(own)[:SHOWN])}); call them alike,"
                " or join by the patient alone: --list-columns center="
            )
        if other := [f"{mine} is the list's {theirs!r}" for mine, theirs in sorted(pairs.items()) if same_name(mine) != same_name(theirs)]:
            self.told.append(f"center: {', '.join(other)}")
        return pairs

    def _match_people(self, places: list[int], lines: list[_Line], center: str) -> None:
        at = f" at {center}" if center else ""
        offered: dict[str, list[_Line]] = {}
        for line in lines:
            offered.setdefault(same_name(line.patient), []).append(line)
        wanted: dict[str, list[int]] = {}
        for place in places:
            wanted.setdefault(same_name(self.people[place]), []).append(place)
        unsure = self._at_several(wanted, offered)
        pairs, unclear = same_patients([name for name in wanted if name not in unsure], offered)
        places_of = {other: wanted[name] for name, other in pairs.items()}
        foreign = [place for other, own in places_of.items() for place in own if not center and self._elsewhere(place, own, offered[other])]
        for other, own in places_of.items():
            for place in own:
                self.found[place] = [] if place in foreign else offered[other]
        if foreign:
            who = _some([self.paths[place] for place in foreign])
            self.notes.append(
                f"center: {len(foreign)} images have a patient's name of the list, but by their paths they may be another center's: {who};"
                " left empty, FILL IN, or write the centers into folders' names"
            )
        if looser := [(self.people[wanted[name][0]], offered[other][0].patient) for name, other in pairs.items() if name != other]:
            mine, theirs = looser[0]
            self.notes.append(f"patient{at}: {len(looser)} are written otherwise in the list, e.g. {mine!r} is its {theirs!r}")
        if unclear:
            name, others = next(iter(unclear.items()))
            theirs = ", ".join(repr(offered[other][0].patient) for other in others)
            self.notes.append(
                f"patient{at}: {len(unclear)} cannot be told apart by their numbers, e.g. {self.people[wanted[name][0]]!r} by the list's"
                f" {theirs}; left empty, FILL IN"
            )
        if unsure:
            who = _some([self.people[wanted[name][0]] for name in unsure])
            self.notes.append(
                f"patient: {len(unsure)} are there at several centers, and which one is meant cannot be told: {who}; left empty, FILL IN or"
                " add a column with the center to the list"
            )

    def _elsewhere(self, place: int, alike: Sequence[int], lines: Sequence[_Line]) -> bool:
        """Whether an image whose centre no guess tells is perhaps not of the lines' centre: by its path, or since numbers return at others.

        Where the list has no centres: whether `alike`, the images of this patient's name, have other words before it.
        """
        path, own = _squeezed(self.paths[place]), {line.center for line in lines} - {""}
        if not self.list_centers:
            before = {re.sub(r"[\W\d_]", "", self.paths[one].rpartition(self.people[one])[0]) for one in alike}
            return len(before) > 1
        words = set(plain_words(self.paths[place]))
        named = {
            center
            for center in self.list_centers
            if words.issuperset(plain_words(center)) or (len(_squeezed(center)) >= SHORTEST and _squeezed(center) in path)
        }
        return bool(own) and not named & own and (bool(named) or self.numbers_return)

    @cached_property
    def list_centers(self) -> set[str]:
        return {line.center for line in self.lines} - {""}

    @cached_property
    def numbers_return(self) -> bool:
        """Whether the list has a number at several centres, so that a number alone says nothing."""
        homes: dict[Hashable, set[str]] = {}
        for line in self.lines:
            if line.patient and line.center:
                homes.setdefault(loosest_key(line.patient), set()).add(line.center)
        return any(len(centers) > 1 for centers in homes.values())

    def _at_several(self, wanted: Mapping[str, list[int]], offered: Mapping[str, list[_Line]]) -> list[str]:
        """Patients who are compared without their centre, though another centre, of the images or the list, has one of that number."""
        homes: dict[Hashable, set[str]] = {}
        for name, places in wanted.items():
            homes.setdefault(loosest_key(name), set()).update(self.images["center"][place] for place in places)
        theirs: dict[Hashable, set[str]] = {}
        for name, lines in offered.items():
            theirs.setdefault(loosest_key(name), set()).update(line.center for line in lines)
        return [name for name in wanted if max(len(homes[loosest_key(name)]), len(theirs.get(loosest_key(name), ()))) > 1]

    # What comes of it.

    def fill(self) -> list[str]:
        """Writes labels, centres and patients into the table; returns what to tell."""
        labels, contradictions = [], {}
        by_image = self.columns["image"] is not None
        takes_center, people = self.columns["center"] is not None and set(self.images["center"]) == {self.home}, 0
        for place, lines in enumerate(self.found):
            named = sorted({line.label for line in lines} - {""})
            labels.append(named[0] if len(named) == 1 else "")
            if len(named) > 1:
                who = self.paths[place] if by_image else f"{self.people[place]} ({self.images['center'][place]})"
                contradictions[who] = " and ".join(named)
            if lines and lines[0].patient and (by_image or not self.images["patient"][place]):
                self.images.loc[place, "patient"], people = lines[0].patient, people + 1
            if lines and lines[0].center and takes_center:
                self.images.loc[place, "center"] = lines[0].center
        if takes_center:
            self.told.append(f"center: taken from the list ({', '.join(sorted(set(self.images['center']))[:MOST_CLASSES])})")
        self.images["label"] = labels
        if not any(labels):
            why = [f"\n  {note}" for note in self.notes if not note.startswith("label")]
            self._refuse("no image got a diagnosis" + "".join(why))
        told = [_counted(labels), *self.notes, *([f"patient: {people} images got theirs from the list"] if people else [])]
        if contradictions:
            who, both = next(iter(contradictions.items()))
            told.append(f"label: {len(contradictions)} with two diagnoses, left empty: {_some(contradictions)}; {who} is {both}; FILL IN")
        used = {id(line) for lines in self.found for line in lines}
        if lost := list(dict.fromkeys(_who(line, by_image) for line in self.lines if id(line) not in used)):
            told.append(f"list: {len(lost)} {'files' if by_image else 'patients'} of it have no image: {_some(lost)}")
        if without := [path for path, lines in zip(self.paths, self.found, strict=True) if not lines]:
            told.append(f"label: {len(without)} images have no line in the list: {_some(without)}; FILL IN, or take their rows out")
        return told


def _spellings(words: Iterable[str]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for word in filter(None, words):
        found.setdefault(same_name(word), Counter())[word] += 1
    return found


def _most_frequent(spellings: Mapping[str, Counter[str]]) -> dict[str, str]:
    """Of two that are there as often, the one in small letters."""
    return {key: min(words, key=lambda word: (-words[word], word.swapcase())) for key, words in spellings.items()}


def _squeezed(text: str) -> str:
    """Its letters and digits, as centres are compared."""
    return "".join(plain_words(text))


def _share(values: Sequence[str], fits: Callable[[str], bool]) -> float:
    return sum(map(fits, values)) / len(values) if values else 0.0


def _some(names: Collection[str]) -> str:
    shown = list(names)[:SHOWN]
    return ", ".join(shown) + ", …" * (len(names) > len(shown))


def _who(line: _Line, by_image: bool) -> str:
    return line.image if by_image else line.patient + (f" ({line.center})" if line.center else "")


def _counted(labels: Sequence[str]) -> str:
    counts = Counter(filter(None, labels))
    return f"label: {counts.total()} of {len(labels)} images got one: {', '.join(f'{counts[name]} {name}' for name in sorted(counts))}"


def class_order(labels: Iterable[str]) -> list[str]:
    """The classes of a table in the order of their numbers: those that mean no disease first, then by name."""
    return sorted(set(labels) - {""}, key=lambda name: (not NEGATIVE_WORDS & set(folder_word(name).split("_")), name))


def use_of(classes: Sequence[str]) -> str:
    """What a model of these classes does, after "it"."""
    return f"tells {classes[-1]} from {', '.join(classes[:-1])}"


def next_step(labels: Iterable[str]) -> str:
    """The command that writes a task of these labels, ready to copy."""
    classes = class_order(labels)
    if len(classes) < 2:
        return f"the task is not written yet: the images have one class only, {classes[0]}, expected at least two"
    if any("," in name or "/" in name for name in classes):
        return "the task is not written yet, and classes are called without ',' and '/': write other words into the list and join it again"
    command = ["vfmgl", "data", "new-task", "my_task.yaml", "--kind", "classification", "--classes", ",".join(classes)]
    command += ["--use", use_of(classes)]
    positive = f" (the last, {classes[-1]}, is the positive one: check it)" if len(classes) == 2 else ""
    return f"the task is not written yet{positive}: {shlex.join(command)}"
