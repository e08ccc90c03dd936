"""A first `samples.csv` of a folder, by guesses from the names of folders and files. Each guess is told; nothing is opened.

center   the first level of folders that is no split, class, or folder of images or masks; else the letters that files begin with
label    the folders that are called as the task's classes; else a level below the first whose names return below most centers; else empty
mask     a file of the image's name in a folder of masks (labels, masks, gt, ...), or with an ending such as _mask
split    folders such as train, val, testdata, where every image lies in one
series   of a task of several: files called <case>_<series> are one row
patient  a level of folders below the others; else what a centre's files are called before their eye, tile or slice; else left empty

A list of diagnoses fills in the label (`tasks.diagnosis_list`).
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pandas as pd

from vfmgl_lib.base.files import is_control, shown, write_bytes
from vfmgl_lib.data.lookup import list_files
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.scan import IMAGE_SUFFIXES, VOLUME_SUFFIXES
from vfmgl_lib.tasks.classes import ClassWords
from vfmgl_lib.tasks.diagnosis_list import join_list
from vfmgl_lib.tasks.folders import patient_by, pattern_of
from vfmgl_lib.tasks.next_task import next_step
from vfmgl_lib.tasks.records import find_task
from vfmgl_lib.tasks.samples import NEEDED
from vfmgl_lib.tasks.series import cases_by_name
from vfmgl_lib.tasks.words import (
    BELOW_PATIENT,
    IMAGE_ENDING,
    IMAGE_WORDS,
    MASK_ENDING,
    MASK_WORDS,
    MOST_CLASSES,
    PATIENT_FORMS,
    SPLIT_WORDS,
    folder_word,
    stem_of,
    undated,
)

MOST_OF_ONE = 5  # images of a centre of one patient
_CALLED_PATIENT = PATIENT_FORMS["the word for a patient and its number"]
CENTER_FORM = re.compile(r"^([A-Za-z]+)[ _-].*\d")


@dataclass
class Guessed:
    """A table in the form of `samples.csv`, and what was guessed, a line each."""

    table: pd.DataFrame
    told: list[str]


@dataclass
class _Image:
    path: str
    levels: list[str]
    split: str = ""
    case: str = ""
    mask: str = ""
    center: str = ""
    label: str = ""
    patient: str = ""
    unsure: bool = False  # folders may tell the patient, but not which
    used: set[int] = field(default_factory=set)

    @property
    def stem(self) -> str:
        return self.case or stem_of(self.path)


def guess_samples(
    folder: Path | str, task: str = "", patient_pattern: str = "", listed: Path | str = "", list_columns: str = ""
) -> Guessed:
    """Lists a folder's images with who, where and what they probably are.

    Args:
        task: whose classes and kind are known; "": a segmentation where most images have a mask, else a classification.
        patient_pattern: finds the patient (`folders.pattern_of`); "": guessed.
        listed: CSV with the patients' diagnoses; "": none. list_columns: which of its columns is what (`column_choice`); "": guessed.
    Raises: ManifestError: no such folder, no image in it, an unknown task, a pattern that is none, a list that cannot be joined.
    """
    home = Path(folder).resolve()
    if not home.is_dir():
        raise ManifestError(f"{folder}: folder not found, expected one with images")
    record, pattern = find_task(task) if task else None, pattern_of(patient_pattern) if patient_pattern else None
    files, told = _usable_files(home)
    series = record.series if record else ()
    cases: dict[str, tuple[str, list[str]]] = {}  # first file -> name and files of a case of several series
    if series:
        cases, others = cases_by_name([path for path in files if not _is_mask(path)], series)
        files = [path for path in files if path in cases or _is_mask(path)]
        told += _tell_cases(cases, others, series)
    names = {path: name for path, (name, _) in cases.items()}
    masks = _masks(files, names)
    images = [_Image(path, *_levels(path), names.get(path, "")) for path in files if path not in masks and not _is_mask(path)]
    if not images:
        raise ManifestError(
            f"{folder}: no image found, expected files ending in {', '.join(IMAGE_SUFFIXES)} (or {', '.join(VOLUME_SUFFIXES)})"
        )
    told += _take_masks(images, masks, [path for path in files if _is_mask(path) and path not in masks])
    masked = sum(bool(image.mask) for image in images)
    segmentation = record.is_segmentation if record else not listed and 2 * masked >= len(images)
    if segmentation and listed:
        raise ManifestError(f"{listed}: a list of diagnoses is for a classification, the task {task} is a segmentation")
    counted = "a list of diagnoses is given" if listed else f"{masked} of {len(images)} images have a mask"
    kind = f"the task {record.name} is one" if record else counted
    told.append(f"kind: {'segmentation' if segmentation else 'classification'}, since {kind}")
    told += _guess_split(images)
    words = ClassWords(record.classes, record.class_folders or ()) if record and record.classes else None
    if not segmentation:
        by_folders = _guess_label(images, words)
        told += [] if listed else by_folders
    told += _guess_center(images, home.name)
    told += _guess_patient(images, pattern)
    columns = ["center", "patient", "mask" if segmentation else "label", *(["split"] if any(i.split for i in images) else [])]
    files_of = {path: own for path, (_, own) in cases.items()}
    rows = [[*files_of.get(image.path, [image.path]), *(getattr(image, column) for column in columns)] for image in images]
    table = pd.DataFrame(rows, columns=[*(series or NEEDED[:1]), *columns], dtype=str)
    if listed:
        people = [image.patient or ("" if image.unsure else image.stem) for image in images]
        told += join_list(table, [image.path for image in images], people, listed, home.name, words, list_columns)
        told += [] if task else [next_step(table["label"])]
    return Guessed(table, told)


def write_samples(file: Path | str, table: pd.DataFrame, force: bool = False) -> None:
    """Writes a table as CSV in UTF-8 with a byte order mark, by which spreadsheets know it.

    Raises: ManifestError: the file is there and `force` does not say to replace it.
    """
    file = Path(file)
    if (file.exists() or file.is_symlink()) and not force:
        raise ManifestError(f"{file}: is there already and is not replaced; --force replaces it, --out FILE writes another one")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.itertuples(index=False))
    write_bytes(file, buffer.getvalue().encode("utf-8-sig"))


def _usable_files(home: Path) -> tuple[list[str], list[str]]:
    listed = list_files(home, lambda name: name.lower().endswith((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES)))
    odd = [path for path in listed if any(is_control(letter) for letter in path)]
    told = [f"{len(odd)} file(s) left out, rename them: no UTF-8 or control characters in the name, e.g. {shown(odd[0])}"] if odd else []
    return [path for path in listed if path not in set(odd)], told


def _levels(path: str) -> tuple[list[str], str]:
    """The folders that may mean something, and the split that others name."""
    levels, split = [], ""
    for name in PurePosixPath(path).parts[:-1]:
        if (word := folder_word(name)) in SPLIT_WORDS:
            split = SPLIT_WORDS[word]
        elif word not in IMAGE_WORDS | MASK_WORDS:
            levels.append(name)
    return levels, split


def _is_mask(path: str) -> bool:
    return any(folder_word(part) in MASK_WORDS for part in PurePosixPath(path).parts[:-1]) or MASK_ENDING.search(stem_of(path)) is not None


def _tell_cases(cases: dict[str, tuple[str, list[str]]], others: Sequence[str], series: Sequence[str]) -> list[str]:
    endings = ", ".join(f"_{name}" for name in series)
    told = [f"series: {len(cases)} cases by the files' endings {endings}"]
    for place, name in enumerate(series):
        lacking = [own for own, (_, files) in cases.items() if not files[place]]
        told += [f"series: {len(lacking)} case(s) without {name}, e.g. that of {lacking[0]}: FILL IN"] if lacking else []
    return told + ([f"series: {len(others)} file(s) end on none, or on one twice, and are left out, e.g. {others[0]}"] if others else [])


def _masks(files: Sequence[str], names: dict[str, str]) -> dict[str, str]:
    """Masks whose image is there -> the image; `names`: of those images that are not called as their files."""

    def place(path: str, stem: str) -> tuple[tuple[str, ...], str]:
        folders = PurePosixPath(path).parts[:-1]
        return tuple(name.lower() for name in folders if folder_word(name) not in IMAGE_WORDS | MASK_WORDS), stem.lower()

    own = [path for path in files if not _is_mask(path)]
    stems = {path: names.get(path) or stem_of(path) for path in own}
    images = {place(path, IMAGE_ENDING.sub("", stem)): path for path, stem in stems.items()}
    images |= {place(path, stem): path for path, stem in stems.items()}
    found = {}
    for path in files:
        if _is_mask(path):
            stem = stem_of(path)
            places = [place(path, stem), place(path, MASK_ENDING.sub("", stem))]
            image = next((images[key] for key in places if key in images), None)
            if image:
                found[path] = image
    return found


def _take_masks(images: list[_Image], masks: dict[str, str], alone: list[str]) -> list[str]:
    own: dict[str, list[str]] = {}
    for mask, path in sorted(masks.items()):
        own.setdefault(path, []).append(mask)
    for image in images:
        image.mask = own.get(image.path, [""])[0]
    told = []
    if own:
        lacking = [image.path for image in images if not image.mask]
        more = f"; {len(lacking)} without one, e.g. {lacking[0]}" if lacking else ""
        one = next(iter(own))
        told.append(f"mask: {len(own)} images have one, e.g. {one} has {own[one][0]}{more}")
    if several := [path for path, found in own.items() if len(found) > 1]:
        told.append(f"mask: {len(several)} images have several, the first is taken, e.g. {' and '.join(own[several[0]])}")
    if alone:
        told.append(f"mask: {len(alone)} file(s) look like masks of images that are not there and are left out, e.g. {alone[0]}")
    return told


def _guess_split(images: list[_Image]) -> list[str]:
    counts = Counter(image.split for image in images)
    if not counts.keys() - {""}:
        return ["split: no folder names one; 'prepare' divides each centre's patients"]
    if counts[""]:
        for image in images:
            image.split = ""
        return [f"split: {counts['']} of {len(images)} images lie in no folder such as train or test, so no split is taken over"]
    return [f"split: by folders, {', '.join(f'{count} {split}' for split, count in counts.items())}; take the column out to divide anew"]


def _level(images: list[_Image], number: int) -> list[str]:
    return [image.levels[number] if number < len(image.levels) else "" for image in images]


def _guess_label(images: list[_Image], words: ClassWords | None) -> list[str]:
    depth = min(len(image.levels) for image in images)
    chosen = next((number for number in range(depth) if _looks_like_classes(images, number, words)), None)
    if chosen is None:
        if words:
            return [f"label: no level of folders looks like classes, none is called {words.expected}; FILL IN the column"]
        if depth == 1:
            names = ", ".join(sorted(set(_level(images, 0)))[:MOST_CLASSES])
            return [
                f"label: the one level of folders ({names}) may be the centers or the classes; it is taken for the centers, FILL IN"
                " the label. If it is the classes: `vfmgl data new-task FILE` names them, then give --task FILE"
            ]
        return ["label: no level of folders looks like classes; FILL IN the column, or name the classes by --task FILE"]
    for image in images:
        image.label, image.used = image.levels[chosen], {chosen}
    counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(image.label for image in images).items()))
    return [f"label: the name of folder {chosen + 1} of the path (without splits): {counts}"]


def _looks_like_classes(images: list[_Image], number: int, words: ClassWords | None) -> bool:
    """Whether a level's folders are called as the classes; of unknown ones, whether their names return below most of the folders above."""
    names = set(_level(images, number))
    if words:
        return all(words.number(name) is not None for name in names)
    if number == 0 or not 2 <= len(names) <= MOST_CLASSES:
        return False  # the first level may be the centers
    if len({re.sub("[0-9]+", "", name) for name in names}) < len(names):
        return False  # 1, 2, 3, or P1, P2: patients are called so at every center
    parents: dict[str, set[tuple[str, ...]]] = {}
    for image in images:
        parents.setdefault(image.levels[number], set()).add(tuple(image.levels[:number]))
    above = len({parent for found in parents.values() for parent in found})
    return above > 1 and sum(map(len, parents.values())) >= above * len(parents) / 2


