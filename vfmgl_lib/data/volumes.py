"""Volumes, read one way by every task, by `prepare` and by `vfmgl predict`: NIfTI and MetaImage here, DICOM series in `data.dicom`.

What a header means is decided here alone; `data_manifests/README.md` has the rules in a table. In short:

- All lengths become mm. NIfTI says its unit (m, mm, micron; none means mm), MetaImage may (`DistanceUnits`; none means mm).
- A voxel's volume is the determinant of its matrix, so that a sheared grid is measured rightly as well.
- A header with the identity matrix says neither orientation nor spacing: that is what programs write that know of neither.
- Of a NIfTI's two matrices the sform counts, as in nibabel; where both are set and give other voxel sizes or other nearest
  directions, programs would show the volume differently, and it is refused.
- Axes of length 1 behind the third are dropped; a series of volumes is refused.

`Grid.turn` turns a volume as a radiological display has it: rows run from anterior to posterior, columns from the patient's right to
left, and slices from inferior to superior. Axes stored flipped or in another order are turned so to the nearest axis: nothing is
resampled, and an oblique acquisition keeps its own slices. A volume without orientation is left as it lies in memory, its first axis
as columns and its second as rows.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel import orientations
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from vfmgl_lib.data.preprocessing import near_integers
from vfmgl_lib.data.scan import META_SUFFIXES, SourceError

GRID_TOLERANCE = 1e-3  # mm, for every entry of the affine matrices of a volume and its mask
VOXEL_LIMIT = 2**28  # 1 GiB as float32: far above any pelvic volume, below what fills the memory
SPACINGS = (0.01, 100.0)  # mm; a voxel outside has the wrong unit
MISMATCH = 0.01  # share by which the voxel sizes of sform and qform may differ, and direction cosines that count as the same
NIFTI_UNITS = {0: "none, read as mm", 1: "m", 2: "mm", 3: "micron"}
META_UNITS = {"": "none, read as mm", "?": "none, read as mm", "mm": "mm", "um": "micron", "cm": "cm"}
MILLIMETERS = {"m": 1e3, "cm": 10.0, "micron": 1e-3}  # of a unit; 1 of the others
_SIZES = ("ElementSpacing", "ElementSize")  # MetaImage's names of the spacing


def _is_meta(path: Path) -> bool:
    return path.suffix.lower() in META_SUFFIXES


@dataclass(frozen=True)
class Grid:
    """Where a volume's voxels lie.

    Attributes:
        shape: (3,) as stored, (x, y, z) in an axial volume.
        affine: (4, 4) from voxel positions to mm (right, anterior, superior).
        oriented: False where the file gives no directions.
        spaced: False where the file gives no spacing; lengths are then unknown.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    oriented: bool
    spaced: bool

    @property
    def turn(self) -> np.ndarray:
        """(3, 2) as in nibabel: for each stored axis the one it becomes (left, posterior, superior), and 1 or -1."""
        if not self.oriented:
            return np.array([[0, 1], [1, 1], [2, 1]])
        stored = orientations.io_orientation(self.affine)
        return orientations.ornt_transform(stored, orientations.axcodes2ornt("LPS")).astype(int)

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm along the stored axes; meaningless where the grid is not `spaced`."""
        return nib.affines.voxel_sizes(self.affine)

    @property
    def pixel_spacing(self) -> tuple[float, float] | None:
        """(row, column) in mm after turning, or None."""
        if not self.spaced:
            return None
        column, row = (self.spacing[list(self.turn[:, 0]).index(axis)] for axis in (0, 1))
        return round(float(row), 6), round(float(column), 6)

    @property
    def milliliters(self) -> float | None:
        """Of one voxel, or None where the file gives no spacing."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000 if self.spaced else None

    @property
    def axes(self) -> np.ndarray | None:
        """(3, 3) unit vectors of the stored axes, a row each, in the patient's system of DICOM (to the left, the back, the head)."""
        matrix = np.diag([-1.0, -1.0, 1.0]) @ self.affine[:3, :3]
        return (matrix / np.linalg.norm(matrix, axis=0)).T if self.oriented else None

    @property
    def is_flipped(self) -> bool:
        """Whether turning counts the slices the other way round."""
        axis, direction = self.turn[list(self.turn[:, 0]).index(2)]
        return axis == 2 and direction == -1


def turned(array: np.ndarray, grid: Grid) -> np.ndarray:
    """An array as stored, turned to (slices, rows, columns)."""
    return orientations.apply_orientation(array, grid.turn).T


