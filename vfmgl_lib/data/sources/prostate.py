"""Readers of prostate T2 volumes with gland masks: folders of one site each (SAML), and the PROMISE12 challenge's archives.

A volume becomes one picture a slice, made by `preprocessing.volume_slices`, in the orientation of a radiological display:
rows run from anterior to posterior, columns from the patient's right to left, and slices are counted from inferior to
superior. Axes that a file stores flipped or in another order are turned so, image and mask alike, to the nearest axis:
nothing is resampled, and an oblique acquisition keeps its own slices. A file whose header gives no orientation is left as
it lies in memory, with its first axis as columns and its second as rows; a header with the identity matrix says neither
orientation nor spacing.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import orientations

from vfmgl_lib.data.preprocessing import volume_slices
from vfmgl_lib.data.scan import Scan, skipped, visible
from vfmgl_lib.data.sources.cases import Case, Findings, Format, Picture, SourceError

GRID_TOLERANCE = 1e-3  # mm, for every entry of the affine matrices of a volume and its mask
VOXEL_LIMIT = 512 * 512 * 256  # far above any pelvic volume, far below what fills the memory
_NIFTI = re.compile(r"(?P<case>.+?)(?P<mask>_segmentation)?\.nii(?:\.gz)?", re.IGNORECASE)
_META = re.compile(r"(?P<case>.+?)(?P<mask>_segmentation)?\.mhd", re.IGNORECASE)
_NUMBERED = re.compile(r"case0*(?P<number>\d+)", re.IGNORECASE)
# Hospitals of PROMISE12's training cases, as the SAML collection and HarmoFL's case lists have them. The challenge's
# cases of RUNMC are in neither: those take that hospital's patients from NCI-ISBI 2013 (site "ISBI").
_PROMISE12 = {"BIDMC": (0, *range(2, 13)), "UCL": (1, *range(26, 38)), "RUNMC": tuple(range(13, 26)), "HK": tuple(range(38, 50))}
PROMISE12_CENTERS = {number: center for center, numbers in _PROMISE12.items() for number in numbers}


def recognise_sites(source: Path) -> bool:
    """Whether a folder holds folders with NIfTI files."""
    return any(_NIFTI.fullmatch(name) for folder in _folders(source) for name in _file_names(folder))


def recognise_promise12(source: Path) -> bool:
    """Whether a folder or its folders hold CaseNN.mhd, or the folder itself NIfTI files named CaseNN."""
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

    NIfTI files of those names in one folder are read as well. The number says the hospital (`PROMISE12_CENTERS`).
    """
    scan = Scan(source.resolve())
    folders = scan.folders(scan.root, "folders of cases", files=tuple(_file_names(scan.root)))
    files = [file for folder in folders for file in scan.images(folder, (".mhd", ".raw", ".zraw"))]
    if not folders:
        files = scan.images(scan.root, (".mhd", ".raw", ".zraw", ".nii", ".gz"))
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
        if number not in PROMISE12_CENTERS:
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


def harmofl_order(source: Path, site: str) -> list[str] | None:
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
        header = _read_header(path, scan.name(path))
        mask, flipped = _turned(_read_array(path, scan.name(path)), header), _is_flipped(header)
        width = _digits(len(mask))
        kept = [f"{case}_{index:0{width}d}" for index in range(1, len(mask) - 1) if mask[index].any()]
        pictures += kept[::-1] if flipped else kept  # HarmoFL counts as the file does
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
            stem, ending = re.fullmatch(r"(.+?)((?:\.nii)?\.\w+)", file.name).groups()
            scan.problems.append(f"{scan.name(file)}: mask is missing, expected {stem}_segmentation{ending} beside it")
    for key, file in masks.items():
        if key not in volumes:
            volume = re.sub("_segmentation", "", file.name, flags=re.IGNORECASE)
            scan.problems.append(f"{scan.name(file)}: mask without volume, expected {volume} beside it")
    return [(pattern.fullmatch(file.name)["case"], file, masks[key]) for key, file in volumes.items() if key in masks]


