"""DICOM series: one volume of files in any order, called as they may be. `data.volumes` reads the other forms.

pydicom reads the headers and the pixels that are not compressed, SimpleITK (GDCM) unpacks compressed ones. What a stored number means
is decided here:

- PixelPaddingValue, and all up to PixelPaddingRangeLimit, is no tissue: `Stored.tissue` leaves it out, and it is shown as the minimum.
- Bits above BitsStored are cut off; a padding value may need them.
- MONOCHROME1 is inverted within BitsStored.
- Slope and intercept of each slice come last.
"""

from __future__ import annotations

import io
import math
import tempfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, FileMetaDataset, pixel_array
from pydicom.filereader import read_dataset, read_preamble
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)
from pydicom.valuerep import VR

from vfmgl_lib.data.scan import SourceError
from vfmgl_lib.data.volumes import SPACINGS, VOXEL_LIMIT, Stored

SLICE_LIMIT = 2**24  # pixels: 4096 x 4096, far above any slice
UNEVEN = 0.1  # of the slice distance: more is no rounding but a missing file
TILTED = 1e-3  # difference of direction cosines
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
JPEG_XL = {f"1.2.840.10008.1.2.4.{n}": f"JPEG XL{kind}" for n, kind in ((110, " Lossless"), (111, " JPEG Recompression"), (112, ""))}
TRANSCODE = "transcode it to Explicit VR Little Endian (gdcmconv --raw, dcmdjpeg); if that fails, it is damaged"
_AFTER_CLASS, _PIXEL_DATA = 0x00080017, 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_STANDARD = "1.2.840.10008.5.1.4.1.1."
# Objects that scanners and archives put beside the pictures of a series, by their SOP class: the class itself and those below it.
WITHOUT_PICTURE = (
    "1.2.840.10008.1.3.10",  # index (DICOMDIR)
    f"{_STANDARD}4.2",  # spectrum
    f"{_STANDARD}9",  # curve
    f"{_STANDARD}11",  # presentation state
    f"{_STANDARD}66",  # raw data, registration or segmentation
    f"{_STANDARD}88",  # report or key objects
    f"{_STANDARD}104",  # document
    f"{_STANDARD}481.3",  # contours
    f"{_STANDARD}481.5",  # plan
    "1.3.12.2.1107.5.9.1",  # Siemens' data without picture
    "1.3.46.670589.11.0.0.12",  # Philips' data without picture
)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content: with the preamble, or beginning with group 2 or 8 as some scanners write it."""
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:  # said when it is to be decoded
        return False
    return start[128:] == b"DICM" or (len(start) == 132 and start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0")


def has_picture(path: Path) -> bool:
    """False for a report, a presentation state and the like, by its SOP class; True where the file does not say."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta, found = _elements(path, _AFTER_CLASS)
            sop = str(meta.get("MediaStorageSOPClassUID") or found.get("SOPClassUID", ""))
    except Exception:  # whatever broken bytes lead pydicom to; said when it is to be decoded
        return True
    return not any(sop == name or sop.startswith(f"{name}.") for name in WITHOUT_PICTURE)


def _elements(file: Path, end: int) -> tuple[Dataset, Dataset]:
    """The file's own elements (group 2), and the others before the tag `end`; PixelData only where a slice can be so large.

    Raises: ValueError: an element claims more bytes than follow. Anything else that broken bytes lead pydicom to.
    """
    stream: BinaryIO

    def is_end(tag: int, kind: str | None, length: int) -> bool:
        if kind and not length and kind not in VR.__members__:  # a type of a later standard, whose length has four bytes
            stream.seek(int.from_bytes(stream.read(4), "little" if little else "big"), io.SEEK_CUR)
        behind = size - stream.tell() - length  # nothing, a filler, or a whole element
        if length != _UNDEFINED and (behind < 0 or 4 <= behind < 8):
            raise ValueError(f"{Tag(tag)} claims {length} bytes, {size - stream.tell()} follow")
        return tag >= end or (tag == _PIXEL_DATA and _UNDEFINED > length > 4 * SLICE_LIMIT)

    with open(file, "rb") as stream:
        size, little = file.stat().st_size, True
        read_preamble(stream, force=True)
        meta = read_dataset(stream, False, True, stop_when=lambda tag, kind, length: tag >> 16 != 2 or is_end(tag, kind, length))
        syntax = meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
        if syntax == DeflatedExplicitVRLittleEndian:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), 8 * SLICE_LIMIT)
            stream, size = io.BytesIO(content), len(content)
        little = syntax != ExplicitVRBigEndian
        implicit = syntax == ImplicitVRLittleEndian
        return meta, read_dataset(stream, implicit, little, stop_when=is_end, parent_encoding="utf-8")


