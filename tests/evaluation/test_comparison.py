"""Tables of the comparison, against counts and medians by hand."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.comparison import cases_of, main_metrics, verdicts

ABOUT = {"seed": 0, "split_id": "own", "budget": "rounds", "model_center": "A", "test_center": "A", "split": "test"}


def test_verdicts_count_what_is_clear_after_correction_and_keep_what_is_not_tested():
    numbers = [(0.3, 0.01, 0.01), (-0.3, 0.01, 0.01), (0.1, 0.04, 0.2), (-0.1, 0.5, 0.5), (0.2, np.nan, np.nan)]
    tests = pd.DataFrame(numbers, columns=["difference", "p", "p_holm"], index=range(10, 15))
    counts = verdicts(tests.assign(budget="rounds", reference="vfmgl", method="fedavg"))
    assert counts.index.tolist() == [("rounds", "VFMGL", "FedAvg")]
    words = ["clearly better", "clearly worse", "better, not clearly", "not better, not clearly worse", "not tested"]
    assert counts.iloc[0].to_dict() == dict.fromkeys(words, 1)


def test_a_classification_has_its_probabilities():
    final = pd.DataFrame({"method": "vfmgl", **ABOUT, "patient": list("pqr"), "id": list("xyz"), "probability": [0.2, 0.4, 0.9]})
    final = pd.concat([final.assign(label=[0, 0, 1]), final.assign(label=1, split="train"), final.assign(label=1, model_center="B")])
    cases, typical = cases_of(final)
    assert len(cases) == 3 and main_metrics(final) == ("auc", "accuracy")
    assert typical.loc[("vfmgl", "rounds", 0), "mean"] == pytest.approx(0.3)


def test_a_segmentation_has_a_patient_s_pixels_together():
    counts = {"tp": [10, 0, 4], "fp": [0, 10, 0], "fn": [0, 10, 0], "tn": [90, 80, 96]}
    final = pd.DataFrame({"method": "vfmgl", **ABOUT, "patient": ["p", "p", "q"], "id": list("xyz"), **counts})
    cases, typical = cases_of(final)
    assert main_metrics(final) == ("dice", "assd")
    assert cases.set_index("patient")["dice"].to_dict() == {"p": pytest.approx(0.5), "q": pytest.approx(1)}
    assert typical.loc[("vfmgl", "rounds"), "dice"] == pytest.approx(0.75)
