"""How far a model may be behind another centre's own model there: one-sided limits, by patient, for a verdict with a margin.

A model that falls short by little in a small test set may fall short by much in truth. So it is not the value that has to be within the
margin but the one-sided 95 % limit (non-inferiority; Piaggio et al. 2012).
"""

from __future__ import annotations

import math

import pandas as pd

from vfmgl_lib.evaluation.results import NOT_LOCAL, check_predictions, paired, paired_estimate
from vfmgl_lib.evaluation.segmentation import DISTANCES, OVERLAPS

LOWER_IS_BETTER = (*DISTANCES, "brier")
COLUMNS = ["model_center", "test_center", "ahead", "limit", "patients", "reason"]


def margin_limits(
    final: pd.DataFrame, metric: str, *, unit: str, method: str = "vfmgl", budget: str = "rounds", split_id: str = "own"
) -> pd.DataFrame:
    """Every local model against the own model of each other centre, on that centre's test set (`results.paired_estimate`).

    Args:
        final: final predictions; of several seeds the mean differences count, so that limits are of these runs, for other patients.
        metric: "auc", or of a segmentation any of its overlaps, and distances if they were measured.
        unit: "patient" or "image" (`prediction.scoring_unit`).
    Returns: model_center, test_center, ahead (the model's metric less the own model's, of distances the other way round: more is better),
        limit (one-sided 95 %, from below), patients, reason (why limit is NaN).
    Raises: ValueError: a metric that is not compared by patient; models with different test sets of a centre.
    """
    known = ("auc",) if "probability" in final else OVERLAPS + tuple(name for name in DISTANCES if name in final)
    if metric not in known:
        raise ValueError(f"metric {metric!r} has no limit by patient, these predictions have it for {', '.join(known)}")
    check_predictions(final)
    rows = final[(final["method"] == method) & (final["budget"] == budget) & (final["split_id"] == split_id) & (final["split"] == "test")]
    models = sorted(set(rows["model_center"]) - set(NOT_LOCAL))
    runs = [dict(tuple(run.groupby(["model_center", "test_center"]))) for _, run in rows.groupby("seed")]
    found = []
    for model, test in ((model, test) for model in models for test in models if model != test):
        pairs = [
            paired(run[model, test], run[test, test], f"the model of {model}", f"that of {test}", test)
            for run in runs
            if (model, test) in run and (test, test) in run
        ]
        if not pairs:
            found.append((model, test, math.nan, math.nan, 0, "no limit: no predictions of both models"))
            continue
        estimate, _ = paired_estimate(pairs, metric, unit)
        if metric in LOWER_IS_BETTER:
            estimate = estimate._replace(value=-estimate.value)
        reason = f"no limit: {estimate.reason}" if estimate.reason else ""
        found.append((model, test, estimate.value, estimate.lower(), estimate.patients, reason))
    return pd.DataFrame(found, columns=COLUMNS)
