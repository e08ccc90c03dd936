"""Classification metrics from probabilities, at a cutoff that comes from validation or training data (`prediction.chosen_cutoff`)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from vfmgl_lib.evaluation.metric import Metric

ONE_CLASS = "neither validation nor training set has both classes and a prediction of each sample"
AT_CUTOFF = ("accuracy", "sensitivity", "specificity", "ppv", "npv")
NOBODY = float(np.nextafter(1.0, 2.0))  # the cutoff that no probability reaches, not even one of exactly 1


def youden_cutoff(probability: np.ndarray, label: np.ndarray) -> float:
    """The probability at which sensitivity + specificity - 1 is highest on a set; NaN if only one class is there.

    Args:
        probability: (n,) of class 1, in [0, 1].  label: (n,) 0 or 1.
    Returns: in [0, 1], or `NOBODY` where calling nobody positive is best.
    """
    if len(np.unique(label)) < 2:
        return math.nan
    false_positive, true_positive, thresholds = roc_curve(label, probability, drop_intermediate=False)
    best = int(np.argmax(true_positive - false_positive))
    return float(min(thresholds[best], NOBODY))  # the curve's first threshold is infinite


def classification_metrics(probability: np.ndarray, label: np.ndarray, cutoff: float | None) -> list[Metric]:
    """AUC, and at the cutoff (probability >= cutoff is positive) accuracy, sensitivity, specificity, PPV and NPV.

    Args:
        probability: (n,) of class 1, in [0, 1].  label: (n,) 0 or 1.
        cutoff: not from these samples; NaN: no set to choose it on has both classes; None: the model has no training set of its own.
    Returns: metrics whose value is NaN, with the reason, where it is not defined.
    Raises: ValueError: for probabilities outside [0, 1] or NaN.
    """
    probability, label = np.asarray(probability, dtype=float), np.asarray(label, dtype=int)
    if len(label) and not ((probability >= 0) & (probability <= 1)).all():
        bad = probability[~((probability >= 0) & (probability <= 1))][0]
        raise ValueError(f"probabilities must lie in [0, 1], got {bad}")
    positives, negatives = int(label.sum()), int((1 - label).sum())
    one_class = "" if positives and negatives else f"only one class: {positives} positive, {negatives} negative"
    metrics = [Metric("auc", math.nan if one_class else float(roc_auc_score(label, probability)), len(label), one_class)]
    if cutoff is None or math.isnan(cutoff):
        reason = f"no cutoff: {'the model has no training set of its own' if cutoff is None else ONE_CLASS}"
        return [
            *metrics,
            *(Metric(name, math.nan, len(label), reason) for name in AT_CUTOFF),
        ]
    tn, fp, fn, tp = confusion_matrix(label, probability >= cutoff, labels=[0, 1]).ravel().tolist()
    metrics.append(Metric.share("accuracy", tp + tn, len(label), "no samples"))
    metrics.append(Metric.share("sensitivity", tp, tp + fn, "no positive sample"))
    metrics.append(Metric.share("specificity", tn, tn + fp, "no negative sample"))
    metrics.append(Metric.share("ppv", tp, tp + fp, "no sample called positive"))
    metrics.append(Metric.share("npv", tn, tn + fn, "no sample called negative"))
    return metrics


def by_patient(predictions: pd.DataFrame) -> pd.DataFrame:
    """Mean probability of each patient's images, NaN if one is: one row a patient, columns patient, probability, label.

    Raises: ValueError: if a patient's images differ in their label (then the image is the unit).
    """
    grouped = predictions.groupby("patient", sort=True)
    mixed = grouped["label"].nunique()
    if (mixed > 1).any():
        raise ValueError(f"patient {mixed[mixed > 1].index[0]} has images of several classes: the unit must be the image")
    found = grouped.agg(probability=("probability", "mean"), label=("label", "first")).reset_index()
    lacking = predictions.loc[predictions["probability"].isna(), "patient"]
    return found.assign(probability=found["probability"].mask(found["patient"].isin(lacking)))
