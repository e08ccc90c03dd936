"""Intervals and tests: DeLong for AUCs, Wilson for shares, a bootstrap over patients, paired and unpaired comparisons.

scipy and statsmodels do the standard parts. Level: 95 % throughout. Where something cannot be estimated it is NaN, and a reason says why.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vfmgl_lib.randomness import seed_sequence

ALPHA = 0.05
Z = float(stats.norm.ppf(1 - ALPHA / 2))
DRAWS = 2000  # of the bootstrap
# With fewer, limits called 95 % hold the truth far less often: the mean of normal values 50 % with two, 75 % with three, 87 % with five.
MIN_PATIENTS = 5
CHUNK = 2**22  # numbers held at once while counting an AUC's pairs


class Interval(NamedTuple):
    """95 % limits in the unit of the value; NaN with the reason where there is none."""

    low: float
    high: float
    reason: str = ""


class Test(NamedTuple):
    """A test's two-sided p and the estimated difference (first less second) with its 95 % limits; NaN with the reason where undefined."""

    difference: float
    low: float
    high: float
    p: float
    reason: str = ""

    __test__ = False  # pytest collects classes of this name


NO_INTERVAL = Interval(math.nan, math.nan, "")


def delong(scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of k scores of the same n samples and their covariance (DeLong, DeLong and Clarke-Pearson 1988), by midranks (Sun and Xu 2014).

    Args:
        scores: (k, n), higher for the positive class; ties count half.  label: (n,) 0 or 1, both there.
    Returns: AUCs (k,) in [0, 1]; covariance (k, k), NaN where a class has one sample only.
    Raises: ValueError: only one class.
    """
    scores, label = np.atleast_2d(np.asarray(scores, dtype=float)), np.asarray(label, dtype=int)
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        raise ValueError(f"an AUC needs both classes, got {m} positive and {n} negative samples")
    overall = stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    # Placement values: the share of the other class on the right side of each sample.
    above = (overall[:, :m] - stats.rankdata(positive, axis=1)) / n
    below = 1 - (overall[:, m:] - stats.rankdata(negative, axis=1)) / m
    if min(m, n) < 2:
        return above.mean(1), np.full((len(scores), len(scores)), math.nan)
    return above.mean(1), np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n


def auc_interval(score: np.ndarray, label: np.ndarray) -> Interval:
    """DeLong's 95 % interval of an AUC, by the normal approximation, cut at 0 and 1."""
    (auc,), covariance = delong(score, label)
    variance = covariance[0, 0]
    if math.isnan(variance):
        return NO_INTERVAL._replace(reason="no interval: a class has one sample only")
    if variance <= 0:
        why = "all scores are equal" if np.ptp(score) == 0 else "the classes are separated completely"
        return NO_INTERVAL._replace(reason=f"no interval: {why}, DeLong's variance is 0")
    width = Z * math.sqrt(variance)
    return Interval(max(0.0, float(auc - width)), min(1.0, float(auc + width)))


def delong_test(first: np.ndarray, second: np.ndarray, label: np.ndarray) -> Test:
    """Paired test of two AUCs on the same samples; `difference` = AUC of `first` less that of `second`."""
    aucs, covariance = delong(np.stack([first, second]), label)
    difference = float(aucs[0] - aucs[1])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    if math.isnan(variance):
        return Test(difference, math.nan, math.nan, math.nan, "no test: a class has one sample only")
    if variance <= 1e-15:  # of two equal rankings it is 0 but for rounding
        return Test(difference, math.nan, math.nan, math.nan, "no test: the variance of the difference is 0")
    deviation = math.sqrt(variance)
    p = 2 * float(stats.norm.sf(abs(difference) / deviation))
    return Test(difference, difference - Z * deviation, difference + Z * deviation, p)


def wilson(numerator: int, denominator: int) -> Interval:
    """Wilson's 95 % interval of a share."""
    if not denominator:
        return NO_INTERVAL
    low, high = proportion_confint(numerator, denominator, alpha=ALPHA, method="wilson")
    return Interval(max(0.0, float(low)), min(1.0, float(high)))


@functools.lru_cache(maxsize=8)  # every method and metric of a test set asks for the same draws
def patient_weights(patients: int, seed: int, *purpose: str | int, draws: int = DRAWS) -> np.ndarray:
    """(draws, patients): how often each patient is in a sample of as many, drawn with replacement; read-only."""
    generator = np.random.default_rng(seed_sequence(seed, "bootstrap", *purpose))
    weights = generator.multinomial(patients, np.full(patients, 1 / patients), size=draws)
    weights.setflags(write=False)
    return weights


def percentile_interval(values: np.ndarray, patients: int) -> Interval:
    """2.5th and 97.5th percentile of bootstrapped values; draws in which the value is undefined (NaN) are left out.

    Args:
        patients: how many the value rests on: of a sensitivity those with a positive sample.
    """
    if patients < MIN_PATIENTS:
        number = "one patient" if patients == 1 else f"{patients} patients"
        return NO_INTERVAL._replace(reason=f"no interval: {number}, a bootstrap takes at least {MIN_PATIENTS}")
    defined = values[np.isfinite(values)]
    if len(defined) < len(values) / 2:
        return NO_INTERVAL._replace(reason="no interval: undefined in most draws of the bootstrap")
    return _limits(defined)


def _limits(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, (ALPHA / 2, 1 - ALPHA / 2))
    return Interval(float(low), float(high))


def crossed_interval(values: np.ndarray, draws: int = 10_000) -> Interval:
    """Percentile limits of the mean by a bootstrap that draws seeds and centres, each with replacement and apart from the other.

    Values of one centre share its images, those of one seed their initial weights, so that the single values are not independent, and
    Student's t over all of them would be too narrow. With three seeds and three centres the limits are near the least and the largest
    mean of a seed or centre: they exclude 0 where all of them agree.

    Args:
        values: (S, K), a row a seed and a column a centre.
    """
    if min(values.shape) < 2:
        return NO_INTERVAL._replace(reason="no interval: fewer than two seeds or centres")
    generator = np.random.default_rng(0)
    seeds, centers = (generator.integers(count, size=(draws, count)) for count in values.shape)
    return _limits(values[seeds[:, :, None], centers[:, None, :]].mean((1, 2)))


def bootstrapped_ratios(numerator: np.ndarray, denominator: np.ndarray, patient: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) sum of numerators / sum of denominators over the drawn patients' samples; NaN where the latter is 0.

    A mean is such a ratio with denominators of 1.

    Args:
        numerator, denominator: (n,).  patient: (n,) index of each sample's patient.  weights: (draws, P) from `patient_weights`.
    """
    sums = [np.bincount(patient, weights=values, minlength=weights.shape[1]) for values in (numerator, denominator)]
    above, below = (weights @ total for total in sums)
    return np.where(below > 0, above / np.where(below > 0, below, 1), math.nan)


def bootstrapped_aucs(score: np.ndarray, label: np.ndarray, patient: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) AUC over the drawn patients' samples, ties half; NaN where a draw has one class only. Arguments as above, score (n,).

    An AUC is a share of pairs, and how many pairs any two patients win does not change from draw to draw: counted once, a draw costs no
    more than a quadratic form in the patients' weights, however many samples each has.
    """
    weights = weights.astype(float)
    positive = np.asarray(label) == 1
    up, down = (np.bincount(patient[chosen], minlength=weights.shape[1]) for chosen in (positive, ~positive))
    won = ((weights @ _pairs_won(np.asarray(score), positive, patient, weights.shape[1])) * weights).sum(1)
    pairs = (weights @ up) * (weights @ down)
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), math.nan)