def _case(scan: Scan, center: str, name: str, volume: Path, mask: Path) -> tuple[Case | None, bool]:
    """(case, whether its spacing is known), from the headers alone; None and a problem where they say that it cannot be used."""
    names = scan.name(volume), scan.name(mask)
    try:
        header = _check_headers(volume, mask, *names)
        files = (volume, mask, *(data for path in (volume, mask) if (data := _data_file(path, scan.name(path)))))
    except SourceError as error:
        scan.problems.append(str(error))
        return None, True
    return Case(name, center, f"{center}-{name}", files, partial(_read, volume, mask, *names)), header.has_spacing


def _warn_of_spacing(findings: Findings, center: str, found: list[tuple[Case | None, bool]]) -> None:
    if count := sum(not known for _, known in found):
        findings.warnings.append(
            f"{center}: {count} of {len(found)} volumes have no spacing in their header (identity matrix), distances will be in pixels"
        )


def _read(volume_path: Path, mask_path: Path, volume_name: str, mask_name: str) -> list[Picture]:
    header = _check_headers(volume_path, mask_path, volume_name, mask_name)
    mask = _turned(_read_array(mask_path, mask_name), header)
    values = np.unique(mask)
    if not np.isin(values, (0, 1, 2)).all():
        shown = ", ".join(f"{value:.9g}" for value in values[:8]) + (", …" if len(values) > 8 else "")
        raise SourceError(f"{mask_name}: mask holds {shown}, expected 0 and 1, or 0, 1 and 2 where the zones are told apart")
    if not mask.any():
        raise SourceError(f"{mask_name}: mask is empty in all {len(mask)} slices, expected a gland")
    volume = _turned(_read_array(volume_path, volume_name), header)
    try:
        slices = volume_slices(volume, mask > 0)
    except ValueError as error:
        raise SourceError(f"{volume_name}: {error}") from error
    if not slices:
        raise SourceError(f"{mask_name}: gland only in the first or last of {len(mask)} slices, expected some in one with two neighbours")
    width = _digits(len(mask))
    return [Picture(f"{found.index:0{width}d}", found.image, found.mask, header.pixel_spacing) for found in slices]


@dataclass(frozen=True)
class Volume:
    """A NIfTI volume without a mask, as a prediction reads it.

    Attributes:
        voxels: (D, H, W), turned as the module's docstring says.
        milliliters: of one voxel, or None where the header has no spacing.
    """

    voxels: np.ndarray
    milliliters: float | None
    _header: _Header
    _stored: nib.Nifti1Image

    def mask_file(self, mask: np.ndarray) -> bytes:
        """A mask (D, H, W) of 0 and 1 as the content of a .nii.gz in this volume's own axes, with its header's geometry as it stands."""
        if mask.shape != self.voxels.shape:
            raise ValueError(f"mask must have the volume's shape {self.voxels.shape}, got {mask.shape}")
        back = np.empty_like(self._header.turn)
        back[self._header.turn[:, 0]] = np.column_stack([range(3), self._header.turn[:, 1]])
        header = self._stored.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"], header["cal_max"] = 0, 1
        # Without an affine the header's own stays; with one nibabel would write it anew, with other codes.
        image = type(self._stored)(orientations.apply_orientation(mask.T, back).astype(np.uint8), None, header)
        return gzip.compress(image.to_bytes(), mtime=0)


def read_volume(path: Path, name: str) -> Volume:
    """A .nii or .nii.gz.

    Args:
        name: how errors call it.
    Raises: SourceError: not NIfTI, not one axial volume of at least three slices, damaged.
    """
    header = _read_header(path, name)
    _check_slices(header, name)
    voxels = _turned(_read_array(path, name), header)
    milliliters = float(np.prod(header.spacing)) / 1000 if header.has_spacing else None
    return Volume(voxels, milliliters, header, _open_nifti(path))


def _digits(slices: int) -> int:
    return max(2, len(str(slices - 1)))


