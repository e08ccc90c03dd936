"""A segmentation's metrics of each foreground class, where there are more than two classes."""

from __future__ import annotations

import pandas as pd

from vfmgl_lib.evaluation.comparison import at_home, in_order
from vfmgl_lib.evaluation.segmentation import DISTANCES, metric_and_class

METRICS = ("dice", "iou", *DISTANCES)
COLUMNS = ["method", "center", "class", "metric", "unit", "value", "low", "high", "std", "seeds", "n", "reason"]


def of_each_class(results: pd.DataFrame, budget: str = "rounds") -> pd.DataFrame:
    """Dice, IoU, ASSD and HD95 of each foreground class: every method's models on their own centres' test sets, means over the seeds.

    Args:
        results: a results table.
    Returns: `COLUMNS`; the centre "all" is all of them counted together. Without rows for a classification and for two classes.
    """
    parts = {name: metric_and_class(name) for name in dict.fromkeys(results["metric"])}
    wanted = [name for name, (base, title) in parts.items() if title is not None and base in METRICS]
    if not wanted:
        return pd.DataFrame(columns=COLUMNS)
    methods, _ = in_order(results["method"])
    table = at_home(results, wanted, methods, budget)
    table["class"] = [parts[name][1] for name in table["metric"]]
    table["metric"] = [parts[name][0] for name in table["metric"]]
    return table[COLUMNS]
