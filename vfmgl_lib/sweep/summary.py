"""What the log's metrics come to: each method's mean at home and away from home, and how far VFMGL is ahead of it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.results import NOT_LOCAL
from vfmgl_lib.evaluation.statistics import crossed_interval

MAIN = ("auc", "dice")
REFERENCE = "vfmgl"
COLUMNS = ["split_id", "method", "budget", "place", "metric", "value", "sd", "seeds", "centers", "ahead", "low", "high"]
OF_ALL = "both"  # the budget where matched rounds and matched updates (or compute) are the same round


def summary(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means of the main metric over seeds and centres, one row for each division, method, budget and place.

    A seed's value at a centre is, at "home", that of the centre's own model on its test set; "away", the mean of the other centres' models
    on that test set. Differences are paired: of the same test set and seed.

    Args:
        metrics: rows of `log.METRICS`, with its numbers as numbers.

    Returns:
        split_id, method, budget, place, metric, value; sd of the seeds' means, NaN for one seed; seeds, centers: how many of each;
        ahead: VFMGL's less the method's value where both have the seed, at the method's budget; low, high: its 95 % limits
        (`crossed_interval`). Centres without a value in any seed are left out, then seeds without one in a centre.
    """
    rows, keys = metrics[metrics["metric"].isin(MAIN)], ["split_id", "metric", "method", "budget", "place"]
    tables = {key: _values(part) for key, part in _by_place(rows).groupby(keys)}
    found = []
    for (split, metric, method, budget, place), table in tables.items():
        seeds = table.mean(axis=1)
        row = {"split_id": split, "method": method, "budget": budget, "place": place, "metric": metric}
        row |= {"value": seeds.mean(), "sd": seeds.std(), "seeds": len(table), "centers": table.shape[1]}
        # As many updates as HGKT is not as many as the reference has.
        places = (budget,) if budget == "hgkt_updates" else (budget, OF_ALL)
        reference = next((tables[key] for at in places if (key := (split, metric, REFERENCE, at, place)) in tables), None)
        found.append(row | _ahead(reference, table, method))
    return pd.DataFrame(found, columns=COLUMNS)


def _by_place(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each study, budget, test centre and place."""
    models = rows[~rows["model_center"].isin(NOT_LOCAL)]
    place = np.where(models["model_center"] == models["test_center"], "home", "away")
    keys = ["split_id", "metric", "method", "budget", "place", "seed", "test_center"]
    return models.assign(place=place).groupby(keys, as_index=False)["value"].mean()


def _values(part: pd.DataFrame) -> pd.DataFrame:
    table = part.pivot(index="seed", columns="test_center", values="value")
    return table.dropna(axis=1, how="all").dropna()


def _ahead(reference: pd.DataFrame | None, table: pd.DataFrame, method: str) -> dict:
    if reference is None or method == REFERENCE:
        return {"ahead": math.nan, "low": math.nan, "high": math.nan}
    difference = (reference - table).dropna(axis=1, how="all").dropna().to_numpy()
    low, high, _ = crossed_interval(difference)
    return {"ahead": difference.mean() if difference.size else math.nan, "low": low, "high": high}