def read_grid(path: Path, name: str) -> Grid:
    """A file's grid, from its header alone.

    Args:
        path: .nii, .nii.gz, .mhd or .mha.
        name: how errors call it.
    Raises: SourceError: no such file, not one volume of real numbers, a header that contradicts itself or gives impossible lengths.
    """
    kind = "MetaImage" if _is_meta(path) else "NIfTI"
    try:
        shape, affine, oriented, spaced, real, unit = (_meta_header if _is_meta(path) else _nifti_header)(path)
    except SourceError as error:
        raise SourceError(f"{name}: {error}") from error
    except Exception as error:  # the readers raise whatever broken bytes lead them to, not one kind of error
        raise SourceError(f"{name}: not a readable {kind} file ({_reason(error)}), expected a volume") from error
    full = shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise SourceError(f"{name}: has {len(full)} dimensions ({_product(full)}), expected 3: one volume, no series")
    if min(shape) < 1 or math.prod(shape) > VOXEL_LIMIT:
        raise SourceError(f"{name}: claims {_product(shape)} voxels, expected at least one and at most {VOXEL_LIMIT}")
    if not real:
        raise SourceError(f"{name}: voxels are colours, vectors or complex, expected one real number each")
    identity = np.allclose(np.abs(affine), np.eye(4), rtol=0, atol=1e-6)
    scale = 1.0 if identity else MILLIMETERS.get(unit, 1.0)
    grid = Grid(shape, np.diag([scale, scale, scale, 1.0]) @ affine, oriented and not identity, spaced and not identity)
    if not np.isfinite(affine).all() or abs(np.linalg.det(grid.affine[:3, :3])) <= 1e-9 * np.prod(grid.spacing):
        raise SourceError(f"{name}: header has the matrix {affine[:3].tolist()}, expected one with spacings above 0")
    if grid.spaced and not (SPACINGS[0] <= grid.spacing.min() and grid.spacing.max() <= SPACINGS[1]):
        limits = f"{SPACINGS[0]:g} to {SPACINGS[1]:g} mm"
        raise SourceError(f"{name}: voxels of {_product(grid.spacing)} mm (unit: {unit}), expected {limits}; correct the header")
    return grid


def _nifti_header(path: Path) -> tuple:
    """(shape, affine in the file's unit, whether it has directions, whether it has a spacing, whether a voxel is a number, unit)."""
    header, _ = _nifti(path)
    if header["magic"].item() not in (b"n+1", b"n+2\0\r\n\x1a\n") and float(header["vox_offset"]) < header.sizeof_hdr:
        raise SourceError("a header without voxels (Analyze, or a pair .hdr and .img), expected one .nii; convert it")
    if (unit := int(header["xyzt_units"]) & 7) not in NIFTI_UNITS:
        raise SourceError(f"xyzt_units is {int(header['xyzt_units'])}, which is none of m (1), mm (2) and micron (3)")
    sform, qform = bool(header["sform_code"] > 0), bool(header["qform_code"] > 0)
    sizes = np.abs(header["pixdim"][1:4].astype(np.float64))  # a sign is of Analyze's time, and says nothing
    if not (sform or qform or sizes.any()):
        sizes[:] = 1  # the identity, which says nothing
    if not sform and not (np.isfinite(sizes).all() and sizes.all()):
        raise SourceError(f"pixdim gives voxels of {_product(header['pixdim'][1:4])}, expected sizes above 0")
    header["pixdim"][1:4] = sizes
    header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1  # the standard: anything else counts as 1
    if sform and qform:
        _check_forms(header)
    # Without a code nibabel makes up an affine with the middle of the volume as its origin.
    affine = header.get_best_affine() if sform or qform else np.diag([*sizes, 1.0])
    real = header.get_data_dtype().kind in "iuf"
    return header.get_data_shape(), np.asarray(affine, np.float64), sform or qform, True, real, NIFTI_UNITS[unit]


