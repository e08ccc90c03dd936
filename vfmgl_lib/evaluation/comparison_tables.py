"""Small tables of the comparison of methods, made from predictions and tests, for either kind of task."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.results import per_case
from vfmgl_lib.methods.registry import METHODS


def main_metrics(final: pd.DataFrame) -> tuple[str, str]:
    """The main metric and the second one: AUC and accuracy of a classification, Dice and ASSD of a segmentation."""
    return ("auc", "accuracy") if "probability" in final else ("dice", "assd")


def verdicts(tests: pd.DataFrame, level: float = 0.05) -> pd.DataFrame:
    """At how many centres the reference is clearly better or worse than each method, or neither.

    Args:
        tests: from `results.compare_methods`.
        level: of p after Holm's correction, below which a difference is clear.
    Returns: counts; rows (budget, reference's title, method's title), columns the verdicts.
    """
    clear, gain = tests["p_holm"] < level, tests["difference"] > 0
    cases = [tests["p"].isna(), clear & gain, clear & ~gain, gain]
    words = ["not tested", "clearly better", "clearly worse", "better, not clearly"]
    verdict = pd.Series(np.select(cases, words, "not better, not clearly worse"), index=tests.index, name="the reference is")
    titles = [tests[key].map(lambda name: METHODS[name].title) for key in ("reference", "method")]
    return pd.crosstab([tests["budget"], *titles], verdict)


def cases_of(final: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cases of the own models' test sets, and what they come to for each method and budget.

    Args:
        final: final predictions of one seed.
    Returns: of a segmentation a row a patient with its overlaps (`results.per_case`) and their medians; of a classification a row an image
        with its probability, and the distribution of the probabilities in each class.
    """
    tested = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test")]
    if "probability" in tested:
        cases = tested[["method", "budget", "test_center", "patient", "id", "probability", "label"]]
        return cases, cases.groupby(["method", "budget", "label"], sort=False)["probability"].describe()
    cases = per_case(tested)
    return cases, cases.groupby(["method", "budget"], sort=False)[["dice", "iou", "ppv", "sensitivity"]].median()
