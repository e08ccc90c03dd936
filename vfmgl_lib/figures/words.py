"""Words of several figures and tables: names of metrics, sizes of test sets, intervals, and what is not defined and why."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from vfmgl_lib.evaluation.segmentation import metric_and_class
from vfmgl_lib.methods.registry import METHODS

TITLES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
    "brier": "Brier score",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "kappa": "Cohen's κ",
    "kappa_quadratic": "Cohen's κ (quadratic)",
    "dice": "Dice (foreground)",
    "dice_mean_of_classes": "Dice (mean of background and foreground)",
    "iou": "IoU",
    "assd": "ASSD",
    "hd95": "HD95",
}
LENGTHS = ("mm", "px")  # units of distances, whose means are over images
SHORT = TITLES | {"dice": "Dice", "dice_mean_of_classes": "Dice, mean of classes"}


def title(metric: str, names: Mapping[str, str] = TITLES) -> str:
    """A metric's name; that of one class (an AUC against the others) says which."""
    base, one = metric_and_class(metric)
    return names.get(metric, metric) if one is None else f"{SHORT.get(base, base)} of {one}".replace("$", r"\$")


def short(metric: str) -> str:
    """A metric's name where there is little room."""
    return title(metric, SHORT)


def axis_label(metric: str, table: pd.DataFrame) -> str:
    """The metric with what it is computed over, e.g. "AUC per patient", or with its unit, e.g. "HD95 (mm)".

    Args:
        table: unit ("patient" or "image"; of a distance "mm" or "px"), the same in all rows.
    """
    unit = "/".join(sorted(table["unit"].unique()))
    return f"{title(metric)} ({unit})" if unit in LENGTHS else f"{title(metric)} per {unit}"


def set_sizes(table: pd.DataFrame, printed: Mapping[str, str]) -> str:
    """How many images or patients each centre's test set has; `table`: center, unit, n of test sets only."""
    sizes = table.groupby("center")["n"].max()
    unit = table["unit"].iloc[0]
    what = "Image" if unit in LENGTHS else unit.capitalize()
    return f"{what}s in the test sets: {', '.join(f'{printed[c]} {int(n)}' for c, n in sizes.items())}."


def undefined(
    table: pd.DataFrame, printed: Mapping[str, str], about: str = "method", everyone: str = "all methods", lead: str = "Not defined"
) -> str:
    """One sentence a reason: at which centres, for what, a value is missing and why.

    Args:
        table: center, metric, value, reason and the column `about`.
        about: what is listed behind the centre.  everyone: how it is called where nothing of it has a value.
        lead: first words of each sentence.
    """
    sentences = []
    missing = table[table["value"].isna()].assign(reason=lambda t: t["reason"].replace("", "no reason recorded"))
    several = table["metric"].nunique() > 1
    for reason, rows in missing.groupby("reason", sort=False):
        places: dict[str, list[str]] = {}
        for (center, metric), group in rows.groupby(["center", "metric"], sort=False):
            whole = table[(table["center"] == center) & (table["metric"] == metric)][about]
            titles = [METHODS[key].title if key in METHODS else printed.get(key, key) for key in dict.fromkeys(group[about])]
            who = everyone if set(group[about]) == set(whole) else ", ".join(titles)
            places.setdefault(f"{printed[center]} ({{}}{who})", []).append(short(metric))
        shown = [place.format(f"{', '.join(metrics)}: " if several else "") for place, metrics in places.items()]
        sentences.append(f"{lead} ({reason}): {'; '.join(shown[:6])}{'; …' if len(shown) > 6 else ''}.")
    return " ".join(sentences)


def class_counts(rows: pd.DataFrame) -> str:
    """ "7 of 20 positive" """
    n, positive = rows[["n", "positives"]].iloc[0].astype(int)
    return f"{positive} of {n}\npositive"


def with_interval(row: Mapping, decimals: int) -> str:
    """ "0.83 (0.72–0.91)", without what is not defined; "–" without a value."""
    value, low, high = (row[name] for name in ("value", "low", "high"))
    if pd.isna(value):
        return "–"
    interval = "" if pd.isna(low) or pd.isna(high) else f" ({low:.{decimals}f}–{high:.{decimals}f})"
    return f"{value:.{decimals}f}{interval}"


def seeds_there(table: pd.DataFrame, about: str = "method") -> str:
    """How many seeds the means are over, e.g. "3 seeds (of FedAvg 1)"; `table`: seeds and the column `about`."""
    most = int(table["seeds"].max())
    fewer = table[table["seeds"] < most].groupby(about, sort=False)["seeds"].min()
    named = ", ".join(f"of {METHODS[name].title if name in METHODS else name} {number}" for name, number in fewer.items())
    return f"{most} seeds" + f" ({named})" * bool(named)