def _check_forms(header: nib.Nifti1Header) -> None:
    sform = header.get_sform()
    try:
        qform = header.get_qform()
    except (ValueError, HeaderDataError):  # not a rotation: there is nothing to compare
        return
    if not all(np.isfinite(form).all() and np.linalg.det(form[:3, :3]) for form in (sform, qform)):
        return
    first, second = (nib.affines.voxel_sizes(form) for form in (sform, qform))
    if not np.allclose(first, second, rtol=MISMATCH, atol=0):
        raise SourceError(f"sform gives voxels of {_product(first)}, qform of {_product(second)}; correct the one that is wrong")
    near = np.allclose(sform[:3, :3] / first, qform[:3, :3] / second, rtol=0, atol=MISMATCH)  # both about 45° between two directions
    first, second = ("".join(nib.aff2axcodes(form)) for form in (sform, qform))
    if first != second and not near:
        raise SourceError(f"sform says that the axes run to {first}, qform to {second}; correct the one that is wrong")


def _nifti(path: Path, with_voxels: bool = False) -> tuple[nib.Nifti1Header, bytes]:
    """A NIfTI's header as it stands, and the beginning of the file or, with its voxels, the whole; gzip is known by its content.

    nib.load guesses the type by the name, says of a file cut short only that it cannot, and does not read on to gzip's checksum.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if zipped else file as plain:
            content = plain.read(348)
            kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
            length = next((size for size in kinds if content[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big"))), None)
            if length is None:
                raise ValueError("does not begin with a NIfTI header")
            content += plain.read(length - len(content))
            if len(content) < length:
                raise ValueError(f"ends after {len(content)} bytes")
            header = kinds[length](content[:length], check=False)
            if with_voxels:
                if not length + 4 <= float(header["vox_offset"]) < 2**40:
                    raise ValueError(f"vox_offset is {float(header['vox_offset']):g}, expected at least {length + 4}")
                end = int(header["vox_offset"]) + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
                content += plain.read(max(0, end - len(content)))
                if len(content) < end:
                    raise ValueError(f"{len(content)} bytes, expected {end}")
                while plain.read(2**20):
                    pass
            return header, content


def _meta_header(path: Path) -> tuple:
    """As `_nifti_header`."""
    fields, _ = _meta_fields(path)
    reader = _meta_reader(path, fields)
    size = reader.GetDimension()
    shape, affine = tuple(reader.GetSize()), np.eye(4)
    if size >= 3:
        affine[:3, :3] = np.reshape(reader.GetDirection(), (size, size))[:3, :3] * reader.GetSpacing()[:3]
        affine[:3, 3] = reader.GetOrigin()[:3]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # MetaImage counts to the left and backwards
    real = "complex" not in sitk.GetPixelIDValueAsString(reader.GetPixelID()) and reader.GetNumberOfComponents() == 1
    if (unit := fields.get("DistanceUnits", "")) not in META_UNITS:
        raise SourceError(f"DistanceUnits is {unit!r}, expected one of um, mm and cm")
    return shape, affine, True, any(key in fields for key in _SIZES), real, META_UNITS[unit]


def _meta_reader(path: Path, fields: dict[str, str]) -> sitk.ImageFileReader:
    if not re.fullmatch("[1-9]", count := fields.get("NDims", "3")):
        raise SourceError(f"NDims is {count!r}, expected 3")  # ITK would end the process
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _meta_fields(path: Path) -> tuple[dict[str, str], int]:
    """A MetaImage's header, key by key, and its length in bytes."""
    with open(path, "rb") as file:
        start = file.read(65536)
    end = re.search(rb"^ElementDataFile[ \t]*=[^\n]*(\n|\Z)", start, re.MULTILINE)
    length = end.end() if end else len(start)
    lines = (os.fsdecode(line).split("=", 1) for line in start[:length].splitlines() if b"=" in line)
    return {key.strip(): value.strip() for key, value in lines}, length


def data_file(path: Path, name: str) -> Path | None:
    """The file with a MetaImage's voxels, which must lie beside it; None for NIfTI and for voxels in the header's own file."""
    if not _is_meta(path):
        return None
    data = _meta_fields(path)[0].get("ElementDataFile", "")
    if data.upper() == "LOCAL":
        return None
    beside = path.with_name(data) if data and Path(data).name == data else None
    if beside is None or not beside.is_file() or not beside.resolve().is_relative_to(path.parent.resolve()):
        raise SourceError(f"{name}: keeps its voxels in {data!r}, expected a file beside it")
    return beside


def read_voxels(path: Path, name: str, dtype: type | None = None) -> np.ndarray:
    """Voxels in the order in which the header counts the axes, three of them, scaled as it says.

    Args:
        dtype: to scale in; None: as stored, and in float64 where the header scales.
    Raises: SourceError: damaged or cut short.
    """
    data = data_file(path, name)
    try:
        array = _meta_voxels(path, data) if _is_meta(path) else _nifti_voxels(path, dtype)
    except SourceError as error:
        raise SourceError(f"{name}: {error}") from error
    except Exception as error:  # as in read_grid
        raise SourceError(f"{name}: cannot be decoded ({_reason(error)}), the file is damaged or cut short") from error
    return array.reshape(array.shape[:3]).astype(dtype or array.dtype, copy=False)


