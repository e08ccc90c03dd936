"""One-sided limits of how far a model may be behind another centre's own."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from vfmgl_lib.evaluation.margin import margin_limits
from vfmgl_lib.evaluation.statistics import auc_contrast

ABOUT = {"method": "vfmgl", "split_id": "own", "budget": "rounds", "split": "test"}


def segmented(patients: int = 8, images: int = 3, seeds: int = 1, assd: bool = False) -> pd.DataFrame:
    """A's and B's models, and the shared one, on the test sets of A, B and the external E: a hundred pixels, fifty of them inside."""
    generator, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for model in ("A", "B", "shared"):
            for test in "ABE":
                for number in range(patients * images):
                    tp = int(generator.integers(30, 50))
                    row = {
                        "seed": seed,
                        "model_center": model,
                        "test_center": test,
                        "id": f"{test}{number}",
                        "patient": f"{test}{number // images}",
                    }
                    rows.append(ABOUT | row | {"tp": tp, "fp": 0, "fn": 50 - tp, "tn": 50} | ({"assd": 50.0 - tp} if assd else {}))
    return pd.DataFrame(rows)


def dice(final: pd.DataFrame, model: str, test: str) -> pd.Series:
    """Mean over seeds and images of each patient."""
    rows = final[(final["model_center"] == model) & (final["test_center"] == test)]
    return (2 * rows["tp"] / (2 * rows["tp"] + rows["fn"])).groupby(rows["patient"]).mean()


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_limit_of_dice_is_that_of_the_patients_mean_differences(seeds):
    final = segmented(seeds=seeds)
    table = margin_limits(final, "dice", unit="image")
    assert table[["model_center", "test_center"]].to_numpy().tolist() == [["A", "B"], ["B", "A"]], "no own, external or shared ones"
    row = table.iloc[0]
    difference = dice(final, "A", "B") - dice(final, "B", "B")
    expected = stats.ttest_1samp(difference, 0, alternative="greater").confidence_interval(0.95).low
    assert (row["ahead"], row["limit"], row["patients"]) == (pytest.approx(difference.mean()), pytest.approx(expected), 8)


def test_of_a_distance_less_is_ahead():
    final = segmented(assd=True)
    row, worse = margin_limits(final, "assd", unit="image").iloc[0], final[(final["model_center"] == "A") & (final["test_center"] == "B")]
    assert row["ahead"] == pytest.approx(final.query("model_center == test_center == 'B'")["assd"].mean() - worse["assd"].mean())
    assert row["limit"] < row["ahead"]


def test_four_patients_have_no_limit_and_a_model_is_never_behind_itself():
    few = margin_limits(segmented(patients=4, images=9), "dice", unit="image")
    assert (
        few["limit"].isna().all() and set(few["reason"]) == {"no limit: 4 patients, at least 5 are needed"} and few["ahead"].notna().all()
    )
    final = segmented()
    same = pd.concat([final.query("model_center == 'A'").assign(model_center=name) for name in "AB"])
    assert margin_limits(same, "dice", unit="image")["limit"].tolist() == [0, 0]


def test_a_limit_of_an_auc_is_delongs():
    generator, rows, label = np.random.default_rng(1), [], np.arange(40) % 2
    for model, test, seed in ((m, t, s) for m in "AB" for t in "AB" for s in (0, 1)):
        names = [f"{test}{i}" for i in range(40)]
        probability = np.clip(0.5 + 0.2 * (label - 0.5) + 0.2 * generator.normal(size=40), 0, 1)
        about = ABOUT | {"seed": seed, "model_center": model, "test_center": test, "id": names, "patient": names}
        rows.append(pd.DataFrame(about | {"probability": probability, "label": label}))
    final = pd.concat(rows, ignore_index=True).sample(frac=1, random_state=0)
    row = margin_limits(final, "auc", unit="patient").iloc[0]
    by_name = final.sort_values("id").groupby(["model_center", "test_center", "seed"])
    scores = [by_name.get_group((model, "B", seed)) for seed in (0, 1) for model in "AB"]
    expected = auc_contrast(np.stack([part["probability"] for part in scores]), scores[0]["label"], (0.5, -0.5, 0.5, -0.5))
    assert row["ahead"] == pytest.approx(expected.value) and row["limit"] == pytest.approx(expected.lower()) and row["patients"] == 40
    with pytest.raises(ValueError, match="metric 'accuracy' has no limit by patient, these predictions have it for auc"):
        margin_limits(final, "accuracy", unit="patient")
