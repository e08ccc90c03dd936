"""The one reader of pictures and masks, for preparation, training, export and prediction alike: read as they are meant, or refused.

A picture becomes 8-bit RGB, as viewers show it: turned by its orientation tag, transparent pixels on the set's background, more than 8
bits scaled by the value that is declared to be white. Colour profiles are not applied. Each error names the file.
"""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageChops
from PIL.TiffImagePlugin import TiffImageFile

from vfmgl_lib.data.depth import DepthError, Samples, is_deep, png_samples, tiff_samples
from vfmgl_lib.data.label_masks import REMEDY, class_indices, in_words, palette_values
from vfmgl_lib.data.preprocessing import RESIZES, near_integers

PIXEL_LIMIT = 64 * 1024 * 1024  # 8192 x 8192: far above any tile or slice, far below what fills the memory
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow's other readers (one starts Ghostscript) stay out of reach
IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MASK_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_PHOTOMETRIC = 0x0106  # TIFF's tag, 0 where 0 is white
_ORIENTATION, _COLOR_MAP = 0x0112, 0x0140  # EXIF's and TIFF's tags
_TURNS = dict(enumerate(("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"), 2))
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
REMARKS = {
    "transparent": "have transparent pixels, which become {background}",
    "turned": "are turned as their orientation tag says, as viewers show them; masks and outlines have to lie so too",
    "scaled": "have more than 8 bits a channel and are scaled to 8 from the largest value that the file or --max-value declares",
    "profile": "have a colour profile other than sRGB, which is not applied",
}


class ImageError(ValueError):
    """An image or a mask cannot be used; the message names the file."""


@dataclass(frozen=True, repr=False)
class Reading:
    """What a set says of its pictures where their files do not, and how they become a network's input.

    Attributes:
        max_value: what is white in pictures of more than 8 bits that do not declare it; None: these are refused.
        background: what lies behind transparent pixels, and around padded pictures, "white" or "black".
        resize: how a picture becomes a square (`preprocessing.RESIZES`); a study sets it as its task's record says.
    Raises: ValueError: other values.
    """

    max_value: float | None = None
    background: str = "white"
    resize: str = "stretch"

    def __post_init__(self):
        if self.resize not in RESIZES:
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}, got {self.resize!r}")
        if self.background not in ("white", "black"):
            raise ValueError(f"background must be white or black, got {self.background!r}")
        if self.max_value is not None and not 0 < self.max_value < np.inf:
            raise ValueError(f"max_value must be above 0, got {self.max_value!r}")

    def written(self) -> dict[str, Any]:
        """As files have it: pictures that are stretched are described, and hashed, as before there was another way."""
        return {name: value for name, value in asdict(self).items() if name != "resize" or value != "stretch"}

    def __repr__(self) -> str:
        return f"Reading({', '.join(f'{name}={value!r}' for name, value in self.written().items())})"


PLAIN = Reading()  # of a set that says nothing


def decode_image(path: Path, name: str | None = None, reading: Reading = PLAIN, first_frame: bool = False) -> Image.Image:
    """A file's only frame, fully decoded, as an 8-bit RGB image; a grayscale image gets three equal channels.

    Args:
        name: how errors call the file; its path if left out.
        reading: of the set that the file belongs to.
        first_frame: further frames are allowed and not looked at.
    Raises: ImageError: not PNG, JPEG, TIFF or BMP; truncated; above `PIXEL_LIMIT`; several frames; over 8 bits deep without a declared
        largest value, or with values below 0 or above it.
    """
    return read_image(path, name, reading, first_frame)[0]


