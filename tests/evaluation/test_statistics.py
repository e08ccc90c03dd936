import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from vfmgl_lib.data.datasheets import FOLDER
from vfmgl_lib.evaluation import statistics

GOLDEN = Path(__file__).parents[1] / "golden"
# Hanley and McNeil 1982 (Radiology 143:29-36), Table I: 109 computed tomograms rated 1 to 5, by true state.
NORMAL, ABNORMAL = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)


def _tomograms():
    ratings = np.repeat(np.tile(np.arange(1, 6), 2), NORMAL + ABNORMAL)
    return ratings.astype(float), np.repeat([0, 1], [sum(NORMAL), sum(ABNORMAL)])


def test_delong_equals_the_published_example():
    """Stata's manual (`roctab`) prints for these ratings: area 0.8932, DeLong's standard error 0.0307, limits 0.83295 and 0.95339."""
    score, label = _tomograms()
    (auc,), covariance = statistics.delong(score, label)
    assert round(auc, 4) == 0.8932 and round(math.sqrt(covariance[0, 0]), 4) == 0.0307
    low, high, reason = statistics.auc_interval(score, label)
    assert (round(low, 5), round(high, 5), reason) == (0.83295, 0.95339, "")


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
    assert tuple(round(limit, 4) for limit in statistics.auc_interval(scores[row], label)[:2]) == limits


@pytest.mark.parametrize(
    ("row", "difference", "limits", "p"),
    [(1, 0.0108, (-0.1761, 0.1976), 0.9102), (2, -0.0780, (-0.2830, 0.1271), 0.4561)],
)
def test_paired_tests_of_delongs_own_example(row, difference, limits, p):
    """Albumin and total protein against the K-G score, as SAS prints them."""
    scores, label = _ovarian_cancer()
    found = statistics.delong_test(scores[row], scores[0], label)
    assert round(found.difference, 4) == difference and round(found.p, 4) == p
    assert (round(found.low, 4), round(found.high, 4)) == limits


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


def test_delongs_paired_test_is_the_normal_test_of_the_difference():
    generator = np.random.default_rng(2)
    label = np.repeat([0, 1], 30)
    first, second = generator.normal(size=(2, 60)) + np.array([[1.5], [0.3]]) * label
    found = statistics.delong_test(first, second, label)
    aucs, covariance = _by_definition(np.stack([first, second]), label)
    deviation = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.difference == pytest.approx(aucs[0] - aucs[1], abs=1e-12)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.difference) / deviation), abs=1e-12)
    assert (found.low + found.high) / 2 == pytest.approx(found.difference, abs=1e-12)
    swapped = statistics.delong_test(second, first, label)
    assert swapped.difference == -found.difference and swapped.p == found.p


def test_what_delong_cannot_estimate_is_nan_with_the_reason():
    label = np.array([0, 0, 1, 1])
    separated = statistics.auc_interval(np.array([0.1, 0.2, 0.8, 0.9]), label)
    assert math.isnan(separated.low) and "separated completely" in separated.reason
    constant = statistics.auc_interval(np.full(4, 0.3), label)
    assert math.isnan(constant.low) and "all scores are equal" in constant.reason
    single = statistics.auc_interval(np.array([0.1, 0.2, 0.8]), np.array([0, 0, 1]))
    assert math.isnan(single.high) and "one sample only" in single.reason
    score = np.array([0.1, 0.6, 0.4, 0.9])
    same = statistics.delong_test(score, score, label)
    assert same.difference == 0 and math.isnan(same.p) and "variance" in same.reason
    with pytest.raises(ValueError, match="3 positive and 0 negative"):
        statistics.delong(np.ones(3), np.ones(3))


def test_wilson_equals_its_formula():
    k, n, z = 349, 437, statistics.Z
    centre, half = (k + z**2 / 2) / (n + z**2), z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    assert statistics.wilson(k, n)[:2] == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert statistics.wilson(0, 5).low == 0 and statistics.wilson(5, 5).high == 1 and math.isnan(statistics.wilson(0, 0).low)


