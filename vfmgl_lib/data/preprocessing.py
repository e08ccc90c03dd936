"""How a volume or an image becomes network input: stated here once, for training, evaluation and export alike.

`to_bytes` scales intensities, `volume_slices` cuts a volume, `squashed` resizes, `restored` leads back to the image's own size;
`data.loading` divides by 255, a teacher normalises.

What the released code does, after HarmoFL's loader (the paper itself gives only the size, 384 x 384): the volume is
clipped at its 0.99 quantile, scaled from its minimum and that quantile to 0 and 255 and rounded down; three neighbouring
slices are the channels of one image, the mask is the middle one's; the first and the last slice and all without gland are
dropped. `volume_slices` gives the same values, to the bit.

What differs: the released code feeds the network 0 to 255, here `loading` divides by 255; it reads volumes that are 384 x
384 already, here `loading` resizes; a volume that cannot be scaled is an error instead of an image of NaN; without a mask
(a prediction has none) all slices but the first and the last are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

CLIP_QUANTILE = 0.99
NEAR = 1e-3  # of a whole number: what resampling and slopes of a header leave of one
# How an image that is not square becomes the network's square input: the record's `image_resize`. The paper stretches.
RESIZES = {
    "stretch": "the whole image squashed to the square, bilinear with antialiasing (Pillow)",
    "pad": "the whole image in the middle of the square, its longer side the square's, bilinear with antialiasing (Pillow)",
    "crop": "the image's middle square alone, bilinear with antialiasing (Pillow)",
}
PREPARATION = 1  # of exported models: raised when what is above gives other pixels; models of another one are then refused


@dataclass(frozen=True)
class VolumeSlice:
    """One slice as the network sees it.

    Attributes:
        index: the slice's position in its volume, from 0.
        image: (H, W, 3) uint8; the slice below, the slice itself, the slice above.
        mask: (H, W) uint8 of class indices, or None.
    """

    index: int
    image: np.ndarray
    mask: np.ndarray | None


def volume_slices(volume: np.ndarray, mask: np.ndarray | None = None, classes: int = 2) -> list[VolumeSlice]:
    """All usable slices of a volume, in its order.

    Args:
        volume: (D, H, W), any real type and unit; D at least 3, slices along the first axis.
        mask: (D, H, W) of class indices, or None: then slices without foreground are kept as well.
        classes: K; the mask holds 0 to K - 1.
    Returns: one VolumeSlice for each slice that has two neighbours and, with a mask, some foreground.
    Raises: ValueError: another number of dimensions, too few slices, NaN or infinite values, a volume whose minimum is
        its 0.99 quantile (a constant one), a mask of another shape or with other values; the message names what was found.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3:
        raise ValueError(f"volume must be (D, H, W), got {volume.ndim} dimensions, {volume.shape}")
    if volume.shape[0] < 3 or not volume.size:
        raise ValueError(f"volume must have at least 3 slices, so that one has two neighbours, got (D, H, W) = {volume.shape}")
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != volume.shape:
            raise ValueError(f"mask must have the volume's shape {volume.shape}, got {mask.shape}")
        if not np.isin(mask, range(classes)).all():
            allowed = "0 and 1" if classes == 2 else f"0 to {classes - 1}"
            raise ValueError(f"mask must hold {allowed} only, got {', '.join(f'{value:g}' for value in np.unique(mask)[:8])}")
        mask = mask.astype(np.uint8)

    scaled = to_bytes(volume)
    return [
        VolumeSlice(index, np.moveaxis(scaled[index - 1 : index + 2], 0, -1).copy(), None if mask is None else mask[index])
        for index in range(1, len(scaled) - 1)
        if mask is None or mask[index].any()
    ]


def to_bytes(volume: np.ndarray, tissue: np.ndarray | None = None) -> np.ndarray:
    """Intensities as uint8: clipped at the 0.99 quantile, the rest from the minimum up spread over 0 to 255, rounded down.

    Args:
        volume: any shape, real type and unit.
        tissue: of its shape, bool: what minimum and quantile are taken of, the rest is at the minimum; None: everything.
    Raises: ValueError: NaN or infinite values, or no contrast.
    """
    volume = np.asarray(volume).astype(np.float64)
    if unusable := volume.size - int(np.isfinite(volume).sum()):
        raise ValueError(f"volume has {unusable} NaN or infinite voxels of {volume.size}, expected finite intensities")
    chosen = volume if tissue is None else volume[tissue]
    low, high = chosen.min(), np.quantile(chosen, CLIP_QUANTILE)
    if not high > low:
        raise ValueError(f"volume has no contrast: its minimum and its {CLIP_QUANTILE} quantile are both {low:g}")
    return (255 * ((np.minimum(volume, high) - low) / (high - low))).astype(np.uint8)


def near_integers(values: np.ndarray) -> np.ndarray:
    """A mask's values as int64, each rounded to the whole number that it lies within `NEAR` of.

    Args:
        values: any shape and real type.
    Raises: ValueError: a value that is not near one, NaN or infinite; the message shows one.
    """
    values = np.asarray(values)
    if values.dtype.kind in "biu":
        return values.astype(np.int64)
    whole = np.rint(values)
    with np.errstate(invalid="ignore"):
        far = ~(np.abs(values - whole) <= NEAR)  # not ">": NaN is above nothing
    if far.any():
        raise ValueError(f"found {values[far].flat[0]:.10g}, expected whole numbers (within {NEAR:g})")
    return whole.astype(np.int64)