def read_image(
    path: Path, name: str | None = None, reading: Reading = PLAIN, first_frame: bool = False
) -> tuple[Image.Image, tuple[str, ...]]:
    """As `decode_image`, with what was done to it that its owner may want to know: keys of `remark_warnings`."""
    name = name or str(path)
    remarks = []
    with open(path, "rb") as file:
        image, deep = _open(file, name, first_frame)
        if deep or image is None:
            samples = _samples(image, file, name, first_frame)
            color, alpha = _scaled(samples, name, reading.max_value)
            orientation, associated = samples.orientation, samples.associated
            remarks += ["scaled"] if samples.bits > 8 else []
        else:
            remarks += ["turned"] if _load(image, name, IMAGE_MODES) else []
            orientation, associated = _orientation(image), False
            color = image.convert("RGB")
            alpha = _alpha(image)
    if alpha is not None and (shown := alpha.getextrema()) != (255, 255):
        if shown == (0, 0) and any(low < high for low, high in cast("tuple[tuple[int, int], ...]", color.getextrema())):
            # What a BMP has beside its colours is mostly unused.
            if image is None or image.format != "BMP":
                raise ImageError(
                    f"{name}: all of it is transparent, but it has colours; expected a picture that shows, without alpha channel"
                )
        else:
            color = _on_background(color, alpha, reading.background, associated)
            remarks.append("transparent")
    remarks += ["turned"] if orientation in _TURNS else []
    remarks += ["profile"] if image is not None and not _is_srgb(image.info.get("icc_profile")) else []
    return _turned(color, orientation), tuple(remarks)


def decode_mask(path: Path, name: str | None = None, mask_values: Sequence[int] = ()) -> np.ndarray:
    """A mask as (H, W) uint8 of class indices.

    Of two classes that are told by themselves: from values 0/255, 0/1, or 0/65535 in 16 bits; reals are rounded (`near_integers`). Of a
    palette the colours count where they are black and white; other colours only where the black one has index 0. Transparent pixels are
    background; what is drawn on them must not be black.

    Of named values (`label_masks`): one channel, no transparent pixels, of a palette the indices; never a JPEG, which does not keep values.

    Args:
        mask_values: the value of each class, in the order of the classes; (): two classes, told by themselves.
    Raises: ImageError: as `decode_image`, or a coloured mask, or one with other values; the message names the values found.
    """
    name = name or str(path)
    with open(path, "rb") as file:
        image, deep = _open(file, name)
        if deep or image is None:
            samples = _samples(image, file, name)
            values, alpha, orientation = samples.values, samples.alpha, samples.orientation
            inverted, bits = samples.inverted, samples.bits
        else:
            _load(image, name, MASK_MODES)
            # A bilevel TIFF is mostly so, a scan of black on white. Of more bits it is ImageJ's inverting table: its 255 is the object.
            inverted, bits = isinstance(image, TiffImageFile) and image.mode == "L" and image.tag_v2.get(_PHOTOMETRIC) == 0, 8
            orientation = _orientation(image)
            values = _by_palette(image, name, mask_values) if image.mode in ("P", "PA") else np.asarray(image)
            values = values[..., 0] if image.mode == "LA" else values[..., :3] if values.ndim == 3 else values
            channel = _alpha(image)
            alpha = None if channel is None else np.asarray(channel)
    if inverted:
        raise ImageError(
            f"{name}: mask of {bits} bits has 0 for white (MinIsWhite, as ImageJ's inverting table writes): what is the object cannot be "
            "told; expected 0 for black: in ImageJ Image > Lookup Tables > Invert LUT, then save it again"
        )
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            mode = f" (mode {image.mode})" if image is not None else ""
            allowed = in_words(mask_values) if mask_values else "0/255 or 0/1"
            raise ImageError(f"{name}: mask is coloured{mode}, expected one channel of {allowed}")
        values = values[..., 0]
    if values.dtype.kind == "f":
        try:
            values = near_integers(values)
        except ValueError as error:
            kind = "of classes" if mask_values else "binary"
            raise ImageError(f"{name}: mask is not {kind}, {error}, {in_words(mask_values)}") from error
    if mask_values:
        with _naming(name):
            indices = class_indices(values, mask_values, alpha, lossy=image is not None and image.format == "JPEG")
        return np.array(_turned(Image.fromarray(indices), orientation))
    if alpha is not None:
        values = _where_shown(values, alpha, name)
    found = np.unique(values)
    if not any(np.isin(found, (0, top)).all() for top in (1, 255, 65535)):
        shown = ", ".join(str(int(value)) for value in found[:8]) + (", …" if len(found) > 8 else "")
        lossy = "; JPEG does not keep a mask's values, save it as PNG" if image is not None and image.format == "JPEG" else ""
        remedy = lossy or (f"; {REMEDY}" if len(found) == 2 else "")
        raise ImageError(f"{name}: mask is not binary, found values {shown}; expected only 0 and 255 (or 0 and 1){remedy}")
    mask = (values > 0).astype(np.uint8)
    return np.array(_turned(Image.fromarray(mask), orientation))


