"""The metrics of a model on a set of samples, while it trains and afterwards: this file alone says which is computed how.

Each metric but the AUC is a sum over what is counted (patients or images), divided by another sum: `parts` has both. What more than two
classes have beside the accuracy is in `multiclass`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.classification import by_patient, class_names, probability_columns
from vfmgl_lib.evaluation.multiclass import BOOTSTRAPPED, called, measure
from vfmgl_lib.evaluation.one_vs_rest import AUC_OF, auc_of, of_class
from vfmgl_lib.evaluation.segmentation import (
    UNDEFINED,
    class_column,
    distance_names,
    is_distance,
    metric_and_class,
    overlap_names,
    overlaps,
)

ONE_CLASS = "neither validation nor training set has both classes and a prediction of each sample"
# Shares of patients or images at the cutoff, and why one is undefined.
SHARES = {
    "accuracy": "no samples",
    "sensitivity": "no positive sample",
    "specificity": "no negative sample",
    "ppv": "no sample called positive",
    "npv": "no sample called negative",
}
AT_CUTOFF = tuple(SHARES)


@dataclass(frozen=True)
class Metric:
    """A named value over n samples, a share with its counts; `reason` says why a value is NaN."""

    name: str
    value: float
    n: int
    reason: str = ""
    numerator: float = math.nan
    denominator: float = math.nan


def metrics_of(predictions: pd.DataFrame, unit: str, cutoff: float | None) -> list[Metric]:
    """What is followed while a model trains: AUC and the shares at the cutoff, those of more classes, or a segmentation's overlaps.

    Args:
        predictions: of one model on one set, rows as `prediction.predict` returns them.
        unit: "patient" (mean probability of a patient's images) or "image".
        cutoff: not from these samples; NaN: no set to choose it on has both classes; None: the model has no training set of its own.
    Raises: ValueError: a probability outside [0, 1].
    """
    names = overlap_names(predictions) if "tp" in predictions else tuple(name for name in metric_names(predictions) if name != "brier")
    return measured(predictions, units_of(predictions, unit, cutoff), names, no_cutoff(cutoff))


def measured(predictions: pd.DataFrame, units: pd.DataFrame, names: Sequence[str], cutoff_lacks: str = "") -> list[Metric]:
    """These metrics, NaN with the reason where one is not defined; all of them are where a prediction is undefined.

    Args:
        units: from `units_of`.
        cutoff_lacks: why nobody can be called positive.
    """
    if reason := undefined_reason(predictions):
        return [Metric(name, math.nan, len(predictions), reason) for name in names]
    return [_measured(units, name, cutoff_lacks) for name in names]


def _measured(units: pd.DataFrame, name: str, cutoff_lacks: str) -> Metric:
    if name in BOOTSTRAPPED and class_names(units):
        found, reason = measure(units, name)
        return Metric(name, found, len(units), reason)
    if one := AUC_OF.fullmatch(name):
        return replace(_measured(of_class(units, one[1]), "auc", ""), name=name)
    if name == "auc":
        positives = int(units["label"].sum())
        if positives in (0, len(units)):
            return Metric(name, math.nan, len(units), f"only one class: {positives} positive, {len(units) - positives} negative")
        from sklearn.metrics import roc_auc_score

        return Metric(name, float(roc_auc_score(units["label"], units["probability"])), len(units))
    if is_share(units, name) and "called" in units and cutoff_lacks:
        return Metric(name, math.nan, len(units), cutoff_lacks)
    part, whole = parts(units, name)
    n = int(whole.sum())
    value = float(part[whole > 0].sum() / n) if n else math.nan
    if is_share(units, name):
        return Metric(name, value, n, "" if n else SHARES[name], int(part.sum()), n)
    return Metric(name, value, n, "" if n else _lacking(units, name))


def _lacking(units: pd.DataFrame, name: str) -> str:
    if units.empty:
        return "no images"
    base, title = metric_and_class(name)
    if is_distance(name):
        return units["distance_reason" if title is None else class_column("distance_reason", title)].iloc[0]
    return UNDEFINED[base] + ("" if title is None else f" of class {title!r}")


def is_share(units: pd.DataFrame, name: str) -> bool:
    """True of a share of patients or images; a segmentation's metrics with such names are means over images."""
    return name in SHARES and ("called" in units or (name == "accuracy" and "predicted" in units))


def parts(units: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) and (n,): what each patient or image adds to a metric's numerator and to its denominator."""
    if name == "brier" and "predicted" in units:
        columns = probability_columns(units)
        truth = np.eye(len(columns))[units["label"].to_numpy(dtype=int)]
        return ((units[columns].to_numpy(dtype=float) - truth) ** 2).sum(1), np.ones(len(units))
    if name == "brier":
        return (units["probability"] - units["label"]).to_numpy() ** 2, np.ones(len(units))
    if is_share(units, name) and "predicted" in units:
        return units["label"].to_numpy() == units["predicted"].to_numpy(), np.ones(len(units), bool)
    if is_share(units, name):
        positive, called = units["label"].to_numpy() == 1, units["called"].to_numpy()
        every = np.ones(len(units), bool)
        whole = {"accuracy": every, "sensitivity": positive, "specificity": ~positive, "ppv": called, "npv": ~called}[name]
        return whole & (positive == called), whole
    value = units[name].to_numpy(dtype=float)
    defined = np.isfinite(value)
    return np.where(defined, value, 0), defined


def metric_names(predictions: pd.DataFrame) -> tuple[str, ...]:
    """All metrics that these predictions have: with Brier's score, the mean squared difference of probability and label, and distances.

    Of more than two classes Brier's score is the sum of the squared differences over the classes (Brier 1950), between 0 and 2, the AUC the
    mean of those of each class against the others, which follow it.
    """
    if "tp" in predictions:
        return (*overlap_names(predictions), *distance_names(predictions))
    if names := class_names(predictions):
        return ("auc", *map(auc_of, names), *calls(predictions), "brier")
    return ("auc", *AT_CUTOFF, "brier")


def calls(predictions: pd.DataFrame) -> tuple[str, ...]:
    """The metrics of a classification that count classes called, not probabilities."""
    if not class_names(predictions):
        return AT_CUTOFF
    ordinal = "ordinal" in predictions and bool(predictions["ordinal"].astype(int).all())
    return ("accuracy", "balanced_accuracy", "macro_f1", "kappa_quadratic" if ordinal else "kappa")


def units_of(predictions: pd.DataFrame, unit: str, cutoff: float | None) -> pd.DataFrame:
    """A row for each thing that is counted: a patient or an image with label, probability and whether it is called positive.

    Of more than two classes with their probabilities and the class that is called (`predicted`); of a segmentation the images with their
    overlaps.

    Raises: ValueError: a probability outside [0, 1].
    """
    columns = probability_columns(predictions)
    if not columns:
        found = overlaps(predictions)
        return pd.concat([predictions.drop(columns=list(found), errors="ignore"), found], axis=1)
    scores = by_patient(predictions) if unit == "patient" else predictions[["patient", *columns, "label"]]
    for column in columns:
        wrong = scores[column].notna() & ~scores[column].between(0, 1)
        if wrong.any():
            raise ValueError(f"probabilities must lie in [0, 1], got {scores[column][wrong].iloc[0]}")
    scores = scores.assign(label=scores["label"].astype(int))
    if class_names(predictions):
        return scores.assign(predicted=called(scores))
    return scores.assign(called=scores["probability"] >= (math.nan if cutoff is None else cutoff))


def no_cutoff(cutoff: float | None) -> str:
    """Why nobody can be called positive; "": there is a cutoff."""
    if cutoff is None:
        return "no cutoff: the model has no training set of its own"
    return f"no cutoff: {ONE_CLASS}" if math.isnan(cutoff) else ""


def undefined_reason(predictions: pd.DataFrame) -> str:
    """Why nothing can be said of rows as `prediction.predict` returns them: one of them is undefined; "": none is."""
    count = int(predictions[probability_columns(predictions) or ["tp"]].isna().any(axis=1).sum())
    return f"{count} of {len(predictions)} predictions are undefined: the model gives NaN or infinity" if count else ""
