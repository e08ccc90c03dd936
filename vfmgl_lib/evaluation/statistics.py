"""Intervals and tests: DeLong for AUCs, Wilson for shares, t over patients, a bootstrap over patients, paired comparisons.

scipy and statsmodels do the standard parts. Level: 95 % throughout. Where something cannot be estimated it is NaN, and a reason says why.

What is independent is the patient, never the image: paired tests are of each patient's mean difference (`over_patients`) or of AUCs with
patients as clusters (`auc_contrast`), and there is none with fewer than `MIN_PATIENTS`. Their type I error and power, and the coverage of
`crossed_interval`, were simulated (`benchmarks/coverage.py`, `results/coverage/`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy

from vfmgl_lib.data.patient_notes import MIN_PATIENTS as MIN_PATIENTS  # what is evaluated takes it from here

ALPHA = 0.05
Z = 1.959963984540054  # scipy.stats.norm.ppf(1 - ALPHA / 2), in full: scipy.stats takes half a second
DRAWS = 2000  # of the bootstrap
MOST_UNDEFINED = 0.05  # share of the draws, which are left out


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


NO_INTERVAL = Interval(math.nan, math.nan, "")


class Estimate(NamedTuple):
    """A difference with its standard error and the degrees of freedom of its t; NaN with the reason where it cannot be judged."""

    value: float
    error: float
    freedom: float
    patients: int
    reason: str = ""

    def test(self) -> Test:
        """Two-sided, against 0."""
        reason = self.reason or ("" if self.error else "all pairs are equal")
        if reason:
            return Test(self.value, math.nan, math.nan, math.nan, f"no test: {reason}")
        width = float(scipy.stats.t.ppf(1 - ALPHA / 2, self.freedom)) * self.error
        p = 2 * float(scipy.stats.t.sf(abs(self.value) / self.error, self.freedom))
        return Test(self.value, self.value - width, self.value + width, p)

    def lower(self) -> float:
        """The one-sided 95 % limit from below; NaN where there is a reason; of pairs that are all equal their difference."""
        return (
            math.nan if self.reason else self.value - (float(scipy.stats.t.ppf(1 - ALPHA, self.freedom)) * self.error if self.error else 0)
        )


def over_patients(values: np.ndarray, patient: np.ndarray) -> Estimate:
    """The mean over patients of each patient's mean, e.g. of paired differences of images, with the standard error of that mean.

    Of as many images a patient it is what a mixed model with a random effect of the patient gives. With five patients Wilcoxon's test of
    the means could not reach p = 0.05 at all; the t-test holds its level where differences are symmetric, as they are where two methods
    are alike; where they are as skewed as an exponential distribution it rejects in 7 (30 patients) to
    10 % (five).

    Args:
        values: (n,) of the images.  patient: (n,) names or numbers.
    """
    owner = np.unique(np.asarray(patient), return_inverse=True)[1]
    means = np.bincount(owner, weights=np.asarray(values, dtype=float)) / np.bincount(owner)
    value = float(means.mean()) if len(means) else math.nan
    if len(means) < MIN_PATIENTS:
        return Estimate(value, math.nan, math.nan, len(means), too_few(len(means)))
    return Estimate(value, standard_error(means), len(means) - 1, len(means))


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values; 0 where they differ by rounding alone."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if np.ptp(values) > 1e-12 else 0.0


def too_few(patients: int, what: str = "", effective: float = math.nan) -> str:
    """ "4 patients, at least 5 are needed"; `what` says which, e.g. " of one class"; `effective`: as how many they count."""
    counted = f" count as {effective:.1f} for their unequal numbers of images" if patients >= MIN_PATIENTS else ""
    return f"{'one patient' if patients == 1 else f'{patients} patients'}{what}{counted}, at least {MIN_PATIENTS} are needed"


def effective_patients(images: np.ndarray) -> float:
    """As how many patients of equal weight they count: (Σ n)² / Σ n² of their numbers of images (Kish 1965); at most their number.

    Where every image counts once, one patient with 300 of 321 images is nearly all there is.
    """
    return float(images.sum() ** 2 / (images**2).sum())


def _placements(scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k, m) and (k, n): the share of the other class on the right side of each positive and of each negative sample; ties count half."""
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    m, n = positive.shape[1], negative.shape[1]
    if not m or not n:
        raise ValueError(f"an AUC needs both classes, got {m} positive and {n} negative samples")
    overall = scipy.stats.rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    return (overall[:, :m] - scipy.stats.rankdata(positive, axis=1)) / n, 1 - (overall[:, m:] - scipy.stats.rankdata(negative, axis=1)) / m