def _guess_center(images: list[_Image], home: str) -> list[str]:
    free = [number for number in range(min(len(image.levels) for image in images)) if number not in images[0].used]
    if free:
        for image in images:
            image.center = image.levels[free[0]]
            image.used = image.used | {free[0]}
        how = f"the name of folder {free[0] + 1} of the path (without splits)"
    else:
        found = [CENTER_FORM.match(image.stem) for image in images]
        names = Counter(match[1] for match in found if match)
        if all(found) and 2 <= len(names) <= MOST_CLASSES and min(names.values()) > 1:
            for image, match in zip(images, found, strict=True):
                image.center = match[1] if match else ""
            how = "the letters that the file's name begins with"
        else:
            for image in images:
                image.center = home
            how = "no folder and no file's name tells it, so the folder's own name; WRITE the centres"
    counts = ", ".join(f"{count} {name}" for name, count in sorted(Counter(image.center for image in images).items())[:MOST_CLASSES])
    return [f"center: {how}: {counts}"]


def _guess_patient(images: list[_Image], pattern: re.Pattern[str] | None) -> list[str]:
    if pattern:
        for image in images:
            image.patient = patient_by(pattern, image.path)
        lacking = [image.path for image in images if not image.patient]
        more = f"; not found in {len(lacking)}, e.g. {lacking[0]}: FILL IN" if lacking else ""
        return [f"patient: by the pattern {pattern.pattern}{_example(images)}{more}"]
    if all(image.path.lower().endswith(VOLUME_SUFFIXES) for image in images):
        for image in images:
            image.patient = image.stem
        return [f"patient: each volume is one, called as its file{_example(images)}"]
    told = []
    for center in sorted({image.center for image in images}):
        own = [image for image in images if image.center == center]
        free, unsure = _patient_level(own)
        how = f"the name of folder {free + 1} of the path (without splits)" if free is not None else ""
        for words, form in () if free is not None else PATIENT_FORMS.items():
            if all(form.search(undated(image.stem)) for image in own):
                how = words
                break
        for image in own:
            match = PATIENT_FORMS[how].search(undated(image.stem)) if how in PATIENT_FORMS else None
            image.patient = image.levels[free] if free is not None else match[1].strip() if match else ""
        if how and (doubt := unsure or _doubt(own)):
            for image in own:
                image.patient, image.unsure = "", bool(unsure)
            told.append(f"patient at {center}: left empty, since by {how} {doubt}; FILL IN the column, or give --patient-pattern")
            continue
        told.append(
            f"patient at {center}: {how}{_example(own)}"
            if how
            else f"patient at {center}: not told by the files' names (e.g. {own[0].path}); FILL IN the column, or give --patient-pattern"
        )
    return told


