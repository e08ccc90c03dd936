"""Whether probabilities come true: reliability diagrams. A decision curve presumes it (Van Calster and Vickers 2015)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation import statistics
from vfmgl_lib.evaluation.classification import by_patient
from vfmgl_lib.evaluation.metric import undefined_reason
from vfmgl_lib.evaluation.results import check_predictions

BINS = 5  # of equal width: with test sets of a few dozen patients more would be of one or two each
COLUMNS = "method seed split_id budget center bin n positives patients probability share low high brier reason".split()


def reliability(final: pd.DataFrame, *, unit: str, bins: int = BINS) -> pd.DataFrame:
    """Mean predicted probability beside the share of positives, in bins of the probability: every centre's own model on its test set.

    Args:
        final: final predictions of a classification.
        unit: "patient" (mean probability of a patient's images) or "image".
        bins: of equal width between 0 and 1; a probability on a border is in the upper one.
    Returns: method, seed, split_id, budget, center, bin (its lower border), n, positives, patients, probability (mean), share (of
        positives), low, high (of the share, 95 %: Wilson where a patient counts once, else t over patients; NaN below
        `statistics.MIN_PATIENTS`, with the reason), brier (in every row that of the whole test set), reason. Empty bins have no row; a
        test set with an undefined prediction has one row, without a bin.
    Raises: ValueError: a probability outside [0, 1].
    """
    check_predictions(final)
    own = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test")]
    found = []
    for key, rows in own.groupby(["method", "seed", "split_id", "budget", "test_center"], sort=False):
        scores = by_patient(rows) if unit == "patient" else rows
        label, probability = scores["label"].to_numpy(dtype=int), scores["probability"].to_numpy()
        if reason := undefined_reason(rows):
            whole = {"n": len(scores), "positives": int(label.sum()), "patients": scores["patient"].nunique(), "reason": reason}
            found.append(dict(zip(COLUMNS[:5], key, strict=True)) | whole)
            continue
        brier, place = float(((probability - label) ** 2).mean()), np.minimum((probability * bins).astype(int), bins - 1)
        for number in np.unique(place):
            inside = scores[place == number]
            interval = _share_interval(inside)
            row = dict(zip(COLUMNS[:5], key, strict=True)) | {"bin": number / bins, "n": len(inside)}
            row |= {"positives": int(inside["label"].sum()), "patients": inside["patient"].nunique()}
            row |= {"probability": inside["probability"].mean(), "share": inside["label"].mean()}
            found.append(row | {"low": interval.low, "high": interval.high, "brier": brier, "reason": interval.reason})
    return pd.DataFrame(found, columns=COLUMNS)


def _share_interval(inside: pd.DataFrame) -> statistics.Interval:
    """Of the share of positives among the samples of a bin."""
    patient, names = pd.factorize(inside["patient"], sort=True)
    label = inside["label"].to_numpy(dtype=int)
    if len(names) < statistics.MIN_PATIENTS:
        return statistics.NO_INTERVAL._replace(reason=f"no interval: {statistics.too_few(len(names))}")
    if len(names) == len(inside):
        return statistics.wilson(int(label.sum()), len(label))
    return statistics.ratio_interval(label, np.ones(len(label)), patient)
