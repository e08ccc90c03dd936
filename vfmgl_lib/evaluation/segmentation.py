"""Segmentation metrics: overlap from pixel counts, distances between surfaces from masks.

Rule for empty masks: where prediction and truth are both empty, Dice and IoU are 1 and the distances undefined; where one is empty, Dice
and IoU are 0 and the distances undefined, too. A share whose denominator is 0 (sensitivity without foreground, PPV without a predicted
pixel) is undefined. Undefined values are NaN and left out of means.

Two classes have one foreground, class 1, and one value a metric. More classes have a value for each foreground class, called
"dice[kidney]" and so on, by the same rules: a class that neither truth nor prediction has counts with a Dice of 1 (MONAI's
`ignore_empty=False`). The metric itself, "dice", is their mean over the foreground classes. Of shares it is the mean over those classes
where it is defined. Of distances it is the mean over the classes that truth or prediction has, and undefined where one of these has none: a
class that a model misses altogether must not make its mean better. Where classes are rare, absent ones raise an image's Dice; then
`results.per_case`, whose counts are summed first, says more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import scipy

COUNTS = ["tp", "fp", "fn", "tn"]
UNDEFINED = {
    "sensitivity": "no image has foreground",
    "specificity": "no image has background",
    "ppv": "no image has predicted foreground",
}
OVERLAPS = ("dice", "dice_mean_of_classes", "iou", "ppv", "sensitivity", "specificity")
OF_CLASSES = ("dice", "iou", "ppv", "sensitivity", "specificity")  # overlaps that each foreground class has
DISTANCES = ("assd", "hd95")
NEITHER = "empty prediction and mask"  # why a distance is undefined
_OF_CLASS = re.compile(r"(\w+)\[(.*)\]", re.DOTALL)


def class_column(name: str, title: str) -> str:
    """A metric or a number of pixels of one class, as columns and tables of metrics have it: "dice[kidney]"."""
    return f"{name}[{title}]"


def metric_and_class(name: str) -> tuple[str, str | None]:
    """ "dice[kidney]" -> ("dice", "kidney"); without a class, the name and None: it is of all foreground classes."""
    found = _OF_CLASS.fullmatch(name)
    return (found[1], found[2]) if found else (name, None)


def class_titles(columns: Iterable[str]) -> list[str]:
    """The classes that a table has numbers of pixels of, the background first; none of two classes."""
    found = map(metric_and_class, columns)
    return [title for name, title in found if name == "tp" and title is not None]


def count_columns(columns: Iterable[str]) -> list[str]:
    """The columns that are numbers of pixels: `COUNTS`, and of more than two classes those of each class."""
    return [name for name in columns if metric_and_class(name)[0] in COUNTS]


def overlap_names(columns: Iterable[str]) -> tuple[str, ...]:
    """The metrics of overlap that a table with these counts has."""
    return (*OVERLAPS, *(class_column(name, title) for title in class_titles(columns)[1:] for name in OF_CLASSES))


def distance_names(columns: Iterable[str]) -> tuple[str, ...]:
    """The distances among the columns, of all foreground classes and of each."""
    return tuple(name for name in columns if is_distance(name))


def is_distance(metric: str) -> bool:
    return metric_and_class(metric)[0] in DISTANCES


def image_counts(predicted: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> dict[str, int]:
    """The numbers of pixels of one image that its metrics are made of.

    Args:
        predicted, mask: (H, W) class indices.  classes: their names, the background first.
    Returns: tp, fp, fn, tn (`COUNTS`), summed over the foreground classes. Of more than two classes also those of each, tp[background], ….
    Raises: ValueError: if the shapes differ.
    """
    if len(classes) == 2:
        return pixel_counts(predicted == 1, mask == 1)
    apart = [pixel_counts(predicted == place, mask == place) for place in range(len(classes))]
    sums = {name: sum(counts[name] for counts in apart[1:]) for name in COUNTS}
    return sums | {class_column(name, title): counts[name] for title, counts in zip(classes, apart, strict=True) for name in COUNTS}


def image_dice(counts: dict[str, int]) -> dict[str, float]:
    """Dice of one image, from `image_counts`: dice, and of more than two classes that of each foreground class, of which it is the mean."""
    if not (titles := class_titles(counts)[1:]):
        return {"dice": float(dice(counts["tp"], counts["fp"], counts["fn"]))}
    apart = {class_column("dice", title): float(dice(*(counts[class_column(name, title)] for name in COUNTS[:3]))) for title in titles}
    return {"dice": float(np.mean(list(apart.values()))), **apart}


def undefined_counts(classes: Sequence[str]) -> dict[str, float]:
    """`image_counts` and `image_dice` of an image without a prediction."""
    counts = image_counts(np.zeros((1, 1)), np.zeros((1, 1)), classes)
    return dict.fromkeys([*counts, *image_dice(counts)], math.nan)


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
        counts: columns tp, fp, fn, tn; of more than two classes those of each class, from `image_counts`.
    Returns: the columns `overlap_names`, each in [0, 1]; `dice_mean_of_classes` is the released code's mean of all classes, background
        included.
    """
    if titles := class_titles(counts.columns):
        return _overlaps_of_classes(counts, titles)
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


