"""Readers of the disk layouts the paper's data sets lie in.

The layouts are those of the authors' released code (use case 1, "endometrial"; use case 4, "nuclei"); any other set
laid out the same way is read as well. Readers only read: nothing is ever written into the data folder.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.inspection import remark_warnings
from vfmgl_lib.data.manifest import (
    COLUMNS,
    NEEDED_SPLITS,
    SPLITS,
    Manifest,
    ManifestError,
    foreground_warnings,
    inspect_files,
    missing_classes,
    table_findings,
)
from vfmgl_lib.data.people import PatientNames, with_unique_patients
from vfmgl_lib.data.scan import Scan, masks_of_others, skipped, visible
from vfmgl_lib.tasks.cases import Format
from vfmgl_lib.tasks.classes import ClassWords
from vfmgl_lib.tasks.records import TaskRecord, find_task

logger = logging.getLogger(__name__)

CLASS_FOLDERS = {"traindata": "train", "testdata": "test"}
# The phantoms' own description and which of them have artefacts, the patient table (`tasks.patients`), a table of samples that is not
# read here (`tasks.samples`).
ROOT_FILES = ("phantoms.json", "artefacts.csv", "patients.csv", "samples.csv")


@dataclass(frozen=True)
class _Sample:
    path: Path
    name: str  # the id after center and split
    center: str
    patient: str
    split: str
    label: str  # name of the class, or path of the mask relative to the root


def read_folders(
    root: Path | str,
    task: str | TaskRecord,
    verify: bool = True,
    progress: bool = True,
    notes: list[str] | None = None,
    reading: Reading = PLAIN,
    names: PatientNames = "own",
    patient_pattern: str = "",
) -> Manifest:
    """Makes a manifest of folders of images in the layout that the task's record names.

    class_folders root/<center>/{traindata,testdata}/<class>/<patient>/<images>
        Classification. Where the record names classes, the folders are called by their names or numbers. Else classes are the sorted
        class folder names, the union over the centres; with three or more names one that only a single centre has is taken for a
        stray folder. A patient may have images of several classes.
    mask_folders  root/<center>/{train,val,test}/{images,labels}, `val` optional
        Segmentation; the mask is labels/<stem of the image>.png with values 0/255 (0/1 is accepted too), or the
        values that the task's record names for more than two classes.
        Patient: the first three fields of a TCGA barcode (TCGA-18-5592-01Z-00-DX1_0_500 → TCGA-18-5592), otherwise the
        text before the first "_" (02_1_0_0 → 02).

    A centre that has nothing but a folder of test samples is external: it takes no part in training. Hidden files and those of
    operating systems are ignored; any other file that is no image is a problem.

    Args:
        verify: decode every image and mask once. False still hashes every file and checks all else.
        progress: draw a progress bar with the time left.
        notes: gets what was passed over, and what was done to images; None: it is logged.
        reading: of the set's images.
        names: whether a patient's name is its centre's or the whole set's (`data.people`).
        patient_pattern: a regular expression that finds the patient in a file's name (`pattern_of`); "": as the layout says.
    Returns: the manifest. Its warnings are logged; `check_manifest(manifest, files=False)` returns them.
    Raises: ManifestError: with all problems found; each names the file, the value, and what would have been right.
    """
    record = find_task(task)
    if not record.folders:
        raise ManifestError(f"{root}: the task {record.name} has no layout of folders of images")
    home = Path(root).resolve()
    expected = "expected a folder with one folder per center"
    if not home.is_dir():
        raise ManifestError(f"{root}: data folder not found, {expected}")
    scan = Scan(home)
    centers = scan.folders(home, "one folder per center", files=ROOT_FILES)
    if not centers and not scan.problems:
        raise ManifestError(f"{root}: data folder is empty, {expected}")

    pattern = pattern_of(patient_pattern) if patient_pattern else None
    samples = LAYOUTS[record.folders].scan(scan, centers)
    labels = sorted({sample.label for sample in samples})
    classes, number = record.classes or tuple(labels), class_number(record, labels)
    if not record.is_segmentation:
        samples = of_classes(samples, scan, record)
    if pattern:
        samples = _with_patients(scan, samples, pattern)
    if not samples:
        raise ManifestError.listing(root, scan.problems)

    paths = [scan.name(sample.path) for sample in samples]
    masks = [sample.label if record.is_segmentation else None for sample in samples]
    values = record.stored_mask_values
    inspections = inspect_files(home, paths, masks, decode=verify, progress=progress, reading=reading, mask_values=values)
    rows = [
        (
            f"{sample.center}/{sample.split}/{sample.name}",
            path,
            found.sha256,
            sample.center,
            sample.patient,
            sample.split,
            sample.label if record.is_segmentation else number(sample.label),
            "",
        )
        for sample, path, found in zip(samples, paths, inspections, strict=True)
    ]
    table, apart = with_unique_patients(pd.DataFrame(rows, columns=list(COLUMNS)), names)
    manifest = Manifest(home, record.kind, classes, table, reading=reading, mask_values=values)

    unreadable = [problem for found in inspections for problem in found.problems] + missing_classes(manifest, inspections)
    readable = replace(manifest, table=manifest.table[[bool(found.sha256) for found in inspections]])
    rule = "" if pattern else record.patient_rule
    in_table, warnings = table_findings(readable, False, rule) if len(readable.table) else ([], [])
    if problems := scan.problems + unreadable + in_table:
        raise ManifestError.listing(root, problems)
    noted = apart + (_class_words(record).notes(labels) if record.classes and not record.is_segmentation else [])
    noted += skipped(scan.skipped) + remark_warnings(zip(paths, (found.remarks for found in inspections), strict=True), reading)
    for warning in warnings + foreground_warnings(manifest, inspections) + (noted if notes is None else []):
        logger.warning("%s: %s", root, warning)
    if notes is not None:
        notes += noted
    return manifest


def of_classes(samples: list[_Sample], scan: Scan, record: TaskRecord) -> list[_Sample]:
    """The samples whose class folder is a class of the record; what is not, and a class without a folder, is a problem."""
    labels = sorted({sample.label for sample in samples})
    scan.problems += _class_problems(record, labels, samples) if record.classes else _stray_classes(scan, samples)
    number = class_number(record, labels)
    return [sample for sample in samples if number(sample.label) is not None]


def class_number(record: TaskRecord, labels: Sequence[str]) -> Callable[[str], int | None]:
    """The number of the class that a folder is of, by the folder's name; None: of none.

    Args:
        labels: all folders' names, sorted: the classes of a record that names none.
    """
    return _class_words(record).number if record.classes else dict(zip(labels, range(len(labels)), strict=True)).get


def _class_words(record: TaskRecord) -> ClassWords:
    return ClassWords(record.classes or (), record.class_folders or ())


def _scan_classes(scan: Scan, centers: list[Path]) -> list[_Sample]:
    samples = []
    for center in centers:
        for split_folder in scan.folders(center, "traindata and testdata", tuple(CLASS_FOLDERS)):
            split = CLASS_FOLDERS[split_folder.name]
            for class_folder in scan.folders(split_folder, "one folder per class"):
                for patient in scan.folders(class_folder, "one folder per patient"):
                    images = scan.images(patient)
                    if not images:
                        scan.problems.append(f"{scan.name(patient)}: holds no image, expected at least one per patient")
                    for mask, image in masks_of_others(images).items():
                        expected = "expected images alone; move it out of the folder, or rename it if it is an image"
                        scan.problems.append(f"{scan.name(mask)}: is called as the mask of {image.name}, {expected}")
                    for image in images:
                        name = f"{class_folder.name}/{patient.name}/{image.stem}"
                        samples.append(_Sample(image, name, center.name, patient.name, split, class_folder.name))
    folders = {split: f"{folder}/<class>/<patient>/<image>" for folder, split in CLASS_FOLDERS.items()}
    _report_empty_splits(scan, centers, samples, folders)
    return samples


def _class_problems(record: TaskRecord, labels: Sequence[str], samples: Sequence[_Sample]) -> list[str]:
    """Folders that are no class of the task, classes that no centre has, names and numbers side by side."""
    words, problems = _class_words(record), []
    for label in labels:
        if words.number(label) is None:
            places = ", ".join(sorted({sample.center for sample in samples if sample.label == label}))
            problems.append(f"class folder {label!r} (center {places}) is no class of {record.name}, expected {words.expected}")
    if mixed := words.mixed(labels):
        problems.append(f"class folders are called by names ({mixed[0]!r}) and by numbers ({mixed[1]!r}), expected one way in all")
    known = {words.number(label) for label in labels}
    return problems + [
        f"class {name!r} has no folder at any center, expected images of it, or a task without it"
        for number, name in enumerate(words.classes)
        if number not in known
    ]


def _stray_classes(scan: Scan, samples: Sequence[_Sample]) -> list[str]:
    """Of a task that takes its classes from the folders: too few of them, or one of many at a single centre."""
    homes: dict[str, set[str]] = {}
    for sample in samples:
        homes.setdefault(sample.label, set()).add(sample.center)
    classes, problems = tuple(sorted(homes)), []
    if len(classes) < 2:
        problems.append(
            f"{scan.root}: {len(classes)} class folder(s) ({', '.join(classes)}) in all centers together, expected at"
            " least two in <center>/traindata/<class>/<patient>/<image>"
        )
    if len(set.union(set(), *homes.values())) > 1 and len(classes) > 2:
        shared = [name for name in classes if len(homes[name]) > 1]
        for name in classes:
            if len(homes[name]) == 1:
                (only,) = homes[name]
                problems.append(
                    f"{only}: class folder {name!r} exists in this center only; expected the classes of the others"
                    f" ({', '.join(shared) or 'which agree on none'})"
                )
    return problems


def pattern_of(text: str) -> re.Pattern[str]:
    """A pattern that finds who is the patient: its group called `patient`, or its first, is the name.

    It is looked for in the file's name; where it has a "/", in the path below the data folder.

    Raises: ManifestError: no regular expression, or one without a group.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ManifestError(f"--patient-pattern {text!r}: no regular expression ({error}), expected one as 'Image_([0-9]+)'") from error
    if not pattern.groups:
        raise ManifestError(f"--patient-pattern {text!r}: has no group, expected the patient in parentheses, as in 'Image_([0-9]+)'")
    return pattern


