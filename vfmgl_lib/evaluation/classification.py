"""Probabilities of a classification: their columns, the cutoff from which one is called positive, and the mean of a patient's images.

Of two classes there is one column, `probability`, of class 1. Of more there is one a class, `probability[<name of the class>]`, in the
order of the classes' numbers (`data.names.probability_column`), and the class with the highest probability is called (of equal ones the
first): there is no cutoff.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

from vfmgl_lib.data.names import probability_column

OF_CLASS = re.compile(r"probability\[(.*)\]", re.DOTALL)
NOBODY = float(np.nextafter(1.0, 2.0))  # the cutoff that no probability reaches, not even one of exactly 1


def class_names(table: pd.DataFrame) -> tuple[str, ...]:
    """The names of more than two classes, in the order of their numbers; () of two classes and of a segmentation."""
    return tuple(found[1] for column in table if (found := OF_CLASS.fullmatch(str(column))))


def probability_columns(table: pd.DataFrame) -> list[str]:
    """One of two classes, K of K > 2, none of a segmentation."""
    return ["probability"] if "probability" in table else [probability_column(name) for name in class_names(table)]


def is_classification(table: pd.DataFrame) -> bool:
    """Whether predictions are those of a classification."""
    return bool(probability_columns(table))


def own_class(predictions: pd.DataFrame) -> np.ndarray:
    """(n,) the probability of each sample's own class, of more than two classes."""
    chances, labels = predictions[probability_columns(predictions)].to_numpy(dtype=float), predictions["label"].to_numpy(dtype=int)
    return chances[np.arange(len(labels)), labels]


def youden_cutoff(probability: np.ndarray, label: np.ndarray) -> float:
    """The probability at which sensitivity + specificity - 1 is highest on a set; NaN if only one class is there.

    Args:
        probability: (n,) of class 1, in [0, 1].  label: (n,) 0 or 1.
    Returns: in [0, 1], or `NOBODY` where calling nobody positive is best.
    """
    from sklearn.metrics import roc_curve

    if len(np.unique(label)) < 2:
        return math.nan
    false_positive, true_positive, thresholds = roc_curve(label, probability, drop_intermediate=False)
    best = int(np.argmax(true_positive - false_positive))
    return float(min(thresholds[best], NOBODY))  # the curve's first threshold is infinite


def by_patient(predictions: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of each patient's images, NaN if one is: one row a patient, columns patient, probability (or K of them), label.

    Raises: ValueError: if a patient's images differ in their label (then the image is the unit).
    """
    grouped = predictions.groupby("patient", sort=True)
    mixed = grouped["label"].nunique()
    if (mixed > 1).any():
        raise ValueError(f"patient {mixed[mixed > 1].index[0]} has images of several classes: the unit must be the image")
    columns = probability_columns(predictions)
    found = grouped.agg(dict.fromkeys(columns, "mean") | {"label": "first"}).reset_index()
    lacking = predictions.loc[predictions[columns].isna().any(axis=1), "patient"]
    return found.assign(**{name: found[name].mask(found["patient"].isin(lacking)) for name in columns})
