import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from vfmgl_lib.evaluation import statistics

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
# Hanley and McNeil 1982 (Radiology 143:29-36), Table I: 109 computed tomograms rated 1 to 5, by true state.
NORMAL, ABNORMAL = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)


def test_the_normal_quantile():
    assert statistics.Z == stats.norm.ppf(1 - statistics.ALPHA / 2)


def _tomograms():
    ratings = np.repeat(np.tile(np.arange(1, 6), 2), NORMAL + ABNORMAL)
    return ratings.astype(float), np.repeat([0, 1], [sum(NORMAL), sum(ABNORMAL)])


def test_delong_equals_the_published_example():
    """Stata's manual (`roctab`) prints for these ratings: area 0.8932, DeLong's standard error 0.0307, limits 0.83295 and 0.95339.

    Those limits are AUC ± 1.96 errors; ours are on the logit scale, so that they are a little lower here and never beyond 1.
    """
    score, label = _tomograms()
    (auc,), covariance = statistics.delong(score, label)
    assert round(auc, 4) == 0.8932 and round(math.sqrt(covariance[0, 0]), 4) == 0.0307
    error = math.sqrt(covariance[0, 0])
    assert (round(auc - statistics.Z * error, 5), round(auc + statistics.Z * error, 5)) == (0.83295, 0.95339)
    low, high, reason = statistics.auc_interval(score, label)
    odds = [limit / (1 - limit) for limit in (low, auc, high)]
    assert odds[1] / odds[0] == pytest.approx(odds[2] / odds[1]) == pytest.approx(math.exp(statistics.Z * error / (auc * (1 - auc))))
    assert low < 0.83295 < auc < high < 0.95339 and reason == ""


def _ovarian_cancer():
    """The example of DeLong, DeLong and Clarke-Pearson 1988: three tests of ovarian cancer patients, and who benefited from surgery.

    The 43 complete records as SAS/STAT's manual has them ("Comparing Receiver Operating Characteristic Curves", PROC LOGISTIC); a low
    K-G score is the good one.
    """
    table = pd.read_csv(GOLDEN / "ovarian_cancer.csv")
    scores = np.stack([10 - table["k_g_score"], table["albumin"], table["total_protein"]])
    return scores, table["improved"].to_numpy()


@pytest.mark.parametrize(
    ("row", "area", "error", "limits"),
    [(0, 0.7258, 0.1028, (0.5243, 0.9273)), (1, 0.7366, 0.0927, (0.5549, 0.9182)), (2, 0.6478, 0.1000, (0.4518, 0.8439))],
)
def test_areas_of_delongs_own_example(row, area, error, limits):
    """To the four digits that SAS prints."""
    scores, label = _ovarian_cancer()
    aucs, covariance = statistics.delong(scores, label)
    assert (round(aucs[row], 4), round(math.sqrt(covariance[row, row]), 4)) == (area, error)
    width = statistics.Z * math.sqrt(covariance[row, row])
    assert (round(aucs[row] - width, 4), round(aucs[row] + width, 4)) == limits


@pytest.mark.parametrize(
    ("row", "difference", "limits", "p"),
    [(1, 0.0108, (-0.1761, 0.1976), 0.9102), (2, -0.0780, (-0.2830, 0.1271), 0.4561)],
)
def test_paired_tests_of_delongs_own_example(row, difference, limits, p):
    """Albumin and total protein against the K-G score, as SAS prints them, by the normal distribution; ours is a t, a little wider."""
    scores, label = _ovarian_cancer()
    found = statistics.delong_test(scores[row], scores[0], label)
    estimate = statistics.auc_contrast(scores[[row, 0]], label, (1, -1))
    width = statistics.Z * estimate.error
    assert round(2 * stats.norm.sf(abs(estimate.value) / estimate.error), 4) == p
    assert (round(found.difference - width, 4), round(found.difference + width, 4)) == limits and round(found.difference, 4) == difference
    assert 12 < estimate.freedom < 42 and p < found.p < p + 0.02 and found.low < limits[0] and found.high > limits[1]


