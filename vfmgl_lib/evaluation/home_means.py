"""The comparison in short: each method at home, the mean of the centres, and how far the reference is ahead of it, with intervals."""

from __future__ import annotations

import pandas as pd

from vfmgl_lib.evaluation.generalization import OWN_SPLIT
from vfmgl_lib.evaluation.results import ALL
from vfmgl_lib.evaluation.statistics import mean_interval

TRIVIAL = "trivial"  # beside the methods' names
MEAN = "mean"  # in place of a centre; column `place` tells it from a centre of that name
COLUMNS = "method place center metric unit value low high n patients reference ahead ahead_low ahead_high reason ahead_reason".split()


def home_means(results: pd.DataFrame, tests: pd.DataFrame, metric: str, seed: int, budget: str = "rounds") -> pd.DataFrame:
    """Every method's own models on their own centres' test sets, centre by centre and their mean.

    Intervals are for other test patients of the same centres and of one seed (`statistics.mean_interval`); a lead is paired, of the same
    patients. Nothing is corrected for there being several.

    Args:
        results: from `results.results_table`.  tests: from `results.compare_methods`, against one reference at this budget.
    Returns: method, place ("center" or "mean"), center ("mean" for the mean), metric, unit, value, low, high, n, patients (of a lead; NaN
        without one); reference ("" in its own rows), ahead (the reference's less the method's value), ahead_low, ahead_high; reason and
        ahead_reason say why a number of either is NaN.
    """
    keys = (results["metric"] == metric) & (results["seed"] == seed) & (results["budget"] == budget)
    home = results[keys & (results["split"] == "test") & (results["split_id"] == OWN_SPLIT)]
    home = home[home["model_center"] == home["test_center"]]
    home = home[home["model_center"] != ALL].rename(columns={"model_center": "center"})
    leads = tests[(tests["metric"] == metric) & (tests["seed"] == seed) & (tests["budget"] == budget) & (tests["split_id"] == OWN_SPLIT)]
    names = {"difference": "ahead", "low": "ahead_low", "high": "ahead_high", "reason": "ahead_reason"}
    leads = leads.rename(columns=names)[["method", "center", "reference", *names.values(), "patients"]]
    table = home[["method", "center", "metric", "unit", "value", "low", "high", "n", "reason"]].merge(leads, "left", ["method", "center"])
    table = table.assign(place="center").fillna({"reference": "", "reason": "", "ahead_reason": ""})
    means = [_mean(rows) for _, rows in table.groupby("method", sort=False)]
    together = pd.concat([table, pd.DataFrame(means)], ignore_index=True) if means else table
    order = {method: place for place, method in enumerate(dict.fromkeys(table["method"]))}
    together = together.assign(order=together["method"].map(order)).sort_values("order", kind="stable")
    return together.reindex(columns=COLUMNS).reset_index(drop=True)


def _mean(rows: pd.DataFrame) -> dict:
    first = rows.iloc[0]
    row = {name: first[name] for name in ("method", "metric", "unit", "reference")} | {"place": MEAN, "center": MEAN}
    row |= {"n": rows["n"].sum(), "patients": rows["patients"].sum(min_count=1)}
    for value, low, high, reason in (("value", "low", "high", "reason"), ("ahead", "ahead_low", "ahead_high", "ahead_reason")):
        interval = mean_interval(rows[value], rows[low], rows[high])
        row |= {value: rows[value].mean(skipna=False), low: interval.low, high: interval.high, reason: _why(rows, value, low, reason)}
    return row | ({} if first["reference"] else {"ahead_reason": ""})


def _why(rows: pd.DataFrame, value: str, low: str, reason: str) -> str:
    """Where and why a centre has no value or no interval, "" where all have both."""
    missing = rows[rows[value].isna() | rows[low].isna()]
    reasons = (missing[reason].str.removeprefix("no test: ").str.removeprefix("no interval: ")).replace("", "no reason recorded")
    return "; ".join(f"{center}: {why}" for center, why in zip(missing["center"], reasons, strict=True))