def image_size(path: Path, name: str | None = None, first_frame: bool = False) -> tuple[int, int]:
    """(width, height) of what `decode_image` gives; of a TIFF or JPEG that Pillow knows, no pixel is unpacked. Raises: ImageError."""
    name = name or str(path)
    with open(path, "rb") as file:
        image, _ = _open(file, name, first_frame)
        if image is None:
            samples = _samples(image, file, name, first_frame)
            size, orientation = samples.values.shape[1::-1], samples.orientation
        else:
            size, orientation = image.size, 1 if image.format == "TIFF" else _orientation(image)
    return size[::-1] if orientation >= 5 else size


def png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 as the content of a PNG; a low compression level, noise does not compress."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _open(file: BinaryIO, name: str, first_frame: bool = False) -> tuple[Image.Image | None, bool]:
    """The header, checked, and whether there is more than Pillow reads; None for a TIFF that Pillow does not know."""
    try:
        image = Image.open(file, formats=FORMATS)
        width, height = image.size
        deep = is_deep(image, file)
        # A phone's JPEG with a preview or a depth map behind it is the first picture (MPO).
        frames = 1 if first_frame or image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to, not one kind of error
        if not file.seek(0, os.SEEK_END):
            raise ImageError(f"{name}: is empty (0 bytes), expected a PNG, JPEG, TIFF or BMP; copy it again") from error
        file.seek(0)
        if file.read(4) in _TIFF:
            return None, True
        raise ImageError(f"{name}: not a readable image ({_reason(error)}), expected a PNG, JPEG, TIFF or BMP") from error
    # The header is checked before a pixel is unpacked: a few kilobytes can claim to hold gigabytes.
    if not 0 < width * height <= PIXEL_LIMIT:
        raise ImageError(f"{name}: {width}x{height} pixels, the limit is {PIXEL_LIMIT} pixels")
    if frames != 1:
        raise ImageError(f"{name}: holds {frames} frames, expected one")
    if image.format == "PNG":
        try:  # Pillow does not look at the checksums of pixels, and takes zeros at the end for some
            Image.open(file, formats=FORMATS).verify()
        except Exception as error:  # as above
            raise ImageError(f"{name}: cannot be decoded ({_reason(error)}), the file is damaged or cut short") from error
    image.info.pop("xmp", None)  # Pillow would turn a TIFF by it, see `_orientation`
    return image, deep


def _load(image: Image.Image, name: str, modes: tuple[str, ...]) -> bool:
    """Unpacks the pixels. Returns: whether Pillow has turned them already, as it does with TIFF."""
    if image.mode not in modes:
        raise ImageError(f"{name}: pixel mode {image.mode}, expected one of {', '.join(modes)}; convert the file to RGB before")
    turned = isinstance(image, TiffImageFile) and image.tag_v2.get(_ORIENTATION) in _TURNS
    packed = image.info.get("compression", "raw") if image.format == "TIFF" else "raw"
    try:
        if isinstance(image, TiffImageFile) and image.mode in ("P", "PA") and max(image.tag_v2[_COLOR_MAP]) < 256:
            # Some programs write the colours of 16 bits in 8; Pillow would make all of them black, libtiff's viewers show them.
            image.putpalette(bytes(image.tag_v2[_COLOR_MAP]), "RGB;L")
        image.load()
    except Exception as error:  # as above
        other = "" if packed == "raw" else f", or its compression ({packed}) is not known here: save it uncompressed or with deflate"
        raise ImageError(f"{name}: cannot be decoded ({_reason(error)}), the file is damaged or cut short{other}") from error
    return turned