def patient_by(pattern: re.Pattern[str], path: str) -> str:
    """The patient of a file by its path below the data folder; "": the pattern does not find one."""
    found = pattern.search(path if "/" in pattern.pattern else path.rsplit("/", 1)[-1])
    return (found["patient" if "patient" in pattern.groupindex else 1] or "").strip() if found else ""


def _with_patients(scan: Scan, samples: Sequence[_Sample], pattern: re.Pattern[str]) -> list[_Sample]:
    found = [replace(sample, patient=patient_by(pattern, scan.name(sample.path))) for sample in samples]
    for sample in found:
        if not sample.patient:
            scan.problems.append(f"{scan.name(sample.path)}: --patient-pattern {pattern.pattern} finds no patient in it, expected one")
    return [sample for sample in found if sample.patient]


def _scan_masks(scan: Scan, centers: list[Path]) -> list[_Sample]:
    samples = []
    for center in centers:
        for split_folder in scan.folders(center, f"only {', '.join(SPLITS)}", SPLITS):
            parts = scan.folders(split_folder, "only images and labels", ("images", "labels"))
            by_name = {part.name: part for part in parts}
            images = scan.images(by_name["images"]) if "images" in by_name else []
            masks = scan.images(by_name["labels"], (".png",)) if "labels" in by_name else []
            unused = {mask.name for mask in masks}
            for image in images:
                mask = split_folder / "labels" / f"{image.stem}.png"
                if mask.name not in unused:
                    scan.problems.append(f"{scan.name(image)}: mask is missing, expected {scan.name(mask)}")
                    continue
                patient = _patient_of(image.stem)
                label = scan.name(mask)
                samples.append(_Sample(image, image.stem, center.name, patient, split_folder.name, label))
            for name in sorted(unused - {f"{image.stem}.png" for image in images}):
                where = f"{scan.name(split_folder)}/images/{name.removesuffix('.png')}"
                scan.problems.append(f"{scan.name(split_folder)}/labels/{name}: mask without image, expected {where}.*")
    _report_empty_splits(scan, centers, samples, {split: f"{split}/images/<image>" for split in NEEDED_SPLITS})
    return samples