def test_bootstrapped_values_equal_those_of_the_drawn_samples():
    generator = np.random.default_rng(3)
    patient = generator.integers(0, 7, 40)
    label, score = generator.integers(0, 2, 40), np.round(generator.random(40), 1)
    weights = statistics.patient_weights(7, 0, "a", draws=50)
    assert (weights.sum(1) == 7).all() and not (weights == statistics.patient_weights(7, 1, "a", draws=50)).all()
    assert (weights == statistics.patient_weights(7, 0, "a", draws=50)).all()
    aucs, means = (
        statistics.bootstrapped_aucs(score, label, patient, weights),
        statistics.bootstrapped_ratios(score, np.ones(40), patient, weights),
    )
    for draw, drawn in enumerate(weights):
        rows = np.repeat(np.arange(40), drawn[patient])
        assert aucs[draw] == pytest.approx(roc_auc_score(label[rows], score[rows]), abs=1e-12)
        assert means[draw] == pytest.approx(score[rows].mean(), abs=1e-12)


def test_pairs_are_counted_alike_in_one_piece_and_in_many(monkeypatch):
    generator = np.random.default_rng(5)
    patient, label, score = generator.integers(0, 9, 80), generator.integers(0, 2, 80), np.round(generator.random(80), 1)
    weights = statistics.patient_weights(9, 0, draws=20)
    whole = statistics.bootstrapped_aucs(score, label, patient, weights)
    monkeypatch.setattr(statistics, "CHUNK", 30)
    assert (statistics.bootstrapped_aucs(score, label, patient, weights) == whole).all()


def test_draws_of_one_class_are_left_out_and_one_patient_has_no_interval():
    weights = np.array([[2, 0], [0, 2], [1, 1]])
    aucs = statistics.bootstrapped_aucs(np.array([0.2, 0.9]), np.array([0, 1]), np.array([0, 1]), weights)
    assert np.isnan(aucs[:2]).all() and aucs[2] == 1
    assert "undefined in most draws" in statistics.percentile_interval(aucs, 5).reason
    assert statistics.percentile_interval(np.ones(9), 1).reason == "no interval: one patient, a bootstrap takes at least 5"
    assert statistics.percentile_interval(np.ones(9), 4).reason == "no interval: 4 patients, a bootstrap takes at least 5"


def test_patients_and_not_images_decide_how_wide_an_interval_is():
    values, patient = np.repeat([0.0, 1.0, 0.0, 1.0, 0.0], 20), np.repeat(np.arange(5), 20)
    by_patient, by_image = (
        statistics.percentile_interval(
            statistics.bootstrapped_ratios(values, np.ones(100), who, statistics.patient_weights(count, 0)), count
        )
        for who, count in ((patient, 5), (np.arange(100), 100))
    )
    assert by_patient.high - by_patient.low > 3 * (by_image.high - by_image.low)


@pytest.mark.parametrize(("patients", "covered"), [(2, (0.40, 0.60)), (5, (0.82, 0.92)), (20, (0.90, 0.97))])
def test_few_patients_have_limits_that_hold_the_truth_too_seldom(patients, covered, monkeypatch):
    """Why `MIN_PATIENTS` is what it is."""
    monkeypatch.setattr(statistics, "MIN_PATIENTS", 0)
    generator, weights = np.random.default_rng(0), statistics.patient_weights(patients, 0, draws=500)
    held = 0
    for _ in range(400):
        values = statistics.bootstrapped_ratios(generator.normal(size=patients), np.ones(patients), np.arange(patients), weights)
        low, high, _ = statistics.percentile_interval(values, patients)
        held += low <= 0 <= high
    assert covered[0] < held / 400 < covered[1]


