"""The methods beside one another, each centre's own models on its own test set: table of statistics, verdicts, cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.classification import class_names, is_classification, own_class, probability_columns
from vfmgl_lib.evaluation.generalization import OWN_SPLIT, over_seeds
from vfmgl_lib.evaluation.margin import LOWER_IS_BETTER
from vfmgl_lib.evaluation.metric import AT_CUTOFF
from vfmgl_lib.evaluation.multiclass import KAPPAS
from vfmgl_lib.evaluation.one_vs_rest import AUC_OF
from vfmgl_lib.evaluation.results import ALL, per_case
from vfmgl_lib.methods.registry import METHODS

CLASSIFICATION = ("auc", "accuracy", "sensitivity", "specificity", "ppv", "npv")
SEGMENTATION = ("dice", "iou", "ppv", "sensitivity", "specificity")


def in_order(there: Iterable[str], methods: Sequence[str] | None = None) -> tuple[list[str], str]:
    """Methods to draw, in the order of `METHODS`, and a sentence that names those wanted and not there.

    Args:
        there: methods a table has.
        methods: those wanted; None: all that the table has of `METHODS`.
    Raises: ValueError: a wanted method that is not in `METHODS`, or none of those wanted in the table.
    """
    there = set(there)
    wanted = [method for method in METHODS if method in there] if methods is None else list(methods)
    unknown = [method for method in wanted if method not in METHODS]
    if unknown:
        raise ValueError(f"methods {unknown} are unknown, known are {', '.join(METHODS)}")
    drawn = [method for method in METHODS if method in wanted and method in there]
    if not drawn:
        raise ValueError(f"the table has none of the methods {', '.join(wanted or METHODS)}, it has {', '.join(sorted(there)) or 'none'}")
    absent = [METHODS[method].title for method in METHODS if method in wanted and method not in there]
    return drawn, f"Not in the results, so not drawn: {', '.join(absent)}." if absent else ""


def at_home(results: pd.DataFrame, metrics: Sequence[str], methods: Sequence[str], budget: str) -> pd.DataFrame:
    """Every method's models on their own centres' test sets in the data's own division, means over the seeds.

    Args:
        results: rows of any division, budget and seed.
    Returns: columns of `over_seeds`, with `center` for the test centre; the pooled rows have the centre "all".
    Raises: ValueError: a metric that the results do not have at this budget.
    """
    rows = results[(results["budget"] == budget) & home_tests(results)]
    lacking = [metric for metric in metrics if not (rows["metric"] == metric).any()]
    if lacking:
        has = ", ".join(dict.fromkeys(rows["metric"])) or "none"
        raise ValueError(f"the results at budget {budget!r} have no metric {', '.join(lacking)}, they have {has}")
    rows = rows[rows["metric"].isin(metrics) & rows["method"].isin(methods)]
    return over_seeds(rows).rename(columns={"test_center": "center"})


def home_tests(results: pd.DataFrame) -> pd.Series:
    """Which rows are of models on their own test sets in the data's own division."""
    return (results["split"] == "test") & (results["split_id"] == OWN_SPLIT) & (results["model_center"] == results["test_center"])


def classification_metrics(results: pd.DataFrame) -> tuple[str, ...]:
    """The metrics of a classification that are shown, more of which is better: of two classes `CLASSIFICATION`."""
    per_class = [metric for metric in dict.fromkeys(results["metric"]) if AUC_OF.fullmatch(metric)]
    if not per_class:
        return CLASSIFICATION
    kappas = [metric for metric in KAPPAS if (results["metric"] == metric).any()]
    return ("auc", *per_class, "accuracy", "balanced_accuracy", "macro_f1", *kappas)


def over_fewer(table: pd.DataFrame) -> pd.Series:
    """Where a mean over a segmentation's images leaves out more of them than another method's: those without a predicted pixel.

    Args:
        table: center, metric, n.
    """
    return table["n"] < table.groupby(["center", "metric"])["n"].transform("max")


