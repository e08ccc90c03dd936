"""DICOM series: one volume of files in any order, called as they may be. `data.volumes` reads the other forms.

SimpleITK (GDCM) decodes and applies each slice's slope and intercept. What it does not do, or does wrongly, is done here:

- PixelPaddingValue, and all up to PixelPaddingRangeLimit, is no tissue: `Stored.tissue` leaves it out, and it is shown as the minimum.
- MONOCHROME1 is inverted here, within BitsStored: GDCM calls signed pixels of 12 bits damaged and gives noise for 32 bits.
- Bits above BitsStored are cut off here where padding needs them, and in words of 8 and 32 bits, which GDCM refuses or scrambles.
- A file with fewer pixels than rows times columns is refused: GDCM fills up with whatever is in memory.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vfmgl_lib.data.scan import SourceError
from vfmgl_lib.data.volumes import SPACINGS, VOXEL_LIMIT, Stored

SLICE_LIMIT = 2**24  # pixels: 4096 x 4096, far above any slice
UNEVEN = 0.1  # of the slice distance: more is no rounding but a missing file
TILTED = 1e-3  # difference of direction cosines
TAGS = {
    "patient_name": "0010|0010",
    "patient_id": "0010|0020",
    "series": "0020|000e",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "photometric": "0028|0004",
    "frames": "0028|0008",
    "spacing": "0028|0030",
    "allocated": "0028|0100",
    "bits": "0028|0101",
    "high_bit": "0028|0102",
    "signed": "0028|0103",
    "padding": "0028|0120",
    "padding_limit": "0028|0121",
    "intercept": "0028|1052",
    "slope": "0028|1053",
}
CLASS, SYNTAX = 0x0002, 0x0010  # of group 2: SOP class and transfer syntax
BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
UNCOMPRESSED = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", BIG_ENDIAN)
SYNTAXES = {
    "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed",
    DEFLATED: "Deflated",
    "1.2.840.10008.1.2.4.50": "JPEG Baseline",
    "1.2.840.10008.1.2.4.51": "JPEG Extended",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS Lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.94": "JPIP Referenced",
    "1.2.840.10008.1.2.4.95": "JPIP Referenced Deflate",
    "1.2.840.10008.1.2.4.100": "MPEG2",
    "1.2.840.10008.1.2.4.102": "MPEG-4",
    "1.2.840.10008.1.2.4.107": "HEVC",
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 RPCL",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE Lossless",
}
TRANSCODE = "transcode it to Explicit VR Little Endian (gdcmconv --raw, dcmdjpeg); if that fails, it is damaged"
# Types of elements whose length has two bytes; the others' has four.
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_UNDEFINED = 0xFFFFFFFF
_STANDARD = "1.2.840.10008.5.1.4.1.1."
# Objects that scanners and archives put beside the pictures of a series, by their SOP class: the class itself and those below it.
WITHOUT_PICTURE = {
    "1.2.840.10008.1.3.10": "index (DICOMDIR)",
    f"{_STANDARD}4.2": "spectrum",
    f"{_STANDARD}9": "curve",
    f"{_STANDARD}11": "presentation state",
    f"{_STANDARD}66": "raw data, registration or segmentation",
    f"{_STANDARD}88": "report or key objects",
    f"{_STANDARD}104": "document",
    f"{_STANDARD}481.3": "contours",
    f"{_STANDARD}481.5": "plan",
    "1.3.12.2.1107.5.9.1": "Siemens' data without picture",
    "1.3.46.670589.11.0.0.12": "Philips' data without picture",
}


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its content: with the preamble, or beginning with group 2 or 8 as some scanners write it."""
    start = _beginning(path, 132)
    return start[128:] == b"DICM" or (len(start) == 132 and start[:2] in (b"\x02\0", b"\x08\0") and start[3:4] == b"\0")


def has_picture(path: Path) -> bool:
    """False for a report, a presentation state and the like, by its SOP class; True where the file does not say."""
    found = _file_meta(path).get(CLASS, "")
    return not any(found == name or found.startswith(f"{name}.") for name in WITHOUT_PICTURE)