def _overlaps_of_classes(counts: pd.DataFrame, titles: Sequence[str]) -> pd.DataFrame:
    apart = {title: overlaps(counts[[class_column(name, title) for name in COUNTS]].set_axis(COUNTS, axis=1)) for title in titles}
    values = {name: _mean_where_defined([apart[title][name].to_numpy() for title in titles[1:]]) for name in OF_CLASSES}
    values["dice_mean_of_classes"] = np.mean([part["dice"].to_numpy() for part in apart.values()], axis=0)
    values |= {class_column(name, title): apart[title][name].to_numpy() for title in titles[1:] for name in OF_CLASSES}
    return pd.DataFrame(values, index=counts.index)[list(overlap_names(counts.columns))]


def _mean_where_defined(values: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values)
    defined = np.isfinite(stacked)
    return _share(np.where(defined, stacked, 0).sum(0), defined.sum(0))


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
    surfaces = [one & ~scipy.ndimage.binary_erosion(one) for one in (predicted, mask)]
    directed = [scipy.ndimage.distance_transform_edt(~other, sampling=spacing)[surface] for surface, other in (surfaces, surfaces[::-1])]
    return {
        "assd": float(np.concatenate(directed).mean()),
        "hd95": float(max(np.percentile(distances, 95) for distances in directed)),
        "reason": "",
    }


def class_distances(
    predicted: np.ndarray, mask: np.ndarray, classes: Sequence[str], spacing: Sequence[float] = (1.0, 1.0)
) -> dict[str, float | str]:
    """`surface_distances` of every foreground class.

    Args:
        predicted, mask: (H, W) class indices.  classes: their names, the background first.
    Returns: as `surface_distances`; of more than two classes the mean over the classes that truth or prediction has, NaN with the reason
        where one of them is not defined or none is there, and beside it assd[kidney], hd95[kidney], reason[kidney], ….
    """
    if len(classes) == 2:
        return surface_distances(predicted == 1, mask == 1, spacing)
    apart = {title: surface_distances(predicted == place, mask == place, spacing) for place, title in enumerate(classes) if place}
    there = {title: found for title, found in apart.items() if found["reason"] != NEITHER}
    reasons = [f"{title}: {found['reason']}" for title, found in there.items() if found["reason"]]
    means = {name: float(np.mean([found[name] for found in there.values()])) if there else math.nan for name in DISTANCES}
    each = {class_column(name, title): value for title, found in apart.items() for name, value in found.items()}
    return {**means, "reason": "; ".join(reasons) if there else NEITHER, **each}


def _same_shape(predicted: np.ndarray, mask: np.ndarray) -> None:
    if predicted.shape != mask.shape:
        raise ValueError(f"prediction {predicted.shape} and mask {mask.shape} must have one shape")