def _samples(image: Image.Image | None, file: BinaryIO, name: str, first_frame: bool = False) -> Samples:
    try:
        if image is None or image.format == "TIFF":
            return tiff_samples(file, PIXEL_LIMIT, first_frame)
        image.load()  # checks what the other reader does not
        return replace(png_samples(image, file), orientation=_orientation(image))
    except DepthError as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:  # as above
        raise ImageError(f"{name}: cannot be decoded ({_reason(error)}), the file is damaged or cut short") from error


def _orientation(image: Image.Image) -> int:
    """How an unpacked picture is still to be turned, 1 to 8 as EXIF counts.

    1 where the file does not say, or says it in broken EXIF: viewers show that as it is stored. XMP, which Pillow asks then, keeps its
    copy of the orientation where programs have turned the pixels and taken EXIF away.
    """
    exif = Image.Exif()
    try:
        if image.format == "PNG":
            image.load()  # EXIF may stand behind the pixels
        text = image.info.get("Raw profile type exif", "")  # of ImageMagick, in a PNG
        exif.load(image.info.get("exif") or bytes.fromhex("".join(text.split("\n")[3:])))
    except Exception:
        return 1
    found = exif.get(_ORIENTATION, 1)
    return found if found in _TURNS else 1


def _alpha(image: Image.Image) -> Image.Image | None:
    if not image.has_transparency_data:
        return None
    return (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")


def _turned(pixels: Image.Image, orientation: int) -> Image.Image:
    return pixels.transpose(Image.Transpose[_TURNS[orientation]]) if orientation in _TURNS else pixels


def _scaled(samples: Samples, name: str, max_value: float | None) -> tuple[Image.Image, Image.Image | None]:
    """Colours (RGB) and alpha (L), or None, in 8 bits.

    Raises: ImageError: no largest value declared, or values outside 0 to that; nothing is clipped.
    """
    values, white, declared = samples.values, samples.white, samples.declared
    if samples.bits == 8 and values.dtype == np.uint8:
        white = 255
    if unusable := sum(part.size - int(np.isfinite(part).sum()) for part in (values, samples.alpha) if part is not None):
        raise ImageError(f"{name}: {unusable} values are NaN or infinite, expected finite ones")
    low, high = float(values.min()), float(values.max())
    if white is None and max_value is not None and max_value >= 255 and values.dtype.kind == "f" and 0 < high <= 1:
        raise ImageError(f"{name}: real values up to {high:g}, expected up to {max_value:g} as --max-value says: all of it would be black")
    if white is None and max_value is not None:
        white, declared = max_value, "--max-value"
    if white is None:
        usual = [value for value in (1, 255, 1023, 4095, 16383, 65535) if value >= high and (value > 255 or values.dtype.kind == "f")]
        example = f", e.g. {' or '.join(map(str, usual))}" if usual else ""
        unclear = f" ({declared})" if declared else ""
        raise ImageError(
            f"{name}: {samples.bits} bits a channel, largest value {high:g}, and neither the file nor the set says which value is white"
            f"{unclear}; prepare the set with --max-value N{example} (a model keeps it), or write the tag SMaxSampleValue"
        )
    slack = white * np.finfo(values.dtype).eps if values.dtype.kind == "f" else 0  # how far rounding takes a real
    if low < -slack or high > white + slack:
        raise ImageError(f"{name}: values from {low:g} to {high:g}, expected 0 to {white:g} as {declared} says; nothing is clipped")
    color = _to_bytes(values, white)
    color = 255 - color if samples.inverted else color
    picture, alpha = Image.fromarray(color).convert("RGB"), samples.alpha
    if alpha is None:
        return picture, None
    top = white if alpha.max() <= white or alpha.dtype.kind != "u" else np.iinfo(alpha.dtype).max
    top = 1 if alpha.dtype.kind == "f" and alpha.max() <= 1 else top  # as reals have it, beside colours up to 255 too
    return picture, Image.fromarray(_to_bytes(alpha, top))


def _to_bytes(values: np.ndarray, white: float) -> np.ndarray:
    """0 to white as 0 to 255, rounded to the nearest; 8 bits stay as they are."""
    if white == 255 and values.dtype == np.uint8:
        return values
    scaled = np.empty(values.shape, np.uint8)
    for row, line in enumerate(values):  # as float64, a whole picture would fill the memory
        scaled[row] = np.clip(np.floor(line.astype(np.float64) * 255 / white + 0.5), 0, 255)
    return scaled


def _on_background(color: Image.Image, alpha: Image.Image, background: str, associated: bool) -> Image.Image:
    """A picture (RGB) with its transparent pixels (alpha 0 of 255) on white or black; associated: it is on black already."""
    if not associated:
        return Image.composite(color, Image.new("RGB", color.size, background), alpha)
    return ImageChops.add(color, ImageChops.invert(alpha).convert("RGB")) if background == "white" else color


def _is_srgb(profile: bytes | None) -> bool:
    """Whether a colour profile calls itself sRGB, in ASCII or UTF-16; True without one."""
    return not profile or b"sRGB" in profile or "sRGB".encode("utf-16-be") in profile


def _by_palette(image: Image.Image, name: str, mask_values: Sequence[int] = ()) -> np.ndarray:
    """(H, W): a mask's values, by colour where all are black or white, by index where index 0 and only that is black."""
    index, color = np.asarray(image), np.asarray(image.convert("RGB"))
    index = index if index.ndim == 2 else index[..., 0]
    if mask_values:
        with _naming(name):
            return palette_values(index, color, mask_values)
    black, white = (color == 0).all(axis=2), (color == 255).all(axis=2)
    if (black.all() or white.all()) and not image.has_transparency_data:  # else the shape may lie there
        if len(found := np.unique(index)) > 1:
            shown = ", ".join(map(str, found[:4])) + (", …" if len(found) > 4 else "")
            raise ImageError(f"{name}: mask has indices {shown}, which its palette makes one colour; save it without palette as 0 and 255")
    if (black | white).all():
        return white.astype(np.uint8)
    if (black == (index == 0)).all():
        return index
    used = np.unique(np.concatenate([index[..., None], color], axis=2).reshape(-1, 4), axis=0)
    shown = ", ".join(f"{number}: {tuple(map(int, rgb))}" for number, *rgb in used[:4]) + (", …" if len(used) > 4 else "")
    raise ImageError(f"{name}: mask is coloured, its palette has {shown}; expected black and white, or black as index 0 only")


def _where_shown(values: np.ndarray, alpha: np.ndarray, name: str) -> np.ndarray:
    """A mask's values with its transparent pixels as background.

    Raises: ImageError: half transparent pixels; a shape that is drawn in black, or all of which is transparent: it cannot be meant so.
    """
    levels = np.unique(alpha)
    if len(levels) == 1 and (levels[0] or values.min() == values.max()):
        return values if levels[0] else np.zeros_like(values)
    if len(levels) > 2 or levels[0] > 0:
        shown = ", ".join(f"{level:g}" for level in levels[:8]) + (", …" if len(levels) > 8 else "")
        raise ImageError(f"{name}: mask is partly transparent, alpha {shown}; expected 0 and one other value, or no alpha channel")
    if not values[alpha > 0].any():
        raise ImageError(
            f"{name}: mask has no white pixel that is not transparent, but a shape; expected white on transparent, or no alpha channel"
        )
    return np.where(alpha > 0, values, 0)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from error


def _reason(error: Exception) -> str:
    # Pillow puts the address of the file object into some messages: useless, and different in every run.
    return re.sub(r"<_io\.\w+.*>", "file", str(error)) or type(error).__name__