def _patient_of(stem: str) -> str:
    barcode = re.match(r"TCGA-[^-_]+-[^-_]+", stem)
    return barcode.group() if barcode else stem.split("_", 1)[0]


def _report_empty_splits(scan: Scan, centers: list[Path], samples: list[_Sample], folders: dict[str, str]) -> None:
    """folders: split -> <its folder>/…, for the splits that a centre needs."""
    counts = Counter((sample.center, sample.split) for sample in samples)
    trains = any(split == "train" for _, split in counts)
    for center in centers:
        own = {path.name for path in visible(center) if path.is_dir()}
        external = trains and own == {folders["test"].split("/", 1)[0]}
        for split, pattern in folders.items():
            if not counts[center.name, split] and not (external and split == "train"):
                scan.problems.append(f"center {center.name!r} has no {split} samples, expected {center.name}/{pattern}")


def _subfolders_named(names: Iterable[str]) -> Callable[[Path], bool]:
    """Whether a folder holds folders, of centres, with one of these in them."""
    names = tuple(names)
    return lambda source: any((center / name).is_dir() for center in visible(source) if center.is_dir() for name in names)


@dataclass(frozen=True)
class Layout:
    """A layout of folders of images, as a format that a task reads, and how its samples are found."""

    format: Format
    scan: Callable[[Scan, list[Path]], list[_Sample]]


FOLDERS = "folders"
LAYOUTS = {
    "class_folders": Layout(
        Format(FOLDERS, "<center>/{traindata,testdata}/<class>/<patient>/<images>", _subfolders_named(CLASS_FOLDERS)), _scan_classes
    ),
    "mask_folders": Layout(Format(FOLDERS, "<center>/{train,val,test}/{images,labels}", _subfolders_named(SPLITS)), _scan_masks),
}
