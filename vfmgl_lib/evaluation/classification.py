"""Probabilities of a classification: the cutoff from which one is called positive, and the mean of a patient's images."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

NOBODY = float(np.nextafter(1.0, 2.0))  # the cutoff that no probability reaches, not even one of exactly 1


def youden_cutoff(probability: np.ndarray, label: np.ndarray) -> float:
    """The probability at which sensitivity + specificity - 1 is highest on a set; NaN if only one class is there.

    Args:
        probability: (n,) of class 1, in [0, 1].  label: (n,) 0 or 1.
    Returns: in [0, 1], or `NOBODY` where calling nobody positive is best.
    """
    if len(np.unique(label)) < 2:
        return math.nan
    false_positive, true_positive, thresholds = roc_curve(label, probability, drop_intermediate=False)
    best = int(np.argmax(true_positive - false_positive))
    return float(min(thresholds[best], NOBODY))  # the curve's first threshold is infinite


def by_patient(predictions: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of each patient's images, NaN if one is: one row a patient, columns patient, probability, label.

    Raises: ValueError: if a patient's images differ in their label (then the image is the unit).
    """
    grouped = predictions.groupby("patient", sort=True)
    mixed = grouped["label"].nunique()
    if (mixed > 1).any():
        raise ValueError(f"patient {mixed[mixed > 1].index[0]} has images of several classes: the unit must be the image")
    found = grouped.agg(probability=("probability", "mean"), label=("label", "first")).reset_index()
    lacking = predictions.loc[predictions["probability"].isna(), "patient"]
    return found.assign(probability=found["probability"].mask(found["patient"].isin(lacking)))