def _by_definition(scores, label):
    """AUCs and covariance from every pair of a positive and a negative sample (DeLong et al. 1988, equations 1 to 5)."""
    positive, negative = scores[:, label == 1], scores[:, label == 0]
    wins = (positive[:, :, None] > negative[:, None, :]) + 0.5 * (positive[:, :, None] == negative[:, None, :])
    m, n = positive.shape[1], negative.shape[1]
    return wins.mean((1, 2)), np.cov(wins.mean(2)) / m + np.cov(wins.mean(1)) / n


def test_delong_equals_its_definition_with_ties():
    generator = np.random.default_rng(1)
    label = generator.integers(0, 2, 60)
    scores = np.round(generator.normal(size=(3, 60)) + 0.7 * label, 1)
    aucs, covariance = statistics.delong(scores, label)
    expected, expected_covariance = _by_definition(scores, label)
    assert aucs == pytest.approx(expected, abs=1e-12) and covariance == pytest.approx(expected_covariance, abs=1e-12)
    assert aucs[0] == pytest.approx(roc_auc_score(label, scores[0]), abs=1e-12)


def test_delongs_paired_test_is_the_t_test_of_the_difference():
    generator = np.random.default_rng(2)
    label = np.repeat([0, 1], 30)
    first, second = generator.normal(size=(2, 60)) + np.array([[1.5], [0.3]]) * label
    found, estimate = statistics.delong_test(first, second, label), statistics.auc_contrast(np.stack([first, second]), label, (1, -1))
    aucs, covariance = _by_definition(np.stack([first, second]), label)
    deviation = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.difference == pytest.approx(aucs[0] - aucs[1], abs=1e-12) and estimate.error == pytest.approx(deviation, abs=1e-12)
    assert 29 < estimate.freedom < 58, "two groups of thirty, by Welch and Satterthwaite"
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.difference) / deviation, estimate.freedom), abs=1e-12)
    assert (found.low + found.high) / 2 == pytest.approx(found.difference, abs=1e-12)
    swapped = statistics.delong_test(second, first, label)
    assert swapped.difference == -found.difference and swapped.p == pytest.approx(found.p)


def test_images_of_a_patient_make_a_test_no_surer():
    """The same image four times is one patient's: Obuchowski's variance is DeLong's of the patients, not a quarter of it."""
    generator = np.random.default_rng(2)
    label = np.repeat([0, 1], 12)
    scores = generator.normal(size=(2, 24)) + np.array([[1.5], [0.3]]) * label
    once = statistics.auc_contrast(scores, label, (1, -1))
    four = statistics.auc_contrast(np.repeat(scores, 4, axis=1), np.repeat(label, 4), (1, -1), np.repeat(np.arange(24), 4))
    assert four == pytest.approx(once, abs=1e-12) and four.patients == 24
    as_images = statistics.auc_contrast(np.repeat(scores, 4, axis=1), np.repeat(label, 4), (1, -1))
    assert as_images.error < 0.55 * once.error


def test_patients_of_both_classes_by_obuchowskis_formula():
    generator = np.random.default_rng(5)
    patient, label = np.repeat(np.arange(7), 6), np.tile([0, 1, 1], 14)
    scores = np.round(generator.normal(size=(2, 42)) + generator.normal(size=7)[patient] + label, 1)
    wins = (scores[:, label == 1][:, :, None] > scores[:, label == 0][:, None]) + 0.5 * (
        scores[:, label == 1][:, :, None] == scores[:, label == 0][:, None]
    )
    difference = wins[0] - wins[1]
    m, n = difference.shape
    above, below = (difference.mean(axis) - difference.mean() for axis in (1, 0))
    sums = [np.array([part[patient[label == value] == who].sum() for who in range(7)]) for part, value in ((above, 1), (below, 0))]
    expected = 7 / 6 * (sums[0] @ sums[0] / m**2 + sums[1] @ sums[1] / n**2 + 2 * sums[0] @ sums[1] / (m * n))
    found = statistics.auc_contrast(scores, label, (1, -1), patient)
    assert found.value == pytest.approx(difference.mean()) and found.error == pytest.approx(math.sqrt(expected), abs=1e-12)
    assert found.freedom <= 6 + 1e-9 and found.patients == 7


