"""Do intervals hold the truth as often as they say, and do tests reject as seldom? Simulated; no image, no training.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py            # some minutes on one core; writes results/coverage/*.csv
    OMP_NUM_THREADS=1 python benchmarks/coverage.py --draws 200 --out /tmp/coverage

Claims: `statistics.crossed_interval` holds the mean over seeds and centres in at least 93 % of the cases for 3 to 10 seeds and 3 to 5
centres, whichever of the variances of seed, centre and residual dominates or is 0 (intervals.csv), and over the folds of a repeated
cross-validation and centres in at least 93 % (folds.csv). The paired tests of `results` reject
equal methods in at most 6 % at a nominal 5 %, and find an effect (tests.csv); but in 7 to 10 % where patients' differences are as skewed
as an exponential distribution, and two AUCs have no p ("has p") where patients have too unequal numbers of images. A model that is behind
by exactly the margin is said to generalise (`margin.within`) as often as margins.csv has it, beside the limit alone. The limits of a mean
over images, and of an AUC with several images a patient, hold the truth as often as means.csv has it.

Tried beside them, in the same rows: of the intervals 0.1.0's bootstrap of seeds and centres, t over the seeds' means (right for these very
centres, not for others), and the random-effects variance MS_seed + MS_centre − MS_residual; of the tests Wilcoxon's over images as they
were in 0.1.0, Wilcoxon's over patients' means, the patient bootstrap of two AUCs as in 0.1.0.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from itertools import chain, product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse, stats

from vfmgl_lib.base.files import write_text
from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.evaluation import statistics
from vfmgl_lib.evaluation.margin import within

SHAPES = (*product((3, 4, 5, 7, 10), (4, 5)), *product((3, 4, 5, 7, 10), (3,)))  # seeds, centres
# Standard deviations of seed, centre and residual: each alone, each ten times and three times the others, each 0, and what was worst in
# a finer search (the seeds dominate, the centres have a third of their deviation, nothing is left).
SPREADS = (
    *((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0.1, 0.1), (0.1, 1, 0.1), (0.1, 0.1, 1), (1, 0.3, 0.3), (0.3, 1, 0.3), (0.3, 0.3, 1)),
    *((1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1), (1, 0.45, 0), (0.45, 1, 0)),
)
# Cross-validation: patients of each centre (those of the prostates and the nuclei), and deviations as in `folded`.
FOLD_PATIENTS = ((12, 12, 13, 13), (11, 7, 7, 16))
FOLD_SPREADS = (
    *((1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0.1, 0.1, 0.1, 0.1, 1), (1, 0.3, 0.1, 0.3, 0)),
    *((1, 0.3, 0.1, 0.3, 0.3), (0.3, 0.3, 0.3, 0.3, 0), (1, 0, 0, 0.3, 0), (0.3, 1, 0.3, 0.3, 0), (0.3, 0.3, 1, 0.3, 0.3)),
)
PATIENTS = (5, 8, 12, 30)
DIFFERENCES = ("normal", "bounded", "heavy tails", "skewed")
IMAGES, SHIFT = 10, 0.1  # images a patient; the effect: a difference of Dice of 0.1, where patients' differences have an SD of about 0.1
# Positive and negative patients, images of each; None: every patient has images of both classes.
CLASSES = ((5, 5, 1), (5, 12, 1), (5, 40, 1), (20, 20, 1), (5, 5, 6), (5, 40, 6), (10, 10, 6), (30, 30, 6), (5, None, 6), (15, None, 6))
# The same with patients that have very different numbers of images. Where they count as fewer than five of a class there is no p.
UNEQUAL = (
    (8, 8, (300, *[3] * 7) * 2),
    (6, 6, (1, 2, 5, 10, 50, 200) * 2),
    (5, 30, (1, 1, 2, 100, 30, *(1, 3, 10, 30, 2) * 6)),
    (8, None, (1, 2, 5, 10, 20, 40, 80, 120)),
    (5, 5, (5, 8, 10, 12, 15) * 2),
    (6, 6, (5, 8, 10, 12, 15, 20) * 2),
    (8, 8, (5, 8, 10, 12, 15, 20, 25, 30) * 2),
    (20, 20, (*(1, 2, 3, 5, 10) * 3, 20, 30, 40, 50, 50) * 2),
    (5, 60, (*[10] * 5, *(1, 3, 10, 30, 2) * 12)),
    (8, None, (15, 20, 25, 30, 40, 45, 50, 60)),
    (40, None, (2, 2, 3, 5, 100) * 8),
)
MARGIN = 0.05
RARE = {"one in three loses 0.15": 1 / 3, "one in five loses 0.25": 0.2, "one in ten loses 0.5": 0.1, "one in twenty loses 1": 0.05}
SIGNALS = (1.0, 2.5)  # distance of the classes in SDs of a patient's noise: equal methods both have the first; the effect


def crossed(seeds: int, centers: int, spread: tuple[float, float, float], draws: int, generator: np.random.Generator) -> np.ndarray:
    """(draws, seeds, centres) values whose true mean is 0."""
    of_seed, of_center, rest = (
        deviation * generator.normal(size=shape)
        for deviation, shape in zip(spread, ((draws, seeds, 1), (draws, 1, centers), (draws, seeds, centers)), strict=True)
    )
    return of_seed + of_center + rest


def held(values: np.ndarray, interval: Callable[[np.ndarray], tuple]) -> float:
    """How often limits hold 0."""
    limits = [interval(table)[:2] for table in values]
    return float(np.mean([low <= 0 <= high for low, high in limits]))


def bootstrapped(values: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """0.1.0's: seeds and centres are drawn with replacement, apart from each other."""
    generator = np.random.default_rng(0)
    seeds, centers = (generator.integers(count, size=(draws, count)) for count in values.shape)
    return tuple(np.quantile(values[seeds[:, :, None], centers[:, None, :]].mean((1, 2)), (0.025, 0.975)))


