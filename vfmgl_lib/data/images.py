"""Image and mask files: decoded whole or refused, each error naming the file; and their inspection, two files at a time."""

import hashlib
import io
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

PIXEL_LIMIT = 64 * 1024 * 1024  # 8192 x 8192: far above any tile or slice, far below what fills the memory
FORMATS = ("PNG", "JPEG", "TIFF", "BMP")  # Pillow's other readers (one starts Ghostscript) stay out of reach
IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B")


class ImageError(ValueError):
    """An image or a mask cannot be used; the message names the file."""


def decode_image(path: Path, name: str | None = None) -> Image.Image:
    """A file's only frame, fully decoded, as an 8-bit RGB image; a grayscale image gets three equal channels.

    Args:
        name: how errors call the file; its path if left out.
    Raises: ImageError: not PNG, JPEG, TIFF or BMP; truncated; above `PIXEL_LIMIT`; several frames; over 8 bits deep.
    """
    with open(path, "rb") as file:
        return _decode(file, name or str(path), IMAGE_MODES, "8 bits a channel").convert("RGB")


def decode_mask(path: Path, name: str | None = None) -> np.ndarray:
    """A mask as (H, W) uint8 of 0 and 1, from values 0/255 or 0/1.

    Raises: ImageError: as `decode_image`, or a coloured or non-binary mask; the message names the values found.
    """
    name = name or str(path)
    with open(path, "rb") as file:
        image = _decode(file, name, MASK_MODES, "whole numbers")
    values = np.asarray(image)
    if values.ndim == 3:
        color = values[..., : 1 if image.mode == "LA" else 3]  # without the alpha channel
        if (color != color[..., :1]).any():
            raise ImageError(f"{name}: mask is coloured (mode {image.mode}), expected one channel of 0/255 or 0/1")
        values = color[..., 0]
    found = np.unique(values)
    if not (np.isin(found, (0, 255)).all() or np.isin(found, (0, 1)).all()):
        shown = ", ".join(str(int(value)) for value in found[:8]) + (", …" if len(found) > 8 else "")
        raise ImageError(f"{name}: mask is not binary, found values {shown}; expected only 0 and 255 (or 0 and 1)")
    return (values > 0).astype(np.uint8)


def _decode(file: io.BufferedIOBase, name: str, modes: tuple[str, ...], wanted: str) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
        width, height = image.size
        frames = getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow's readers raise whatever broken bytes lead them to, not one kind of error
        if not file.seek(0, io.SEEK_END):
            raise ImageError(f"{name}: is empty (0 bytes), expected a PNG, JPEG, TIFF or BMP; copy it again") from error
        raise ImageError(f"{name}: not a readable image ({_reason(error)}), expected a PNG, JPEG, TIFF or BMP") from error
    # The header is checked before a pixel is unpacked: a few kilobytes can claim to hold gigabytes.
    if width * height > PIXEL_LIMIT:
        raise ImageError(f"{name}: {width}x{height} pixels, the limit is {PIXEL_LIMIT} pixels")
    if frames != 1:
        raise ImageError(f"{name}: holds {frames} frames, expected one")
    # Pillow clips deeper images to 8 bits when it converts them: most of a 16-bit scan would turn white unnoticed.
    if image.mode not in modes:
        raise ImageError(f"{name}: pixel mode {image.mode}, expected {wanted}; rescale the file before")
    try:
        image.load()
    except Exception as error:  # as above
        raise ImageError(f"{name}: cannot be decoded ({_reason(error)}), the file is damaged or cut short") from error
    return image


def _reason(error: Exception) -> str:
    # Pillow puts the address of the file object into some messages: useless, and different in every run.
    return re.sub(r"<_io\.\w+.*>", "file", str(error)) or type(error).__name__


@dataclass(frozen=True)
class Inspection:
    """What the files of one sample hold."""

    sha256: str  # of the image, "" if it cannot be read
    problems: tuple[str, ...]
    has_foreground: bool | None  # of the mask, None without one


def inspect_files(
    root: Path, paths: Sequence[str], masks: Sequence[str | None], decode: bool = True, progress: bool = False
) -> list[Inspection]:
    """Hash every image and, with `decode`, decode every image and mask once, two files at a time.

    Args:
        paths: images, relative to root.
        masks: as long as `paths`, relative to root, None where a sample has no mask.
        decode: False only hashes the images and looks whether the masks are there.
        progress: draw a progress bar with the time left.
    Returns: one Inspection a sample, in order.
    """
    home = root.resolve()
    with ThreadPoolExecutor(max_workers=2) as pool:
        # The pool takes a kilobyte for every file that waits: half a million go in a part at a time.
        parts = [slice(start, start + 256) for start in range(0, len(paths), 256)]
        found = (
            inspection
            for part in parts
            for inspection in pool.map(lambda path, mask: _inspect(home, path, mask, decode), paths[part], masks[part])
        )
        return list(tqdm(found, total=len(paths), desc="checking images", unit="image", disable=not progress))


def _inspect(root: Path, path: str, mask: str | None, decode: bool) -> Inspection:
    problems = [text for text in (_location_problem(root, path), mask and _location_problem(root, mask)) if text]
    if problems:
        return Inspection("", tuple(problems), None)
    sha256, size, foreground = "", None, None
    try:
        with open(root / path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if decode:
            size = decode_image(root / path, path).size
    except (OSError, ImageError) as error:
        problems.append(_with_name(path, error))
    if mask and decode:
        try:
            pixels = decode_mask(root / mask, mask)
            foreground = bool(pixels.any())
            problem = size_problem(path, size, mask, pixels) if size else None
            problems += [problem] if problem else []
        except (OSError, ImageError) as error:
            problems.append(_with_name(mask, error))
    return Inspection(sha256, tuple(problems), foreground)


def size_problem(path: str, size: tuple[int, int], mask: str, pixels: np.ndarray) -> str | None:
    """What is wrong with a mask (H, W) for an image of `size` (width, height); None if they fit."""
    height, width = pixels.shape
    if (width, height) == tuple(size):
        return None
    return f"{mask}: mask is {width}x{height}, expected {size[0]}x{size[1]} as its image {path}"


def _location_problem(root: Path, path: str) -> str | None:
    relative = PurePosixPath(path)
    if not path or relative.is_absolute() or ".." in relative.parts:
        return f"{path!r}: a path must be relative to the data folder and stay in it"
    file = root / path
    if not file.resolve().is_relative_to(root):
        return f"{path}: leads out of the data folder to {file.resolve()}, expected a file inside it"
    if not file.is_file():
        return f"{path}: file not found in {root}"
    return None


def _with_name(path: str, error: Exception) -> str:
    return str(error) if isinstance(error, ImageError) else f"{path}: cannot be read ({error.strerror or error})"
