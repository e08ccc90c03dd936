"""Reliability: bins, shares and their intervals."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.curves import RELIABILITY, reliability
from vfmgl_lib.evaluation.statistics import wilson


def predictions(probability, label, patient=None) -> pd.DataFrame:
    ids = [f"i{place}" for place in range(len(label))]
    about = {"method": "vfmgl", "seed": 0, "split_id": "own", "budget": "rounds", "model_center": "A", "test_center": "A", "split": "test"}
    return pd.DataFrame(about | {"id": ids, "patient": ids if patient is None else patient, "probability": probability, "label": label})


def test_bins_by_hand():
    final = predictions([0.0, 0.1, 0.19, 0.2, 0.3, 0.9, 1.0], [0, 0, 1, 1, 0, 1, 1])
    noise = [final.assign(split="train", probability=0.5), final.assign(model_center="B", probability=0.5)]
    table = reliability(pd.concat([final, *noise]), unit="image")
    assert list(table.columns) == RELIABILITY and table["bin"].tolist() == [0, 0.2, 0.8]
    assert table["n"].tolist() == [3, 2, 2] and table["positives"].tolist() == [1, 1, 2]
    assert table["probability"].tolist() == pytest.approx([0.29 / 3, 0.25, 0.95]) and table["share"].tolist() == pytest.approx(
        [1 / 3, 0.5, 1]
    )
    assert table["brier"].unique() == pytest.approx([np.mean((final["probability"] - final["label"]) ** 2)])
    assert table["low"].isna().all() and table["reason"].iloc[0] == "no interval: 3 patients, at least 5 are needed"
    assert reliability(final, unit="image", bins=2)["n"].tolist() == [5, 2]


def test_probabilities_that_come_true_lie_on_the_diagonal_and_others_do_not():
    generator = np.random.default_rng(0)
    probability = generator.random(4000)
    label = (generator.random(4000) < probability).astype(int)
    true, too_high = (reliability(predictions(p, label), unit="patient") for p in (probability, np.sqrt(probability)))
    assert ((true["low"] <= true["probability"]) & (true["probability"] <= true["high"])).all()
    assert tuple(true.loc[0, ["low", "high"]]) == wilson(true["positives"][0], true["n"][0])[:2]
    assert (too_high["share"] < too_high["probability"]).all() and too_high["brier"][0] > true["brier"][0] + 0.02


def test_images_of_one_patient_widen_the_interval():
    label, patient = np.repeat([0, 1, 0, 1, 0, 1], 20), np.repeat(np.arange(6), 20)
    row = reliability(predictions(np.full(120, 0.5), label, patient), unit="image").iloc[0]
    assert (row["patients"], row["n"]) == (6, 120) and row["high"] - row["low"] > 3 * np.ptp(wilson(60, 120)[:2])
    with pytest.raises(ValueError, match="the probability must lie in"):
        reliability(predictions([0.5, 1.5], [0, 1]), unit="image")


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_an_undefined_prediction_leaves_no_bins_but_its_reason(unit):
    (row,) = reliability(predictions([0.5, np.nan, 0.4], [0, 1, 1], [0, 1, 1]), unit=unit).to_dict("records")
    assert row["reason"].startswith("1 of 3 predictions are undefined") and np.isnan([row["bin"], row["brier"], row["share"]]).all()
    assert (row["n"], row["positives"], row["patients"]) == {"patient": (2, 1, 2), "image": (3, 2, 2)}[unit]