def _beginning(path: Path, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(length)
    except OSError:  # said when it is to be decoded
        return b""


def _claims_too_much(content: bytes) -> bool:
    """Whether an element of a DICOM file claims more bytes than follow: GDCM would reserve up to 4 GiB for it before it looks.

    Sequences are walked through, not over.
    """
    place, order, fragments = 132 if content[128:132] == b"DICM" else 0, "<", False
    implicit, syntax = None, ""
    while place + 8 <= len(content):
        group, number = struct.unpack_from(f"{order}HH", content, place)
        if implicit is None and group != 2:  # behind the file's own elements
            if syntax == DEFLATED:
                try:
                    content, place = zlib.decompressobj(-15).decompress(content[place:], 2 * VOXEL_LIMIT), 0
                except zlib.error:
                    return True
            order = ">" if syntax == BIG_ENDIAN else "<"
            implicit = not content[place + 4 : place + 6].isalpha()  # whatever the syntax says
            continue
        kind, start = content[place + 4 : place + 6], place + 8
        if group == 0xFFFE or implicit:
            (length,) = struct.unpack_from(f"{order}I", content, place + 4)
        elif kind in _SHORT or max(kind) < 32:  # so GDCM takes types that it does not know
            (length,) = struct.unpack_from(f"{order}H", content, place + 6)
        elif kind.isascii() and place + 12 <= len(content):
            (length,), start = struct.unpack_from(f"{order}I", content, place + 8), place + 12
        else:
            return True
        fragments = fragments or ((group, number) == (0x7FE0, 0x0010) and length == _UNDEFINED)
        if length == _UNDEFINED:
            if kind == b"UN":
                return False
            length = 0
        elif length > len(content) - start:
            return True
        if (group, number) == (0x0002, SYNTAX):
            syntax = content[start : start + length].strip(b" \0").decode("ascii", "replace")
        inside = (group == 0xFFFE and not fragments) or (kind == b"SQ" and not implicit)
        place = start if inside else start + length
    return False


def _file_meta(path: Path) -> dict[int, str]:
    """Group 2 of a DICOM file, element by element; always explicit and little endian."""
    start = _beginning(path, 4096)
    place, found = 132 if start[128:132] == b"DICM" else 0, {}
    while start[place : place + 2] == b"\x02\0" and place + 12 <= len(start):
        number, kind, length = struct.unpack_from("<H2sH", start, place + 2)
        place += 8
        if kind in (b"OB", b"OW", b"UN", b"SQ", b"UT"):
            (length,) = struct.unpack_from("<I", start, place)
            place += 4
        found[number] = re.sub("[^0-9.]", "", start[place : place + min(length, 64)].decode("ascii", "ignore"))
        place += length
    return found


def read_series(files: tuple[Path, ...], name: str) -> Stored:
    """A DICOM series, its files in any order, slope and intercept of every slice applied.

    Raises: SourceError: files of several series, of unlike size or orientation, at the same place (several echoes, phases or
        b-values), with gaps; enhanced multi-frame or colour files; a file that is damaged, in a form that cannot be decoded, or no
        DICOM image.
    """
    headers = [read_header(file, f"{name}/{file.name}") for file in files]
    series = sorted({header["series"] for header in headers})
    if len(series) > 1:
        raise SourceError(f"{name}: holds {len(series)} series ({', '.join(series)}), expected one; keep the one that roi.csv is for")
    for key, what in (("shape", "sizes (rows, columns)"), ("spacing", "pixel spacings")):
        if len(found := sorted({str(header[key]) for header in headers})) > 1:
            raise SourceError(f"{name}: slices have different {what}: {', '.join(found)}; expected a series of one")
    axes = np.array([header["axes"] for header in headers])
    if np.abs(axes - axes[0]).max() > TILTED:
        raise SourceError(f"{name}: slices have different orientations (a localizer?), expected parallel ones")
    column_axis, row_axis = axes[0]
    heights = np.array([header["position"] for header in headers]) @ np.cross(column_axis, row_axis)
    order = np.argsort(heights)
    _check_distances(heights[order], name)
    if math.prod(shape := (len(files), *headers[0]["shape"])) > VOXEL_LIMIT:
        raise SourceError(f"{name}: {' x '.join(map(str, shape))} voxels, the limit is {VOXEL_LIMIT}")
    values, tissue = _decode([files[position] for position in order], [headers[position] for position in order], name)
    return Stored(values, headers[0]["spacing"], (row_axis, column_axis), tissue)


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


def read_header(file: Path, name: str) -> dict:
    """What is needed of a DICOM header: `TAGS`, numbers as such, with axes (column, row), shape (rows, columns) and `pixels`."""
    try:
        reader = _reader(file)
        if _claims_too_much(file.read_bytes()):
            raise RuntimeError("cut short")
        reader.ReadImageInformation()
    except (RuntimeError, OSError) as error:
        if (syntax := _file_meta(file).get(SYNTAX, "")) not in UNCOMPRESSED:
            raise SourceError(_cannot_decode(name, syntax)) from error
        raise SourceError(f"{name}: is no readable DICOM image; it is damaged, cut short or something else") from error
    header = {key: reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else "" for key, tag in TAGS.items()}
    size = reader.GetSize()
    frames = math.prod(size[2:])
    if frames > 1 or header["frames"] not in ("", "0", "1"):
        raise SourceError(
            f"{name}: holds {header['frames'] or frames} frames (enhanced DICOM), expected one image a file; convert it to NIfTI"
        )
    if reader.GetNumberOfComponents() != 1:
        raise SourceError(f"{name}: is a colour image, expected MR intensities of one channel")
    if size[0] * size[1] > SLICE_LIMIT:
        raise SourceError(f"{name}: claims {size[1]} x {size[0]} pixels, expected at most {SLICE_LIMIT}")
    position, orientation, spacing = (_numbers(header[key]) for key in ("position", "orientation", "spacing"))
    normal = np.cross(orientation[:3], orientation[3:]) if len(orientation) == 6 else np.zeros(3)
    if len(position) != 3 or np.linalg.norm(normal) < 0.5:  # 1 of unit vectors at right angles
        raise SourceError(f"{name}: gives no image position and orientation (0020,0032 and 0020,0037), so slices cannot be ordered")
    if len(spacing) == 2 and min(spacing) > 0 and not (SPACINGS[0] <= min(spacing) and max(spacing) <= SPACINGS[1]):
        limits = f"{SPACINGS[0]:g} to {SPACINGS[1]:g} mm"
        raise SourceError(f"{name}: PixelSpacing (0028,0030) is {header['spacing']} mm, expected {limits}; correct the header")
    return header | {
        "shape": (size[1], size[0]),
        "position": position,
        "axes": (orientation[:3], orientation[3:]),
        "spacing": tuple(spacing) if len(spacing) == 2 and min(spacing) > 0 else None,
        "syntax": _file_meta(file).get(SYNTAX, ""),
        "pixels": _pixels(header, name),
    }


def _reader(file: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    return reader


def _numbers(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split("\\")]
    except ValueError:
        return []
    return values if all(abs(value) < 1e30 for value in values) else []  # neither NaN nor infinite


@dataclass(frozen=True)
class _Pixels:
    """How a slice's numbers are stored.

    Attributes:
        padding: lowest and highest stored value that is no tissue, or None.
        inverted: MONOCHROME1, whose lowest value is the brightest.
    """

    allocated: int
    bits: int
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    inverted: bool

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest value of `bits` bits."""
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    @property
    def is_cut_here(self) -> bool:
        """Whether all bits are read and cut to the stored ones here: padding needs the others, or GDCM cuts words of 16 bits only."""
        beyond = bool(self.padding) and not (self.limits[0] <= self.padding[0] and self.padding[1] <= self.limits[1])
        return beyond or (self.bits < self.allocated and self.allocated != 16)


def _pixels(header: dict, name: str) -> _Pixels:
    found = {}
    for key, default in (("allocated", 16), ("bits", 0), ("high_bit", 0), ("signed", 0), ("slope", 1), ("intercept", 0)):
        values = _numbers(header[key]) if header[key] else [default]
        if len(values) != 1 or (key in ("allocated", "bits") and not 0 <= values[0] <= 64):
            tag = TAGS[key].replace("|", ",")
            raise SourceError(f"{name}: {key} ({tag}) is {header[key]!r}, expected one number")
        found[key] = values[0]
    allocated = int(found["allocated"])
    bits = int(found["bits"]) or allocated
    if header["high_bit"] and found["high_bit"] != bits - 1:
        raise SourceError(f"{name}: HighBit (0028,0102) is {header['high_bit']} of {bits} bits stored, expected {bits - 1}; {TRANSCODE}")
    signed = found["signed"] == 1
    padding = [int(value) for key in ("padding", "padding_limit") for value in _numbers(header[key])]
    if padding and header["padding"]:
        # Written as unsigned beside signed pixels, or the other way round: the bits are what counts.
        least = -(2 ** (allocated - 1)) if signed else 0
        padding = [(value - least) % 2**allocated + least for value in padding]
    else:
        padding = []
    return _Pixels(
        allocated,
        bits,
        signed,
        found["slope"] or 1.0,  # as GDCM: 0 is nobody's slope
        found["intercept"],
        (min(padding), max(padding)) if padding else None,
        header["photometric"] == "MONOCHROME1",
    )


def _decode(files: list[Path], headers: list[dict], name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """(slices, rows, columns) float32, and where tissue is, or None where no file names padding."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            _prepared(file, header, Path(folder, f"{index}.dcm"), f"{name}/{file.name}")
            for index, (file, header) in enumerate(zip(files, headers, strict=True))
        ]
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(path) for path in paths])
        # The first slice would choose the type: where slopes differ from slice to slice, later ones would lose their fractions.
        reader.SetOutputPixelType(sitk.sitkFloat32)
        try:
            values = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise SourceError(_undecoded(files, paths, headers, name)) from error
    tissue = np.ones(values.shape, bool)
    for index, header in enumerate(headers):
        values[index], tissue[index] = _as_meant(values[index], header["pixels"])
    if tissue.all():
        return values, None
    if not tissue.any():
        raise SourceError(f"{name}: all pixels have the PixelPaddingValue (0028,0120), expected tissue")
    values[~tissue] = values[tissue].min()
    return values, tissue


