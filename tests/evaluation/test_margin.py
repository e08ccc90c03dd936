"""One-sided limits of how far a model may be behind another centre's own."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from vfmgl_lib.evaluation.generalization import cross_centers
from vfmgl_lib.evaluation.margin import SURE_PATIENTS, margin_limits, within
from vfmgl_lib.evaluation.results import results_table
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
    assert row["worst"] == pytest.approx(difference.min())


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


def test_a_verdict_needs_patients_among_whom_a_rare_failure_is_seen_and_none_seen():
    assert within(-0.04, -0.2, SURE_PATIENTS, 0.05) == (True, "") and within(-0.06, -0.06, 99, 0.05) == (False, "")
    assert within(-0.04, -0.26, 99, 0.05) == (False, ""), "one patient loses more than five margins"
    few, why = within(-0.04, -0.2, 12, 0.05)
    assert (
        few is None and why == "within the margin, but among 12 patients a failure of one in ten is missed in 28%, at least 29 are needed"
    )
    assert within(-0.06, -0.2, 12, 0.05) == (False, ""), "not shown, however many there are"
    assert within(float("nan"), 0.0, 99, 0.05)[0] is None and within(-0.04, float("nan"), 40, 0.05)[0], "an AUC has no worst patient"


def crossing(final: pd.DataFrame, metric: str) -> dict:
    table = cross_centers(results_table(final, unit="image"), margin_limits(final, metric, unit="image"), metric)
    (row,) = table[(table["model_center"] == "A") & (table["test_center"] == "B")].to_dict("records")
    return row


def test_two_models_that_mark_nothing_do_not_generalise_to_each_other():
    final = segmented(patients=40, images=1)
    nothing = final.assign(fn=50, tp=0)
    row = crossing(nothing, "dice")
    assert pd.isna(row["generalizes"]) and np.isnan(row["limit"]) and row["ahead"] == 0
    assert "the own model of B has a dice of 0 on 40 of 40 images" in row["reason"]
    same = pd.concat([final.query("model_center == 'A'").assign(model_center=name) for name in "AB"])
    assert crossing(same, "dice")["generalizes"], "two equal models that mark something do"


def test_a_distance_of_the_images_that_survive_is_no_verdict():
    final = segmented(patients=40, images=1, assd=True).assign(hd95=9.0, distance_unit="px", distance_reason="")
    lost = (final["model_center"] == "A") & (final["test_center"] == "B") & (final["id"].str[1:].astype(int) > 9)
    final.loc[lost, ["assd", "hd95"]] = np.nan
    row = crossing(final, "assd")
    assert pd.isna(row["generalizes"]) and "assd is undefined on 30 of 40 images, where a model marks nothing" in row["reason"]
    empty = final["id"].isin([f"B{i}" for i in range(40) if i > 9])  # of a truth without foreground no model has a distance
    of_truth = final.assign(tp=final["tp"].mask(empty, 0), fn=final["fn"].mask(empty, 0), fp=final["fp"].mask(empty, 1))
    of_truth.loc[empty, ["assd", "hd95"]] = np.nan
    assert np.isfinite(margin_limits(of_truth, "assd", unit="image").iloc[0]["limit"])


def test_over_images_and_over_patients_a_model_may_be_ahead_and_behind():
    """One patient of a hundred images at which A's model is better; at 40 others with one image it is worse."""
    final = segmented(patients=140, images=1)
    number = final["id"].str[1:].astype(int)
    final["patient"] = final["test_center"] + number.where(number >= 100, 0).astype(str)
    better = (final["model_center"] == "A") == (number < 100)
    final = final.assign(tp=np.where(better, 45, 40), fn=np.where(better, 5, 10))
    row = crossing(final, "dice")
    assert row["value"] > row["own"] and row["ahead"] < 0 and "over images the difference has the other sign" in row["reason"]
