"""Readers of prostate T2 volumes with gland masks: folders of one site each (SAML), and the PROMISE12 challenge's archives.

A volume becomes one picture a slice, made by `preprocessing.volume_slices`, in the orientation of a radiological display, slices
counted from inferior to superior (`data.volumes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np

from vfmgl_lib.data.preprocessing import volume_slices
from vfmgl_lib.data.scan import Scan, skipped, visible
from vfmgl_lib.data.volumes import Grid, check_axial, check_mask_grid, data_file, read_grid, read_mask, read_voxels, turned
from vfmgl_lib.tasks.cases import Case, Findings, Format, Picture, SourceError

LABELS = (0, 1, 2), "0 and 1, or 0, 1 and 2 where the zones are told apart"
_NIFTI = re.compile(r"(?P<case>.+?)(?P<mask>_segmentation)?\.nii(?:\.gz)?", re.IGNORECASE)
_META = re.compile(r"(?P<case>.+?)(?P<mask>_segmentation)?\.mh[ad]", re.IGNORECASE)
_NUMBERED = re.compile(r"case0*(?P<number>\d+)", re.IGNORECASE)
# Hospitals of PROMISE12's training cases, as the SAML collection and HarmoFL's case lists have them. The challenge's
# cases of RUNMC are in neither: those take that hospital's patients from NCI-ISBI 2013 (site "ISBI").
_PROMISE12 = {"BIDMC": (0, *range(2, 13)), "UCL": (1, *range(26, 38)), "RUNMC": tuple(range(13, 26)), "HK": tuple(range(38, 50))}
PROMISE12_CENTERS = {number: center for center, numbers in _PROMISE12.items() for number in numbers}


def recognise_sites(source: Path) -> bool:
    """Whether a folder holds folders with NIfTI files."""
    return any(_NIFTI.fullmatch(name) for folder in _folders(source) for name in _file_names(folder))


def recognise_promise12(source: Path) -> bool:
    """Whether a folder or its folders hold CaseNN.mhd (or .mha), or the folder itself NIfTI files named CaseNN."""
    flat = (_META.fullmatch(name) or _NIFTI.fullmatch(name) for name in _file_names(source))
    nested = (_META.fullmatch(name) for folder in _folders(source) for name in _file_names(folder))
    return any(found and _NUMBERED.fullmatch(found["case"]) for names in (flat, nested) for found in names)


def cases_sites(source: Path, findings: Findings) -> list[Case]:
    """Cases of <site>/<case>.nii.gz with <site>/<case>_segmentation.nii.gz (any case of letters, .nii as well).

    Any folder name is a site; files beside the site folders (lists, notes) are ignored unless they are volumes. Sites
    number their patients alike, so the patient is <site>-<case>.
    """
    scan = Scan(source.resolve())
    beside = tuple(name for name in _file_names(scan.root) if not _NIFTI.fullmatch(name))
    cases = []
    for folder in scan.folders(scan.root, "one folder per site", files=beside):
        files = scan.images(folder, (".nii", ".gz"))
        if not files:
            scan.problems.append(f"{scan.name(folder)}: holds no volume, expected <case>.nii.gz and <case>_segmentation.nii.gz")
        found = [_case(scan, folder.name, *pair) for pair in _pairs(scan, files, _NIFTI)]
        _warn_of_spacing(findings, folder.name, found)
        cases += [case for case, _ in found if case]
    findings.problems += scan.problems
    findings.warnings += skipped(scan.skipped)
    return cases


def cases_promise12(source: Path, findings: Findings) -> list[Case]:
    """Cases of the challenge's archives: CaseNN.mhd with CaseNN_segmentation.mhd in one folder or in folders of it.

    NIfTI files of those names in one folder are read as well, and .mha. The number says the hospital (`PROMISE12_CENTERS`).
    """
    scan = Scan(source.resolve())
    folders = scan.folders(scan.root, "folders of cases", files=tuple(_file_names(scan.root)))
    files = [file for folder in folders for file in scan.images(folder, (".mhd", ".mha", ".raw", ".zraw"))]
    if not folders:
        files = scan.images(scan.root, (".mhd", ".mha", ".raw", ".zraw", ".nii", ".gz"))
    for name in _file_names(scan.root) if folders else ():
        if _META.fullmatch(name) or _NIFTI.fullmatch(name):
            scan.problems.append(f"{name}: lies beside folders of cases, expected all cases in one folder or all in folders of it")
    pattern = _META if any(_META.fullmatch(file.name) for file in files) else _NIFTI
    if files and pattern is _NIFTI:
        # The folder of one site looks the same, and its numbers mean other patients.
        findings.warnings.append("centers follow PROMISE12's case numbers; if this is the folder of one site, give the folder above it")
    listed: dict[str, list] = {}
    seen: dict[int, str] = {}
    for name, volume, mask in _pairs(scan, files, pattern):
        numbered = _NUMBERED.fullmatch(name)
        number = int(numbered["number"]) if numbered else None
        if number is None or number not in PROMISE12_CENTERS:
            scan.problems.append(f"{scan.name(volume)}: is not a training case of PROMISE12, expected Case00 to Case49")
        elif number in seen:
            scan.problems.append(f"{scan.name(volume)}: case {number} is in {seen[number]} as well, expected once")
        else:
            seen[number] = scan.name(volume)
            center = PROMISE12_CENTERS[number]
            listed.setdefault(center, []).append(_case(scan, center, name, volume, mask))
    for center in sorted(listed):
        _warn_of_spacing(findings, center, listed[center])
    findings.problems += scan.problems
    findings.warnings += skipped(scan.skipped)
    return [case for center in sorted(listed) for case, _ in listed[center] if case]


FORMATS = (
    Format("sites", "<site>/<case>.nii.gz with <site>/<case>_segmentation.nii.gz", recognise_sites, cases_sites),
    Format("promise12", "CaseNN.mhd with CaseNN_segmentation.mhd, of PROMISE12", recognise_promise12, cases_promise12),
)


def image_order(source: Path, site: str) -> list[str] | None:
    """The order in which HarmoFL's code, and the paper's after it, cuts a site's slices into training, validation and test.

    A split along it leaks: slices of one patient, even neighbours, fall on both sides. It serves comparisons with numbers
    that were measured so, and nothing else.

    Args:
        source: folder of the sites, with HarmoFL's <site>-dir.npy (file names) and <site>-index.npy (a permutation of the
            slices with gland, counted through the masks in that order) beside the site folders.
    Returns: names of all pictures of the site, <case>_<slice>, or None where neither list is there.
    Raises: SourceError: one list without the other, a list that is not what it should be, a mask that cannot be read.
    """
    scan = Scan(source.resolve())
    lists = [scan.root / f"{site}-{kind}.npy" for kind in ("dir", "index")]
    if not any(path.is_file() for path in lists):
        return None
    names, order = (_read_list(path, kind) for path, kind in zip(lists, ("U", "iu"), strict=True))
    masks = {mask.name: (case, mask) for case, _, mask in _pairs(scan, scan.images(scan.root / site, (".nii", ".gz")), _NIFTI)}
    pictures = []
    for name in names:
        found = _NIFTI.fullmatch(name)
        if not found or not found["mask"]:  # the list names the volumes too
            continue
        if name not in masks:
            raise SourceError(f"{lists[0].name}: names {name}, expected a mask in {site}/ beside its volume")
        case, path = masks[name]
        grid = read_grid(path, scan.name(path))
        mask = turned(read_mask(path, scan.name(path), *LABELS), grid)
        width = _digits(len(mask))
        kept = [f"{case}_{index:0{width}d}" for index in range(1, len(mask) - 1) if mask[index].any()]
        pictures += kept[::-1] if grid.is_flipped else kept  # HarmoFL counts as the file does
    if sorted(order) != list(range(len(pictures))):
        raise SourceError(f"{lists[1].name}: orders {len(order)} slices, expected each of the {len(pictures)} with gland once")
    return [pictures[index] for index in order]


def _read_list(path: Path, kind: str) -> list:
    wanted = "a list of file names" if kind == "U" else "a list of whole numbers"
    if not path.is_file() or not path.resolve().is_relative_to(path.parent):
        raise SourceError(f"{path.name}: not found, expected both <site>-dir.npy and <site>-index.npy")
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:  # broken bytes lead it to many kinds of errors
        # An array of objects is a pickle, and loading a pickle runs what is in it.
        raise SourceError(f"{path.name}: cannot be read ({error}), expected {wanted} saved as a plain numpy array") from error
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in kind:
        raise SourceError(f"{path.name}: holds {getattr(values, 'dtype', 'an archive')}, expected {wanted}")
    return values.tolist()


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in visible(folder) if entry.is_dir()]


def _file_names(folder: Path) -> list[str]:
    return [entry.name for entry in visible(folder) if not entry.is_dir()]


def _pairs(scan: Scan, files: Iterable[Path], pattern: re.Pattern) -> list[tuple[str, Path, Path]]:
    """(case, volume, mask) of the files that fit the pattern; what is alone, twice or named otherwise is a problem."""
    volumes: dict[tuple[Path, str], Path] = {}
    masks: dict[tuple[Path, str], Path] = {}
    for file in files:
        found = pattern.fullmatch(file.name)
        if not found:
            if pattern is not _META or file.suffix.lower() not in (".raw", ".zraw"):
                scan.problems.append(f"{scan.name(file)}: unexpected file, expected volumes <case> and masks <case>_segmentation")
            continue
        side = masks if found["mask"] else volumes
        key = file.parent, found["case"].lower()
        if key in side:
            scan.problems.append(f"{scan.name(file)}: the same case as {side[key].name}, expected one of them")
        else:
            side[key] = file
    for key, file in volumes.items():
        if key not in masks:
            mask = re.sub(r"((?:\.nii)?\.\w+)$", r"_segmentation\1", file.name)
            scan.problems.append(f"{scan.name(file)}: mask is missing, expected {mask} beside it")
    for key, file in masks.items():
        if key not in volumes:
            volume = re.sub("_segmentation", "", file.name, flags=re.IGNORECASE)
            scan.problems.append(f"{scan.name(file)}: mask without volume, expected {volume} beside it")
    both = [(pattern.fullmatch(file.name), file, masks[key]) for key, file in volumes.items() if key in masks]
    return [(found["case"], volume, mask) for found, volume, mask in both if found]


def volume_case(root: Path, volume: str, mask: str, name: str, center: str, patient: str) -> tuple[Case, bool]:
    """(case, whether its spacing is known) of a volume and its mask, paths below `root`, from the headers alone.

    Raises: SourceError: they cannot be used.
    """
    grid = _check_grids(root / volume, root / mask, volume, mask)
    files = (root / volume, root / mask, *(data for path in (volume, mask) if (data := data_file(root / path, path))))
    return Case(name, center, patient, files, partial(_read, root / volume, root / mask, volume, mask)), grid.spaced


def _case(scan: Scan, center: str, name: str, volume: Path, mask: Path) -> tuple[Case | None, bool]:
    """As `volume_case`; None and a problem where the headers say that it cannot be used."""
    try:
        return volume_case(scan.root, scan.name(volume), scan.name(mask), name, center, f"{center}-{name}")
    except SourceError as error:
        scan.problems.append(str(error))
        return None, True


def _warn_of_spacing(findings: Findings, center: str, found: list[tuple[Case | None, bool]]) -> None:
    if count := sum(not known for _, known in found):
        findings.warnings.append(
            f"{center}: {count} of {len(found)} volumes have no spacing in their header (identity matrix), distances will be in pixels"
        )


def _read(volume_path: Path, mask_path: Path, volume_name: str, mask_name: str) -> list[Picture]:
    grid = _check_grids(volume_path, mask_path, volume_name, mask_name)
    mask = turned(read_mask(mask_path, mask_name, *LABELS), grid)
    if not mask.any():
        raise SourceError(f"{mask_name}: mask is empty in all {len(mask)} slices, expected a gland")
    volume = turned(read_voxels(volume_path, volume_name), grid)
    try:
        slices = volume_slices(volume, mask > 0)
    except ValueError as error:
        raise SourceError(f"{volume_name}: {error}") from error
    if not slices:
        raise SourceError(f"{mask_name}: gland only in the first or last of {len(mask)} slices, expected some in one with two neighbours")
    width = _digits(len(mask))
    return [Picture(f"{found.index:0{width}d}", found.image, found.mask, grid.pixel_spacing) for found in slices]


def _digits(slices: int) -> int:
    return max(2, len(str(slices - 1)))


def _check_grids(volume_path: Path, mask_path: Path, volume_name: str, mask_name: str) -> Grid:
    """The volume's grid, if its mask's agrees with it. Raises SourceError."""
    grid = read_grid(volume_path, volume_name)
    check_mask_grid(read_grid(mask_path, mask_name), grid, mask_name, volume_name)
    check_axial(grid, volume_name)
    return grid