@dataclass(frozen=True)
class Placement:
    """Which part of an image lies where in the square that a network sees.

    Attributes:
        box: of the image's pixels, (left, top, right, bottom); all of it, or the middle square under "crop".
        place: of the square's pixels, the same; all of it, or the middle under "pad".
    """

    box: tuple[int, int, int, int]
    place: tuple[int, int, int, int]


def placement(width: int, height: int, size: int, resize: str = "stretch") -> Placement:
    """Where an image of `width` x `height` lies in a square of `size`, under one of `RESIZES`.

    Example: `placement(200, 100, 64, "pad").place` is (0, 16, 64, 48), `placement(200, 100, 64, "crop").box` is (50, 0, 150, 100).
    """
    if resize not in RESIZES:
        raise ValueError(f"image_resize {resize!r}, expected one of {', '.join(RESIZES)}")
    box, place = (0, 0, width, height), (0, 0, size, size)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    elif resize == "pad":
        wide, high = (max(1, round(size * side / max(width, height))) for side in (width, height))
        left, top = (size - wide) // 2, (size - high) // 2
        place = (left, top, left + wide, top + high)
    return Placement(box, place)


def stacked_series(images: Sequence[Image.Image], names: Sequence[str]) -> np.ndarray:
    """Up to three grey images of one size as the channels of one: (H, W, 3) uint8; a channel without a series is 0.

    Args:
        images: RGB, as `data.images.decode_image` gives them.  names: of their files, for errors.
    Raises: ValueError: an image in colour, or of another size than the first.
    """
    stack = np.zeros((images[0].height, images[0].width, 3), np.uint8)
    for channel, (image, name) in enumerate(zip(images, names, strict=True)):
        if image.size != images[0].size:
            first, own = (f"{one.width}x{one.height}" for one in (images[0], image))
            raise ValueError(f"{name}: {own} pixels, {names[0]} has {first}; the series of a case must lie on one grid")
        pixels = np.asarray(image)
        if (pixels != pixels[..., :1]).any():
            raise ValueError(f"{name}: is in colour, expected a grey image: it becomes one channel of three")
        stack[..., channel] = pixels[..., 0]
    return stack


def squashed(image: Image.Image, size: int, resize: str = "stretch", background: str = "white") -> np.ndarray:
    """(size, size) or (size, size, channels) uint8: an image in a square, bilinear; Pillow's filter widens with the reduction, which is
    antialiasing. Masks are resized to the nearest pixel instead (`squashed_mask`).

    Args:
        resize: one of `RESIZES`.
        background: "white" or "black", around an image under "pad".
    """
    where = placement(image.width, image.height, size, resize)
    left, top, right, bottom = where.place
    part = image if where.box == (0, 0, image.width, image.height) else image.crop(where.box)
    resized = np.array(part.resize((right - left, bottom - top), Image.Resampling.BILINEAR))
    if resize != "pad":
        return resized
    square = np.full((size, size, *resized.shape[2:]), 255 if background == "white" else 0, np.uint8)
    square[top:bottom, left:right] = resized
    return square


def squashed_mask(mask: np.ndarray, size: int, resize: str = "stretch") -> np.ndarray:
    """(H, W) uint8 of labels to (size, size), by the nearest pixel, as `squashed` lays its image; 0 where there is no image."""
    where = placement(mask.shape[1], mask.shape[0], size, resize)
    left, top, right, bottom = where.place
    part = Image.fromarray(mask[where.box[1] : where.box[3], where.box[0] : where.box[2]])
    resized = np.array(part.resize((right - left, bottom - top), Image.Resampling.NEAREST))
    if resize != "pad":
        return resized
    square = np.zeros((size, size), mask.dtype)
    square[top:bottom, left:right] = resized
    return square


def restored(values: np.ndarray, width: int, height: int, resize: str = "stretch", outside: float = 0.0) -> np.ndarray:
    """Values of the square back to the image's own size and place, bilinear: (S, S) real to (height, width) float32.

    Args:
        values: of every pixel of the square, e.g. probabilities or an activation map; under "stretch" of any shape.
        outside: what is put where the network saw nothing: under "crop" beside the middle square.
    """
    where = placement(width, height, len(values), resize)
    left, top, right, bottom = where.place if resize == "pad" else (0, 0, values.shape[1], values.shape[0])
    shown = Image.fromarray(values[top:bottom, left:right].astype(np.float32))
    left, top, right, bottom = where.box
    enlarged = np.array(shown.resize((right - left, bottom - top), Image.Resampling.BILINEAR))
    if resize != "crop":
        return enlarged
    whole = np.full((height, width), outside, np.float32)
    whole[top:bottom, left:right] = enlarged
    return whole


def input_spacing(
    spacing: tuple[float, float], shape: tuple[int, int], size: tuple[int, int], resize: str = "stretch"
) -> tuple[float, float]:
    """mm per pixel (row, column) of the square, from those of the image.

    Args:
        spacing: mm per pixel (row, column) of the image.  shape: (rows, columns) of the image.
        size: (rows, columns) of the square.
    """
    extent = {"stretch": shape, "pad": (max(shape),) * 2, "crop": (min(shape),) * 2}[resize]
    rows, columns = (mm * side / pixels for mm, side, pixels in zip(spacing, extent, size, strict=True))
    return rows, columns
