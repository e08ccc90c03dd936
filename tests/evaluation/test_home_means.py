"""The mean over the centres: limits against Monte Carlo and by hand, and what is said where a centre has none."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.home_means import MEAN, home_means
from vfmgl_lib.evaluation.statistics import Interval, mean_interval


def test_limits_of_a_mean_of_independent_estimates():
    low, high, reason = mean_interval(np.array([0.5, 0.8]), np.array([0.2, 0.7]), np.array([0.9, 0.85]))
    assert (low, high, reason) == (
        pytest.approx(0.65 - np.hypot(0.3, 0.1) / 2, abs=1e-15),
        pytest.approx(0.65 + np.hypot(0.4, 0.05) / 2, abs=1e-15),
        "",
    )
    one = mean_interval(np.array([0.5]), np.array([0.2]), np.array([0.9]))
    assert tuple(one) == (pytest.approx(0.2), pytest.approx(0.9), ""), "of one estimate its own"


def test_limits_of_a_mean_hold_the_truth_as_often_as_those_of_each():
    generator = np.random.default_rng(0)
    truth, error = np.array([0.6, 0.7, 0.9]), np.array([0.05, 0.1, 0.02])
    drawn = truth + error * generator.standard_normal((4000, 3))
    found = [mean_interval(row, row - 1.96 * error, row + 1.96 * error) for row in drawn]
    held = np.mean([interval.low <= truth.mean() <= interval.high for interval in found])
    assert 0.94 < held < 0.96


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_no_limits_where_a_part_has_none(missing: int):
    columns = np.array([[0.5, 0.8], [0.4, 0.7], [0.6, 0.9]])
    columns[missing, 1] = np.nan
    assert mean_interval(*columns).reason == "no interval: 1 of 2 parts have none"
    assert np.isnan(mean_interval(*columns)[:2]).all()
    assert isinstance(mean_interval(*np.empty((3, 0))), Interval) and mean_interval(*np.empty((3, 0))).reason


def results(**changes) -> pd.DataFrame:
    """Two methods at two centres, with what must not be taken: other sets, seeds, budgets, divisions, metrics, models."""
    about = {"seed": 0, "split_id": "own", "budget": "rounds", "split": "test", "metric": "auc", "unit": "patient", "n": 10, "reason": ""}
    rows = [
        about | {"method": method, "model_center": center, "test_center": center, "value": value, "low": value - 0.1, "high": value + 0.2}
        for method, center, value in [("local", "A", 0.5), ("local", "B", 0.7), ("vfmgl", "A", 0.6), ("vfmgl", "B", 0.9)]
    ]
    others = {"seed": 1, "split_id": "0.6-3", "budget": "updates", "split": "train", "metric": "accuracy", "test_center": "B"}
    rows += [rows[0] | {name: value, "value": 0.0} for name, value in others.items()]
    rows.append(rows[0] | {"model_center": "all", "test_center": "all", "value": 0.0})
    table = pd.DataFrame(rows)
    for column, (method, center, value) in changes.items():
        table.loc[(table["method"] == method) & (table["model_center"] == center), column] = value
    return table


def leads(**changes) -> pd.DataFrame:
    about = {"seed": 0, "split_id": "own", "budget": "rounds", "metric": "auc", "method": "local", "reference": "vfmgl", "reason": ""}
    rows = [about | {"center": "A", "difference": 0.1, "low": 0.0, "high": 0.2, "patients": 10}]
    rows.append(about | {"center": "B", "difference": 0.2, "low": 0.1, "high": 0.3, "patients": 12})
    table = pd.DataFrame(rows)
    for column, value in changes.items():
        table.loc[1, column] = value
    return table


def test_means_and_leads_are_those_of_the_own_models_on_their_own_test_sets():
    table = home_means(results(), leads(), "auc", 0)
    assert table[["method", "place", "center"]].values.tolist() == [
        ["local", "center", "A"], ["local", "center", "B"], ["local", MEAN, MEAN],
        ["vfmgl", "center", "A"], ["vfmgl", "center", "B"], ["vfmgl", MEAN, MEAN],
    ]  # fmt: skip
    mean = table[table["place"] == MEAN].set_index("method")
    assert mean["value"].tolist() == pytest.approx([0.6, 0.75]) and mean["n"].tolist() == [20, 20]
    assert mean.loc["local", ["low", "high"]].tolist() == pytest.approx([0.6 - np.hypot(0.1, 0.1) / 2, 0.6 + np.hypot(0.2, 0.2) / 2])
    assert mean.loc["local", ["ahead", "ahead_low", "ahead_high", "patients"]].tolist() == pytest.approx(
        [0.15, 0.15 - np.hypot(0.1, 0.1) / 2, 0.15 + np.hypot(0.1, 0.1) / 2, 22]
    )
    assert mean.loc["vfmgl", "reference"] == "" and np.isnan(mean.loc["vfmgl", "ahead"])
    assert (mean[["reason", "ahead_reason"]] == "").all(axis=None)


def test_a_centre_without_a_number_leaves_the_mean_without_one_and_says_where():
    undefined = results(value=("local", "A", np.nan), reason=("local", "A", "only one class"))
    mean = home_means(undefined, leads(low=np.nan, reason="no test: 3 patients"), "auc", 0).query("place == 'mean'").set_index("method")
    assert np.isnan(mean.loc["local", "value"]) and mean.loc["local", "reason"] == "A: only one class"
    assert mean.loc["local", "ahead"] == pytest.approx(0.15), "the difference is known, its interval is not"
    assert np.isnan(mean.loc["local", "ahead_low"]) and mean.loc["local", "ahead_reason"] == "B: 3 patients"
    assert mean.loc["vfmgl", "value"] == pytest.approx(0.75)


def test_nothing_to_compare_gives_no_rows():
    assert home_means(results().query("seed == 1"), leads().query("seed == 1"), "auc", 0).empty