@dataclass(frozen=True)
class _Header:
    """Where a volume's voxels lie.

    Attributes:
        shape: as stored, (x, y, z) in an axial volume.
        affine: (4, 4) from voxel positions to mm (right, anterior, superior).
        oriented: False where the file gives no directions.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    oriented: bool

    @property
    def has_spacing(self) -> bool:
        return not np.allclose(np.abs(self.affine), np.eye(4), rtol=0, atol=1e-6)

    @property
    def turn(self) -> np.ndarray:
        """(3, 2) as in nibabel: for each stored axis the one it becomes (left, posterior, superior), and 1 or -1."""
        if not (self.oriented and self.has_spacing):
            return np.array([[0, 1], [1, 1], [2, 1]])
        stored = orientations.io_orientation(self.affine)
        return orientations.ornt_transform(stored, orientations.axcodes2ornt("LPS")).astype(int)

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm along the stored axes."""
        return nib.affines.voxel_sizes(self.affine)

    @property
    def pixel_spacing(self) -> tuple[float, float] | None:
        """(row, column) in mm after turning, or None."""
        if not self.has_spacing:
            return None
        column, row = (self.spacing[list(self.turn[:, 0]).index(axis)] for axis in (0, 1))
        return round(float(row), 6), round(float(column), 6)


def _turned(array: np.ndarray, header: _Header) -> np.ndarray:
    """An array as stored, turned to (slices, rows, columns)."""
    return orientations.apply_orientation(array, header.turn).T


def _is_flipped(header: _Header) -> bool:
    axis, direction = header.turn[list(header.turn[:, 0]).index(2)]
    return axis == 2 and direction == -1


def _check_headers(volume_path: Path, mask_path: Path, volume_name: str, mask_name: str) -> _Header:
    """The volume's header, if its mask's agrees with it. Raises SourceError."""
    volume, mask = _read_header(volume_path, volume_name), _read_header(mask_path, mask_name)
    if mask.shape != volume.shape:
        raise SourceError(f"{mask_name}: mask has {_product(mask.shape)} voxels, expected {_product(volume.shape)} as {volume_name}")
    if not np.allclose(mask.affine, volume.affine, rtol=0, atol=GRID_TOLERANCE):
        raise SourceError(f"{mask_name}: lies on another grid than {volume_name}: {_difference(mask.affine, volume.affine)}")
    _check_slices(volume, volume_name)
    return volume


def _check_slices(volume: _Header, volume_name: str) -> None:
    slice_axis = list(volume.turn[:, 0]).index(2)
    if volume.shape[slice_axis] < 3:
        raise SourceError(f"{volume_name}: has {volume.shape[slice_axis]} slices, expected at least 3")
    # Axial slices stored in another order are thickest from head to foot; anything else was acquired in another plane.
    if slice_axis != 2 and volume.spacing[slice_axis] < volume.spacing.max() - GRID_TOLERANCE:
        codes = "".join(nib.aff2axcodes(volume.affine))
        raise SourceError(
            f"{volume_name}: {_product(volume.spacing)} mm along {codes}, not an axial acquisition; expected slices from head to foot"
        )


def _product(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    (first, second) = (nib.affines.voxel_sizes(affine) for affine in (found, expected))
    if not np.allclose(first, second, rtol=0, atol=GRID_TOLERANCE):
        return f"spacing {_product(first)} mm, expected {_product(second)} mm"
    if not np.allclose(found[:3, :3], expected[:3, :3], rtol=0, atol=GRID_TOLERANCE):
        first, second = ((affine[:3, :3] / nib.affines.voxel_sizes(affine)).round(4).tolist() for affine in (found, expected))
        return f"directions {first}, expected {second}"
    return f"origin {found[:3, 3].round(3).tolist()} mm, expected {expected[:3, 3].round(3).tolist()} mm"


def _read_header(path: Path, name: str) -> _Header:
    is_meta = path.suffix.lower() == ".mhd"
    kind = "MetaImage" if is_meta else "NIfTI"
    try:
        if is_meta:
            shape, affine, oriented, real = _meta_header(path)
        else:
            shape, affine, oriented, real = _nifti_header(path)
    except Exception as error:  # the readers raise whatever broken bytes lead them to, not one kind of error
        raise SourceError(f"{name}: not a readable {kind} file ({_reason(error)}), expected a volume") from error
    if len(shape) != 3:
        raise SourceError(f"{name}: has {len(shape)} dimensions ({_product(shape)}), expected 3: one volume, no series")
    if min(shape) < 1 or np.prod(shape, dtype=float) > VOXEL_LIMIT:
        raise SourceError(f"{name}: claims {_product(shape)} voxels, expected at least one and at most {VOXEL_LIMIT}")
    if not real:
        raise SourceError(f"{name}: voxels are colours, vectors or complex, expected one real number each")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise SourceError(f"{name}: header has the matrix {affine[:3].tolist()}, expected one with spacings above 0")
    return _Header(shape, affine, oriented)


def _nifti_header(path: Path) -> tuple[tuple[int, ...], np.ndarray, bool, bool]:
    image = _open_nifti(path)
    oriented = bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)
    # Without a code nibabel makes up an affine with the middle of the volume as its origin.
    affine = image.affine if oriented or image.ndim != 3 else np.diag([*image.header.get_zooms(), 1.0])
    return image.shape, np.asarray(affine, np.float64), oriented, image.get_data_dtype().kind in "iuf"