def test_what_delong_cannot_estimate_is_nan_with_the_reason():
    constant = statistics.auc_interval(np.full(4, 0.3), np.array([0, 0, 1, 1]))
    assert math.isnan(constant.low) and "all scores are equal" in constant.reason
    single = statistics.auc_interval(np.array([0.1, 0.2, 0.8]), np.array([0, 0, 1]))
    assert math.isnan(single.high) and "one sample only" in single.reason
    label, score = np.repeat([0, 1], 5), np.random.default_rng(0).random(10)
    same = statistics.delong_test(score, score, label)
    assert same.difference == 0 and math.isnan(same.p) and same.reason == "no test: all pairs are equal"
    assert statistics.auc_contrast(np.stack([score, score]), label, (1, -1)).lower() == 0, "the same model is no worse than itself"
    ranked = statistics.auc_contrast(np.stack([score, score**2]), label, (1, -1))
    assert math.isnan(ranked.lower()) and ranked.reason == "the variance of the difference is 0"
    few = statistics.delong_test(score[1:], score[::-1][1:], label[1:])
    assert math.isnan(few.p) and few.reason == "no test: 4 patients of one class, at least 5 are needed" and math.isfinite(few.difference)
    with pytest.raises(ValueError, match="3 positive and 0 negative"):
        statistics.delong(np.ones(3), np.ones(3))


@pytest.mark.parametrize("shift", [0.0, 2.0, 4.0, 9.0])
def test_the_interval_of_an_auc_stays_within_0_and_1_and_has_a_width(shift):
    generator, label = np.random.default_rng(7), np.repeat([0, 1], (9, 14))
    score = generator.normal(size=23) + shift * label
    (auc,), _ = statistics.delong(score, label)
    interval, mirrored = statistics.auc_interval(score, label), statistics.auc_interval(-score, label)
    assert 0 <= interval.low < interval.high <= 1 and interval.low <= auc <= interval.high and interval.high - interval.low > 0.01
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx(interval[:2])
    if shift == 9:  # separated completely: nine pairs that share no sample are all in order, which an AUC of `low` does in 2.5 %
        assert auc == 1 and interval.low**9 == pytest.approx(0.025) and interval.high == 1 and interval.reason == ""


def test_the_interval_of_an_auc_near_1_holds_it():
    """True AUC Φ(2.5 / √2) = 0.961, 15 of each class: on the plain scale the limits hold it in 87 %, on the logit scale in 98."""
    generator, label, truth = np.random.default_rng(0), np.repeat([0, 1], 15), stats.norm.cdf(2.5 / math.sqrt(2))
    held, plain = 0, 0
    for _ in range(1000):
        score = generator.normal(size=30) + 2.5 * label
        low, high, _ = statistics.auc_interval(score, label)
        (auc,), covariance = statistics.delong(score, label)
        held, plain = held + (low <= truth <= high), plain + (abs(auc - truth) <= statistics.Z * math.sqrt(covariance[0, 0]))
    assert held / 1000 >= 0.94 and plain / 1000 < 0.92


def test_wilson_equals_its_formula():
    k, n, z = 349, 437, statistics.Z
    centre, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert statistics.wilson(k, n)[:2] == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert statistics.wilson(0, 5).low == 0 and statistics.wilson(5, 5).high == 1 and math.isnan(statistics.wilson(0, 0).low)


