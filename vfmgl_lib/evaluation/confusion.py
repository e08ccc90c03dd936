"""Which class the samples of each class are taken for, of more than two classes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.classification import class_names
from vfmgl_lib.evaluation.metric import undefined_reason, units_of
from vfmgl_lib.evaluation.results import check_predictions

CONFUSION = "method seed split_id budget center true predicted count share n reason".split()


def confusion_table(final: pd.DataFrame, *, unit: str) -> pd.DataFrame:
    """The confusion matrix of every centre's own model on its test set, a row a field.

    Args:
        final: final predictions of a classification with more than two classes.
        unit: "patient" (mean probabilities of a patient's images) or "image".
    Returns: method, seed, split_id, budget, center, true, predicted (names of classes, in the order of their numbers), count, share (of the
        samples of the true class; NaN where it has none), n (samples of the set), reason (why share, or both, are NaN).
    Raises: ValueError: predictions of two classes, or `results.check_predictions`.
    """
    names = class_names(final)
    if not names:
        raise ValueError("a table of confusions needs predictions of more than two classes, these have two or none")
    check_predictions(final)
    own, found = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test")], []
    for key, rows in own.groupby(["method", "seed", "split_id", "budget", "test_center"], sort=False):
        units, undefined = units_of(rows, unit, None), undefined_reason(rows)
        counts = np.zeros((len(names), len(names)), int)
        if not undefined:
            np.add.at(counts, (units["label"].to_numpy(), units["predicted"].to_numpy()), 1)
        for true, name in enumerate(names):
            total = int(counts[true].sum())
            for called, other in enumerate(names):
                row = dict(zip(CONFUSION[:5], key, strict=True)) | {"true": name, "predicted": other, "n": len(units)}
                row |= {"count": np.nan if undefined else int(counts[true, called])}
                row |= {"share": counts[true, called] / total if total else np.nan}
                found.append(row | {"reason": undefined or ("" if total else f"no sample of class {name!r}")})
    return pd.DataFrame(found, columns=CONFUSION)