def statistics_table(
    results: pd.DataFrame,
    tests: pd.DataFrame | None = None,
    metrics: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    budget: str = "rounds",
) -> pd.DataFrame:
    """Every method's metrics at every centre with interval, which is the best of the centre, and the test against the reference.

    Args:
        results: a results table.
        tests: from `results.compare_methods`, of one seed; None: no tests.
        metrics: None: those of a classification or a segmentation that the results have.
    Returns: center ("all": counts of all centres summed), method, title, metric, unit, value, low, high, interval, std, seeds, n,
        cutoff_from (the sets on which the cutoff of such a value was chosen: "val", "train", both where seeds or centres differ),
        over_fewer (a segmentation's mean over fewer images than another method's, which is never the best), best (none where a test
        has the other sign), p, p_holm, test, test_reason (why there is no p), tested_seed, reference, reason; in the order in which they
        are printed.
    Raises: ValueError: tests of several seeds.
    """
    there = set(results["metric"])
    segmentation = ("dice", "dice_mean_of_classes", *SEGMENTATION[1:], *LOWER_IS_BETTER)
    known = segmentation if "dice" in there else (*classification_metrics(results), "brier")
    metrics = list(metrics or (metric for metric in known if metric in there))
    drawn, _ = in_order(results["method"], methods)
    table = at_home(results, metrics, drawn, budget)
    sign = np.where(table["metric"].isin(LOWER_IS_BETTER), -1, 1)
    group = [table["center"], table["metric"]]
    table["over_fewer"] = over_fewer(table) & ("dice" in there)
    score = (table["value"] * sign).rename("score").mask(table["over_fewer"])
    highest, lowest = score.groupby(group).transform("max"), score.groupby(group).transform("min")
    # Equal shares may differ in the last bit, where they are means over seeds. Where all are equal, none is the best.
    table["best"] = (score >= highest - 1e-12) & (highest > lowest + 1e-12)
    key = ["center", "method", "metric"]
    if tests is not None:
        tests = tests[(tests["budget"] == budget) & (tests["split_id"] == OWN_SPLIT)]
        if tests["seed"].nunique() > 1:
            seeds = ", ".join(map(str, sorted(tests["seed"].unique())))
            raise ValueError(f"p values of several seeds cannot be put into one, got seeds {seeds}: give those of one")
        tests = tests.rename(columns={"seed": "tested_seed", "reason": "test_reason"})
        wanted = [*key, "tested_seed", "difference", "p", "p_holm", "test", "test_reason", "reference"]
        table = table.merge(tests[wanted], on=key, how="left")
        table["best"] &= ~_of_two_signs(table)
        table = table.drop(columns="difference")
    else:
        table = table.assign(tested_seed=np.nan, p=np.nan, p_holm=np.nan, test="", test_reason="", reference="")
    table = table.fillna({"test": "", "test_reason": "", "reference": ""})
    table["cutoff_from"] = _cutoff_sets(table, results[(results["metric"] == "cutoff") & (results["budget"] == budget)])
    table["title"] = [METHODS[method].title for method in table["method"]]
    places = {"center": [*sorted(set(table["center"]) - {ALL}), ALL], "method": list(METHODS), "metric": metrics}
    order = pd.DataFrame({name: table[name].map(values.index) for name, values in places.items()}).sort_values(list(places)).index
    columns = [*key[:2], "title", "metric", "unit", "value", "low", "high", "interval", "std", "seeds", "n", "cutoff_from", "over_fewer"]
    tested = ["best", "p", "p_holm", "test", "test_reason", "tested_seed", "reference", "reason"]
    return table.loc[order, [*columns, *tested]].reset_index(drop=True)


def _of_two_signs(table: pd.DataFrame) -> pd.Series:
    """Of each row whether a test at its centre, which is of means over patients, has another sign than the values, means over images."""
    values = table.set_index(["center", "metric", "method"])["value"]
    reference = [values.get((row.center, row.metric, row.reference), np.nan) for row in table.itertuples()]
    opposite = (np.array(reference) - table["value"]) * table["difference"] < 0
    return opposite.groupby([table["center"], table["metric"]]).transform("any")


def _cutoff_sets(table: pd.DataFrame, cutoffs: pd.DataFrame) -> list[str]:
    """ "val", "train", "train, val" or "" for each row."""
    cutoffs = cutoffs[cutoffs["value"].notna() & (cutoffs["split_id"] == OWN_SPLIT)]
    found = {key: set(rows["split"]) for key, rows in cutoffs.groupby(["method", "model_center"])}
    found |= {(method, ALL): set(rows["split"]) for method, rows in cutoffs.groupby("method")}
    rows = table[["method", "center", "metric"]].itertuples(index=False)
    return [", ".join(sorted(found.get((row.method, row.center), ()))) if row.metric in AT_CUTOFF else "" for row in rows]


def main_metrics(final: pd.DataFrame) -> tuple[str, str]:
    """The main metric and the second one: AUC and accuracy of a classification, Dice and ASSD of a segmentation."""
    return ("auc", "accuracy") if is_classification(final) else ("dice", "assd")


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
        with its probability, and the distribution of the probabilities in each class (of more than two classes of that of the own class).
    """
    tested = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test")]
    if names := class_names(tested):
        cases = tested[["method", "budget", "test_center", "patient", "id", *probability_columns(tested), "label"]]
        own = tested.assign(probability=own_class(tested), label=[names[label] for label in tested["label"].astype(int)])
        return cases, own.groupby(["method", "budget", "label"], sort=False)["probability"].describe()
    if "probability" in tested:
        cases = tested[["method", "budget", "test_center", "patient", "id", "probability", "label"]]
        return cases, cases.groupby(["method", "budget", "label"], sort=False)["probability"].describe()
    cases = per_case(tested)
    return cases, cases.groupby(["method", "budget"], sort=False)[["dice", "iou", "ppv", "sensitivity"]].median()