def test_a_mean_over_images_has_the_t_interval_of_patients():
    values, patient = np.random.default_rng(0).normal(size=8), np.arange(8)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.ratio_interval(values, np.ones(8), patient)[:2] == pytest.approx(tuple(expected))
    often = statistics.ratio_interval(np.repeat(values, 9), np.ones(72), np.repeat(patient, 9))
    assert often[:2] == pytest.approx(tuple(expected)), "the same image nine times makes no difference"
    undefined = statistics.ratio_interval(np.r_[values, 7.0], np.r_[np.ones(8), 0], np.r_[patient, 8])
    assert undefined[:2] == pytest.approx(tuple(expected)), "an image that does not count is no patient"
    share = statistics.ratio_interval(np.array([1, 1, 1, 1, 1, 0]), np.ones(6), np.arange(6))
    assert share.low > 0 and share.high == 1, "a share stays within 0 and 1"


def test_a_mean_without_five_patients_or_without_spread_has_no_interval():
    assert statistics.ratio_interval(np.ones(4), np.ones(4), np.arange(4)).reason == "no interval: 4 patients, at least 5 are needed"
    assert statistics.ratio_interval(np.ones(9), np.ones(9), np.zeros(9)).reason == "no interval: one patient, at least 5 are needed"
    assert "all patients have the same value" in statistics.ratio_interval(np.full(9, 0.3), np.ones(9), np.arange(9)).reason


@pytest.mark.parametrize(("patients", "images"), [(5, 10), (12, (5, 10, 30) * 4)])
def test_coverage_of_the_interval_of_a_mean(simulation, patients, images):
    """Percentiles of a bootstrap over patients, as in 0.1.0, hold the truth in 84 % of the cases with five."""
    generator, held, tried = np.random.default_rng(0), [], []
    weights = simulation.patient_weights(patients, 0, draws=500)
    for draw in range(1500):
        values, patient = simulation.values_of("normal", patients, images, generator)
        low, high, _ = statistics.ratio_interval(values, np.ones(len(values)), patient)
        held.append(low <= 0 <= high)
        if draw < 200:
            low, high = simulation.percentiles(simulation.bootstrapped_ratios(values, np.ones(len(values)), patient, weights))
            tried.append(low <= 0 <= high)
    assert 0.93 <= np.mean(held) <= 0.97 and np.mean(tried) < np.mean(held)


def test_an_auc_with_several_images_a_patient_is_no_surer():
    generator, label = np.random.default_rng(1), np.repeat([0, 1], 8)
    score = generator.normal(size=16) + label
    once = statistics.auc_interval(np.repeat(score, 5), np.repeat(label, 5), np.repeat(np.arange(16), 5))
    estimate = statistics.auc_contrast(score[None], label, (1,))
    width = stats.t.ppf(0.975, estimate.freedom) * estimate.error / (estimate.value * (1 - estimate.value))
    assert special.logit(once[:2]) == pytest.approx(special.logit(estimate.value) + width * np.array([-1, 1]))
    apart = statistics.auc_interval(np.repeat(label, 5), np.repeat(label, 5), np.repeat(np.arange(16), 5))
    assert apart[:2] == pytest.approx((0.025 ** (1 / 8), 1)), "as of eight patients a class"
    few = statistics.auc_interval(np.arange(16.0), np.repeat([0, 1], 8), np.repeat(np.arange(8), 2))
    assert math.isnan(few.low) and few.reason == "no interval: 4 patients of one class, at least 5 are needed"


def test_a_patient_counts_once_however_many_images_it_has():
    values, patient = np.array([0.1, 0.3, 0.1, 0.4, 0.2, 0.0, 0.6, 0.6, 0.6]), np.array(list("aabcdefff"))
    found = statistics.over_patients(values, patient)
    expected = stats.ttest_1samp([0.2, 0.1, 0.4, 0.2, 0.0, 0.6], 0)
    assert found.test().p == pytest.approx(expected.pvalue) and found.patients == 6 and found.value == pytest.approx(0.25)
    assert found.test()[1:3] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.lower() == pytest.approx(
        stats.ttest_1samp([0.2, 0.1, 0.4, 0.2, 0.0, 0.6], 0, alternative="greater").confidence_interval(0.95).low
    )
    few = statistics.over_patients(values[:5], patient[:5])
    assert (
        few.test().reason == "no test: 4 patients, at least 5 are needed" and few.value == pytest.approx(0.225) and math.isnan(few.lower())
    )
    equal = statistics.over_patients(np.zeros(9), patient)
    assert equal.test().reason == "no test: all pairs are equal" and equal.lower() == 0


