"""Segmentation metrics (foreground = class 1): overlap from pixel counts, distances between surfaces from masks.

Rule for empty masks: where prediction and truth are both empty, Dice and IoU are 1 and the distances undefined; where one is empty, Dice
and IoU are 0 and the distances undefined, too. A share whose denominator is 0 (sensitivity without foreground, PPV without a predicted
pixel) is undefined. Undefined values are NaN and left out of means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import ndimage

COUNTS = ["tp", "fp", "fn", "tn"]
UNDEFINED = {
    "sensitivity": "no image has foreground",
    "specificity": "no image has background",
    "ppv": "no image has predicted foreground",
}
OVERLAPS = ("dice", "dice_mean_of_classes", "iou", "ppv", "sensitivity", "specificity")
DISTANCES = ("assd", "hd95")


def pixel_counts(predicted: np.ndarray, mask: np.ndarray) -> dict[str, int]:
    """True and false positives and negatives of one image.

    Args:
        predicted, mask: (H, W) boolean.
    Raises: ValueError: if the shapes differ.
    """
    _same_shape(predicted, mask)
    predicted, mask = predicted.astype(bool), mask.astype(bool)
    return {
        "tp": int((predicted & mask).sum()),
        "fp": int((predicted & ~mask).sum()),
        "fn": int((~predicted & mask).sum()),
        "tn": int((~predicted & ~mask).sum()),
    }


def dice(tp: np.ndarray | int, fp: np.ndarray | int, fn: np.ndarray | int) -> np.ndarray:
    """2 TP / (2 TP + FP + FN), in [0, 1]; both masks empty: 1; NaN where a count is."""
    whole = np.asarray(2 * tp + fp + fn, dtype=float)
    return np.where(whole == 0, 1.0, 2 * np.asarray(tp) / np.where(whole == 0, 1, whole))


def overlaps(counts: pd.DataFrame) -> pd.DataFrame:
    """Every metric of overlap of each row (an image, or a case whose images' counts are summed); NaN where undefined.

    Args:
        counts: columns tp, fp, fn, tn.
    Returns: the columns `OVERLAPS`, each in [0, 1]; `dice_mean_of_classes` is the released code's mean of background and foreground Dice.
    """
    tp, fp, fn, tn = (counts[name].to_numpy(dtype=float) for name in COUNTS)
    foreground, either = dice(tp, fp, fn), tp + fp + fn
    values = {
        "dice": foreground,
        "dice_mean_of_classes": (foreground + dice(tn, fn, fp)) / 2,
        "iou": np.where(either == 0, 1.0, tp / np.where(either == 0, 1, either)),
        "ppv": _share(tp, tp + fp),
        "sensitivity": _share(tp, tp + fn),
        "specificity": _share(tn, tn + fp),
    }
    return pd.DataFrame(values, index=counts.index)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), math.nan)


def surface_distances(predicted: np.ndarray, mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0)) -> dict[str, float | str]:
    """ASSD and HD95 between the surfaces of two masks, which are their pixels with a neighbour (of four) outside.

    ASSD is the mean of the distances of all pixels of both surfaces to the other surface; the released code takes the mean of the two
    directed means, which differs where the surfaces are of unequal length. HD95 is the larger of the two directed 95th percentiles. Both
    as MONAI has them.

    Args:
        predicted, mask: (H, W) boolean.  spacing: of rows and columns, mm (or 1: pixels).
    Returns: assd, hd95 in the unit of `spacing`, and reason, why they are NaN.
    Raises: ValueError: if the shapes differ.
    """
    _same_shape(predicted, mask)
    predicted, mask = predicted.astype(bool), mask.astype(bool)
    if not predicted.any() or not mask.any():
        empty = [name for name, one in (("prediction", predicted), ("mask", mask)) if not one.any()]
        return {"assd": math.nan, "hd95": math.nan, "reason": f"empty {' and '.join(empty)}"}
    surfaces = [one & ~ndimage.binary_erosion(one) for one in (predicted, mask)]
    directed = [ndimage.distance_transform_edt(~other, sampling=spacing)[surface] for surface, other in (surfaces, surfaces[::-1])]
    return {
        "assd": float(np.concatenate(directed).mean()),
        "hd95": float(max(np.percentile(distances, 95) for distances in directed)),
        "reason": "",
    }


def _same_shape(predicted: np.ndarray, mask: np.ndarray) -> None:
    if predicted.shape != mask.shape:
        raise ValueError(f"prediction {predicted.shape} and mask {mask.shape} must have one shape")
