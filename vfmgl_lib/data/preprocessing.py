"""How a volume or an image becomes network input: stated here once, for training, evaluation and export alike.

`to_bytes` scales intensities, `volume_slices` cuts a volume, `squashed` resizes; `data.loading` divides by 255, a teacher normalises.

What the released code does, after HarmoFL's loader (the paper itself gives only the size, 384 x 384): the volume is
clipped at its 0.99 quantile, scaled from its minimum and that quantile to 0 and 255 and rounded down; three neighbouring
slices are the channels of one image, the mask is the middle one's; the first and the last slice and all without gland are
dropped. `volume_slices` gives the same values, to the bit.

What differs: the released code feeds the network 0 to 255, here `loading` divides by 255; it reads volumes that are 384 x
384 already, here `loading` resizes; a volume that cannot be scaled is an error instead of an image of NaN; without a mask
(a prediction has none) all slices but the first and the last are kept.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

CLIP_QUANTILE = 0.99
NEAR = 1e-3  # of a whole number: what resampling and slopes of a header leave of one
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


def squashed(image: Image.Image, size: int) -> np.ndarray:
    """(size, size) or (size, size, channels) uint8: the whole image in a square, bilinear; Pillow's filter widens with the reduction,
    which is antialiasing. Masks are resized to the nearest pixel instead (`data.loading`).
    """
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))