def read_series(files: tuple[Path, ...], name: str) -> Stored:
    """A DICOM series, its files in any order, slope and intercept of every slice applied.

    Raises: SourceError: files of several series, of unlike size or orientation, at the same place (several echoes, phases or
        b-values), with gaps; enhanced multi-frame or colour files; a file that is damaged, in a form that cannot be decoded, or no
        DICOM image.
    """
    headers, words = [], []
    for file in files:
        header, pixels = _read(file, f"{name}/{file.name}")
        if math.prod(shape := (len(files), *header.shape)) > VOXEL_LIMIT:
            raise SourceError(f"{name}: {' x '.join(map(str, shape))} voxels, the limit is {VOXEL_LIMIT}")
        headers.append(header)
        words.append(pixels)
    series = sorted({header.series for header in headers})
    if len(series) > 1:
        raise SourceError(f"{name}: holds {len(series)} series ({', '.join(series)}), expected one; keep the one that roi.csv is for")
    for key, what in (("shape", "sizes (rows, columns)"), ("spacing", "pixel spacings")):
        if len(found := sorted({str(getattr(header, key)) for header in headers})) > 1:
            raise SourceError(f"{name}: slices have different {what}: {', '.join(found)}; expected a series of one")
    axes = np.array([header.axes for header in headers])
    if np.abs(axes - axes[0]).max() > TILTED:
        raise SourceError(f"{name}: slices have different orientations (a localizer?), expected parallel ones")
    column_axis, row_axis = axes[0]
    heights = np.array([header.position for header in headers]) @ np.cross(column_axis, row_axis)
    order = np.argsort(heights)
    _check_distances(heights[order], name)
    values, tissue = np.empty(shape, np.float32), np.empty(shape, bool)
    for place, index in enumerate(order):
        values[place], tissue[place] = _values(headers[index], words[index])
    if not tissue.any():
        raise SourceError(f"{name}: all pixels have the PixelPaddingValue (0028,0120), expected tissue")
    if not tissue.all():
        values[~tissue] = values[tissue].min()
    return Stored(values, headers[0].spacing, (row_axis, column_axis), None if tissue.all() else tissue)


def _check_distances(heights: np.ndarray, name: str) -> None:
    if len(heights) < 2:
        return
    steps = np.diff(heights)
    usual = float(np.median(steps))
    if steps.min() < 1e-3:
        raise SourceError(
            f"{name}: several files lie at the same place, expected one image a position; keep one echo, phase or b-value, each file once"
        )
    if np.abs(steps - usual).max() > UNEVEN * usual:
        raise SourceError(
            f"{name}: slices are {steps.min():.2f} to {steps.max():.2f} mm apart, expected equal steps: a file is missing, and the"
            " numbers in roi.csv would mean other slices"
        )


@dataclass(frozen=True)
class Header:
    """What a slice's header says.

    Attributes:
        syntax: how the file is written.
        persons: how it calls the patient, name and number.
        shape: (rows, columns).
        position: (3,) mm, of the first pixel.
        axes: directions (3,) in which the column and the row number grow.
        spacing: mm per pixel (row, column), or None.
        bits: stored bits a pixel.
        padding: lowest and highest stored value that is no tissue, or None.
        inverted: MONOCHROME1, whose lowest value is the brightest.
    """

    syntax: UID
    persons: tuple[str, str]
    series: str
    shape: tuple[int, int]
    position: list[float]
    axes: tuple[list[float], list[float]]
    spacing: tuple[float, float] | None
    allocated: int
    bits: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    inverted: bool