def _open_nifti(path: Path) -> nib.Nifti1Image:
    # nib.load guesses the type, and says of a file cut short only that it cannot.
    with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
        start = file.read(4)
    for length, form in ((348, nib.Nifti1Image), (540, nib.Nifti2Image)):
        if length in (int.from_bytes(start, "little"), int.from_bytes(start, "big")):
            return form.from_filename(path, mmap=False)
    raise ValueError("does not begin with a NIfTI header")


def _meta_header(path: Path) -> tuple[tuple[int, ...], np.ndarray, bool, bool]:
    reader = _meta_reader(path)
    size = reader.GetDimension()
    shape, affine = tuple(reader.GetSize()), np.eye(4)
    if size == 3:
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
        affine[:3, 3] = reader.GetOrigin()
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # MetaImage counts to the left and backwards
    real = "complex" not in sitk.GetPixelIDValueAsString(reader.GetPixelID()) and reader.GetNumberOfComponents() == 1
    return shape, affine, True, real


def _meta_reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _read_array(path: Path, name: str) -> np.ndarray:
    """Voxels in the order in which the header counts the axes, scaled as it says."""
    data = _data_file(path, name)
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:  # its checksum stands at the end, which nibabel does not reach
                while file.read(2**20):
                    pass
        if path.suffix.lower() != ".mhd":
            return np.asarray(_open_nifti(path).dataobj)
        reader = _meta_reader(path)
        array = sitk.GetArrayFromImage(reader.Execute()).T
        if data and data.suffix.lower() == ".zraw":
            # SimpleITK fills damaged compressed data with whatever it has; zlib checks its own sum.
            inflated = zlib.decompressobj()
            length = len(inflated.decompress(data.read_bytes(), array.nbytes + 1))
            if length != array.nbytes or not inflated.eof:
                raise ValueError(f"{data.name} unpacks to {length} bytes of {array.nbytes}, end {'' if inflated.eof else 'not '}reached")
        return array
    except Exception as error:  # as in _read_header
        raise SourceError(f"{name}: cannot be decoded ({_reason(error)}), the file is damaged or cut short") from error


def _data_file(path: Path, name: str) -> Path | None:
    """The file with a MetaImage's voxels, which must lie beside it; None for NIfTI and for voxels in the header's own file."""
    if path.suffix.lower() != ".mhd":
        return None
    with open(path, "rb") as file:
        found = re.search(rb"^ElementDataFile\s*=\s*(.*?)\s*$", file.read(65536), re.MULTILINE)
    data = os.fsdecode(found[1]) if found else ""
    if data == "LOCAL":
        return None
    beside = path.with_name(data) if data and Path(data).name == data else None
    if beside is None or not beside.is_file() or not beside.resolve().is_relative_to(path.parent.resolve()):
        raise SourceError(f"{name}: keeps its voxels in {data!r}, expected a file beside it")
    return beside


def _reason(error: Exception) -> str:
    # ITK's messages are paragraphs with addresses in memory that end in "Reason: Success".
    lines = str(error).strip().splitlines()
    return "ITK cannot read it" if "ITK ERROR" in str(error) else lines[0] if lines else type(error).__name__
