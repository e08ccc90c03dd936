"""One class against the others: predictions of more than two classes as everything that is written for two can read them.

    of_class(predictions, name)    label 1 where the label is this class, probability that of this class
    for_each_class(table)          all classes one under another: a centre and a class are a place of their own, "centre · class"

So ROC and decision curves, calibration and the AUC with its tests are made once, for two classes, and figures of them have a panel for each
centre and class.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from vfmgl_lib.data.names import probability_column
from vfmgl_lib.evaluation.classification import class_names

BETWEEN = " · "  # a centre and a class
AUC_OF = re.compile(r"auc\[(.*)\]", re.DOTALL)


def auc_of(name: str) -> str:
    """The metric of one class against the others."""
    return f"auc[{name}]"


def of_class(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    """The predictions of one class against the others, as those of two classes.

    Args:
        predictions: of more than two classes, or pairs of them (`results.paired`, whose second side's columns end in "_other").
        name: the class.
    Returns: the table with label (1: this class) and probability (of this class) in the place of the classes' own columns.
    Raises: ValueError: a class that the predictions do not have.
    """
    names = class_names(predictions)
    if name not in names:
        raise ValueError(f"class {name!r} is none of the predictions', they have {', '.join(names) or 'two'}")
    number, found = names.index(name), predictions
    for side in ("", "_other"):
        columns = {other: f"{probability_column(other)}{side}" for other in names}
        if columns[name] in found:
            label = (found[f"label{side}"].astype(int) == number).astype(int)
            probability = found[columns[name]]
            found = found.drop(columns=list(columns.values())).assign(**{f"label{side}": label, f"probability{side}": probability})
    return found


def for_each_class(table: pd.DataFrame) -> pd.DataFrame:
    """Predictions of more than two classes as those of two, at places "centre · class"; a model at home stays at home."""
    return pd.concat([_placed(of_class(table, name), name) for name in class_names(table)], ignore_index=True)


def results_for_each_class(results: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The AUCs of a results table that belong to `for_each_class`: one class against the others, at the same places."""
    parts = [_placed(results[results["metric"] == auc_of(name)].assign(metric="auc"), name) for name in names]
    return pd.concat(parts, ignore_index=True)


def _placed(table: pd.DataFrame, name: str) -> pd.DataFrame:
    home = table["model_center"] == table["test_center"]
    place = table["test_center"] + f"{BETWEEN}{name}"
    return table.assign(test_center=place, model_center=table["model_center"].where(~home, place))


def places_of(centers: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """ "centre · class" -> (centre, class)."""
    return {f"{center}{BETWEEN}{name}": (center, name) for center in centers for name in names}


def with_class(table: pd.DataFrame, centers: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """A table made from `for_each_class`, with the centre and the class in columns of their own again.

    Args:
        table: center, and perhaps model_center.
        centers: all that there may be.
    """
    places = places_of(centers, names)
    found = table.assign(**{"class": [places[center][1] for center in table["center"]], "center": [places[c][0] for c in table["center"]]})
    if "model_center" in table:
        found["model_center"] = [places[model][0] if model in places else model for model in table["model_center"]]
    return found