def of_seeds(values: np.ndarray) -> tuple[float, float]:
    means = values.mean(1)
    width = stats.t.ppf(0.975, len(means) - 1) * stats.sem(means)
    return means.mean() - width, means.mean() + width


def random_effects(values: np.ndarray) -> tuple[float, float]:
    """Variance of the mean from (MS_seed + MS_centre − MS_residual) / (S K), 0 where that is negative; Satterthwaite's t."""
    seeds, centers = values.shape
    mean, rows, columns = values.mean(), values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    squares = [centers * ((rows - mean) ** 2).sum(), seeds * ((columns - mean) ** 2).sum(), ((values - rows - columns + mean) ** 2).sum()]
    free = [seeds - 1, centers - 1, (seeds - 1) * (centers - 1)]
    parts = np.divide(squares, free) * (1, 1, -1)
    freedom = max(1.0, parts.sum() ** 2 / (parts**2 / free).sum())
    width = stats.t.ppf(0.975, freedom) * np.sqrt(max(parts.sum(), 0) / values.size)
    return mean - width, mean + width


def interval_rows(draws: int) -> Iterator[dict]:
    for number, ((seeds, centers), spread) in enumerate(product(SHAPES, SPREADS)):
        values = crossed(seeds, centers, spread, draws, np.random.default_rng((1, number)))
        row = {"seeds": seeds, "centers": centers} | dict(zip(("sd_seed", "sd_center", "sd_rest"), spread, strict=True))
        tried = (
            {  # of four and five centres alone
                "bootstrap of 0.1.0": held(values[:500], bootstrapped),
                "t over seeds": held(values[:2000], of_seeds),
                "random effects": held(values[:2000], random_effects),
            }
            if centers > 3
            else {}
        )
        yield row | {"crossed_interval": held(values, statistics.crossed_interval)} | tried | {"draws": draws}


def folded(patients: tuple[int, ...], spread: tuple[float, ...], folds: int, repeats: int, generator: np.random.Generator) -> np.ndarray:
    """(repeats * folds, centres) values of a repeated cross-validation whose true mean is 0.

    `spread`: standard deviations of a tested patient, of a model for the patients that it learnt from, of a run's initial weights at all
    centres, of what is left, and of a centre.
    """
    of_patient, of_training, of_run, rest, of_center = spread
    values = of_run * generator.normal(size=(repeats * folds, 1)) + rest * generator.normal(size=(repeats * folds, len(patients)))
    for column, count in enumerate(patients):
        tested, learnt = of_patient * generator.normal(size=count), of_training * generator.normal(size=count)
        learnt = learnt * np.sqrt(count * (1 - 1 / folds))  # so that the mean of a training set has the spread's deviation
        values[:, column] += of_center * generator.normal()
        for repeat in range(repeats):
            order = generator.permutation(count)
            for fold in range(folds):
                held_out = order[fold::folds]
                values[repeat * folds + fold, column] += tested[held_out].mean() + np.delete(learnt, held_out).mean()
    return values