def _pairs_won(score: np.ndarray, positive: np.ndarray, patient: np.ndarray, patients: int) -> np.ndarray:
    """(P, P): in how many pairs a positive sample of the row's patient is above a negative one of the column's; a tie is half a pair."""
    _, rank = np.unique(score, return_inverse=True)  # equal for equal scores
    ranks = rank.max() + 1
    owners = sparse.csr_array((np.ones(positive.sum()), (patient[positive], rank[positive])), shape=(patients, ranks))
    won = np.empty((patients, patients))
    width = max(1, CHUNK // ranks)
    for start in range(0, patients, width):
        size = min(width, patients - start)
        chosen = ~positive & (patient >= start) & (patient < start + size)
        place = rank[chosen] * size + patient[chosen] - start
        negative = np.bincount(place, minlength=ranks * size).reshape(ranks, size)
        won[:, start : start + size] = owners @ (np.cumsum(negative, axis=0) - negative / 2)
    return won


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of bootstrapped differences: twice the smaller share on either side of 0, counting the sample itself, at most 1."""
    defined = differences[np.isfinite(differences)]
    smaller = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(defined) + 1)))


def wilcoxon_p(first: np.ndarray, second: np.ndarray) -> tuple[float, str]:
    """Two-sided p of Wilcoxon's signed-rank test of paired values, and the reason where it is NaN.

    Pairs without difference are left out (Wilcoxon's rule); without ties and up to 50 pairs p is exact (scipy's "auto").
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    if not len(difference):
        return math.nan, "no test: no pairs"
    unequal = difference[difference != 0]  # scipy would leave zeros out, too, but go over to the approximation
    return (float(stats.wilcoxon(unequal).pvalue), "") if len(unequal) else (math.nan, "no test: all pairs are equal")


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction over the p-values that are defined; NaN stays NaN and does not count."""
    values = np.asarray(p, dtype=float)
    corrected, defined = np.full(len(values), math.nan), np.isfinite(values)
    if defined.any():
        corrected[defined] = multipletests(values[defined], alpha=ALPHA, method="holm")[1]
    return corrected


def t_test(first: np.ndarray, second: np.ndarray) -> Test:
    """Independent two-tailed t-test with pooled variance (paper: Fig. 7c), from values."""
    return t_test_from_summaries(*(_summary(np.asarray(values, dtype=float)) for values in (first, second)))


def _summary(values: np.ndarray) -> tuple[float, float, int]:
    return (float(values.mean()), float(values.std(ddof=1)), len(values)) if len(values) > 1 else (math.nan, math.nan, len(values))


def t_test_from_summaries(first: tuple[float, float, int], second: tuple[float, float, int]) -> Test:
    """As `t_test`, from (mean, SD with n - 1, n) of both groups: what a paper prints."""
    (mean, deviation, n), (other_mean, other_deviation, other_n) = first, second
    if min(n, other_n) < 2:
        return Test(math.nan, math.nan, math.nan, math.nan, f"no test: groups of {n} and {other_n}, at least 2 each are needed")
    difference = mean - other_mean
    freedom = n + other_n - 2
    error = math.sqrt(((n - 1) * deviation**2 + (other_n - 1) * other_deviation**2) / freedom * (1 / n + 1 / other_n))
    if not error:
        return Test(difference, math.nan, math.nan, math.nan, "no test: no spread in either group")
    p = float(stats.ttest_ind_from_stats(mean, deviation, n, other_mean, other_deviation, other_n, equal_var=True).pvalue)
    width = float(stats.t.ppf(1 - ALPHA / 2, freedom)) * error
    return Test(difference, difference - width, difference + width, p)