def _patient_level(images: list[_Image]) -> tuple[int | None, str]:
    """The level of folders that tells a centre's patients, None: there is none; and why it may be another one, ""."""
    free = [number for number in range(min(len(image.levels) for image in images)) if number not in images[0].used]
    named = [number for number in free if all(_CALLED_PATIENT.fullmatch(name) for name in _level(images, number))]
    if len(named) == 1:
        return named[0], ""
    free = [number for number in free if not all(BELOW_PATIENT.fullmatch(undated(name) or "v") for name in _level(images, number))]
    if len(free) < 2:
        return (free[0] if free else None), ""
    outer, inner = ([image.levels[number] for image in images] for number in free[-2:])
    if len(set(zip(outer, inner, strict=True))) > len(set(inner)) <= len(set(outer)):
        return free[-1], f"its names return in several of folder {free[-2] + 1}, which may be the patient as well"
    return free[-1], ""


def _doubt(images: list[_Image]) -> str:
    """Why a guess of a centre's patients is probably wrong, ""; a wrong patient may train and test."""
    people: dict[str, list[_Image]] = {}
    for image in images:
        people.setdefault(image.patient, []).append(image)
    if len(people) == 1 and len(images) > MOST_OF_ONE:
        return f"all {len(images)} images are of one patient, {images[0].patient!r}"
    several = {name: own for name, own in people.items() if len({image.label for image in own} - {""}) > 1}
    if several:
        name, own = next(iter(several.items()))
        other = next(image for image in own if image.label != own[0].label)
        return f"{len(several)} of {len(people)} patients have several classes, e.g. {name!r} has {own[0].path} and {other.path}"
    return ""


def _example(images: list[_Image]) -> str:
    people = len({(image.center, image.patient) for image in images if image.patient})
    first = next((image for image in images if image.patient), None)
    return f", {people} patients of {len(images)} images, e.g. {first.path} is {first.patient!r}" if first else ""
