import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.curves import TREAT_ALL, TREAT_NONE, decision_curve, net_benefit

LABEL = np.array([1, 1, 0, 0, 0])
PROBABILITY = np.array([0.9, 0.4, 0.6, 0.2, 0.1])


def test_net_benefit_by_hand():
    # At 0.5 the first and the third are treated: one right, one wrong, and a wrong one costs 0.5 / 0.5.
    assert net_benefit(PROBABILITY, LABEL, [0.5]) == pytest.approx([1 / 5 - 1 / 5])
    # At 0.2 all but the last, the fourth lying on the threshold: two right, two wrong at 0.2 / 0.8.
    assert net_benefit(PROBABILITY, LABEL, [0.2]) == pytest.approx([2 / 5 - 2 / 5 * 0.25])
    assert net_benefit(np.zeros(5), LABEL, [0.3, 0.7]).tolist() == [0, 0]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_bad_input_is_refused(threshold):
    with pytest.raises(ValueError, match="between 0 and 1"):
        net_benefit(PROBABILITY, LABEL, [threshold])
    with pytest.raises(ValueError, match="at least one sample"):
        net_benefit([], [], [0.5])


def _final(method):
    about = {"method": method, "seed": 0, "split_id": "own", "budget": "rounds", "model_center": "A", "split": "test"}
    rows = pd.DataFrame({"test_center": "A", "id": list("abcde"), "patient": list("vwxyz"), "probability": PROBABILITY, "label": LABEL})
    return pd.concat([rows.assign(**about), rows.assign(**about, test_center="B")], ignore_index=True)


def test_curves_of_own_models_beside_treating_all_and_none():
    table = decision_curve(pd.concat([_final("local"), _final("vfmgl")]), unit="patient", thresholds=np.array([0.2, 0.5]))
    assert table.groupby("method").size().to_dict() == {"local": 2, "vfmgl": 2, TREAT_ALL: 2, TREAT_NONE: 2}
    assert set(table["center"]) == {"A"} and set(table["n"]) == {5} and set(table["positives"]) == {2}
    everyone = table[table["method"] == TREAT_ALL]["net_benefit"].to_numpy()
    assert everyone == pytest.approx([0.4 - 0.6 * 0.25, 0.4 - 0.6])
    assert (table[table["method"] == TREAT_NONE]["net_benefit"] == 0).all()


def test_a_patient_with_several_images_counts_once():
    twice = pd.concat([_final("vfmgl"), _final("vfmgl").assign(id=lambda t: t["id"] + "2")])
    assert set(decision_curve(twice, unit="patient")["n"]) == {5} and set(decision_curve(twice, unit="image")["n"]) == {10}