def read_header(file: Path, name: str) -> Header:
    """What a slice's header says; no pixel is read. Raises: SourceError: no header of one slice of MR intensities."""
    return _read(file, name, with_pixels=False)[0]


def _read(file: Path, name: str, with_pixels: bool = True) -> tuple[Header, np.ndarray | None]:
    """What a slice's header says, and its numbers as `_words`. Raises: SourceError: as `read_series`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's, of values that are longer than the standard has them and the like
            meta, found = _elements(file, _UNDEFINED if with_pixels else _PIXEL_DATA)
            header = _header(meta, found, name)
            return header, _words(header, found, name) if with_pixels else None
    except SourceError:
        raise
    except Exception as error:  # whatever broken bytes lead pydicom to, not one kind of error
        raise SourceError(f"{name}: is no readable DICOM image; it is damaged, cut short or something else") from error


def _header(meta: Dataset, found: Dataset, name: str) -> Header:
    rows, columns, frames = int(found.Rows), int(found.Columns), found.get("NumberOfFrames")
    if frames not in (None, 0, 1):
        raise SourceError(f"{name}: holds {frames} frames (enhanced DICOM), expected one image a file; convert it to NIfTI")
    photometric = str(found.get("PhotometricInterpretation") or "MONOCHROME2")
    if found.get("SamplesPerPixel", 1) != 1 or not photometric.startswith("MONOCHROME"):
        raise SourceError(f"{name}: is a colour image ({photometric}), expected MR intensities of one channel")
    if not 0 < rows * columns <= SLICE_LIMIT:
        raise SourceError(f"{name}: claims {rows} x {columns} pixels, expected at most {SLICE_LIMIT}")
    position, orientation = _numbers(found, "ImagePositionPatient"), _numbers(found, "ImageOrientationPatient")
    normal = np.cross(orientation[:3], orientation[3:]) if len(orientation) == 6 else np.zeros(3)
    if len(position) != 3 or np.linalg.norm(normal) < 0.5:  # 1 of unit vectors at right angles
        raise SourceError(f"{name}: gives no image position and orientation (0020,0032 and 0020,0037), so slices cannot be ordered")
    spacing = _numbers(found, "PixelSpacing")
    spaced = len(spacing) == 2 and min(spacing) > 0
    if spaced and not (SPACINGS[0] <= min(spacing) and max(spacing) <= SPACINGS[1]):
        limits = f"{SPACINGS[0]:g} to {SPACINGS[1]:g} mm"
        raise SourceError(f"{name}: PixelSpacing (0028,0030) is {_shown(found, 'PixelSpacing')} mm, expected {limits}; correct the header")
    allocated = int(_number(found, "BitsAllocated", 16, name, 64))
    bits = int(_number(found, "BitsStored", allocated, name, allocated))
    if (high := _number(found, "HighBit", bits - 1, name)) != bits - 1:
        raise SourceError(f"{name}: HighBit (0028,0102) is {high:g} of {bits} bits stored, expected {bits - 1}; {TRANSCODE}")
    signed = _number(found, "PixelRepresentation", 0, name) == 1
    found.PixelRepresentation = int(signed)  # by which pydicom reads the padding where its type is not written
    written = _numbers(found, "PixelPaddingValue")
    # Written as unsigned beside signed pixels, or the other way round: the bits are what counts.
    least = -(2 ** (allocated - 1)) if signed else 0
    padding = [(int(value) - least) % 2**allocated + least for value in written and written + _numbers(found, "PixelPaddingRangeLimit")]
    return Header(
        syntax=UID(str(meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))),
        persons=(str(found.get("PatientName", "")), str(found.get("PatientID", ""))),
        series=str(found.get("SeriesInstanceUID", "")),
        shape=(rows, columns),
        position=position,
        axes=(orientation[:3], orientation[3:]),
        spacing=(spacing[0], spacing[1]) if spaced else None,
        allocated=allocated,
        bits=bits,
        signed=signed,
        slope=_number(found, "RescaleSlope", 1, name) or 1.0,  # 0 is nobody's slope
        intercept=_number(found, "RescaleIntercept", 0, name),
        padding=(min(padding), max(padding)) if padding else None,
        inverted=photometric == "MONOCHROME1",
    )


def _numbers(found: Dataset, keyword: str) -> list[float]:
    """An element's numbers; empty where it is missing, or one is none, NaN or infinite."""
    try:
        values = np.atleast_1d(np.array(found.get(keyword), np.float64)).tolist()
    except (TypeError, ValueError):
        return []
    return values if all(abs(value) < 1e30 for value in values) else []


