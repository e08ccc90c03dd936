"""A colleague's list of diagnoses, joined with the images of a first `samples.csv` (`tasks.template`). Each guess is told.

columns  by their names (`words.HEADER_WORDS`), and by whose values are the images' files, patients and centres; `given` overrules
centre   the same name; else umlauts written out or a slip of the pen; else one name within the other ("Klinik Nord", "nord")
patient  the same name at the same centre; else the same words and numbers (P007, p-7); else the same numbers (P-007, 7). The second and
         third only where one patient of the images and one of the list are left that could be meant, and letters do not say otherwise
         (K-1 and P-1, 1 and 1R). Of images whose names tell no patient, the file's name is compared
label    the list's word in the spelling that is there most often, or the task's class. Two diagnoses of one patient, words that are no
         class of the task, and a file that is listed for two patients or another centre leave it empty
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.names import plain_words, same_name
from vfmgl_lib.data.spreadsheets import REMEDY, TableError, decoded, parsed
from vfmgl_lib.tasks.classes import ClassWords
from vfmgl_lib.tasks.list_columns import ROLES, SHOWN, ListColumns, column_choice, rank
from vfmgl_lib.tasks.same_names import file_form, loosest_key, same_centers, same_patients
from vfmgl_lib.tasks.words import MOST_CLASSES

SHORTEST = 3  # letters of a centre's name that is looked for within the words of a path
WINDOWS = "cp1252"  # what Excel's ordinary CSV is in, in Western Europe and America


@dataclass(frozen=True)
class _Line:
    """A line of the list, "" where it has no such column."""

    image: str
    patient: str
    center: str
    label: str
    other: str = ""  # a word that is no class


def join_list(
    images: pd.DataFrame,
    paths: Sequence[str],
    people: Sequence[str],
    file: Path | str,
    home: str,
    words: ClassWords | None = None,
    columns: str = "",
) -> list[str]:
    """Fills in the label of images by a list of diagnoses; centre and patient too, where only the list tells them.

    Args:
        images: center, patient, label; changed in place.
        paths: of the rows' images, below the folder.
        people: what the list's patients are compared with, "": nothing tells who it is.
        home: the folder's own name, which the centre is called where no name tells it.
        words: of the task's classes; None: the list's words are the classes.
        columns: as `column_choice` reads it.
    Returns: what was guessed and found, a line each.
    Raises: ManifestError: no CSV, a column that is not there or cannot be guessed, nothing to join by, no image with a diagnosis.
    """
    file = Path(file)
    header, cells = read_list(file, WINDOWS)
    joined = _Join(images, paths, people, file, header, cells, words, home)
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
        return sum(any(rank(name, role) for role in ROLES) for name in names) > 1

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


@dataclass
class _Join(ListColumns):
    home: str
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.knows_centers = set(self.images["center"]) != {self.home}
        self.found: list[list[_Line]] = [[] for _ in self.people]  # of each image

    # One spelling a class.

    def spell(self) -> None:
        """Writes each diagnosis in one spelling: the task's class, or the most frequent one; "" for what is no class."""
        spellings = _spellings(self.values(self.columns["label"]))
        most = _most_frequent(spellings)
        if self.words:
            self._check_numbers(list(most.values()))
            numbers = {key: self.words.number(word) for key, word in most.items()}
            if foreign := [f"{most[key]!r} ({spellings[key].total()} lines)" for key, number in numbers.items() if number is None]:
                what = f"label: {_some(foreign)} of the list is no class, expected {self.words.expected}"
                if len(foreign) == len(most):
                    self.refuse(f"{what}; the task's key class_folders takes other words for its classes, in their order")
                self.notes.append(f"{what}; left empty, FILL IN")
            self.notes += self.words.notes(most.values())
            most = {key: "" if number is None else self.words.classes[number] for key, number in numbers.items()}
        else:
            several = [" and ".join(map(repr, sorted(words))) for words in spellings.values() if len(words) > 1]
            self.notes += [f"label: {text} are one class" for text in several]
        chosen = {role: self.values(self.columns[role]) for role in ROLES}
        centers = _most_frequent(_spellings(chosen["center"]))
        chosen["center"] = [centers[same_name(name)] if name else "" for name in chosen["center"]]
        said = chosen["label"]
        chosen["label"] = [most[same_name(word)] if word else "" for word in said]
        others = ["" if label else word for word, label in zip(said, chosen["label"], strict=True)]
        self.lines = [_Line(*row) for row in zip(*chosen.values(), others, strict=True)]

    def _check_numbers(self, words: Sequence[str]) -> None:
        """Raises where numbers of classes may count otherwise than from 0: each would mean another class."""
        known = self.words
        if known is None:
            return
        beyond = [word for word in words if known.is_number(word) and known.number(word) is None]
        if beyond and len(beyond) < sum(map(known.is_number, words)):
            self.refuse(f"label: numbers up to {max(beyond)}, expected {known.expected}; write the classes' names into the list")
        if mixed := known.mixed(words):
            self.refuse(f"label: names ({mixed[0]!r}) and numbers ({mixed[1]!r}) side by side; write the classes' names into the list")

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
        homes = list(self.images["center"])
        centers = same_centers(set(homes), {line.center for line in self.lines} - {""})
        several, elsewhere = [], []
        for line in self.lines:
            places = self.by_file.get(file_form(line.image), []) if line.image else []
            if len(places) > 1:  # one file's name at several centres
                places = [place for place in places if line.center and centers.get(homes[place]) == line.center]
            if len(places) == 1 and self._is_elsewhere(homes[places[0]], line.center, centers):
                elsewhere.append(line.image)
            elif len(places) == 1:
                self.found[places[0]].append(line)
            elif len(self.by_file.get(file_form(line.image), ())) > 1:
                several.append(line.image)
        if several:
            self.notes.append(f"image: {len(several)} of the list may be several files, left empty: {_some(several)}; FILL IN")

        if elsewhere:
            self.notes.append(f"image: {len(elsewhere)} of the list are at another center there, left empty: {_some(elsewhere)}; FILL IN")

    def _is_elsewhere(self, home: str, listed: str, centers: Mapping[str, str]) -> bool:
        """Whether an image's centre is another one than that of its line, as far as both are known."""
        if not listed or not self.knows_centers:
            return False
        return centers[home] != listed if home in centers else listed in centers.values()

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
            self.refuse(
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
            if self.people[place]:
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
        labels, contradictions, whose, taken = [], {}, {}, {}
        by_image = self.columns["image"] is not None
        takes_center = self.columns["center"] is not None and not self.knows_centers
        for place, lines in enumerate(self.found):
            named = sorted({line.label or line.other for line in lines} - {""})
            if len({same_name(line.patient) for line in lines} - {""}) > 1 or len({line.center for line in lines} - {""}) > 1:
                whose[self.paths[place]], lines = " and ".join(dict.fromkeys(_person(line) for line in lines)), []
                named = []
            labels.append(named[0] if len(named) == 1 and any(line.label for line in lines) else "")
            if len(named) > 1:
                who = self.paths[place] if by_image else f"{self.people[place]} ({self.images['center'][place]})"
                contradictions[who] = " and ".join(named)
            if any(line.patient for line in lines) and (by_image or not self.images["patient"][place]):
                taken[place] = next(line.patient for line in lines if line.patient)
            if takes_center and (center := next((line.center for line in lines if line.center), "")):
                self.images.loc[place, "center"] = center
        if takes_center:
            self.told.append(f"center: taken from the list ({', '.join(sorted(set(self.images['center']))[:MOST_CLASSES])})")
        self.images["label"] = labels
        if not any(labels):
            why = [f"\n  {note}" for note in self.notes if not note.startswith("label")]
            self.refuse("no image got a diagnosis" + "".join(why))
        told = [_counted(labels), *self.notes, *self._rename(taken, takes_center)]
        if whose:
            image, both = next(iter(whose.items()))
            told.append(f"image: {len(whose)} of several patients in the list, left empty: {_some(whose)}; {image} is of {both}; FILL IN")
        if contradictions:
            who, both = next(iter(contradictions.items()))
            told.append(f"label: {len(contradictions)} with two diagnoses, left empty: {_some(contradictions)}; {who} is {both}; FILL IN")
        used = {id(line) for lines in self.found for line in lines}
        if lost := list(dict.fromkeys(_who(line, by_image) for line in self.lines if id(line) not in used)):
            told.append(f"list: {len(lost)} {'files' if by_image else 'patients'} of it have no image: {_some(lost)}")
        if without := [path for path, lines in zip(self.paths, self.found, strict=True) if not lines]:
            told.append(f"label: {len(without)} images have no line in the list: {_some(without)}; FILL IN, or take their rows out")
        return told

    def _one_spelling(self, taken: dict[int, str], homes: Sequence[str]) -> list[str]:
        """Gives images that the folders take for one person one of the names that the list writes with the same numbers (1, P1)."""
        spellings: dict[Hashable, dict[str, list[int]]] = {}
        for place, name in taken.items():
            if guessed := self.images["patient"][place]:
                spellings.setdefault((homes[place], guessed, loosest_key(name)), {}).setdefault(name, []).append(place)
        several = [names for names in spellings.values() if len(names) > 1]
        for names in several:
            chosen = min(names, key=lambda name: (-len(names[name]), name))
            taken.update({place: chosen for places in names.values() for place in places})
        example = " and ".join(map(repr, several[0])) if several else ""
        return [f"patient: {len(several)} have several spellings in the list and get one, e.g. {example}"] if several else []

    def _rename(self, taken: dict[int, str], as_one: bool) -> list[str]:
        """Writes the list's names of patients. Where they are others than the folders', a person of both would train and test."""
        homes = [""] * len(self.paths) if as_one else list(self.images["center"])
        guessed, spelled = list(self.images["patient"]), self._one_spelling(taken, homes)
        others = {homes[place] for place, name in taken.items() if guessed[place] and same_name(guessed[place]) != same_name(name)}
        emptied = [place for place, name in enumerate(guessed) if name and place not in taken and homes[place] in others]
        names = pd.Series(guessed, dtype=str)
        names.update(pd.Series({**taken, **dict.fromkeys(emptied, "")}, dtype=str))
        self.images["patient"] = list(names)
        told = [f"patient: {len(taken)} images got theirs from the list", *spelled] if taken else []
        if emptied:
            which = _some([self.paths[place] for place in emptied])
            told.append(f"patient: {len(emptied)} images have none in the list, which calls others otherwise: {which}; left empty, FILL IN")
        return told


def _person(line: _Line) -> str:
    return line.patient + (f" ({line.center})" if line.center else "")


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


def _some(names: Collection[str]) -> str:
    shown = list(names)[:SHOWN]
    return ", ".join(shown) + ", …" * (len(names) > len(shown))


def _who(line: _Line, by_image: bool) -> str:
    return line.image if by_image else _person(line)


def _counted(labels: Sequence[str]) -> str:
    counts = Counter(filter(None, labels))
    return f"label: {counts.total()} of {len(labels)} images got one: {', '.join(f'{counts[name]} {name}' for name in sorted(counts))}"