def delong(scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of k scores of the same n samples and their covariance (DeLong, DeLong and Clarke-Pearson 1988), by midranks (Sun and Xu 2014).

    Args:
        scores: (k, n), higher for the positive class; ties count half.  label: (n,) 0 or 1, both there.
    Returns: AUCs (k,) in [0, 1]; covariance (k, k), NaN where a class has one sample only.
    Raises: ValueError: only one class.
    """
    scores, label = np.atleast_2d(np.asarray(scores, dtype=float)), np.asarray(label, dtype=int)
    above, below = _placements(scores, label)
    m, n = above.shape[1], below.shape[1]
    if min(m, n) < 2:
        return above.mean(1), np.full((len(scores), len(scores)), math.nan)
    return above.mean(1), np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n


def auc_interval(score: np.ndarray, label: np.ndarray, patient: np.ndarray | None = None) -> Interval:
    """95 % interval of an AUC: DeLong's variance on the logit scale (Pepe 2003), so that it stays within 0 and 1 and is not symmetric.

    Where patients have several samples the variance and the t are `auc_contrast`'s, and there must be five patients of each class: in a
    simulation it holds the truth in 92 to 97 % of the cases (0.1.0's bootstrap over patients: 77 to 94).

    Where the classes are separated completely the AUC is 1 (or 0) and DeLong's variance 0. Then min(m, n) pairs of a positive and a
    negative sample that share none (of several samples of a patient: no patient) are independent, and all are in order: the limit is the
    AUC with which that happens in 2.5 %, 0.025^(1 / min(m, n)), Clopper and Pearson's; the other limit is 1 (or 0).
    """
    label = np.asarray(label, dtype=int)
    clustered = patient is not None and len(np.unique(patient)) < len(label)
    if clustered:
        estimate = auc_contrast(np.asarray(score)[None], label, (1,), patient)
        if estimate.patients and "needed" in estimate.reason:
            return NO_INTERVAL._replace(reason=f"no interval: {estimate.reason}")
        auc, variance, quantile = estimate.value, estimate.error**2, float(scipy.stats.t.ppf(1 - ALPHA / 2, estimate.freedom))
        sizes = [len(np.unique(np.asarray(patient)[label == value])) for value in (0, 1)]
    else:
        (auc,), covariance = delong(score, label)
        variance, quantile, sizes = covariance[0, 0], Z, [int((label == value).sum()) for value in (0, 1)]
        if math.isnan(variance):
            return NO_INTERVAL._replace(reason="no interval: a class has one sample only")
    if auc in (0, 1):
        limit = (ALPHA / 2) ** (1 / min(sizes))
        return Interval(float(limit), 1.0) if auc else Interval(0.0, float(1 - limit))
    if not variance > 0:
        return NO_INTERVAL._replace(reason="no interval: all scores are equal, DeLong's variance is 0")
    width = quantile * math.sqrt(variance) / (auc * (1 - auc))
    low, high = (float(scipy.special.expit(scipy.special.logit(auc) + side * width)) for side in (-1, 1))
    return Interval(low, high)


def auc_contrast(scores: np.ndarray, label: np.ndarray, weights: Sequence[float], patient: np.ndarray | None = None) -> Estimate:
    """A weighted sum of the AUCs of k scores of the same samples: of two with weights (1, -1) their difference.

    The variance is DeLong's; where patients have several samples, Obuchowski's (1997), of patients as clusters. Its t has Welch and
    Satterthwaite's degrees of freedom of the two classes' parts: the normal distribution rejects too often where a class is small.
    Patients have weights, their images: it is the effective number of each class (`effective_patients`, rounded) that must be five, and a
    sum of squares of parts with weights w has the degrees of freedom of (Σ w²)² / Σ w⁴ patients. With the number itself equal methods were
    rejected in up to 76 % of the cases.

    Args:
        scores, label: as for `delong`.  weights: (k,).
        patient: (n,) names or numbers; None: each sample is a patient of its own.
    Raises: ValueError: only one class.
    """
    scores, label = np.asarray(scores, dtype=float), np.asarray(label, dtype=int)
    owner = np.arange(len(label)) if patient is None else np.unique(patient, return_inverse=True)[1]
    patients = int(owner.max()) + 1
    images = [np.bincount(owner[label == value], minlength=patients) for value in (1, 0)]
    parts = []
    for placed, which, total in zip(_placements(scores, label), (1, 0), images, strict=True):
        single = np.asarray(weights) @ placed
        parts.append(np.bincount(owner[label == which], weights=single - single.mean(), minlength=patients) / total.sum())
    return _of_strata(float(single.mean()), parts, images, scores, weights)


def macro_auc_contrast(scores: np.ndarray, label: np.ndarray, weights: Sequence[float], patient: np.ndarray | None = None) -> Estimate:
    """The same for the mean over K > 2 classes of the AUC of each against the others.

    Each sample counts K times, once as one of its class and K - 1 times as one of the others; what it adds to the mean is the sum of its
    K placements, and the variance is that of these sums within the classes, as DeLong's is for two. With K = 2 it is `auc_contrast`.

    Args:
        scores: (k, n, K) of k models.  label: (n,) from 0 to K - 1.  weights: (k,).
        patient: (n,) names or numbers; None: each sample is a patient of its own.
    Raises: ValueError: a class without a sample.
    """
    scores, label = np.asarray(scores, dtype=float), np.asarray(label, dtype=int)
    classes, n = scores.shape[2], len(label)
    owner = np.arange(n) if patient is None else np.unique(patient, return_inverse=True)[1]
    patients = int(owner.max()) + 1
    members = [label == number for number in range(classes)]
    added = np.zeros(n)  # what each sample adds to the mean, times the size of its class
    value = 0.0
    for number, own in enumerate(members):
        above, below = (np.asarray(weights) @ placed for placed in _placements(scores[:, :, number], own.astype(int)))
        value += float(above.mean()) / classes
        added[own] += above / classes
        sizes = np.bincount(label, minlength=classes)[label[~own]]
        added[~own] += below * sizes / (~own).sum() / classes
    images = [np.bincount(owner[own], minlength=patients) for own in members]
    parts = [np.bincount(owner[own], weights=added[own] - added[own].mean(), minlength=patients) / own.sum() for own in members]
    return _of_strata(value, parts, images, scores, weights)


def _of_strata(
    value: float, parts: Sequence[np.ndarray], images: Sequence[np.ndarray], scores: np.ndarray, weights: Sequence[float]
) -> Estimate:
    """An estimate that is a sum over classes of means within them, judged by patient as `auc_contrast` says.

    Args:
        parts: of each class (patients,): what a patient's samples of the class add to the estimate, less their expectation.
        images: of each class (patients,): how many samples of it a patient has.
        scores, weights: where the weighted sum of the scores is 0 everywhere, so is the error.
    """
    patients = len(parts[0])
    counts = [effective_patients(total) for total in images]
    if round(min(counts)) < MIN_PATIENTS:
        scarcer = int(np.argmin(counts))
        reason = too_few(int((images[scarcer] > 0).sum()), " of one class", counts[scarcer])
        return Estimate(value, math.nan, math.nan, patients, reason)
    shares = [total / total.sum() for total in images]
    pairs = sum(float(one @ other) for one, other in combinations(parts, 2))
    together, free = effective_patients(sum(shares)), [effective_patients(share**2) - 1 for share in (*shares, sum(shares))]
    own = [count / (count - 1) * float(part @ part) for count, part in zip(counts, parts, strict=True)]
    variance = sum(own) + 2 * together / (together - 1) * pairs
    if variance <= 1e-15:  # of two equal rankings it is 0 but for rounding
        same = np.allclose(np.tensordot(np.asarray(weights), scores, 1), 0, rtol=0, atol=1e-12)
        return Estimate(value, 0.0 if same else math.nan, math.nan, patients, "" if same else "the variance of the difference is 0")
    freedom = sum(own) ** 2 / sum(part**2 / one for one, part in zip(free[:-1], own, strict=True))
    return Estimate(value, math.sqrt(variance), min(freedom, free[-1]), patients)


def delong_test(first: np.ndarray, second: np.ndarray, label: np.ndarray, patient: np.ndarray | None = None) -> Test:
    """Paired test of two AUCs on the same samples (`auc_contrast`); `difference` = AUC of `first` less that of `second`."""
    return auc_contrast(np.stack([first, second]), label, (1, -1), patient).test()


def wilson(numerator: int, denominator: int) -> Interval:
    """Wilson's 95 % interval of a share."""
    from statsmodels.stats.proportion import proportion_confint

    if not denominator:
        return NO_INTERVAL
    low, high = proportion_confint(numerator, denominator, alpha=ALPHA, method="wilson")
    return Interval(max(0.0, float(low)), min(1.0, float(high)))


def ratio_interval(numerator: np.ndarray, denominator: np.ndarray, patient: np.ndarray) -> Interval:
    """95 % limits of Σ numerator / Σ denominator over samples of which several are a patient's, e.g. of a mean over images.

    Linearised, with patients as clusters (Cochran 1977), and t with the degrees of freedom of the effective number of patients
    (`effective_patients`, of the denominators); limits of values within [0, 1] stay there. Simulated, they hold the truth in 94 to 96 % of
    the cases where patients are normal, in 91 to 94 % where they are as skewed as Beta(4, 1), and where one patient in ten fails wholly in
    47 (five patients) to 87 % (twenty). Percentiles of a bootstrap over patients, as in 0.1.0: 82 to 94 % of the first two kinds
    (`results/coverage/means.csv`).

    Args:
        numerator, denominator: (n,); samples whose denominator is 0 do not count.  patient: (n,) names or numbers.
    """
    counted = np.asarray(denominator) > 0
    numerator, denominator = (np.asarray(values, dtype=float)[counted] for values in (numerator, denominator))
    owner = np.unique(np.asarray(patient)[counted], return_inverse=True)[1]
    above, below = np.bincount(owner, weights=numerator), np.bincount(owner, weights=denominator)
    if len(below) < MIN_PATIENTS:
        return NO_INTERVAL._replace(reason=f"no interval: {too_few(len(below))}")
    value, patients = above.sum() / below.sum(), effective_patients(below)
    parts = (above - value * below) / below.sum()
    if np.abs(parts).max() < 1e-12:  # a width of 0 would be certainty
        return NO_INTERVAL._replace(reason="no interval: all patients have the same value")
    width = float(scipy.stats.t.ppf(1 - ALPHA / 2, patients - 1)) * math.sqrt(patients / (patients - 1) * float(parts @ parts))
    within = numerator.min() >= 0 and (numerator <= denominator).all()
    low, high = (float(np.clip(limit, 0, 1) if within else limit) for limit in (value - width, value + width))
    return Interval(low, high)


def mean_interval(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> Interval:
    """95 % limits of the mean of independent estimates, e.g. of centres that share no patient, from the limits of each.

    The distances of the estimates from their limits are added in squares, upwards and downwards apart (Zou and Donner 2008). So the limits
    are for other samples of the same kind, here other patients of these centres; they say nothing of other centres.

    Args:
        values, low, high: (K,) in one unit; NaN with the reason where an estimate has no limits.
    """
    values, low, high = (np.asarray(column, dtype=float) for column in (values, low, high))
    missing = int((~np.isfinite(np.stack([values, low, high]))).any(0).sum())
    if missing or not len(values):
        return NO_INTERVAL._replace(reason=f"no interval: {missing} of {len(values)} parts have none")
    mean, count = float(values.mean()), len(values)
    return Interval(mean - float(np.linalg.norm(values - low)) / count, mean + float(np.linalg.norm(high - values)) / count)


def bootstrap_interval(
    strata: np.ndarray, statistic: Callable[[Sequence[np.ndarray]], np.ndarray], generator: np.random.Generator
) -> Interval:
    """95 % percentile limits of a statistic of patients, who are drawn with replacement within each stratum.

    Args:
        strata: (n,), of each patient, e.g. its centre.
        statistic: from the patients drawn of each stratum, row numbers (`DRAWS`, patients of the stratum), to (`DRAWS`,) values.
    Returns: NaN with the reason where a stratum has fewer than `MIN_PATIENTS`, or the statistic is undefined in more than a twentieth of
        the draws; fewer undefined ones are left out.
    """
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    fewest = min(map(len, members), default=0)
    if fewest < MIN_PATIENTS:
        return NO_INTERVAL._replace(reason=f"no interval: {too_few(fewest, ' of one centre' if len(members) > 1 else '')}")
    drawn = [own[generator.integers(len(own), size=(DRAWS, len(own)))] for own in members]
    values = statistic(drawn)
    if (undefined := np.isnan(values).mean()) > MOST_UNDEFINED:
        return NO_INTERVAL._replace(reason=f"no interval: undefined in {undefined:.0%} of the draws")
    low, high = np.quantile(values[~np.isnan(values)], (ALPHA / 2, 1 - ALPHA / 2))
    return Interval(float(low), float(high))


def crossed_interval(values: np.ndarray) -> Interval:
    """95 % limits of a mean over seeds and centres, both taken as drawn: for other seeds and for other centres of this kind.

    The standard error of the mean of the seeds' means and that of the centres' means are added in squares; the t has Welch and
    Satterthwaite's degrees of freedom. Values of one centre share its images, those of one seed its initial weights, so that single
    values are not independent. What is left beside seed and centre is counted in both: limits are too wide where nothing else varies
    (99 % instead of 95). Simulated with normal effects they hold the truth in at least 93 % of the cases for 3 to 10 seeds and 3 to 5
    centres, whichever of the three dominates or is 0 (`results/coverage/`); with two seeds or centres it was 91 %, so there are none.
    Where seeds' or centres' effects are as skewed as an exponential distribution it is 87 to 89 %: one centre that is far off is too
    seldom among three to five. With four centres t has three degrees of freedom at most where the centres differ: limits are then wide,
    because four centres say little about a fifth.

    Args:
        values: (S, K), a row a seed and a column a centre; NaN with the reason where there are fewer than three of either, a value is
            NaN or all means are equal.
    """
    found = crossed_test(values)
    return Interval(found.low, found.high, found.reason)


def crossed_test(values: np.ndarray) -> Test:
    """The test against 0 that belongs to `crossed_interval`.

    Rows may also be the folds of cross-validations, several times repeated: they share patients and training images, but centres do not,
    and in a simulation of five folds, two times, of 7 to 16 patients a centre the limits hold the truth in at least 93 % of the cases,
    whichever of patients, training sets, initial weights and centres dominates (`results/coverage/folds.csv`); those of Nadeau and Bengio's
    corrected t over the folds' means in 24 to 76 % where training sets or centres do.

    Args:
        values: (S, K) differences, a row a seed (or fold) and a column a centre.
    """
    mean = float(values.mean()) if values.size else math.nan
    none = Test(mean, math.nan, math.nan, math.nan)
    if min(values.shape) < 3:
        return none._replace(reason="no interval: fewer than three seeds or centres")
    if not np.isfinite(values).all():
        return none._replace(reason="no interval: a seed has no value at a centre")
    means = [values.mean(axis) for axis in (1, 0)]
    parts = [standard_error(one) ** 2 for one in means]
    if not sum(parts):  # a width of 0 would be certainty
        return none._replace(reason="no interval: the means of all seeds and of all centres are equal")
    freedom = sum(parts) ** 2 / sum(part**2 / (len(one) - 1) for part, one in zip(parts, means, strict=True))
    return Estimate(mean, math.sqrt(sum(parts)), freedom, 0).test()


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction over the p-values that are defined; NaN stays NaN and does not count.

    The family is the same everywhere (`holm_families`): all tests that one table makes with one metric, budget, seed and division of the
    data, over all its methods (or steps of the ablation) and all its centres (or pairs of model and test centre). Leads over controls
    (`results.compare_controls`) are a table of their own and so a family of their own; a row in which a control is no control has no p.
    """
    values = np.asarray(p, dtype=float)
    corrected, defined = np.full(len(values), math.nan), np.isfinite(values)
    if defined.any():
        from statsmodels.stats.multitest import multipletests

        corrected[defined] = multipletests(values[defined], alpha=ALPHA, method="holm")[1]
    return corrected


def holm_families(tests: pd.DataFrame) -> pd.Series:
    """p corrected by Holm within each family (`holm`); `tests` has the columns seed, split_id, budget, metric and p."""
    return tests.groupby(["seed", "split_id", "budget", "metric"], sort=False)["p"].transform(holm) if len(tests) else tests["p"]