def _nifti_voxels(path: Path, dtype: type | None) -> np.ndarray:
    header, content = _nifti(path, with_voxels=True)
    with LoggingOutputSuppressor():
        image = _nifti_image(header).from_bytes(content)
    return np.asarray(image.dataobj) if dtype is None else image.get_fdata(dtype=dtype, caching="unchanged")


def _nifti_image(header: nib.Nifti1Header) -> type[nib.Nifti1Image]:
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def _meta_voxels(path: Path, data: Path | None) -> np.ndarray:
    fields, start = _meta_fields(path)
    if data is None and fields.get("HeaderSize", "-1") not in ("-1", "0"):
        raise SourceError(f"HeaderSize is {fields['HeaderSize']} with the voxels in the same file, expected none")
    reader = _meta_reader(path, fields)
    # SimpleITK reserves what the header claims before it looks for it.
    packed = fields.get("CompressedData", "").lower() in ("true", "1")
    if not packed and (data or path).stat().st_size < math.prod(reader.GetSize()):
        raise ValueError(f"fewer bytes than {math.prod(reader.GetSize())} voxels")
    array = sitk.GetArrayFromImage(reader.Execute()).T
    if packed:
        # SimpleITK fills damaged compressed data with whatever it has; zlib checks its own sum.
        content = data.read_bytes() if data else path.read_bytes()[start:]
        size = int(fields.get("CompressedDataSize", len(content) if data else 0))
        inflated = zlib.decompressobj()
        length = len(inflated.decompress(content[:size], array.nbytes + 1))
        if length != array.nbytes or not inflated.eof:
            what = data.name if data else f"CompressedDataSize {size}"
            raise ValueError(f"{what} unpacks to {length} bytes of {array.nbytes}, end {'' if inflated.eof else 'not '}reached")
    return array


def read_mask(path: Path, name: str, allowed: tuple[int, ...], expected: str) -> np.ndarray:
    """A mask's values (int64) as stored in the file, of the labels `allowed`, rounded as `near_integers` does.

    Raises: SourceError: other values; as `read_voxels`.
    """
    try:
        mask = near_integers(read_voxels(path, name))
    except SourceError:
        raise
    except ValueError as error:
        raise SourceError(f"{name}: values of the mask: {error}") from error
    values = np.unique(mask)
    if not np.isin(values, allowed).all():
        shown = ", ".join(map(str, values[:8])) + (", …" if len(values) > 8 else "")
        raise SourceError(f"{name}: mask holds {shown}, expected {expected}")
    return mask


def check_mask_grid(found: Grid, grid: Grid, mask_name: str, volume_name: str) -> None:
    """Raises SourceError if a mask lies elsewhere than its volume, by more than rounding."""
    if found.shape != grid.shape:
        raise SourceError(f"{mask_name}: mask has {_product(found.shape)} voxels, expected {_product(grid.shape)} as {volume_name}")
    if not np.allclose(found.affine, grid.affine, rtol=0, atol=GRID_TOLERANCE):
        raise SourceError(f"{mask_name}: lies on another grid than {volume_name}: {_difference(found.affine, grid.affine)}")


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    (first, second) = (nib.affines.voxel_sizes(affine) for affine in (found, expected))
    if not np.allclose(first, second, rtol=0, atol=GRID_TOLERANCE):
        return f"spacing {_product(first)} mm, expected {_product(second)} mm"
    if not np.allclose(found[:3, :3], expected[:3, :3], rtol=0, atol=GRID_TOLERANCE):
        first, second = ((affine[:3, :3] / nib.affines.voxel_sizes(affine)).round(4).tolist() for affine in (found, expected))
        return f"directions {first}, expected {second}"
    return f"origin {found[:3, 3].round(3).tolist()} mm, expected {expected[:3, 3].round(3).tolist()} mm"