def test_bootstrapped_p():
    assert statistics.bootstrap_p(np.array([0.1] * 1999)) == 2 / 2000
    assert statistics.bootstrap_p(np.array([-0.1, 0.1] * 500)) == 1.0


def test_wilcoxon_is_exact_however_many_pairs_are_equal():
    """Five pairs that differ, all one way: p cannot be under 2 / 2^5."""
    for equal in (0, 9, 40):
        first = np.concatenate([[0.1, 0.2, 0.3, 0.4, 0.5], np.full(equal, 0.7)])
        second = np.concatenate([np.zeros(5), np.full(equal, 0.7)])
        assert statistics.wilcoxon_p(first, second) == (0.0625, "")


def test_wilcoxon_leaves_out_equal_pairs():
    first, second = np.array([0.5, 0.6, 0.9, 0.7, 0.8, 0.3]), np.array([0.4, 0.6, 0.7, 0.4, 0.4, 0.25])
    p, reason = statistics.wilcoxon_p(first, second)
    assert p == pytest.approx(stats.wilcoxon((first - second)[[0, 2, 3, 4, 5]]).pvalue, abs=1e-12) and reason == ""
    assert p == pytest.approx(2 / 2**5)  # all five differences positive: 1 of 32 signs on either side
    assert statistics.wilcoxon_p(first, first)[1] == "no test: all pairs are equal"


def test_holm_by_hand_and_beside_undefined_values():
    assert statistics.holm([0.01, math.nan, 0.04, 0.03]) == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert np.isnan(statistics.holm([math.nan])).all()


def test_the_papers_p_comes_from_the_pooled_test():
    """Fig. 7c, centre D, training set: the printed summaries give the printed 9e-6 by the pooled test; Welch's gives another."""
    paper = pd.read_csv(FOLDER / "paper_results.csv")
    rows = paper[(paper["center"] == "D") & (paper["split"] == "train") & (paper["metric"] == "score_mean")].set_index("method")
    groups = [(row["value"], row["std"], int(row["n"])) for row in (rows.loc["VFMGL, NMI cases"], rows.loc["VFMGL, MI cases"])]
    found = statistics.t_test_from_summaries(*groups)
    assert f"{found.p:.0e}" == "9e-06"
    welch = stats.ttest_ind_from_stats(*groups[0], *groups[1], equal_var=False).pvalue
    assert welch < 1e-20


def test_t_test_equals_scipy_from_values():
    generator = np.random.default_rng(4)
    first, second = generator.normal(size=9), generator.normal(size=14) + 0.8
    found, expected = statistics.t_test(first, second), stats.ttest_ind(first, second)
    limits = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), abs=1e-12)
    assert "groups of 1 and 14" in statistics.t_test(first[:1], second).reason
    assert "no spread" in statistics.t_test(np.ones(3), np.ones(3)).reason


def test_crossed_interval_by_hand():
    """Seeds that differ by 0.1, centres that do not: both draws are the first seed in a quarter of the cases, the second in another."""
    low, high, reason = statistics.crossed_interval(np.array([[0.1, 0.1], [0.2, 0.2]]))
    assert (low, high, reason) == (pytest.approx(0.1), pytest.approx(0.2), "")
    assert statistics.crossed_interval(np.full((3, 4), 0.5))[:2] == (0.5, 0.5)


def test_crossed_interval_is_wider_than_that_of_values_taken_for_independent():
    values = np.random.default_rng(0).normal(size=(10, 1)) + np.zeros((10, 10))  # ten centres that say the same
    low, high, _ = statistics.crossed_interval(values)
    error = stats.sem(values.mean(1))
    assert 0.7 < (high - low) / (2 * 1.96 * error) < 1.1, "as wide as ten values have it, not a hundred"


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (0, 3)])
def test_crossed_interval_needs_two_seeds_and_two_centres(shape):
    low, high, reason = statistics.crossed_interval(np.zeros(shape))
    assert math.isnan(low) and math.isnan(high) and reason == "no interval: fewer than two seeds or centres"
