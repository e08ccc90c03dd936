"""What the log's metrics come to: each method's mean at home and away from home, and how far its reference is ahead of it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.results import NOT_LOCAL
from vfmgl_lib.evaluation.statistics import crossed_interval
from vfmgl_lib.methods.budgets import reference_at
from vfmgl_lib.methods.registry import METHODS

MAIN = ("auc", "dice")
MEANS = ["split_id", "method", "budget", "place", "metric", "value", "sd", "seeds", "centers"]
COLUMNS = [*MEANS, "reference", "ahead", "low", "high", "reason"]
AND = "+"  # between budgets that one round serves
OLD = {"both": "rounds+updates"}  # as version 0.1.0 wrote it


def summary(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means of the main metric over seeds and centres, one row for each division, method, budget and place.

    A seed's value at a centre is, at "home", that of the centre's own model on its test set; "away", the mean of the other centres' models
    on that test set. Differences are paired: of the same test set and seed.

    The reference of a control is the method that it is a control of (`Method.parent`): what a part of the method is worth is that lead.
    All others have VFMGL, at the budget "hgkt_updates" HGKT; at "compute" VFMGL's R rounds. Nothing is corrected for there being many.

    Args:
        metrics: rows of `log.METRICS`, with its numbers as numbers, or of `results.results_table`; with a column `no_comparison`
            (`study.study.mark_controls`) seeds in which a control is none have no difference.

    Returns:
        split_id, method, budget, place, metric, value; sd of the seeds' means, NaN for one seed; seeds, centers: how many of each;
        reference: whose lead `ahead` is, "" in the reference's own rows;
        ahead: the reference's less the method's value where both have the seed, at the same budget; low, high: its 95 % limits for other
        seeds and other centres (`crossed_interval`); reason: why one of them is NaN, or which seeds are left out and why. Centres without
        a value in any seed are left out, then seeds without one in a centre.
    """
    rows, keys = each_budget(metrics[metrics["metric"].isin(MAIN)]), ["split_id", "metric", "method", "budget", "place"]
    tables = {key: _values(part) for key, part in by_place(rows).groupby(keys)}
    unlike = _no_controls(rows)
    found = []
    for (split, metric, method, budget, place), table in tables.items():
        seeds = table.mean(axis=1)
        row = {"split_id": split, "method": method, "budget": budget, "place": place, "metric": metric}
        row |= {"value": seeds.mean(), "sd": seeds.std(), "seeds": len(table), "centers": table.shape[1]}
        reference = METHODS[method].parent or reference_at(budget)
        other = tables.get((split, metric, reference, budget, place))
        nothing = {"reference": "", "ahead": math.nan, "low": math.nan, "high": math.nan, "reason": ""}
        of_method = unlike.get((split, method), {})
        found.append(row | (nothing if method == reference else {"reference": reference} | _ahead(other, table, of_method)))
    return pd.DataFrame(found, columns=COLUMNS)


def each_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with one budget each: those of "rounds+updates" are there for both."""
    return rows.assign(budget=rows["budget"].replace(OLD).str.split(AND, regex=False)).explode("budget")


def by_place(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each study, budget, test centre and place: the value of the centre's own model, or the mean of the others'."""
    models = rows[~rows["model_center"].isin(NOT_LOCAL)]
    place = np.where(models["model_center"] == models["test_center"], "home", "away")
    keys = ["split_id", "metric", "method", "budget", "place", "seed", "test_center"]
    why = models["no_comparison"].fillna("") if "no_comparison" in models else ""
    grouped = models.assign(place=place, no_comparison=why).groupby(keys, as_index=False)
    return grouped.agg(value=("value", "mean"), no_comparison=("no_comparison", "first"))


def _values(part: pd.DataFrame) -> pd.DataFrame:
    table = part.pivot(index="seed", columns="test_center", values="value")
    return table.dropna(axis=1, how="all").dropna()


def _no_controls(rows: pd.DataFrame) -> dict[tuple[str, str], dict]:
    """(division, control) -> seed -> why there is no comparison."""
    found: dict[tuple[str, str], dict] = {}
    if "no_comparison" in rows:
        marked = rows[rows["no_comparison"].fillna("") != ""].drop_duplicates(["split_id", "method", "seed"])
        for row in marked.itertuples():
            found.setdefault((row.split_id, row.method), {})[row.seed] = row.no_comparison
    return found


def _ahead(reference: pd.DataFrame | None, table: pd.DataFrame, unlike: dict) -> dict:
    """`unlike`: seed -> why there is no comparison."""
    nothing = {"ahead": math.nan, "low": math.nan, "high": math.nan}
    if reference is None or reference.empty:
        return nothing | {"reason": "the reference is not there at this budget"}
    out = {seed: why for seed, why in unlike.items() if seed in table.index}
    left_out = [f"{why} (seed {', '.join(str(seed) for seed in out if out[seed] == why)})" for why in dict.fromkeys(out.values())]
    difference = (reference - table.drop(index=list(out))).dropna(axis=1, how="all").dropna().to_numpy()
    if not difference.size:
        return nothing | {"reason": "; ".join(left_out) or "no seed is there of both"}
    low, high, reason = crossed_interval(difference)
    return {"ahead": difference.mean(), "low": low, "high": high, "reason": "; ".join(filter(None, [*left_out, reason]))}
