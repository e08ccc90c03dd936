"""Segmentation metrics from pixel counts (foreground = class 1)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.metric import Metric


def pixel_counts(predicted: np.ndarray, mask: np.ndarray) -> dict[str, int]:
    """True and false positives and negatives of one image.

    Args:
        predicted, mask: (H, W) boolean.
    Raises: ValueError: if the shapes differ.
    """
    if predicted.shape != mask.shape:
        raise ValueError(f"prediction {predicted.shape} and mask {mask.shape} must have one shape")
    predicted, mask = predicted.astype(bool), mask.astype(bool)
    return {
        "tp": int((predicted & mask).sum()),
        "fp": int((predicted & ~mask).sum()),
        "fn": int((~predicted & mask).sum()),
        "tn": int((~predicted & ~mask).sum()),
    }


def dice(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN), in [0, 1]; both masks empty: 1."""
    whole = np.asarray(2 * tp + fp + fn, dtype=float)
    return np.where(whole > 0, 2 * np.asarray(tp) / np.where(whole > 0, whole, 1), 1.0)


def segmentation_metrics(counts: pd.DataFrame) -> list[Metric]:
    """Means over images of foreground Dice, the paper's mean of background and foreground Dice, sensitivity and specificity.

    Args:
        counts: one row an image, columns tp, fp, fn, tn. Images without foreground have no sensitivity and are left out of its mean.
    """
    if counts.empty:
        return [Metric(name, math.nan, 0, "no images") for name in ("dice", "dice_mean_of_classes", "sensitivity", "specificity")]
    tp, fp, fn, tn = (counts[name].to_numpy() for name in ("tp", "fp", "fn", "tn"))
    foreground = dice(tp, fp, fn)
    metrics = [Metric("dice", float(foreground.mean()), len(counts))]
    metrics.append(Metric("dice_mean_of_classes", float((foreground + dice(tn, fn, fp)).mean() / 2), len(counts)))
    for name, part, whole, reason in (
        ("sensitivity", tp, tp + fn, "no image has foreground"),
        ("specificity", tn, tn + fp, "no image has background"),
    ):
        defined = whole > 0
        values = part[defined] / whole[defined]
        metrics.append(Metric(name, float(values.mean()), len(values)) if len(values) else Metric(name, math.nan, 0, reason))
    return metrics
