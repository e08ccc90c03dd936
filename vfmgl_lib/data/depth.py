"""Pictures at their full depth: Pillow cuts most of those with more than 8 bits a channel down to 8.

TIFF is read by tifffile, and by OpenCV where tifffile lacks the decompressor; PNG of 16 bits by OpenCV. What is read are the samples as
stored; `data.images` says how they become 8 bits.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

BYTE_LIMIT = 2**29  # of the samples of one picture
ASSOCIATED, UNASSOCIATED = 1, 2  # TIFF's ExtraSamples: colours multiplied by alpha already, or not
_BITS, _PLANAR, _SAMPLE_FORMAT = 258, 284, 339  # TIFF's tags
logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it notices of a broken file is said once, by the error


class DepthError(ValueError):
    """Samples that cannot be read; the message does not name the file."""


@dataclass(frozen=True)
class Samples:
    """A picture as stored, not turned.

    Attributes:
        values: (H, W) or (H, W, 3), any whole or real type; 0 is black unless `inverted`.
        alpha: (H, W) of the same type, 0 transparent; None without an alpha channel.
        associated: the values are multiplied by alpha already.
        inverted: 0 is white (TIFF's MinIsWhite).
        white: the largest possible value as the file declares it; None where it does not.
        declared: where it says so.
        orientation: as in EXIF, 1 to 8.
        bits: a channel.
    """

    values: np.ndarray
    bits: int
    alpha: np.ndarray | None = None
    associated: bool = False
    inverted: bool = False
    white: float | None = None
    declared: str = ""
    orientation: int = 1


def is_deep(image: Image.Image, file: BinaryIO) -> bool:
    """Whether an opened PNG, TIFF, JPEG or BMP has samples that 8 bits do not hold, or gray and alpha as Pillow does not read them."""
    if image.format == "PNG":
        file.seek(24)  # of the header, always there
        return file.read(1) == b"\x10"
    if not isinstance(image, TiffImageFile):
        return False
    bits, kinds = (image.tag_v2.get(tag, (1,)) for tag in (_BITS, _SAMPLE_FORMAT))
    alpha_apart = image.mode == "La" or (image.mode == "LA" and image.tag_v2.get(_PLANAR) == 2)  # multiplied, or in a plane of its own
    return alpha_apart or max(bits) > 8 or not {1, 4} >= set(kinds)  # unsigned, or undefined


def png_samples(image: Image.Image, file: BinaryIO) -> Samples:
    """A PNG of 16 bits a channel, without a palette.

    sBIT names the bits that were measured, n. By the standard its samples are spread over 16 bits; cameras' raw values up to 2^n - 1 are
    found as well. Raw values are others than those that spreading makes of values as small; where they are not, sBIT declares nothing.

    Raises: DepthError: too large, damaged.
    """
    width, height = image.size
    if width * height * 8 > BYTE_LIMIT:
        raise DepthError(f"{width}x{height} pixels of up to 8 bytes, the limit is {BYTE_LIMIT} bytes")
    file.seek(0)
    content = file.read()
    stored = _by_opencv(content)
    if stored is None or stored.shape[:2] != (height, width) or stored.dtype != np.uint16:
        raise DepthError("cannot be decoded, the file is damaged or cut short")
    gray = image.mode in ("I;16", "LA")  # OpenCV gives gray beside alpha three times
    values, alpha = stored[..., 0] if gray else stored[..., :3], stored[..., 3] if stored.shape[2] == 4 else None
    if alpha is None and (key := image.info.get("transparency")) is not None:
        alpha = np.where(values == key, 0, 65535).astype(np.uint16)
    significant = _significant_bits(content, 1 if gray else 3)
    white, declared = _white_by_bits(values, significant) if significant else (None, "")
    return Samples(values, 16, alpha, white=white, declared=declared)


def _significant_bits(png: bytes, colors: int) -> int:
    """The most bits of a colour that the sBIT chunk names; 0 without one."""
    place, kind = 8, b""
    while kind != b"IDAT" and place < len(png):
        length, kind = int.from_bytes(png[place : place + 4]), png[place + 4 : place + 8]
        if kind == b"sBIT":
            return max(png[place + 8 : place + 8 + length][:colors], default=0)
        place += 12 + length
    return 0


def _by_opencv(content: bytes) -> np.ndarray | None:
    """(H, W, channels), colours as RGB; None where it cannot."""
    import cv2  # here: few pictures need it

    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.ndim == 2:
        return None if found is None else found[..., None]
    return found[..., [2, 1, 0, 3][: found.shape[2]]]


def _white_by_bits(values: np.ndarray, bits: int) -> tuple[float | None, str]:
    """What sBIT declares to be white, None where it can be meant both ways; and that in words."""
    top = 2**bits - 1
    if int(values.max()) > top or bits >= 16:
        return 65535.0, "its sBIT chunk"
    steps, shift = np.arange(top + 1), 16 - bits
    small = steps[: (top >> shift) + 1]  # what is spread to no more than `top`: its upper bits, repeated below, are 0 or few
    spread = [small << shift, np.floor(small * 65535 / top + 0.5), sum(small << shift >> bits * n for n in range(16))]
    if values.any() and any(np.isin(values, one).all() for one in spread):
        return None, f"its sBIT chunk ({bits} bits) may mean {top} or 65535"
    return float(top), "its sBIT chunk"


def tiff_samples(file: BinaryIO, pixel_limit: int, first_frame: bool = False) -> Samples:
    """A TIFF of one frame (or its first), gray or RGB, with or without alpha, of any depth and layout.

    MaxSampleValue declares what is white, but not where it is the picture's own largest value and no full number of bits: some programs
    write that.

    Raises: DepthError: what the file holds, and what would have been right. Anything a broken file leads tifffile to.
    """
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        if not tiff.pages or (len(tiff.pages) != 1 and not first_frame):
            raise DepthError(f"holds {len(tiff.pages)} frames, expected one")
        page = tiff.pages.first
        _check_page(page, pixel_limit)
        planes, _, height, width, count = page.shaped
        stored = np.moveaxis(_decoded(page, file).reshape(planes, height, width, count), 0, 2).reshape(height, width, planes * count)
        tags = {name: page.tags[name].value for name in ("SMaxSampleValue", "MaxSampleValue", "Orientation") if name in page.tags}
        extra = [int(kind) for kind in page.extrasamples]
        inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        bits = page.bitspersample
    colors = 3 if stored.shape[2] >= 3 else 1
    alpha = stored[..., colors] if extra and extra[0] in (ASSOCIATED, UNASSOCIATED) else None
    values = stored[..., :3] if colors == 3 else stored[..., 0]
    white, declared = None, ""
    if values.dtype.kind == "u" and bits < 8 * values.itemsize:
        white, declared = 2.0**bits - 1, f"its {bits} bits"
    for name in ("MaxSampleValue", "SMaxSampleValue"):  # the second is the later tag
        if name in tags and (value := _usable(tags[name], values)) is not None:
            white, declared = value, f"its tag {name}"
    associated = alpha is not None and extra[0] == ASSOCIATED
    return Samples(values, bits, alpha, associated, inverted, white, declared, int(tags.get("Orientation", 1)))


def _check_page(page: tifffile.TiffPage, pixel_limit: int) -> None:
    width, height, count, photometric = page.imagewidth, page.imagelength, page.samplesperpixel, page.photometric
    if not all(isinstance(number, int) for number in (width, height, count, page.bitspersample)):
        raise DepthError("its size is no number, the file is damaged")
    if not 0 < width * height <= pixel_limit:
        raise DepthError(f"{width}x{height} pixels, the limit is {pixel_limit} pixels")
    if page.dtype is None or page.dtype.kind not in "biuf" or not page.shaped or page.imagedepth != 1:
        raise DepthError(
            f"samples of {page.bitspersample} bits and format {page.sampleformat}, expected one plane of whole or real numbers"
        )
    part = math.prod(page.chunks) * page.dtype.itemsize  # a tile or strip, which may claim more than the whole
    if max(page.nbytes, part) > BYTE_LIMIT:
        raise DepthError(f"{width}x{height} pixels in {max(page.nbytes, part)} bytes, the limit is {BYTE_LIMIT} bytes")
    extra = [int(kind) for kind in page.extrasamples]
    known: dict[int, int] = {tifffile.PHOTOMETRIC.MINISWHITE: 1, tifffile.PHOTOMETRIC.MINISBLACK: 1, tifffile.PHOTOMETRIC.RGB: 3}
    colors = known.get(photometric)
    if colors is None or count - colors != len(extra) or len(extra) > 1 or (colors == 1 and extra == [0]):
        kind = getattr(photometric, "name", photometric)
        raise DepthError(f"{count} channels of kind {kind} and {page.bitspersample} bits, expected gray or RGB, with or without alpha")
    if len(page.dataoffsets) != len(page.databytecounts) or not page.dataoffsets or not all(page.databytecounts):
        raise DepthError("parts of the picture are missing, the file is damaged or cut short")
    if max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True))) > page.parent.filehandle.size:
        raise DepthError("the file is damaged or cut short")


def _decoded(page: tifffile.TiffPage, file: BinaryIO) -> np.ndarray:
    assert page.dtype is not None  # by `_check_page`
    try:
        return page.asarray(squeeze=False, maxworkers=1)
    except (ValueError, KeyError, NotImplementedError) as error:  # tifffile's ways to say that it lacks a decompressor
        if not page.is_tiled and page.planarconfig == tifffile.PLANARCONFIG.CONTIG:
            if page.bitspersample < 8 * page.dtype.itemsize and page.compression == tifffile.COMPRESSION.NONE:
                return _unpacked(page)
            if "Orientation" not in page.tags or page.tags["Orientation"].value == 1:  # OpenCV turns some pictures
                file.seek(0)
                found = _by_opencv(file.read())
                if found is not None and found.dtype == page.dtype and found.size == np.prod(page.shaped):
                    return found
        kind = getattr(page.compression, "name", page.compression)
        raise DepthError(
            f"samples of {page.bitspersample} bits, compressed as {kind}, cannot be decoded; save it uncompressed or with deflate"
        ) from error


def _unpacked(page: tifffile.TiffPage) -> np.ndarray:
    """Samples of 9 to 15 bits that lie without gaps; a row begins with a byte."""
    parts: Any = page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts)  # (bytes, position) of each
    row, bits = page.imagewidth * page.samplesperpixel, page.bitspersample
    rows = np.frombuffer(b"".join(part for part, _ in parts), np.uint8).reshape(page.imagelength, -1)
    weights = 2 ** np.arange(bits - 1, -1, -1)
    return np.array([np.unpackbits(line)[: row * bits].reshape(row, bits) @ weights for line in rows], page.dtype)


def _usable(tag: Any, values: np.ndarray) -> float | None:
    """What a tag declares, None where it may be no more than the picture's own largest value."""
    white = float(np.max(tag))
    full = white >= 1 and np.log2(white + 1).is_integer()
    return white if 0 < white < np.inf and (full or white != values.max()) else None