def nadeau_bengio(values: np.ndarray, folds: int) -> tuple[float, float]:
    """t over the folds' means with a variance corrected for shared training sets (Nadeau and Bengio 2003)."""
    means = values.mean(1)
    width = stats.t.ppf(0.975, len(means) - 1) * np.sqrt(means.var(ddof=1) * (1 / len(means) + 1 / (folds - 1)))
    return means.mean() - width, means.mean() + width


def fold_rows(draws: int, folds: int = 5, repeats: int = 2) -> Iterator[dict]:
    for number, (patients, spread) in enumerate(product(FOLD_PATIENTS, FOLD_SPREADS)):
        generator = np.random.default_rng((8, number))
        values = np.stack([folded(patients, spread, folds, repeats, generator) for _ in range(draws)])
        names = ("sd_patient", "sd_training_set", "sd_run", "sd_rest", "sd_center")
        row = {"patients": " ".join(map(str, patients)), "folds": folds, "repeats": repeats} | dict(zip(names, spread, strict=True))
        row |= {"crossed_interval": held(values, statistics.crossed_interval)}
        yield row | {"Nadeau-Bengio": held(values, lambda table: nadeau_bengio(table, folds)), "draws": draws}


def differences(kind: str, patients: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Differences of Dice of two methods that are equal on average, and whose they are; images of a patient go together."""
    patient = np.repeat(np.arange(patients), IMAGES)
    noise = generator.normal(size=patient.size)
    if kind == "bounded":  # Dice of both is a logistic function of how hard the patient and the image are for the method
        hard = generator.normal(size=patients)[patient] + 0.5 * noise
        sides = [hard + 0.7 * generator.normal(size=patients)[patient] + 0.5 * generator.normal(size=patient.size) for _ in range(2)]
        return np.subtract(*(1 / (1 + np.exp(-side)) for side in sides)), patient
    own = {
        "normal": lambda: 0.1 * generator.normal(size=patients),
        "heavy tails": lambda: 0.07 * generator.standard_t(3, size=patients),
        "skewed": lambda: 0.1 * (generator.exponential(size=patients) - 1),
    }[kind]()
    return own[patient] + 0.1 * noise, patient


def scores(
    positive: int, negative: int | None, images: int | tuple[int, ...], signals: tuple[float, float], generator: np.random.Generator
) -> tuple:
    """(2, n) scores of two methods, labels and patients; a patient shifts its images, in part alike for both methods."""
    patients = positive + (negative or 0)
    counts = np.broadcast_to(images, patients)
    patient = np.repeat(np.arange(patients), counts)
    both = np.concatenate([np.arange(count) % 2 for count in counts])
    label = both if negative is None else (patient < positive).astype(int)
    common = generator.normal(size=patients)[patient]
    own = [generator.normal(size=patients)[patient] + generator.normal(size=patient.size) for _ in signals]
    return np.stack([signal * label + 0.7 * (common + one) for signal, one in zip(signals, own, strict=True)]), label, patient


@functools.lru_cache(maxsize=8)  # every method and metric of a test set asks for the same draws
def patient_weights(patients: int, seed: int, *purpose: str | int, draws: int = 2000) -> np.ndarray:
    """(draws, patients): how often each patient is in a sample of as many, drawn with replacement; read-only."""
    generator = np.random.default_rng(seed_sequence(seed, "bootstrap", *purpose))
    weights = generator.multinomial(patients, np.full(patients, 1 / patients), size=draws)
    weights.setflags(write=False)
    return weights


def percentiles(values: np.ndarray) -> tuple[float, float]:
    return tuple(np.nanquantile(values, (0.025, 0.975)))


def bootstrapped_ratios(numerator: np.ndarray, denominator: np.ndarray, patient: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(draws,) sum of numerators / sum of denominators over the drawn patients' samples; NaN where the latter is 0.

    A mean is such a ratio with denominators of 1.

    Args:
        numerator, denominator: (n,).  patient: (n,) index of each sample's patient.  weights: (draws, P) from `patient_weights`.
    """
    sums = [np.bincount(patient, weights=values, minlength=weights.shape[1]) for values in (numerator, denominator)]
    above, below = (weights @ total for total in sums)
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)


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
    return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), np.nan)


