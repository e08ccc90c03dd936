"""Decision curve analysis (Vickers and Elkin 2006; the paper's Fig. 2B): net benefit over the probability at which one would act."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.classification import by_patient
from vfmgl_lib.evaluation.prediction import undefined_reason
from vfmgl_lib.evaluation.results import check_predictions

THRESHOLDS = np.linspace(0.01, 0.99, 99)
TREAT_ALL, TREAT_NONE = "treat all", "treat none"


def net_benefit(probability: np.ndarray, label: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """TP / n - FP / n * t / (1 - t) for each threshold t; who has probability >= t is treated.

    Args:
        probability: (n,) of class 1.  label: (n,) 0 or 1.  thresholds: (k,) in (0, 1).
    Returns: (k,), at most the share of positives.
    Raises: ValueError: a threshold outside (0, 1), no samples.
    """
    probability, label, thresholds = (np.asarray(values, dtype=float) for values in (probability, label, thresholds))
    if not len(label):
        raise ValueError("a net benefit needs at least one sample, got none")
    if not ((thresholds > 0) & (thresholds < 1)).all():
        raise ValueError(f"thresholds must lie between 0 and 1, got {thresholds.min()} to {thresholds.max()}")
    treated = probability[None, :] >= thresholds[:, None]
    true_positive, false_positive = (treated @ chosen / len(label) for chosen in (label, 1 - label))
    return true_positive - false_positive * thresholds / (1 - thresholds)


def decision_curve(final: pd.DataFrame, *, unit: str, thresholds: np.ndarray = THRESHOLDS) -> pd.DataFrame:
    """Net benefit of every centre's own model on its test set, beside treating all and treating none.

    Args:
        final: final predictions of a classification (`evaluation.results.final_predictions`).
        unit: "patient" (mean probability of a patient's images) or "image".
    Returns: method, seed, split_id, budget, center, threshold, net_benefit, n, positives, reason (why net_benefit is NaN: a prediction of
        the set is undefined). The methods "treat all" and "treat none" are there once for each seed, division, budget and centre. A test
        set of one class has a curve, too.
    Raises: ValueError: a probability outside [0, 1].
    """
    check_predictions(final)
    own = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test")]
    parts, treated = [], set()
    for key, rows in own.groupby(["method", "seed", "split_id", "budget", "test_center"], sort=False):
        scores = by_patient(rows) if unit == "patient" else rows
        label = scores["label"].to_numpy(dtype=float)
        curves = {key[0]: scores["probability"].to_numpy()}
        if key[1:] not in treated:
            treated.add(key[1:])
            curves |= {TREAT_ALL: np.ones(len(label)), TREAT_NONE: np.zeros(len(label))}
        about = dict(zip(("seed", "split_id", "budget", "center"), key[1:], strict=True))
        about |= {"n": len(label), "positives": int(label.sum())}
        for method, probability in curves.items():
            reason = undefined_reason(rows) if method == key[0] else ""
            benefit = np.nan if reason else net_benefit(probability, label, thresholds)
            parts.append(pd.DataFrame({"method": method, **about, "threshold": thresholds, "net_benefit": benefit, "reason": reason}))
    columns = ["method", "seed", "split_id", "budget", "center", "threshold", "net_benefit", "n", "positives", "reason"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)