def check_axial(grid: Grid, name: str) -> None:
    """Raises SourceError if a volume has no three slices from head to foot."""
    slice_axis = list(grid.turn[:, 0]).index(2)
    if grid.shape[slice_axis] < 3:
        raise SourceError(f"{name}: has {grid.shape[slice_axis]} slices, expected at least 3")
    # Axial slices stored in another order are thickest from head to foot; anything else was acquired in another plane.
    if slice_axis != 2 and grid.spacing[slice_axis] < grid.spacing.max() - GRID_TOLERANCE:
        codes = "".join(nib.aff2axcodes(grid.affine))
        raise SourceError(f"{name}: {_product(grid.spacing)} mm along {codes}, not an axial acquisition; expected slices from head to foot")


@dataclass(frozen=True)
class Stored:
    """A volume as its file has it, not turned, for a task whose regions count stored pixels.

    Attributes:
        values: (slices, rows, columns) float32, scaled as the file says.
        spacing: mm per pixel (row, column), None where the file does not say.
        axes: unit vectors (3,) along which the row and the column number grow, in the patient's system of DICOM (x to
            the left, y to the back, z to the head); None where the file does not say.
        tissue: (slices, rows, columns) bool, False in the padding around an image, or None where no padding is known.
    """

    values: np.ndarray
    spacing: tuple[float, float] | None
    axes: tuple[np.ndarray, np.ndarray] | None
    tissue: np.ndarray | None = None


def read_stored(path: Path, name: str) -> Stored:
    """A NIfTI or MetaImage: its third axis as slices, the second as rows and the first as columns.

    Raises: SourceError: as `read_grid` and `read_voxels`.
    """
    grid = read_grid(path, name)
    values = read_voxels(path, name, np.float32).T
    spacing = (float(grid.spacing[1]), float(grid.spacing[0])) if grid.spaced else None
    axes = grid.axes
    return Stored(values, spacing, None if axes is None else (axes[1], axes[0]))


@dataclass(frozen=True)
class Volume:
    """A volume without a mask, as a prediction reads it.

    Attributes:
        voxels: (D, H, W), turned as the module's docstring says.
        grid: of the file, before turning.
        header: of a NIfTI, as it stands; None of a MetaImage.
    """

    voxels: np.ndarray
    grid: Grid
    header: nib.Nifti1Header | None

    def mask_file(self, mask: np.ndarray) -> bytes:
        """A mask (D, H, W) uint8 or uint16, as 0 and 1 or the values of classes, as the content of a .nii.gz in this volume's own axes.

        The geometry is the NIfTI header's as it stands, units and axes of length 1 included; a MetaImage's is written as sform and qform.
        """
        if mask.shape != self.voxels.shape:
            raise ValueError(f"mask must have the volume's shape {self.voxels.shape}, got {mask.shape}")
        back = np.empty_like(self.grid.turn)
        back[self.grid.turn[:, 0]] = np.column_stack([range(3), self.grid.turn[:, 1]])
        kind = np.uint16 if mask.dtype == np.uint16 else np.uint8
        stored = orientations.apply_orientation(mask.T, back).astype(kind)
        with LoggingOutputSuppressor():  # about signs in pixdim
            if self.header is None:
                image = nib.Nifti1Image(stored, self.grid.affine)
                image.set_qform(self.grid.affine, int(self.grid.oriented))
                image.set_sform(self.grid.affine, int(self.grid.oriented))
                image.header.set_xyzt_units("mm")
            else:
                header = self.header.copy()
                header.set_data_dtype(kind)
                header.set_slope_inter(1, 0)
                header["cal_min"], header["cal_max"] = 0, max(1, int(stored.max()))
                header.set_intent("none")  # the volume may be a map of some statistic
                # Without an affine the header's own stays; with one nibabel would write it anew, with other codes.
                image = _nifti_image(header)(stored.reshape(header.get_data_shape()), None, header)
            return gzip.compress(image.to_bytes(), mtime=0)


def read_volume(path: Path, name: str) -> Volume:
    """A volume to be segmented slice by slice.

    Args:
        path: .nii, .nii.gz, .mhd or .mha.
        name: how errors call it.
    Raises: SourceError: not one axial volume of at least three slices, damaged.
    """
    grid = read_grid(path, name)
    check_axial(grid, name)
    voxels = turned(read_voxels(path, name), grid)
    return Volume(voxels, grid, None if _is_meta(path) else _nifti(path)[0])


def _product(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)


def _reason(error: Exception) -> str:
    # ITK's messages are paragraphs with addresses in memory that end in "Reason: Success".
    lines = str(error).strip().splitlines()
    return "ITK cannot read it" if "ITK ERROR" in str(error) else lines[0] if lines else type(error).__name__