def test_as_many_images_a_patient_are_what_a_mixed_model_finds():
    import statsmodels.api as sm  # here: importing it takes seconds

    generator, patient = np.random.default_rng(1), np.repeat(np.arange(12), 8)
    values = 0.05 + 0.3 * generator.normal(size=12)[patient] + 0.1 * generator.normal(size=96)
    mixed = sm.MixedLM(values, np.ones(96), groups=patient).fit()
    found = statistics.over_patients(values, patient)
    assert found.value == pytest.approx(mixed.params[0], abs=1e-6) and found.error == pytest.approx(mixed.bse[0], rel=1e-3)


@pytest.fixture(scope="module")
def simulation():
    """benchmarks/coverage.py."""
    specification = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("patients", "power"), [(5, 0.35), (12, 0.8)])
def test_type_1_error_and_power_of_the_test_over_patients(simulation, patients, power):
    """Ten images a patient that go together. With the images for patients 0.1.0's test rejected equal methods in four of ten cases."""
    generator, rejected = np.random.default_rng(3), {}
    for shift in (0.0, 0.1):
        drawn = [simulation.differences("normal", patients, generator) for _ in range(2000)]
        rejected[shift] = np.mean([statistics.over_patients(values + shift, who).test().p < 0.05 for values, who in drawn])
        images = np.mean([stats.wilcoxon(values + shift).pvalue < 0.05 for values, _ in drawn[:200]])
        assert images > 0.3
    assert rejected[0.0] <= 0.06 and rejected[0.1] > power


@pytest.mark.parametrize(("classes", "power"), [((5, 40, 6), 0.25), ((10, 10, 6), 0.45), ((5, None, 6), 0.35)])
def test_type_1_error_and_power_of_the_test_of_two_aucs(simulation, classes, power):
    generator, rejected = np.random.default_rng(4), {}
    for better in (0.0, 1.5):
        drawn = [simulation.scores(*classes, (1 + better, 1), generator) for _ in range(2000 if not better else 400)]
        rejected[better] = np.mean([statistics.delong_test(*both, label, who).p < 0.05 for both, label, who in drawn])
    assert rejected[0.0] <= 0.06 and rejected[1.5] > power


def test_patients_with_very_different_numbers_of_images_have_no_test(simulation):
    """Two with 1 to 200 images, of six of each class, are nearly all there is: equal methods were rejected in 32 % of the cases."""
    for design, count in ((0, "8 patients of one class count as 1.1"), (1, "6 patients of one class count as 1.7")):
        both, label, who = simulation.scores(*simulation.UNEQUAL[design], (1, 1), np.random.default_rng(0))
        found = statistics.delong_test(*both, label, who)
        assert math.isnan(found.p) and found.reason == f"no test: {count} for their unequal numbers of images, at least 5 are needed"
    assert statistics.effective_patients(np.array([4, 4, 4, 0, 4])) == 4


def test_type_1_error_and_power_with_unequal_numbers_of_images(simulation):
    generator, rejected = np.random.default_rng(6), {}
    for better in (0.0, 1.5):
        drawn = [simulation.scores(*simulation.UNEQUAL[5], (1 + better, 1), generator) for _ in range(1500 if not better else 300)]
        rejected[better] = np.mean([statistics.delong_test(*both, label, who).p < 0.05 for both, label, who in drawn])
    assert 0 < rejected[0.0] <= 0.06 and rejected[1.5] > 0.1


QUICK = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0.45, 0))


def test_coverage_of_the_interval_over_seeds_and_centres(simulation):
    """Whichever of seed, centre and residual dominates or is 0; the table of all shapes, with more draws, is results/coverage/."""
    for number, spread in enumerate(QUICK):
        values = simulation.crossed(3, 5 - number % 3, spread, 2000, np.random.default_rng(number))
        assert simulation.held(values, statistics.crossed_interval) >= 0.93, spread
    centers = simulation.crossed(3, 4, (0, 1, 0), 500, np.random.default_rng(0))
    assert simulation.held(centers, simulation.bootstrapped) < 0.9, "what 0.1.0 had"


