"""Metrics equal scikit-learn's and hand-computed cases; undefined ones are NaN with the reason."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

from vfmgl_lib.evaluation.classification import NOBODY, by_patient, youden_cutoff
from vfmgl_lib.evaluation.metric import metrics_of
from vfmgl_lib.evaluation.prediction import chosen_cutoff, scoring_unit
from vfmgl_lib.evaluation.segmentation import dice, pixel_counts


def classification(probability, label, cutoff):
    patients = [f"P{place}" for place in range(len(label))]
    return metrics_of(pd.DataFrame({"patient": patients, "probability": probability, "label": label}), "image", cutoff)


def segmentation(counts):
    return metrics_of(counts, "image", None)


def _values(metrics):
    return {metric.name: metric.value for metric in metrics}


def test_youden_by_hand():
    probability, label = np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])
    assert youden_cutoff(probability, label) == 0.8  # sensitivity 0.5, specificity 1; 0.35 gives the same sum later
    assert youden_cutoff(np.array([0.2, 0.3, 0.6, 0.7]), label) == 0.6
    assert math.isnan(youden_cutoff(probability, np.ones(4)))


@pytest.mark.parametrize("highest", [0.9, 1.0])
def test_a_model_worse_than_chance_calls_nobody_positive_not_even_of_whom_it_is_certain(highest):
    probability, label = np.array([highest, 0.8, 0.2, 0.1]), np.array([0, 0, 1, 1])
    cutoff = youden_cutoff(probability, label)
    assert cutoff == NOBODY and round(cutoff, 12) == 1.0
    values = _values(classification(probability, label, cutoff))
    assert values["specificity"] == 1.0 and values["sensitivity"] == 0.0


def test_classification_equals_scikit_learn():
    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 80)
    probability = np.clip(0.3 * label + generator.random(80) * 0.7, 0, 1)
    values = _values(classification(probability, label, 0.5))
    called = (probability >= 0.5).astype(int)
    assert values["auc"] == pytest.approx(roc_auc_score(label, probability), abs=1e-12)
    assert values["accuracy"] == pytest.approx(accuracy_score(label, called), abs=1e-12)
    assert values["sensitivity"] == pytest.approx(recall_score(label, called), abs=1e-12)
    assert values["specificity"] == pytest.approx(recall_score(1 - label, 1 - called), abs=1e-12)


def test_one_class_and_no_cutoff_give_nan_with_the_reason():
    metrics = classification(np.array([0.2, 0.9]), np.array([1, 1]), math.nan)
    assert all(math.isnan(metric.value) for metric in metrics)
    assert metrics[0].reason == "only one class: 2 positive, 0 negative" and "no cutoff" in metrics[1].reason
    assert "no training set of its own" in classification(np.array([0.2, 0.9]), np.array([0, 1]), None)[1].reason
    known = {metric.name: metric for metric in classification(np.array([0.2, 0.9]), np.array([1, 1]), 0.5)}
    assert known["sensitivity"].value == 0.5 and math.isnan(known["specificity"].value) and "no negative" in known["specificity"].reason


@pytest.mark.parametrize("bad", [1.2, -0.1])
def test_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match=rf"\[0, 1\], got {bad}"):
        classification(np.array([0.5, bad]), np.array([0, 1]), 0.5)


def test_patients_are_scored_by_the_mean_of_their_images():
    table = pd.DataFrame({"patient": ["b", "a", "b"], "probability": [0.2, 0.9, 0.6], "label": [1, 0, 1]})
    assert by_patient(table).to_dict("list") == {"patient": ["a", "b"], "probability": [0.9, 0.4], "label": [0, 1]}
    assert scoring_unit(table, False) == "patient" and scoring_unit(table, True) == "image"
    mixed = table.assign(label=[1, 0, 0])
    assert scoring_unit(mixed, False) == "image"
    with pytest.raises(ValueError, match="patient b has images of several classes"):
        by_patient(mixed)


def test_the_cutoff_is_that_of_the_validation_set_where_there_is_one():
    train = pd.DataFrame({"patient": ["b", "a", "b"], "probability": [0.2, 0.9, 0.6], "label": [1, 0, 1]})
    val = pd.DataFrame({"patient": ["c", "d"], "probability": [0.3, 0.7], "label": [0, 1]})
    assert chosen_cutoff({"train": train, "val": val, "test": train}, "patient") == (0.7, "val")
    assert chosen_cutoff({"train": train, "test": val}, "patient") == (NOBODY, "train")
    assert chosen_cutoff({"train": train, "val": val[:1]}, "patient") == (NOBODY, "train"), "one class in the validation set"
    nothing = chosen_cutoff({"train": train[:1], "val": val[:1]}, "image")
    assert math.isnan(nothing.value) and nothing.split == ""
    assert chosen_cutoff({"train": train.rename(columns={"probability": "dice"})}, "image").split == "", "a segmentation"


def test_dice_by_hand_and_against_scikit_learn():
    generator = np.random.default_rng(0)
    predicted, mask = (generator.random((9, 7)) > 0.6 for _ in range(2))
    counts = pixel_counts(predicted, mask)
    assert sum(counts.values()) == 63
    assert float(dice(counts["tp"], counts["fp"], counts["fn"])) == pytest.approx(f1_score(mask.ravel(), predicted.ravel()), abs=1e-12)
    assert float(dice(0, 0, 0)) == 1.0, "both masks empty"
    assert float(dice(0, 5, 0)) == 0.0 and float(dice(0, 0, 5)) == 0.0
    with pytest.raises(ValueError, match=r"\(9, 7\) and mask \(7, 9\)"):
        pixel_counts(predicted, mask.T)


def test_segmentation_means_are_over_images_that_define_them():
    counts = pd.DataFrame({"tp": [2, 0], "fp": [1, 0], "fn": [1, 0], "tn": [4, 8]})
    values = {metric.name: metric for metric in segmentation(counts)}
    assert values["dice"].value == pytest.approx((4 / 6 + 1) / 2)
    assert values["dice_mean_of_classes"].value == pytest.approx(((4 / 6 + 1) / 2 + (8 / 10 + 1) / 2) / 2)
    assert values["sensitivity"].value == pytest.approx(2 / 3) and values["sensitivity"].n == 1
    assert values["specificity"].value == pytest.approx((4 / 5 + 1) / 2) and values["specificity"].n == 2
    empty = segmentation(counts.iloc[1:].assign(tn=0))
    assert math.isnan(_values(empty)["sensitivity"]) and "no image has foreground" in {m.reason for m in empty}
    assert all(math.isnan(metric.value) for metric in segmentation(counts.iloc[:0]))
