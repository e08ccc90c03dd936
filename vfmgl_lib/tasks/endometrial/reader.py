"""Reader of endometrial volumes: a DICOM series or a NIfTI a patient, cut to the rectangle around the uterus.

    <center>/{traindata,testdata}/<class>/<patient>/    one DICOM series (files of any name), or one .nii or .nii.gz
    roi.csv                                             patient,slice,row_start,row_stop,column_start,column_stop and, where centres
                                                        have patients of one name, center
    patients.csv                                        optional, see `vfmgl_lib.tasks.patients`

A row of roi.csv is one picture. Its numbers count from 0, stops are exclusive, and they count the pixels as stored: rows and
columns of the DICOM images, slices in the order of their position along the normal (SimpleITK's order); in a NIfTI the
slice is the third axis, the row the second and the column the first, as in SimpleITK's arrays.

A picture is made as the paper says (Methods, "EC dataset": a rectangle around the whole uterus, 224 x 224 x 3), intensities as
in its prostate task: clipped at the 0.99 quantile of the volume, scaled to 0..255. It is turned to the radiological view, so
that a centre that sends NIfTI is not the one whose pictures stand on their heads.

Only geometry and intensities of a DICOM file are used. Names, dates and numbers of its header go nowhere; the patient is
called as the folder is, and a folder called as the header calls the patient is a warning.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from vfmgl_lib.data.dicom import has_picture, is_dicom, read_header, read_series
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.data.names import same_name
from vfmgl_lib.data.preprocessing import squashed, to_bytes
from vfmgl_lib.data.scan import NIFTI_SUFFIXES, Scan, skipped, visible
from vfmgl_lib.data.volumes import Stored, read_grid, read_stored
from vfmgl_lib.tasks.cases import Case, Findings, Format, Picture, SourceError
from vfmgl_lib.tasks.folders import CLASS_FOLDERS, LAYOUTS
from vfmgl_lib.tasks.patients import PATIENTS_FILE, read_csv

REGIONS_FILE = "roi.csv"
REGION_COLUMNS = ("patient", "slice", "row_start", "row_stop", "column_start", "column_stop")
SIDE = 224  # pixels


@dataclass(frozen=True)
class Region:
    """A row of roi.csv: a rectangle in a slice, 0-based, stops exclusive, pixels as stored."""

    line: int
    slice: int
    rows: tuple[int, int]
    columns: tuple[int, int]


Regions = dict[tuple[str, str], tuple[Region, ...]]  # (centre, or "" where no row says it; patient), as `same_name` has them


class _PatientScan(Scan):
    """Lists a patient's folder as well: files of a series often have no extension to choose them by.

    Attributes:
        left_out: how many DICOM files without a picture (reports, presentation states) were left out.
    """

    left_out = 0

    def volumes(self, folder: Path) -> list[Path]:
        found = []
        for entry in self._entries(folder):
            if entry.is_file() and is_dicom(entry) and not has_picture(entry):
                self.left_out += 1
            elif entry.is_file() and (_is_nifti(entry) or _may_be_dicom(entry)):
                found.append(entry)
            else:
                self.unexpected(entry, "one DICOM series or one .nii or .nii.gz")
        return found


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def _may_be_dicom(path: Path) -> bool:
    # By their names files say what they should be, and by their content what they are: either is looked at, or refused in words.
    # Files called by their UID seem to have an extension of digits.
    return path.suffix.lower() in ("", ".dcm", ".ima") or path.suffix[1:].isdigit() or is_dicom(path)


def recognise_volumes(source: Path) -> bool:
    """Whether `source` looks like centres with volumes: roi.csv, or a first file that is one."""
    try:
        centers = [folder for folder in visible(source) if any((folder / split).is_dir() for split in CLASS_FOLDERS)]
        if centers and (source / REGIONS_FILE).is_file():
            return True
        first = next((file for center in centers if (file := _first_file(center, depth=4))), None)
        return first is not None and (_is_nifti(first) or _may_be_dicom(first))
    except OSError:
        return False


def _first_file(folder: Path, depth: int) -> Path | None:
    """The first file `depth` levels below a folder, found without listing the others."""
    for entry in visible(folder):
        if depth == 1 and entry.is_file():
            return entry
        if depth > 1 and entry.is_dir() and (found := _first_file(entry, depth - 1)):
            return found
    return None


def cases_volumes(source: Path, findings: Findings) -> list[Case]:
    """One case a patient. Of each DICOM file the beginning is read, and of one in each series the header; no pixel."""
    home = source.resolve()
    regions = _read_regions(home / REGIONS_FILE, findings)
    scan = _PatientScan(home)
    cases, unpictured, named, unoriented = [], dict(regions or {}), Counter[str](), Counter[str]()
    for center, split, label, folder in _patient_folders(scan):
        before = len(scan.problems)
        files = scan.volumes(folder)
        keys = [(place, same_name(folder.name)) for place in (same_name(center), "")]
        own = tuple(region for key in keys for region in (regions or {}).get(key, ()))
        for key in keys:
            unpictured.pop(key, None)
        if not files:
            if len(scan.problems) == before:  # else it is said what it holds
                scan.problems.append(f"{scan.name(folder)}: holds no volume, expected one DICOM series or one .nii or .nii.gz")
            continue
        try:
            look = _look_at(files, scan.name(folder))
            if regions is not None:
                _check_regions(own, look.shape, scan.name(folder))
        except SourceError as error:
            scan.problems += str(error).splitlines()
            continue
        named[center] += _same_person(folder.name, look)
        unoriented[center] += not look.oriented
        if regions is None:
            continue  # whether a patient has a region is not known
        read = partial(read_pictures, tuple(files), own, scan.name(folder))
        cases.append(Case(folder.name, center, folder.name, (*files, home / REGIONS_FILE), read, label, split))
    expected = "expected <center>/{traindata,testdata}/<class>/<patient>"
    scan.problems += [f"{REGIONS_FILE}: line {own[0].line}: the patient has no folder, {expected}" for own in unpictured.values()]
    scan.problems += _twice(cases) + _at_several_centers(regions or {}, cases)
    findings.problems += scan.problems
    findings.warnings += skipped(scan.skipped)
    if scan.left_out:
        findings.warnings.append(f"{scan.left_out} DICOM files without a picture (reports, presentation states, raw data) left out")
    totals = Counter(case.center for case in cases)
    for center in sorted(totals):
        if named[center]:
            findings.warnings.append(
                f"center {center!r}: {named[center]} of {totals[center]} patient folders are called as their DICOM files call the"
                " patient; these names go into file names and the manifest: rename the folders if they identify people"
            )
        if unoriented[center]:
            findings.warnings.append(
                f"center {center!r}: the NIfTI files of {unoriented[center]} of {totals[center]} patients say nothing of their"
                " orientation, the pictures stay as stored; look whether they stand upright"
            )
    return cases


def _patient_folders(scan: Scan) -> Iterator[tuple[str, str, str, Path]]:
    """(centre, split, class, folder) of each patient."""
    for center in scan.folders(scan.root, "one folder per center", files=(REGIONS_FILE, PATIENTS_FILE)):
        before = len(scan.problems)
        found = 0
        for split in scan.folders(center, "traindata and testdata", tuple(CLASS_FOLDERS)):
            for label in scan.folders(split, "one folder per class"):
                for folder in scan.folders(label, "one folder per patient"):
                    found += 1
                    yield center.name, CLASS_FOLDERS[split.name], label.name, folder
        if not found and len(scan.problems) == before:
            scan.problems.append(f"center {center.name!r} has no patients, expected {center.name}/traindata/<class>/<patient>")


def _twice(cases: list[Case]) -> list[str]:
    homes: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        homes.setdefault((case.center, case.patient), []).append(f"{case.split}/{case.label}")
    return [
        f"center {center!r}: patient {patient!r} is in {' and '.join(places)}, expected one folder a patient"
        for (center, patient), places in homes.items()
        if len(places) > 1
    ]


def _at_several_centers(regions: Regions, cases: list[Case]) -> list[str]:
    homes: dict[str, set[str]] = {}
    for case in cases:
        homes.setdefault(same_name(case.patient), set()).add(case.center)
    return [
        f"{REGIONS_FILE}: line {own[0].line}: patient {name!r} is at the centers {' and '.join(sorted(homes[name]))}, expected a column"
        " center that says whose regions these are"
        for (center, name), own in regions.items()
        if not center and len(homes.get(name, ())) > 1
    ]


def _read_regions(path: Path, findings: Findings) -> Regions | None:
    """(centre or "", patient) → regions; None, and a problem, where the file cannot be used."""
    try:
        rows = read_csv(path, REGION_COLUMNS, optional=("center",))
    except ManifestError as error:
        findings.problems += [f"{path.name}: {text}" for text in error.problems or (str(error).removeprefix(f"{path}: "),)]
        return None
    regions: Regions = {}
    for line, row in rows:
        problem = _region_problem(row)
        if not problem:
            region = Region(line, int(row["slice"]), *((int(row[f"{axis}_start"]), int(row[f"{axis}_stop"])) for axis in ("row", "column")))
            key = same_name(row.get("center", "")), same_name(row["patient"])
            before = regions.get(key, ())
            if region.slice in [other.slice for other in before]:
                problem = f"patient {row['patient']!r} has a region in slice {region.slice} already, expected one a slice"
            else:
                regions[key] = (*before, region)
        if problem:
            findings.problems.append(f"{path.name}: line {line}: {problem}")
    return regions


def _region_problem(row: Mapping[str, str]) -> str:
    if not row["patient"]:
        return "patient is empty, expected the name of a folder"
    for column in REGION_COLUMNS[1:]:
        if not re.fullmatch("[0-9]{1,6}", row[column]):
            return f"{column} {row[column]!r}, expected a whole number from 0"
    for axis in ("row", "column"):
        start, stop = row[f"{axis}_start"], row[f"{axis}_stop"]
        if int(start) >= int(stop):
            return f"{axis}_start {start} and {axis}_stop {stop} leave nothing, expected a stop above the start"
    return ""


def _check_regions(regions: tuple[Region, ...], shape: tuple[int, int, int], name: str) -> None:
    slices, rows, columns = shape
    if not regions:
        raise SourceError(f"{name}: patient {name.rsplit('/', 1)[-1]!r} has no row in {REGIONS_FILE}, expected at least one")
    problems = []
    for region in regions:
        if region.slice >= slices:
            problems.append(f"{REGIONS_FILE}: line {region.line}: slice {region.slice}, {name} has the slices 0 to {slices - 1}")
        if region.rows[1] > rows or region.columns[1] > columns:
            found = f"row_stop {region.rows[1]} and column_stop {region.columns[1]}"
            problems.append(f"{REGIONS_FILE}: line {region.line}: {found}, {name} has {rows} rows and {columns} columns")
    if problems:
        raise SourceError("\n".join(problems))


@dataclass(frozen=True)
class _Look:
    """What one header tells: (slices, rows, columns), whether it knows its orientation, and how it calls the patient."""

    shape: tuple[int, int, int]
    oriented: bool = True
    names: tuple[str, ...] = ()


def _look_at(files: list[Path], name: str) -> _Look:
    if any(_is_nifti(file) for file in files):
        grid = read_grid(*_only_nifti(files, name))
        columns, rows, slices = grid.shape
        return _Look((slices, rows, columns), grid.oriented)
    header = read_header(files[0], f"{name}/{files[0].name}")
    return _Look((len(files), *header.shape), names=header.persons)


def _same_person(folder: str, look: _Look) -> bool:
    def words(text: str) -> list[str]:
        return sorted(re.findall(r"[^\W_]+", same_name(text)))

    return any(words(folder) == words(name) for name in look.names if words(name))


def read_pictures(files: tuple[Path, ...], regions: tuple[Region, ...], name: str) -> list[Picture]:
    """Decode a patient's volume and cut its regions.

    Args:
        name: how errors call the folder.
    Returns: a picture a region, (224, 224, 3) uint8 with three equal channels, named by the slice's number.
    Raises: SourceError: what is wrong with the files, or a region that they do not have.
    """
    nifti = any(_is_nifti(file) for file in files)
    volume = read_stored(*_only_nifti(files, name)) if nifti else read_series(files, name)
    _check_regions(regions, volume.values.shape, name)
    try:
        scaled = to_bytes(volume.values, volume.tissue)
    except ValueError as error:
        raise SourceError(f"{name}: {error}") from error
    return [_picture(scaled, volume, region) for region in regions]


def _picture(scaled: np.ndarray, volume: Stored, region: Region) -> Picture:
    cut = scaled[region.slice, slice(*region.rows), slice(*region.columns)]
    spacing = volume.spacing
    if volume.axes is not None:
        cut, turned = radiological(cut, *volume.axes)
        spacing = spacing[::-1] if spacing and turned else spacing
    if spacing:
        spacing = tuple(step * count / SIDE for step, count in zip(spacing, cut.shape, strict=True))
    image = squashed(Image.fromarray(np.ascontiguousarray(cut)), SIDE)
    return Picture(str(region.slice), np.repeat(image[:, :, None], 3, axis=2), spacing=spacing)


def radiological(image: np.ndarray, row_axis: np.ndarray, column_axis: np.ndarray) -> tuple[np.ndarray, bool]:
    """An image (H, W) as it is looked at: columns grow to the patient's left, or to the back in a sagittal image; rows grow to
    the back in an axial image, else to the feet. Oblique images are turned by the nearest of these.

    Args:
        row_axis, column_axis: as `Stored.axes`.
    Returns: the image, turned by multiples of 90 degrees or mirrored, and whether rows and columns changed places.
    """
    across = int(np.argmax(np.abs(column_axis)))
    down = int(np.argmax(np.where(np.arange(3) == across, -1, np.abs(row_axis))))
    turned = down < across
    if turned:
        image, row_axis, column_axis, across, down = image.T, column_axis, row_axis, down, across
    if column_axis[across] < 0:
        image = image[:, ::-1]
    if (row_axis[down] < 0) != (down == 2):  # the third axis runs to the head
        image = image[::-1]
    return image, turned


def _only_nifti(files: tuple[Path, ...] | list[Path], name: str) -> tuple[Path, str]:
    """A patient's NIfTI, and how errors call it. Raises SourceError where it is not alone."""
    if len(files) != 1:
        raise SourceError(f"{name}: holds {len(files)} files with a NIfTI among them, expected one NIfTI alone, or one DICOM series")
    return files[0], f"{name}/{files[0].name}"


FORMATS = (
    Format(
        "volumes",
        "<center>/{traindata,testdata}/<class>/<patient>/ with a DICOM series or a NIfTI, and roi.csv",
        recognise_volumes,
        cases=cases_volumes,
    ),
    LAYOUTS["class_folders"].format,  # after the volumes: what holds them is no folder of images, though its folders are called the same
)