def _as_meant(values: np.ndarray, pixels: _Pixels) -> tuple[np.ndarray, np.ndarray | bool]:
    """A slice with its values inverted and cut to their bits where need be, and where tissue is."""
    if not (pixels.inverted or pixels.padding or pixels.is_cut_here):
        return values, True
    stored = np.rint((values.astype(np.float64) - pixels.intercept) / pixels.slope)
    tissue = True if pixels.padding is None else (stored < pixels.padding[0]) | (stored > pixels.padding[1])
    if pixels.is_cut_here:
        least = pixels.limits[0]
        stored = (stored - least) % 2**pixels.bits + least
    if pixels.inverted:
        stored = sum(pixels.limits) - stored
    return stored * pixels.slope + pixels.intercept if pixels.inverted or pixels.is_cut_here else values, tissue


def _prepared(file: Path, header: dict, copy: Path, name: str) -> Path:
    """The file itself or, where GDCM would not read it as meant, a copy that it does; `_as_meant` does the rest."""
    pixels, (rows, columns), content = header["pixels"], header["shape"], file.read_bytes()
    uncompressed = header["syntax"] in UNCOMPRESSED
    if uncompressed and not _has_pixels(content, rows * columns * pixels.allocated // 8):
        raise SourceError(f"{name}: holds fewer than {rows} x {columns} pixels, the file is damaged or cut short")
    if header["syntax"] == BIG_ENDIAN and pixels.allocated > 16:  # in which order its halves come is nowhere agreed on
        raise SourceError(f"{name}: {pixels.allocated} bits a pixel in Explicit VR Big Endian, {BIG_ENDIAN}; {TRANSCODE}")
    changes = [(0x0004, b"CS", b"MONOCHROME1 ", b"MONOCHROME2 ")] if pixels.inverted else []
    if pixels.is_cut_here and uncompressed:
        changes.append((0x0101, b"US", pixels.bits, pixels.allocated))
        changes += [(0x0102, b"US", pixels.bits - 1, pixels.allocated - 1)] if header["high_bit"] else []
    for change in changes:
        content = _changed(content, *change)
        if content is None:
            raise SourceError(f"{name}: {header['photometric']} in a form that cannot be decoded; {TRANSCODE}")
    if changes:
        copy.write_bytes(content)
    return copy if changes else file


def _changed(content: bytes, number: int, kind: bytes, old: bytes | int, new: bytes | int) -> bytes | None:
    """A file with an element of group 0028 changed, in either byte order, its type written or not; None where it is not there."""
    for order in "<>":
        tag = struct.pack(f"{order}HH", 0x0028, number)
        first, second = (value if isinstance(value, bytes) else struct.pack(f"{order}H", value) for value in (old, new))
        for start in (tag + kind + struct.pack(f"{order}H", len(first)), tag + struct.pack(f"{order}I", len(first))):
            if start + first in content:
                return content.replace(start + first, start + second, 1)  # the first is the image's own, later ones an icon's
    return None


def _has_pixels(content: bytes, length: int) -> bool:
    """Whether an uncompressed file has PixelData of at least `length` bytes."""
    for order in "<>":
        tag = struct.pack(f"{order}HH", 0x7FE0, 0x0010)
        place = content.find(tag)
        while 0 <= place <= len(content) - 12:
            start = place + (12 if content[place + 4 : place + 6] in (b"OW", b"OB") else 8)
            (found,) = struct.unpack_from(f"{order}I", content, start - 4)
            if length <= found <= len(content) - start:
                return True
            place = content.find(tag, place + 1)
    return False


def _undecoded(files: list[Path], paths: list[Path], headers: list[dict], name: str) -> str:
    """Which file of a series cannot be decoded, and why."""
    for file, path, header in zip(files, paths, headers, strict=True):
        try:
            _reader(path).Execute()
        except RuntimeError:
            if header["syntax"] not in UNCOMPRESSED:
                return _cannot_decode(f"{name}/{file.name}", header["syntax"])
            return f"{name}/{file.name}: cannot be decoded, the file is damaged or cut short"
    return f"{name}: cannot be decoded as one series"


def _cannot_decode(name: str, syntax: str) -> str:
    return f"{name}: cannot be decoded, its transfer syntax (0002,0010) is {SYNTAXES.get(syntax, 'unknown')}, {syntax}; {TRANSCODE}"