def _number(found: Dataset, keyword: str, missing: float, name: str, most: float = math.inf) -> float:
    """An element's only number, from 1 to `most` where that is given; `missing` where the element is missing or empty."""
    values, shown = _numbers(found, keyword), _shown(found, keyword)
    if shown and (len(values) != 1 or not (most == math.inf or 1 <= values[0] <= most)):
        limits = f" from 1 to {most:g}" if most < math.inf else ""
        raise SourceError(f"{name}: {keyword} {Tag(keyword)} is {shown!r}, expected one number{limits}")
    return values[0] if shown else missing


def _shown(found: Dataset, keyword: str) -> str:
    """An element as it is written; "" where it is missing or empty."""
    value = found.get_item(keyword).value if keyword in found else None  # bytes where pydicom cannot convert it
    text = value.decode("latin-1") if isinstance(value, bytes) else "" if value is None else str(value)
    return text.strip("[] \0").replace(", ", "\\")


def _words(header: Header, found: Dataset, name: str) -> np.ndarray:
    """A slice's numbers (rows, columns) as they are stored, with all bits allocated. Raises: SourceError: none, or none to be decoded."""
    rows, columns = header.shape
    native = header.syntax in NATIVE and header.allocated in (8, 16, 32)
    if header.syntax == ExplicitVRBigEndian and header.allocated > 16:  # in which order its halves come is nowhere agreed on
        raise SourceError(f"{name}: {header.allocated} bits a pixel in Explicit VR Big Endian, {header.syntax}; {TRANSCODE}")
    plain = Dataset()  # the least that pydicom and GDCM need to give the numbers as they are
    plain.file_meta = FileMetaDataset()
    try:
        plain.file_meta.TransferSyntaxUID = header.syntax
        plain.SOPClassUID, plain.SOPInstanceUID = MRImageStorage, "1.2.3"
        plain.SamplesPerPixel, plain.PhotometricInterpretation = 1, "MONOCHROME2"
        plain.Rows, plain.Columns, plain.PixelRepresentation = rows, columns, int(header.signed)
        plain.BitsAllocated, plain.BitsStored, plain.HighBit = header.allocated, header.bits, header.bits - 1
        plain["PixelData"] = found["PixelData"]
        if native:
            return pixel_array(plain, raw=True, correct_unused_bits=False)
        with tempfile.TemporaryDirectory() as folder:
            plain.save_as(file := Path(folder, "slice.dcm"), enforce_file_format=True)
            return sitk.GetArrayFromImage(sitk.ReadImage(str(file), imageIO="GDCMImageIO")).reshape(rows, columns)
    except Exception as error:  # as above
        if native:
            raise SourceError(f"{name}: holds fewer than {rows} x {columns} pixels, the file is damaged or cut short") from error
        known = JPEG_XL.get(header.syntax) or ("unknown" if header.syntax.name == header.syntax else header.syntax.name)
        raise SourceError(f"{name}: cannot be decoded, its transfer syntax (0002,0010) is {known}, {header.syntax}; {TRANSCODE}") from error


def _values(header: Header, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A slice's values (rows, columns) as they are meant, and where tissue is."""
    low, high = (-(2 ** (header.bits - 1)), 2 ** (header.bits - 1) - 1) if header.signed else (0, 2**header.bits - 1)
    words = words.astype(np.int64)
    stored = (words - low) % 2**header.bits + low
    tissue = np.ones(stored.shape, bool)
    if header.padding:
        first, last = header.padding
        compared = stored if low <= first and last <= high else words  # padding needs the bits above
        tissue = (compared < first) | (compared > last)
    if header.inverted:
        stored = low + high - stored
    return stored * header.slope + header.intercept, tissue
