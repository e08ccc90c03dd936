"""How far a model may be behind another centre's own model there: one-sided limits, by patient, for a verdict with a margin.

A model that falls short by little in a small test set may fall short by much in truth. So it is not the value that has to be within the
margin but the one-sided 95 % limit (non-inferiority; Piaggio et al. 2012).

The limit is Student's, and of rare failures it knows nothing before one is seen: where one patient in ten loses 0.5, which is 0.05 on
average, 12 patients without a failure are common, and the limit is within 0.05 in 29 % of the cases. So a verdict "yes" (`within`) needs
`SURE_PATIENTS` as well, among whom a failure of one patient in ten is missed in 5 %, and nobody who loses more than `FAILURE` margins.
Simulated at a difference that is exactly the margin, the verdict is wrong in at most 8 % of the cases where one patient in ten or more is
affected; a failure of one patient in twenty that costs everything is missed in 22 % with 29 patients and 4 % with 60
(`benchmarks/coverage.py`, `results/coverage/margins.csv`). Of an AUC, which has no loss of a patient, the number alone is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from vfmgl_lib.evaluation.classification import class_names, is_classification
from vfmgl_lib.evaluation.one_vs_rest import auc_of
from vfmgl_lib.evaluation.results import NOT_LOCAL, check_predictions, paired, paired_estimate, patient_differences, side_values
from vfmgl_lib.evaluation.segmentation import (
    DISTANCES,
    class_column,
    class_titles,
    distance_names,
    is_distance,
    metric_and_class,
    overlap_names,
)

LOWER_IS_BETTER = (*DISTANCES, "brier")
COLUMNS = ["model_center", "test_center", "ahead", "limit", "worst", "patients", "reason"]
SURE_PATIENTS = 29  # 0.9 ** 29 = 0.047
FAILURE = 5  # margins
AT_ZERO = 0.5  # share of the images at which a centre's own model may be at 0 and still be something to be compared with
ROUNDING = 1e-9  # -0.05 of an equal model's 0 may be missed by rounding alone


def lower_is_better(metric: str) -> bool:
    """Also of a metric of one class, such as "hd95[kidney]"."""
    return metric_and_class(metric)[0] in LOWER_IS_BETTER


def within(limit: float, worst: float, patients: int, margin: float) -> tuple[bool | None, str]:
    """Whether a model generalises: True, False (not shown), None (no verdict) with the reason.

    Args:
        limit, worst, patients: as `margin_limits` has them.
        margin: at least 0, in the unit of the metric.
    """
    if math.isnan(limit):
        return None, "no limit"
    if limit < -margin - ROUNDING or worst < -FAILURE * margin - ROUNDING:
        return False, ""
    if patients < SURE_PATIENTS:
        missed = f"among {patients} patients a failure of one in ten is missed in {0.9**patients:.0%}"
        return None, f"within the margin, but {missed}, at least {SURE_PATIENTS} are needed"
    return True, ""


def margin_limits(
    final: pd.DataFrame, metric: str, *, unit: str, method: str = "vfmgl", budget: str = "rounds", split_id: str = "own"
) -> pd.DataFrame:
    """Every local model against the own model of each other centre, on that centre's test set (`results.paired_estimate`).

    Args:
        final: final predictions; of several seeds the mean differences count, so that limits are of these runs, for other patients.
        metric: "auc" (of more than two classes also "auc[<class>]"), or of a segmentation any of its overlaps, and distances if they were
            measured.
        unit: "patient" or "image" (`prediction.scoring_unit`).
    Returns: model_center, test_center, ahead (the model's metric less the own model's, of distances the other way round: more is better),
        limit (one-sided 95 %, from below), worst (the patient who loses most, in the same sense; NaN of an AUC), patients, reason (why
        limit is NaN: too few patients; the own model is at 0 in most images; images that only a pixel of both models would define).
    Raises: ValueError: a metric that is not compared by patient; models with different test sets of a centre.
    """
    of_classes = is_classification(final)
    known = ("auc", *map(auc_of, class_names(final))) if of_classes else overlap_names(final) + distance_names(final)
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
            found.append((model, test, math.nan, math.nan, math.nan, 0, "no limit: no predictions of both models"))
            continue
        estimate, _ = paired_estimate(pairs, metric, unit)
        sign = -1 if lower_is_better(metric) else 1
        worst = math.nan if of_classes or math.isnan(estimate.value) else float((sign * patient_differences(pairs, metric)).min())
        reason = estimate.reason or ("" if of_classes else _incomparable(pairs, metric, test))
        limit = estimate._replace(value=sign * estimate.value, reason=reason).lower()
        reason = f"no limit: {reason}" if reason else ""
        found.append((model, test, sign * estimate.value, limit, worst, estimate.patients, reason))
    return pd.DataFrame(found, columns=COLUMNS)


def _incomparable(pairs: Sequence[pd.DataFrame], metric: str, test: str) -> str:
    """Why a limit would be of something else: images left out because a model finds nothing, or an own model that finds nothing."""
    images, (_, title) = sum(map(len, pairs)), metric_and_class(metric)
    values = [side_values(pair, metric) for pair in pairs]
    inside = [name if title is None else class_column(name, title) for name in ("tp", "fn")]
    dropped = sum(
        int(((mine.isna() | own.isna()) & ((pair[inside].sum(axis=1) > 0) | (mine.isna() != own.isna()))).sum())
        for pair, (mine, own) in zip(pairs, values, strict=True)
    )
    if dropped:
        nothing = "a class is there but not marked, or marked but not there" if class_titles(pairs[0]) else "a model marks nothing"
        return f"{metric} is undefined on {dropped} of {images} images, where {nothing}"
    zero = 0 if is_distance(metric) else sum(int((own <= 0).sum()) for _, own in values)
    if zero > AT_ZERO * images:
        return f"the own model of {test} has a {metric} of 0 on {zero} of {images} images"
    return ""