def test_coverage_of_the_interval_over_folds_and_centres(simulation):
    """Nadeau and Bengio's corrected t misses where training sets are what differs; ours does not."""
    for number, spread in enumerate(((1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0.1, 0.1, 0.1, 0.1, 1))):
        generator = np.random.default_rng(number)
        values = np.stack([simulation.folded((11, 7, 7, 16), spread, 5, 2, generator) for _ in range(1000)])
        assert simulation.held(values, statistics.crossed_interval) >= 0.925, spread
        if spread[1] == 1:
            assert simulation.held(values, lambda table: simulation.nadeau_bengio(table, 5)) < 0.6
    folds = pd.read_csv(ROOT / "results" / "coverage" / "folds.csv")
    assert folds["crossed_interval"].min() >= 0.93 and folds["draws"].min() >= 2000
    many = folds[(folds["sd_training_set"] == 1) | (folds["sd_center"] == 1)]["Nadeau-Bengio"]
    assert many.between(0.23, 0.76).all() and len(many) == 6


def test_the_test_over_seeds_and_centres_belongs_to_its_interval():
    values = np.random.default_rng(3).normal(0.4, 1, (6, 4))
    test, interval = statistics.crossed_test(values), statistics.crossed_interval(values)
    assert (test.low, test.high) == (interval.low, interval.high) and test.difference == pytest.approx(values.mean())
    assert (test.p < 0.05) == (test.low > 0 or test.high < 0)
    edge = statistics.crossed_test(values - test.low)
    assert edge.p == pytest.approx(0.05), "at the limit p is 0.05"
    assert np.isnan(statistics.crossed_test(values[:2]).p) and "fewer than three" in statistics.crossed_test(values[:2]).reason


def test_the_committed_tables_keep_93_and_6_percent_but_for_skewed_differences():
    """Where differences are skewed the error is above 6 %, which `over_patients` and the benchmark say: those rows are held to 10 %."""
    intervals, tests = (pd.read_csv(ROOT / "results" / "coverage" / f"{name}.csv") for name in ("intervals", "tests"))
    assert intervals["crossed_interval"].min() >= 0.93 and intervals["draws"].min() >= 2000 and len(intervals) == 15 * 15
    skewed, equal = tests["differences"] == "skewed", tests["effect"] == 0
    assert tests.loc[equal & ~skewed, "by patient"].max() <= 0.06 and tests["draws"].min() >= 2000
    assert tests.loc[equal & skewed, "by patient"].max() <= 0.1
    assert set(tests["has p"].dropna()) == {0, 1} and (tests["has p"] == 0).sum() == 2 * 5


def test_the_committed_tables_of_limits_and_verdicts_say_what_the_docstrings_say():
    means, margins = (pd.read_csv(ROOT / "results" / "coverage" / f"{name}.csv") for name in ("means", "margins"))
    covered = means.groupby("values")["by patient"].min()
    assert covered["normal"] >= 0.93 and covered["Beta(4, 1)"] >= 0.9 and covered["one in ten fails"] < 0.6
    assert means.loc[means["interval"] == "AUC", "by patient"].min() >= 0.91
    behind, few = margins[margins["losses"] != "none"], margins["patients"] < 29
    assert (margins.loc[few, "generalizes"] == 0).all()
    assert behind.loc[behind["losses"] != "one in twenty loses 1", "generalizes"].max() <= 0.08
    assert margins.loc[(margins["losses"] == "none") & ~few, "generalizes"].min() > 0.6


def test_holm_by_hand_and_beside_undefined_values():
    assert statistics.holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert np.isnan(statistics.holm([math.nan])).all()


