"""The metrics of more than two classes, and their intervals by a bootstrap over patients.

    auc                the mean over the K classes of the AUC of each against the others (one-vs-rest)
    balanced_accuracy  the mean over the classes of the recall
    macro_f1           the mean over the classes of F1 = 2 TP / (2 TP + FP + FN)
    kappa              Cohen's kappa, 1 - sum w O / sum w E, w = 1 off the diagonal (Cohen 1960)
    kappa_quadratic    the same with w = (i - j)^2, for classes that have an order (Cohen 1968)

A mean over the classes is of all of them: where one has no sample the mean is undefined, and the reason names the class. A mean over the
others would be another quantity, which cannot be held against that of another centre. The accuracy, kappa and the AUCs of the classes that
are there stand alone then. All values are scikit-learn's.

The bootstrap draws patients with replacement, within each class where a patient has one (class sizes are then those of the set, as DeLong
has them), else from all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.evaluation.classification import class_names, probability_columns
from vfmgl_lib.evaluation.statistics import DRAWS, MIN_PATIENTS, NO_INTERVAL, Interval, bootstrap_interval, too_few

KAPPAS = ("kappa", "kappa_quadratic")
MEANS = ("auc", "balanced_accuracy", "macro_f1")  # over the classes
BOOTSTRAPPED = (*MEANS, *KAPPAS)
BOOTSTRAP = "bootstrap over patients"
CHUNK = 4_000_000  # weights in memory at once


def called(units: pd.DataFrame) -> np.ndarray:
    """(n,) the class with the highest probability, of equal ones the first; -1 where a probability is undefined."""
    chances = units[probability_columns(units)].to_numpy(dtype=float)
    defined = np.isfinite(chances).all(axis=1)
    return np.where(defined, np.where(defined[:, None], chances, 0).argmax(axis=1), -1)


def measure(units: pd.DataFrame, name: str) -> tuple[float, str]:
    """A metric of `BOOTSTRAPPED`, or NaN and why it is undefined.

    Args:
        units: from `metric.units_of`: label, predicted and the probabilities of the classes.
    """
    if name in MEANS and (reason := no_sample_of(units["label"].to_numpy(dtype=int), class_names(units))):
        return math.nan, reason
    found = float(_statistic(units, name)(np.ones((1, len(units))))[0])
    if math.isnan(found):
        return math.nan, "all samples and all predictions are of one class" if len(units) else "no samples"
    return found, ""


def no_sample_of(labels: np.ndarray, names: Sequence[str]) -> str:
    """Why a mean over the classes is undefined: which ones have no sample; "": each has one."""
    absent = [name for number, name in enumerate(names) if not (labels == number).any()]
    return f"no sample of class {', '.join(map(repr, absent))}" if absent else ""


def bootstrapped(units: pd.DataFrame, name: str) -> Interval:
    """95 % percentile limits of a metric of `BOOTSTRAPPED` (`statistics.bootstrap_interval`).

    Returns: NaN with the reason where a class has fewer than five patients, or all draws give the same value.
    """
    owner, patients = pd.factorize(units["patient"], sort=True)
    labels, names = units["label"].to_numpy(dtype=int), class_names(units)
    of_class = [len(np.unique(owner[labels == number])) for number in range(len(names))]
    scarcest = int(np.argmin(of_class))
    if of_class[scarcest] < MIN_PATIENTS:
        return NO_INTERVAL._replace(reason=f"no interval: {too_few(of_class[scarcest], f' of class {names[scarcest]!r}')}")
    one_each = sum(of_class) == len(patients)
    strata = labels[np.unique(owner, return_index=True)[1]] if one_each else np.zeros(len(patients), int)
    statistic = _statistic(units, name)

    def of_draws(drawn: Sequence[np.ndarray]) -> np.ndarray:
        every, found = np.concatenate(drawn, axis=1), []
        step = max(1, CHUNK // max(len(units), len(patients)))
        for start in range(0, DRAWS, step):
            part = every[start : start + step]
            places = part + len(patients) * np.arange(len(part))[:, None]
            times = np.bincount(places.ravel(), minlength=len(part) * len(patients)).reshape(len(part), len(patients))
            found.append(statistic(times[:, owner].astype(float)))
        return np.concatenate(found)

    found = bootstrap_interval(strata, of_draws, np.random.default_rng(seed_sequence(0, "bootstrap of classes", name)))
    if found.low == found.high:  # a width of 0 would be certainty
        return NO_INTERVAL._replace(reason="no interval: all draws give the same value")
    return found


def _statistic(units: pd.DataFrame, name: str) -> Callable[[np.ndarray], np.ndarray]:
    """weights (d, n) -> (d,) of the metric with each sample counted so often; NaN where it is undefined."""
    labels = units["label"].to_numpy(dtype=int)
    if name == "auc":
        chances = units[probability_columns(units)].to_numpy(dtype=float)
        return lambda weights: macro_auc(chances, labels, weights)
    count, predicted = len(class_names(units)), units["predicted"].to_numpy(dtype=int)
    cell = np.eye(count * count)[labels * count + predicted]
    return lambda weights: FROM_CONFUSION[name]((weights @ cell).reshape(len(weights), count, count))


def macro_auc(chances: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean over the classes of the AUC of each against the others, of weighted samples; ties count half.

    Args:
        chances: (n, K).  labels: (n,) from 0 to K - 1.  weights: (d, n), at least 0.
    Returns: (d,); NaN where the samples of a class, or all others, weigh nothing.
    """
    return np.mean([_auc(chances[:, number], labels == number, weights) for number in range(chances.shape[1])], axis=0)


def _auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(score, kind="stable")
    ordered, sorted_weights = score[order], weights[:, order]
    ties = np.flatnonzero(np.concatenate([[True], ordered[1:] > ordered[:-1]])) if len(score) else np.zeros(0, int)
    sums = [np.add.reduceat(sorted_weights * side, ties, axis=1) for side in (positive[order], ~positive[order])]
    below = np.cumsum(sums[1], axis=1) - sums[1] / 2
    with np.errstate(invalid="ignore"):
        return (sums[0] * below).sum(1) / (sums[0].sum(1) * sums[1].sum(1))


def balanced_accuracy(confusion: np.ndarray) -> np.ndarray:
    """(d,) from confusion matrices (d, K, K), rows the true classes; NaN where a row is empty."""
    with np.errstate(invalid="ignore"):
        return (_diagonal(confusion) / confusion.sum(2)).mean(1)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """(d,) from confusion matrices (d, K, K), rows the true classes; NaN where a row is empty."""
    true, predicted = confusion.sum(2), confusion.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(true > 0, 2 * _diagonal(confusion) / (true + predicted), np.nan).mean(1)


def kappa(confusion: np.ndarray, power: int = 0) -> np.ndarray:
    """(d,) from confusion matrices (d, K, K): weights |i - j|^power off the diagonal; NaN where chance alone agrees always."""
    places = np.arange(confusion.shape[1])
    apart = np.abs(places[:, None] - places).astype(float)
    weights = apart**power * (apart > 0)
    expected = confusion.sum(2)[:, :, None] * confusion.sum(1)[:, None, :] / np.maximum(confusion.sum((1, 2)), 1e-300)[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (weights * confusion).sum((1, 2)) / (weights * expected).sum((1, 2))


def _diagonal(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=1, axis2=2)


FROM_CONFUSION: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "kappa": kappa,
    "kappa_quadratic": lambda confusion: kappa(confusion, 2),
}
