"""Curves over the probability from which one is called positive.

Decision curves (Vickers and Elkin 2006; the paper's Fig. 2B) are the net benefit over it; ROC curves (Fig. 2A) go through the pairs of
rates that it gives. Reliability diagrams say whether probabilities come true, which a decision curve presumes (Van Calster and Vickers
2015).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation import statistics
from vfmgl_lib.evaluation.classification import by_patient
from vfmgl_lib.evaluation.generalization import OWN_SPLIT
from vfmgl_lib.evaluation.metric import undefined_reason
from vfmgl_lib.evaluation.results import check_predictions

THRESHOLDS = np.linspace(0.01, 0.99, 99)
TREAT_ALL, TREAT_NONE = "treat all", "treat none"
BINS = 5  # of equal width: with test sets of a few dozen patients more would be of one or two each
RELIABILITY = "method seed split_id budget center bin n positives patients probability share low high brier reason".split()


def net_benefit(probability: np.ndarray, label: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """TP / n - FP / n * t / (1 - t) for each threshold t; who has probability >= t is treated.

    Args:
        probability: (n,) of class 1.  label: (n,) 0 or 1.  thresholds: (k,) in (0, 1).
    Returns: (k,), at most the share of positives.
    Raises: ValueError: a threshold outside (0, 1), no samples.
    """
    probability, label, thresholds = (np.asarray(values, dtype=float) for values in (probability, label, thresholds))
    if not len(label):
        raise ValueError("a net benefit needs at least one sample, got none")
    if not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError(f"thresholds must lie between 0 and 1, got {thresholds.min()} to {thresholds.max()}")
    treated = probability[None, :] >= thresholds[:, None]
    true_positive, false_positive = (treated @ chosen / len(label) for chosen in (label, 1 - label))
    return true_positive - false_positive * thresholds / (1 - thresholds)


def decision_curve(final: pd.DataFrame, *, unit: str, thresholds: np.ndarray = THRESHOLDS) -> pd.DataFrame:
    """Net benefit of every centre's own model on its test set, beside treating all and treating none.

    Args:
        final: final predictions of a classification (`evaluation.results.final_predictions`).
        unit: "patient" (mean probability of a patient's images) or "image".
    Returns: method, seed, split_id, budget, center, threshold, net_benefit, n, positives, reason (why net_benefit is NaN: a prediction of
        the set is undefined). The methods "treat all" and "treat none" are there once for each seed, division, budget and centre. A test
        set of one class has a curve, too.
    Raises: ValueError: a probability outside [0, 1].
    """
    check_predictions(final)
    own = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test")]
    parts, treated = [], set()
    for key, rows in own.groupby(["method", "seed", "split_id", "budget", "test_center"], sort=False):
        scores = by_patient(rows) if unit == "patient" else rows
        label = scores["label"].to_numpy(dtype=float)
        curves = {key[0]: scores["probability"].to_numpy()}
        if key[1:] not in treated:
            treated.add(key[1:])
            curves |= {TREAT_ALL: np.ones(len(label)), TREAT_NONE: np.zeros(len(label))}
        about = dict(zip(("seed", "split_id", "budget", "center"), key[1:], strict=True))
        about |= {"n": len(label), "positives": int(label.sum())}
        for method, probability in curves.items():
            reason = undefined_reason(rows) if method == key[0] else ""
            benefit = np.nan if reason else net_benefit(probability, label, thresholds)
            parts.append(pd.DataFrame({"method": method, **about, "threshold": thresholds, "net_benefit": benefit, "reason": reason}))
    columns = ["method", "seed", "split_id", "budget", "center", "threshold", "net_benefit", "n", "positives", "reason"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def mean_curves(table: pd.DataFrame) -> pd.DataFrame:
    """Decision curves averaged over the seeds, undefined where one of them is: center, method, threshold, net_benefit, n, positives.

    Args:
        table: from `decision_curve`, of one budget and division.
    """
    grouped = table.groupby(["center", "method", "threshold"])
    curves = grouped[["net_benefit", "n", "positives"]].mean()
    return curves.assign(net_benefit=curves["net_benefit"].where(grouped["net_benefit"].count() == grouped.size())).reset_index()


def roc_points(final: pd.DataFrame, *, unit: str, budget: str = "rounds", external: bool = False) -> pd.DataFrame:
    """ROC curves of the models on their own centres' test sets or, `external`, of all models on external centres'.

    Args:
        final: final predictions of a classification.
        unit: "patient" (the mean probability of a patient's images is scored) or "image".
    Returns: method, model_center, center, false_positive_rate, true_positive_rate (both in [0, 1]), n, positives, seeds, reason. A test
        set of one class, or with an undefined prediction, has one row without rates, and the reason. Curves of several seeds are averaged
        vertically (Fawcett 2006, algorithm 3), at every false positive rate that one of them has.
    Raises: ValueError: a probability outside [0, 1].
    """
    check_predictions(final)
    from sklearn.metrics import roc_curve

    rows = final[(final["budget"] == budget) & (final["split_id"] == OWN_SPLIT) & (final["split"] == "test")]
    trained = set(rows["model_center"]) - {"shared"}
    rows = rows[~rows["test_center"].isin(trained)] if external else rows[rows["model_center"] == rows["test_center"]]
    found = []
    for (method, model, center), group in rows.groupby(["method", "model_center", "test_center"]):
        scores = [by_patient(part) if unit == "patient" else part for _, part in group.groupby("seed")]
        labels = scores[0]["label"].astype(int)
        positive, n = int(labels.sum()), len(labels)
        about = {"method": method, "model_center": model, "center": center, "n": n, "positives": positive, "seeds": len(scores)}
        reason = undefined_reason(group) or ("" if 0 < positive < n else f"only one class: {positive} positive, {n - positive} negative")
        if reason:
            rates, reached = np.array([np.nan]), np.array([np.nan])
        else:
            rates, reached = _mean_curve([roc_curve(part["label"].astype(int), part["probability"])[:2] for part in scores])
        found.append(pd.DataFrame({"false_positive_rate": rates, "true_positive_rate": reached}).assign(**about, reason=reason))
    columns = ["method", "model_center", "center", "false_positive_rate", "true_positive_rate", "n", "positives", "seeds", "reason"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _mean_curve(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean true positive rate at every false positive rate of the curves; one curve stays as it is."""
    if len(curves) == 1:
        return curves[0]
    rates = np.unique(np.concatenate([rate for rate, _ in curves]))
    # Where a curve rises steeply it has two values: the lower one ends what lies left of it, the upper one begins what lies right.
    upper = np.mean([np.interp(rates, rate, hit) for rate, hit in curves], axis=0)
    lower = np.mean([np.interp(-rates[::-1], -rate[::-1], hit[::-1])[::-1] for rate, hit in curves], axis=0)
    return np.repeat(rates, 2), np.column_stack([lower, upper]).ravel()


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
            found.append(dict(zip(RELIABILITY[:5], key, strict=True)) | whole)
            continue
        brier, place = float(((probability - label) ** 2).mean()), np.minimum((probability * bins).astype(int), bins - 1)
        for number in np.unique(place):
            inside = scores[place == number]
            interval = _share_interval(inside)
            row = dict(zip(RELIABILITY[:5], key, strict=True)) | {"bin": number / bins, "n": len(inside)}
            row |= {"positives": int(inside["label"].sum()), "patients": inside["patient"].nunique()}
            row |= {"probability": inside["probability"].mean(), "share": inside["label"].mean()}
            found.append(row | {"low": interval.low, "high": interval.high, "brier": brier, "reason": interval.reason})
    return pd.DataFrame(found, columns=RELIABILITY)


def _share_interval(inside: pd.DataFrame) -> statistics.Interval:
    """Of the share of positives among the samples of a bin."""
    patient, names = pd.factorize(inside["patient"], sort=True)
    label = inside["label"].to_numpy(dtype=int)
    if len(names) < statistics.MIN_PATIENTS:
        return statistics.NO_INTERVAL._replace(reason=f"no interval: {statistics.too_few(len(names))}")
    if len(names) == len(inside):
        return statistics.wilson(int(label.sum()), len(label))
    return statistics.ratio_interval(label, np.ones(len(label)), patient)