def test_a_family_is_one_metric_budget_seed_and_division():
    table = pd.DataFrame({"seed": 0, "split_id": "own", "budget": "rounds", "metric": "auc", "p": [0.01, 0.02, math.nan, 0.03]})
    assert statistics.holm_families(table).tolist() == pytest.approx([0.03, 0.04, math.nan, 0.04], nan_ok=True)
    two = statistics.holm_families(pd.concat([table, table.assign(budget="updates")]))
    assert two.tolist() == pytest.approx([0.03, 0.04, math.nan, 0.04] * 2, nan_ok=True)


def test_the_bootstrap_draws_patients_within_their_centres_and_needs_five_of_each():
    values, centers = np.array([0.0] * 6 + [1.0] * 5 + [3.0]), np.repeat([0, 1], 6)

    def mean(drawn):
        assert [rows.shape for rows in drawn] == [(statistics.DRAWS, 6)] * 2
        assert [set(centers[rows].ravel()) for rows in drawn] == [{0}, {1}]
        return sum(values[rows].sum(axis=1) for rows in drawn) / len(values)

    found = statistics.bootstrap_interval(centers, mean, np.random.default_rng(0))
    # The first centre's patients are equal: what varies is how often the last one is drawn, (6 + 2 B) / 12 with B ~ Binomial(6, 1/6).
    assert (found.low, found.high, found.reason) == (0.5, (6 + 2 * 3) / 12, "")
    one = statistics.bootstrap_interval(np.zeros(5), lambda drawn: values[drawn[0]].mean(axis=1), np.random.default_rng(0))
    assert (one.low, one.high) == (0, 0)
    for strata, reason in ((centers[1:-2], "4 patients of one centre"), (np.zeros(4), "4 patients"), (np.zeros(0), "0 patients")):
        few = statistics.bootstrap_interval(strata, mean, np.random.default_rng(0))
        assert math.isnan(few.low) and math.isnan(few.high) and few.reason == f"no interval: {reason}, at least 5 are needed"


def test_crossed_interval_by_hand():
    """Seeds' means 0.1, 0.2 and 0.3, centres' means alike: the seeds' standard error and two degrees of freedom."""
    low, high, reason = statistics.crossed_interval(np.array([[0.1], [0.2], [0.3]]) + np.zeros(3))
    width = stats.t.ppf(0.975, 2) * stats.sem([0.1, 0.2, 0.3])
    assert (low, high, reason) == (pytest.approx(0.2 - width), pytest.approx(0.2 + width), "")
    both = np.add.outer([0.0, 0.3, 0.6], [0.0, 0.1, 0.2, 0.3])
    seeds, centers = stats.sem([0, 0.3, 0.6]) ** 2, stats.sem([0, 0.1, 0.2, 0.3]) ** 2
    freedom = (seeds + centers) ** 2 / (seeds**2 / 2 + centers**2 / 3)
    width = stats.t.ppf(0.975, freedom) * math.sqrt(seeds + centers)
    assert statistics.crossed_interval(both)[:2] == pytest.approx((0.45 - width, 0.45 + width))


def test_crossed_interval_is_wider_than_that_of_values_taken_for_independent():
    values = np.random.default_rng(0).normal(size=(10, 1)) + np.zeros((10, 10))  # ten centres that say the same
    low, high, _ = statistics.crossed_interval(values)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 9) * stats.sem(values.mean(1))), "of ten values, not of a hundred"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.eye(3)[:2], "fewer than three seeds or centres"),
        (np.eye(3)[:, :2], "fewer than three seeds or centres"),
        (np.zeros((0, 3)), "fewer than three seeds or centres"),
        (np.full((3, 4), 0.3), "the means of all seeds and of all centres are equal"),
        (np.where(np.eye(3) > 0, math.nan, 0.3), "a seed has no value at a centre"),
    ],
)
def test_where_there_is_no_interval_over_seeds_and_centres_there_is_its_reason(values, reason):
    low, high, why = statistics.crossed_interval(values)
    assert math.isnan(low) and math.isnan(high) and why == f"no interval: {reason}"