def _pairs_won(score: np.ndarray, positive: np.ndarray, patient: np.ndarray, patients: int) -> np.ndarray:
    """(P, P): in how many pairs a positive sample of the row's patient is above a negative one of the column's; a tie is half a pair."""
    _, rank = np.unique(score, return_inverse=True)  # equal for equal scores
    ranks = rank.max() + 1
    owners = sparse.csr_array((np.ones(positive.sum()), (patient[positive], rank[positive])), shape=(patients, ranks))
    won = np.empty((patients, patients))
    width = max(1, 2**22 // ranks)  # numbers held at once
    for start in range(0, patients, width):
        size = min(width, patients - start)
        chosen = ~positive & (patient >= start) & (patient < start + size)
        place = rank[chosen] * size + patient[chosen] - start
        negative = np.bincount(place, minlength=ranks * size).reshape(ranks, size)
        won[:, start : start + size] = owners @ (np.cumsum(negative, axis=0) - negative / 2)
    return won


def rejected(p: list[float]) -> float:
    """Share of all draws with p < 0.05; a draw without p does not reject."""
    return float(np.mean(np.array(p) < statistics.ALPHA))


def test_rows(draws: int) -> Iterator[dict]:
    for number, (patients, kind, shift) in enumerate(product(PATIENTS, DIFFERENCES, (0.0, SHIFT))):
        generator, p = np.random.default_rng((2, number)), {"by patient": [], "images (0.1.0)": [], "Wilcoxon over patients": []}
        for draw in range(draws):
            values, patient = differences(kind, patients, generator)
            p["by patient"].append(statistics.over_patients(values + shift, patient).test().p)
            if draw < 500:
                p["images (0.1.0)"].append(stats.wilcoxon(values + shift).pvalue)
                p["Wilcoxon over patients"].append(stats.wilcoxon((values + shift).reshape(patients, IMAGES).mean(1)).pvalue)
        row = {"test": "paired t over patients", "patients": str(patients), "images": IMAGES, "differences": kind, "effect": shift}
        yield row | {name: rejected(found) for name, found in p.items()} | {"draws": draws}
    for number, ((positive, negative, images), better) in enumerate(product(CLASSES, (False, True))):
        generator, p = np.random.default_rng((3, number)), {"by patient": [], "patient bootstrap (0.1.0)": []}
        for draw in range(draws):
            both, label, patient = scores(positive, negative, images, (SIGNALS[better], SIGNALS[0]), generator)
            p["by patient"].append(statistics.delong_test(*both, label, patient).p)
            if images > 1 and draw < 500:
                weights = patient_weights(patient.max() + 1, 0, draws=500)
                drawn = np.subtract(*(bootstrapped_aucs(one, label, patient, weights) for one in both))
                smaller = min((drawn[np.isfinite(drawn)] <= 0).sum(), (drawn[np.isfinite(drawn)] >= 0).sum())
                p["patient bootstrap (0.1.0)"].append(min(1, 2 * (smaller + 1) / (np.isfinite(drawn).sum() + 1)))
        row = _delong_row(positive, negative, images, better)
        yield row | {name: rejected(found) for name, found in p.items() if found} | {"draws": draws, "has p": 1.0}


def unequal_rows(draws: int) -> Iterator[dict]:
    for number, (design, better) in enumerate(product(UNEQUAL, (False, True))):
        generator, p = np.random.default_rng((4, number)), []
        for _ in range(draws):
            both, label, patient = scores(*design, (SIGNALS[better], SIGNALS[0]), generator)
            p.append(statistics.delong_test(*both, label, patient).p)
        row = _delong_row(*design, better)
        yield row | {"by patient": rejected(p), "draws": draws, "has p": float(np.mean(np.isfinite(p)))}


def _delong_row(positive: int, negative: int | None, images: int | tuple[int, ...], better: bool) -> dict:
    group = f"{positive} of both classes" if negative is None else f"{positive} + {negative}"
    counts = images if isinstance(images, int) else f"{min(images)} to {max(images)}"
    row = {"test": "paired DeLong", "patients": group, "images": counts, "differences": "normal scores"}
    return row | {"effect": SIGNALS[1] - SIGNALS[0] if better else 0.0}


def values_of(kind: str, patients: int, images: int | tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values of images whose true mean is 0, and whose they are."""
    patient = np.repeat(np.arange(patients), images)
    own = {
        "normal": lambda: generator.normal(size=patients),
        "Beta(4, 1)": lambda: generator.beta(4, 1, size=patients) - 0.8,
        "one in ten fails": lambda: 0.1 - (generator.random(patients) < 0.1) + 0.05 * generator.normal(size=patients),
    }[kind]()
    return own[patient] + 0.05 * generator.normal(size=patient.size), patient


def mean_rows(draws: int) -> Iterator[dict]:
    """How often the limits of a mean over images, and of an AUC with several images a patient, hold the truth."""
    sizes = [*((count, 10) for count in (5, 6, 8, 12, 20)), (8, (300, *[3] * 7)), (12, (5, 10, 30) * 4)]
    for number, (kind, (patients, images)) in enumerate(product(("normal", "Beta(4, 1)", "one in ten fails"), sizes)):
        generator, found, tried = np.random.default_rng((6, number)), [], []
        for draw in range(draws):
            values, patient = values_of(kind, patients, images, generator)
            low, high, _ = statistics.ratio_interval(values, np.ones(len(values)), patient)
            found.append(low <= 0 <= high)
            if draw < 500:
                low, high = percentiles(bootstrapped_ratios(values, np.ones(len(values)), patient, patient_weights(patients, 0)))
                tried.append(low <= 0 <= high)
        counts = images if isinstance(images, int) else f"{min(images)} to {max(images)}"
        row = {"interval": "mean", "patients": str(patients), "images": counts, "values": kind, "by patient": np.mean(found)}
        yield row | {"patient bootstrap (0.1.0)": np.mean(tried), "draws": draws}
    for number, ((positive, negative), signal) in enumerate(product(((5, 5), (5, 20), (10, 10), (30, 30)), SIGNALS)):
        generator, found, tried = np.random.default_rng((7, number)), [], []
        truth = float(stats.norm.cdf(signal / np.sqrt(2 * 3 * 0.49)))
        for draw in range(draws // 3):
            (score,), label, patient = scores(positive, negative, 6, (signal,), generator)
            low, high, _ = statistics.auc_interval(score, label, patient)
            found.append(low <= truth <= high)
            if draw < 300:
                low, high = percentiles(bootstrapped_aucs(score, label, patient, patient_weights(positive + negative, 0)))
                tried.append(low <= truth <= high)
        row = {"interval": "AUC", "patients": f"{positive} + {negative}", "images": 6, "values": f"AUC {truth:.3f}"}
        yield row | {"by patient": np.mean(found), "patient bootstrap (0.1.0)": np.mean(tried), "draws": draws // 3}


def losses(kind: str, patients: int, generator: np.random.Generator) -> np.ndarray:
    """Differences of patients whose true mean is exactly one margin behind; "none": 0."""
    noise, lot = generator.normal(size=patients), generator.random(patients)
    if kind in RARE:
        share = RARE[kind]
        return 0.01 * noise - MARGIN / share * (lot < share)
    return {
        "normal": lambda: 0.1 * noise - MARGIN,
        "skewed": lambda: MARGIN - 0.1 * generator.exponential(size=patients),
        "none": lambda: 0.1 * noise,
    }[kind]()


def margin_rows(draws: int) -> Iterator[dict]:
    """How often a model generalises that is behind by the margin, and ("none") one that is not behind at all."""
    for number, (kind, patients) in enumerate(product(("normal", "skewed", *RARE, "none"), (5, 8, 12, 20, 29, 45, 60))):
        generator, found = np.random.default_rng((5, number)), []
        for _ in range(draws):
            values = losses(kind, patients, generator)
            limit = statistics.over_patients(values, np.arange(patients)).lower()
            found.append((limit >= -MARGIN, within(limit, values.min(), patients, MARGIN)[0] is True))
        by_limit, verdict = np.mean(found, axis=0)
        yield {"losses": kind, "patients": patients, "limit within": by_limit, "generalizes": verdict, "draws": draws}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--draws",
        type=int,
        default=3000,
        help="of a test's row (default 3000), an interval's has three times as many; what was tried beside them fewer",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "coverage")
    parser.add_argument("--only", choices=("intervals", "folds", "tests", "margins", "means"), help="one table; default: all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    draws = arguments.draws
    tables = {
        "intervals": interval_rows(3 * draws),
        "folds": fold_rows(draws),
        "tests": chain(test_rows(draws), unequal_rows(draws)),
        "margins": margin_rows(draws),
        "means": mean_rows(draws),
    }
    for name, rows in tables.items():
        if arguments.only and name != arguments.only:
            continue
        table = pd.DataFrame(list(rows))
        write_text(arguments.out / f"{name}.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.4g"))
        print(table.to_string(index=False))


if __name__ == "__main__":
    main()
