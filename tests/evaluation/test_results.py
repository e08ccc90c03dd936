import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.metrics import brier_score_loss, confusion_matrix, roc_auc_score

from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation import statistics
from vfmgl_lib.evaluation.classification import youden_cutoff
from vfmgl_lib.evaluation.results import (
    COLUMNS,
    COMPARED,
    compare_controls,
    compare_methods,
    final_predictions,
    per_case,
    results_table,
    with_distances,
)
from vfmgl_lib.evaluation.segmentation import overlaps, surface_distances

RUN = {"seed": 0, "split_id": "own", "budget": "rounds"}


def classified(methods=("fedavg", "vfmgl"), centers=("A", "B"), patients=16, images=1, seed=0, sets=("train",)):
    """Final predictions: every model on its own training and test set and on the other centre's test set."""
    generator, rows = np.random.default_rng(seed), []
    for method in methods:
        for model in centers:
            for test, split in [*((model, split) for split in sets), *((center, "test") for center in centers)]:
                for patient in range(patients):
                    label = patient % 2
                    for image in range(images):
                        name = f"{test}-{split}-{patient}"
                        probability = float(np.clip(0.5 + (0.2 if label else -0.2) + generator.normal(scale=0.3), 0, 1))
                        sample = {"id": f"{name}-{image}", "patient": name, "probability": probability, "label": label}
                        rows.append({"method": method, **RUN, "model_center": model, "test_center": test, "split": split, **sample})
    return pd.DataFrame(rows)


def segmented(methods=("fedavg", "vfmgl"), centers=("A", "B"), patients=5, images=3, seed=0):
    generator, rows, truths = np.random.default_rng(seed), [], {}
    for method in methods:
        for center in centers:
            for patient in range(patients):
                for image in range(images):
                    sample = {"id": f"{center}-{patient}-{image}", "patient": f"{center}-{patient}", "mask_path": ""}
                    inside, outside = truths.setdefault(sample["id"], generator.integers(2, 50, 2).tolist())
                    tp, tn = (int(generator.integers(1, size)) for size in (inside, outside))
                    counts = {"tp": tp, "fp": outside - tn, "fn": inside - tp, "tn": tn}
                    rows.append(
                        {"method": method, **RUN, "model_center": center, "test_center": center, "split": "test", **sample, **counts}
                    )
    return pd.DataFrame(rows)


def one(table, **chosen):
    rows = table.loc[(table[list(chosen)] == pd.Series(chosen)).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_final_predictions_are_the_last_stage_at_each_budget_and_the_shared_model():
    rows = [(r, s, m) for r in (0, 2, 6) for m in ("A", "shared") for s in (("shared",) if m == "shared" else ("I", "II")) if r or s == "I"]
    predictions = pd.DataFrame(rows, columns=["round", "stage", "model_center"]).assign(method="vfmgl")
    final = final_predictions(predictions, {"rounds": 2, "updates": 6})
    assert final[["budget", "round", "stage", "model_center"]].to_numpy().tolist() == [
        ["rounds", 2, "II", "A"],
        ["rounds", 2, "shared", "shared"],
        ["updates", 6, "II", "A"],
        ["updates", 6, "shared", "shared"],
    ]
    assert len(final_predictions(predictions, {"rounds": 2, "updates": 2})) == 4, "one round for both budgets"
    with pytest.raises(ValueError, match=r"no predictions of round 3 .* \[0, 2, 6\]"):
        final_predictions(predictions, {"rounds": 3})


def test_classification_has_counts_and_the_standard_intervals():
    final = classified()
    table = results_table(final, unit="patient")
    assert list(table.columns) == COLUMNS
    about = {"method": "vfmgl", "model_center": "A"}
    mine = final[(final["method"] == "vfmgl") & (final["model_center"] == "A")]
    train, test = (mine[(mine["test_center"] == c) & (mine["split"] == s)] for c, s in (("A", "train"), ("B", "test")))
    cutoff = youden_cutoff(train["probability"].to_numpy(), train["label"].to_numpy())
    assert one(table, **about, metric="cutoff")["value"] == cutoff
    auc = one(table, **about, test_center="B", metric="auc")
    assert auc["value"] == pytest.approx(roc_auc_score(test["label"], test["probability"]), abs=1e-9) and auc["interval"] == "DeLong"
    assert (auc["low"], auc["high"]) == statistics.auc_interval(test["probability"].to_numpy(), test["label"].to_numpy())[:2]
    tn, fp, fn, tp = confusion_matrix(test["label"], test["probability"] >= cutoff).ravel()
    counts = {
        "accuracy": (tp + tn, 16),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "ppv": (tp, tp + fp),
        "npv": (tn, tn + fn),
    }
    for metric, (part, whole) in counts.items():
        row = one(table, **about, test_center="B", metric=metric)
        assert (row["numerator"], row["denominator"], row["value"]) == (part, whole, part / whole)
        assert (row["low"], row["high"]) == statistics.wilson(part, whole)[:2] and row["interval"] == "Wilson"


def test_all_centres_together_add_up_every_own_model_on_its_own_test_set():
    table = results_table(classified(), unit="patient")
    for metric in ("accuracy", "sensitivity", "specificity", "ppv", "npv"):
        own = table[(table["method"] == "vfmgl") & (table["model_center"] == table["test_center"]) & (table["split"] == "test")]
        own = own[(own["metric"] == metric) & (own["model_center"] != "all")]
        together = one(table, method="vfmgl", model_center="all", metric=metric)
        assert (together["numerator"], together["denominator"]) == (own["numerator"].sum(), own["denominator"].sum())
    assert not ((table["model_center"] == "all") & (table["metric"] == "auc")).any()


def test_several_samples_of_a_patient_have_intervals_by_patient():
    final = classified(images=4)
    by_image = results_table(final, unit="image")
    auc, accuracy = (one(by_image, method="vfmgl", model_center="A", test_center="A", split="test", metric=m) for m in ("auc", "accuracy"))
    assert (auc["interval"], accuracy["interval"]) == ("DeLong by patient", "t over patients")
    assert auc["n"] == 64 and auc["low"] < auc["value"] < auc["high"]
    part = final[(final["method"] == "vfmgl") & (final["model_center"] == "A") & (final["test_center"] == "A") & (final["split"] == "test")]
    expected = statistics.auc_interval(*(part[name].to_numpy() for name in ("probability", "label", "patient")))
    assert (auc["low"], auc["high"]) == expected[:2]
    by_patient = results_table(final, unit="patient")
    row = one(by_patient, method="vfmgl", model_center="A", test_center="A", split="test", metric="auc")
    means = part.groupby("patient")[["probability", "label"]].mean()
    assert row["n"] == 16 and row["value"] == pytest.approx(roc_auc_score(means["label"], means["probability"]), abs=1e-9)


def test_one_class_nothing_called_positive_and_no_training_set_give_reasons():
    final = classified()
    at_b = (final["test_center"] == "B") & (final["split"] == "test")
    table = results_table(final[~at_b | (final["label"] == 1)], unit="patient")
    auc, specificity = (one(table, method="vfmgl", model_center="A", test_center="B", metric=m) for m in ("auc", "specificity"))
    assert math.isnan(auc["value"]) and "only one class: 8 positive" in auc["reason"]
    assert math.isnan(specificity["value"]) and specificity["reason"] == "no negative sample"

    quiet = final.assign(probability=np.where(final["split"] == "test", 0.0, final["probability"]))
    ppv = one(results_table(quiet, unit="patient"), method="vfmgl", model_center="A", test_center="A", split="test", metric="ppv")
    assert math.isnan(ppv["value"]) and ppv["reason"] == "no sample called positive" and ppv["denominator"] == 0

    single = final[(final["split"] == "test") | (final["label"] == 0)]
    table = results_table(single, unit="patient")
    row = one(table, method="vfmgl", model_center="A", test_center="A", split="test", metric="accuracy")
    assert math.isnan(row["value"]) and "neither validation nor training set has both classes" in row["reason"]
    half = final[(final["split"] == "test") | (final["label"] == 0) | (final["model_center"] == "A")]
    together = one(results_table(half, unit="patient"), method="vfmgl", model_center="all", metric="accuracy")
    assert math.isnan(together["value"]) and together["reason"] == "no cutoff at B", "a centre without a cutoff calls nobody"
    shared = results_table(final[final["split"] == "test"].assign(model_center="shared"), unit="patient")
    assert set(shared["metric"]) == {"auc", "brier", "accuracy", "sensitivity", "specificity", "ppv", "npv"} and "all" not in set(
        shared["model_center"]
    )
    assert "no training set of its own" in shared[shared["metric"] == "npv"]["reason"].iloc[0]


def test_a_prediction_that_is_no_probability_is_named():
    final = classified()
    final.loc[5, "probability"] = 1.5
    for function in (results_table, compare_methods):
        with pytest.raises(ValueError, match=rf"fedavg, model of A, sample {final.loc[5, 'id']}: .* got 1\.5"):
            function(final, unit="patient")


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (-1.0, "-1.0")])
def test_a_number_of_pixels_that_is_none_is_named(value, said):
    final = segmented().astype({"fn": float})
    final.loc[3, "fn"] = value
    for function in (results_table, compare_methods):
        with pytest.raises(ValueError, match=rf"sample {final.loc[3, 'id']}: numbers of pixels must be at least 0, got .*{said}"):
            function(final, unit="image")


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_an_undefined_prediction_leaves_everything_over_it_undefined_and_nothing_else(unit):
    final = classified(images=2, methods=("fedavg", "hgkt", "vfmgl"))
    here = (final["method"] == "fedavg") & (final["model_center"] == "A") & (final["test_center"] == "A") & (final["split"] == "test")
    broken = final.copy()
    broken.loc[final[here].index[0], "probability"] = math.nan
    why = "1 of 32 predictions are undefined: the model gives NaN or infinity"
    table, whole = results_table(broken, unit=unit), results_table(final, unit=unit)
    assert list(table["metric"]) == list(whole["metric"]), "a row for each metric"
    lost = (table["method"] == "fedavg") & (table["split"] == "test") & (table["model_center"] == "A") & (table["test_center"] == "A")
    assert lost.sum() == 7 and table[lost]["value"].isna().all() and set(table[lost]["reason"]) == {why}
    together = (table["method"] == "fedavg") & (table["model_center"] == "all")
    assert table[together]["value"].isna().all() and table[together]["reason"].str.contains("1 of .* are undefined").all()
    pd.testing.assert_frame_equal(table[~lost & ~together], whole[~lost & ~together])
    tests = compare_methods(broken, unit=unit)
    row = one(tests, method="fedavg", center="A")
    assert math.isnan(row["difference"]) and math.isnan(row["p"]) and "1 of 32 pairs have an undefined prediction" in row["reason"]
    assert tests[tests["method"] == "hgkt"]["p"].notna().all() and row["n"] == {"patient": 16, "image": 32}[unit]


def test_an_undefined_mask_leaves_its_set_and_its_case_undefined():
    final = segmented()
    broken = final.astype(dict.fromkeys(("tp", "fp", "fn", "tn"), float))
    broken.loc[0, ["tp", "fp", "fn", "tn"]] = math.nan
    table = results_table(broken, unit="image")
    lost = (table["method"] == "fedavg") & table["model_center"].isin(["A", "all"])
    assert table[lost]["value"].isna().all() and table[lost]["reason"].str.startswith("1 of ").all() and table[~lost]["value"].notna().all()
    assert math.isnan(one(compare_methods(broken, unit="image"), center="A")["p"])
    cases = per_case(broken)
    assert cases["dice"].isna().sum() == 1 and math.isnan(one(cases, method="fedavg", patient="A-0")["tp"])
    pd.testing.assert_frame_equal(per_case(final).iloc[1:], cases.iloc[1:], check_dtype=False)


def test_a_metric_that_one_patient_alone_defines_has_no_interval():
    final = segmented(methods=("vfmgl",), centers=("A",))
    empty = final["patient"] != "A-0"
    final.loc[empty, ["tp", "fn"]] = 0
    row = one(results_table(final, unit="image"), model_center="A", metric="sensitivity")
    assert row["n"] == 3 and row["value"] == overlaps(final[~empty])["sensitivity"].mean()
    assert math.isnan(row["low"]) and row["reason"].startswith("no interval: one patient")


def test_a_share_whose_samples_are_of_few_patients_has_no_interval():
    final = classified(methods=("vfmgl",), centers=("A",), images=3)
    tested = final["split"] == "test"
    final.loc[tested, "label"] = final["patient"].isin([f"A-test-{patient}" for patient in range(4)])[tested].astype(int)
    table = results_table(final, unit="image")
    found = {name: one(table, model_center="A", split="test", metric=name) for name in ("auc", "sensitivity", "specificity", "accuracy")}
    for name in ("auc", "sensitivity"):
        assert math.isfinite(found[name]["value"]) and math.isnan(found[name]["low"])
        of_class = " of one class" if name == "auc" else ""
        assert found[name]["reason"] == f"no interval: 4 patients{of_class}, at least 5 are needed"
    for name in ("specificity", "accuracy"):
        assert found[name]["low"] < found[name]["high"]


def test_segmentation_means_and_limits_over_patients():
    final = segmented()
    table = results_table(final, unit="image")
    mine = final[(final["method"] == "vfmgl") & (final["test_center"] == "A")]
    for metric, values in overlaps(mine).items():
        row = one(table, method="vfmgl", model_center="A", metric=metric)
        assert row["value"] == pytest.approx(values.mean(), abs=1e-12) and row["n"] == 15 and row["interval"] == "t over patients"
        limits = stats.ttest_1samp(values.groupby(mine["patient"]).mean(), 0).confidence_interval(0.95)
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.clip(limits, 0, 1)))
    together = one(table, method="vfmgl", model_center="all", metric="dice")
    assert together["n"] == 30 and together["value"] == pytest.approx(overlaps(final[final["method"] == "vfmgl"])["dice"].mean())
    cases = per_case(final)
    first = mine[mine["patient"] == "A-0"]
    case = cases[(cases["method"] == "vfmgl") & (cases["patient"] == "A-0")].iloc[0]
    assert case["images"] == 3 and case["dice"] == 2 * first["tp"].sum() / (2 * first["tp"] + first["fp"] + first["fn"]).sum()


@pytest.fixture
def kept_masks(tmp_path):
    """Two images of 8 x 8 pixels with spacing, predicted at 4 x 4; the second prediction is empty."""
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 255
    rows = []
    for name, columns in (("a", slice(0, 3)), ("b", slice(0, 0))):
        predicted = np.zeros((4, 4), np.uint8)
        predicted[:2, columns] = 255
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
        Image.fromarray(predicted).save(tmp_path / f"{name}_predicted.png")
        path = {"id": name, "path": f"{name}.png", "sha256": "0" * 64, "center": "A", "patient": name, "split": "test"}
        rows.append(path | {"label": f"{name}.png", "spacing": "0.5,0.25"})
    final = segmented(methods=("vfmgl",), centers=("A",), patients=2, images=1)
    final = final.assign(id=["a", "b"], mask_path=[str(tmp_path / f"{name}_predicted.png") for name in "ab"])
    return final, Manifest(tmp_path, "segmentation", ("background", "foreground"), pd.DataFrame(rows))


def test_distances_are_in_mm_of_the_squashed_image(kept_masks):
    final, manifest = kept_masks
    measured = with_distances(final, manifest)
    assert list(measured["distance_unit"]) == ["mm", "mm"] and list(measured["distance_reason"]) == ["", "empty prediction"]
    # At 4 x 4 a pixel is 1 mm high and 0.5 mm wide; the prediction reaches one column farther: two of its six surface pixels, 0.5 mm.
    assert measured["assd"].iloc[0] == pytest.approx(2 * 0.5 / (6 + 4)) and math.isnan(measured["hd95"].iloc[1])
    row = one(results_table(measured, unit="image"), model_center="A", metric="assd")
    assert row["unit"] == "mm" and row["n"] == 1 and row["value"] == measured["assd"].iloc[0]
    in_pixels = with_distances(final, replace(manifest, table=manifest.table.assign(spacing="")))
    assert in_pixels["assd"].iloc[0] == pytest.approx(0.2) and in_pixels["distance_unit"].iloc[0] == "px"
    kept_not = with_distances(final.assign(mask_path=""), manifest)
    assert kept_not["assd"].isna().all() and set(kept_not["distance_reason"]) == {"no mask was kept"}


def test_a_mask_that_is_gone_or_of_another_set_is_named(kept_masks):
    final, manifest = kept_masks
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        with_distances(final.assign(mask_path="gone.png"), manifest)
    with pytest.raises(ValueError, match="no image 'c'"):
        with_distances(final.assign(id="c"), manifest)


def test_surface_distances_equal_monai():
    from monai import metrics  # here: importing it takes seconds

    generator = np.random.default_rng(0)
    for _ in range(5):
        predicted, mask = (generator.random((17, 23)) > 0.7 for _ in range(2))
        found = surface_distances(predicted, mask, (0.6, 1.1))
        batch = [torch.from_numpy(one[None, None].astype(np.float32)) for one in (predicted, mask)]
        assd = metrics.compute_average_surface_distance(*batch, include_background=True, symmetric=True, spacing=[0.6, 1.1])
        hd95 = metrics.compute_hausdorff_distance(*batch, include_background=True, percentile=95, spacing=[0.6, 1.1])
        assert found["assd"] == pytest.approx(assd.item(), rel=1e-6) and found["hd95"] == pytest.approx(hd95.item(), rel=1e-6)


def test_surface_distances_equal_all_pairs_of_surface_points():
    generator = np.random.default_rng(1)
    predicted, mask = generator.random((2, 12, 15)) > 0.6
    points = []
    for one_mask in (predicted, mask):
        padded = np.pad(one_mask, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        points.append(np.argwhere(one_mask & ~inside) * (0.6, 1.1))
    pairs = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
    there, back = pairs.min(1), pairs.min(0)
    found = surface_distances(predicted, mask, (0.6, 1.1))
    assert found["assd"] == pytest.approx((there.sum() + back.sum()) / (len(there) + len(back)), abs=1e-9)
    assert found["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-9)


def test_surface_distances_by_hand_and_of_empty_masks():
    predicted, mask = np.zeros((2, 6, 9), bool)
    predicted[1, 1], mask[1, 5] = True, True  # two points, four columns apart
    assert surface_distances(predicted, mask) == {"assd": 4.0, "hd95": 4.0, "reason": ""}
    assert surface_distances(predicted, mask, (2.0, 0.5))["assd"] == 2.0
    assert surface_distances(mask, mask)["hd95"] == 0.0
    empty = np.zeros((6, 9), bool)
    assert surface_distances(empty, empty)["reason"] == "empty prediction and mask"
    assert math.isnan(surface_distances(predicted, empty)["assd"]) and surface_distances(predicted, empty)["reason"] == "empty mask"
    with pytest.raises(ValueError, match=r"\(6, 9\) and mask \(9, 6\)"):
        surface_distances(predicted, mask.T)
    assert overlaps(pd.DataFrame([[0, 0, 0, 9], [0, 3, 0, 6]], columns=["tp", "fp", "fn", "tn"]))["iou"].tolist() == [1.0, 0.0]


def test_methods_are_compared_in_pairs_with_holm():
    final = classified(methods=("local", "fedavg", "vfmgl"))
    table = compare_methods(final, unit="patient")
    assert set(table["method"]) == {"local", "fedavg"} and len(table) == 4
    row = one(table, method="fedavg", center="B")
    own = final[(final["model_center"] == "B") & (final["test_center"] == "B") & (final["split"] == "test")]
    mine, other = (own[own["method"] == name] for name in ("vfmgl", "fedavg"))
    expected = statistics.delong_test(mine["probability"].to_numpy(), other["probability"].to_numpy(), mine["label"].to_numpy())
    assert tuple(row[["difference", "low", "high", "p"]]) == pytest.approx(expected[:4], abs=1e-12) and row["test"] == "paired DeLong"
    assert table["p_holm"].to_numpy() == pytest.approx(statistics.holm(table["p"]))
    shuffled = compare_methods(final.sample(frac=1, random_state=1), unit="patient")
    again = one(shuffled, method="fedavg", center="B")
    assert again["p"] == pytest.approx(row["p"], abs=1e-12)


def test_dice_is_compared_by_patient():
    """Three images a patient: p is that of five values, not of fifteen (0.1.0 had Wilcoxon over the images)."""
    final = segmented()
    row = one(compare_methods(final, unit="image"), center="A")
    here = final[final["test_center"] == "A"]
    values = overlaps(here)["dice"].groupby([here["method"], here["patient"]]).mean()
    expected = stats.ttest_rel(values["vfmgl"], values["fedavg"])
    assert row["p"] == pytest.approx(expected.pvalue) and row["test"] == "paired t over patients" and (row["n"], row["patients"]) == (15, 5)
    assert (row["low"], row["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert row["difference"] == pytest.approx((values["vfmgl"] - values["fedavg"]).mean())
    several = compare_methods(final, unit="image", metrics=["dice", "iou"])
    assert set(several["metric"]) == {"dice", "iou"}
    with pytest.raises(ValueError, match="metric 'auc' cannot be compared"):
        compare_methods(final, unit="image", metrics=["auc"])


def test_fewer_than_five_patients_have_no_p_however_many_images():
    final = segmented(methods=("local", "fedavg", "vfmgl"), patients=4, images=20)
    table = compare_methods(final, unit="image")
    assert table[["p", "p_holm", "low", "high"]].isna().all(axis=None) and table["difference"].notna().all()
    assert set(table["reason"]) == {"no test: 4 patients, at least 5 are needed"} and set(table["test"]) == {""}
    assert compare_methods(classified(patients=8), unit="patient")["p"].isna().all(), "four patients of each class"


def test_several_samples_of_a_patient_are_a_cluster_in_the_test_of_aucs():
    final = classified(images=3)
    row = one(compare_methods(final, unit="image"), center="A")
    own = final[(final["model_center"] == "A") & (final["test_center"] == "A") & (final["split"] == "test")]
    mine, other = (own[own["method"] == name].sort_values("id") for name in ("vfmgl", "fedavg"))
    expected = statistics.delong_test(
        *(side["probability"].to_numpy() for side in (mine, other)), mine["label"].to_numpy(), mine["patient"]
    )
    assert tuple(row[["difference", "low", "high", "p"]]) == pytest.approx(expected[:4]) and row["test"] == "paired DeLong by patient"
    assert (row["n"], row["patients"]) == (48, 16)


def test_the_cutoff_of_a_model_is_chosen_on_its_validation_set_and_says_so():
    final = classified(sets=("train", "val"))
    table = results_table(final, unit="patient")
    about = {"method": "vfmgl", "model_center": "A"}
    val = final[(final["method"] == "vfmgl") & (final["model_center"] == "A") & (final["split"] == "val")]
    cutoff = youden_cutoff(val["probability"].to_numpy(), val["label"].to_numpy())
    row = one(table, **about, metric="cutoff")
    assert (row["value"], row["split"], row["n"]) == (cutoff, "val", 16)
    test = final[(final["method"] == "vfmgl") & (final["model_center"] == "A") & (final["test_center"] == "B") & (final["split"] == "test")]
    assert one(table, **about, test_center="B", metric="accuracy")["value"] == ((test["probability"] >= cutoff) == test["label"]).mean()
    without = results_table(final[final["split"] != "val"], unit="patient")
    row = one(without, **about, metric="cutoff")
    assert row["split"] == "train" and row["value"] != cutoff


def test_a_patient_of_both_classes_is_not_compared_as_one():
    final = classified(images=2)
    first = (final["patient"] == final.loc[final["split"] == "test", "patient"].iloc[0]) & final["id"].ne(final["id"].iloc[0])
    mixed = final.assign(label=final["label"].where(~first | (final.groupby("patient").cumcount() % 2 == 0), 1 - final["label"]))
    with pytest.raises(ValueError, match="has images of several classes: the unit must be the image"):
        compare_methods(mixed, unit="patient")


def test_brier_score_and_its_interval_by_patient():
    final = classified(images=4)
    row = one(results_table(final, unit="image"), method="vfmgl", model_center="A", test_center="B", metric="brier")
    test = final[(final["method"] == "vfmgl") & (final["model_center"] == "A") & (final["test_center"] == "B") & (final["split"] == "test")]
    assert row["value"] == pytest.approx(brier_score_loss(test["label"], test["probability"])) and row["interval"] == "t over patients"
    by_patient = test.assign(squared=(test["probability"] - test["label"]) ** 2).groupby("patient")["squared"].mean()
    assert (row["low"], row["high"]) == pytest.approx(tuple(stats.ttest_1samp(by_patient, 0).confidence_interval(0.95)))
    few = one(results_table(classified(patients=4), unit="patient"), method="vfmgl", model_center="A", test_center="B", metric="brier")
    assert math.isfinite(few["value"]) and few["reason"] == "no interval: 4 patients, at least 5 are needed"


def test_an_auc_of_1_has_an_interval_and_its_name():
    final = classified(methods=("vfmgl",))
    final = final.assign(probability=0.3 + 0.4 * final["label"])
    row = one(results_table(final, unit="patient"), model_center="A", test_center="B", metric="auc")
    assert (row["value"], row["high"], row["interval"]) == (1, 1, "disjoint pairs") and row["low"] == pytest.approx(0.025 ** (1 / 8))
    several = one(
        results_table(classified(images=2).assign(probability=lambda t: t["label"]), unit="image"),
        method="vfmgl",
        **{"model_center": "A", "test_center": "B", "metric": "auc"},
    )
    assert (several["low"], several["high"]) == (pytest.approx(0.025 ** (1 / 8)), 1), "pairs that share no patient"


def test_masks_that_differ_between_methods_are_refused():
    final = segmented()
    row = final[(final["method"] == "vfmgl")].index[0]
    for change in ({"fn": 3}, {"tn": 3}):  # another truth, another size
        other = final.copy()
        for name, more in change.items():
            other.loc[row, name] += more
        with pytest.raises(ValueError, match=f"tested with different labels, e.g. of {final.loc[row, 'id']}"):
            compare_methods(other, unit="image")


def test_different_test_sets_or_labels_are_refused():
    final = classified()
    gone = final[(final["method"] == "vfmgl") & (final["model_center"] == "A") & (final["split"] == "test")].index[0]
    with pytest.raises(ValueError, match=rf"centre A: vfmgl and fedavg .*only one of them has {final.loc[gone, 'id']} \(1 in all\)"):
        compare_methods(final.drop(index=gone), unit="patient")
    with pytest.raises(ValueError, match=f"different labels, e.g. of {final.loc[gone, 'id']}"):
        compare_methods(final.assign(label=final["label"].where(final.index != gone, 1 - final["label"])), unit="patient")
    with pytest.raises(ValueError, match="reference 'vfmgl' is not among the methods fedavg"):
        compare_methods(final[final["method"] == "fedavg"], unit="patient")
    alone = compare_methods(final[final["method"] == "vfmgl"], unit="patient")
    assert alone.empty and "p_holm" in alone


def test_one_class_is_not_tested_and_does_not_count_in_holm():
    final = classified()
    at_b = (final["test_center"] == "B") & (final["split"] == "test")
    table = compare_methods(final[~at_b | (final["label"] == 1)], unit="patient")
    undefined, defined = one(table, center="B"), one(table, center="A")
    assert math.isnan(undefined["p"]) and "only one class: 8 positive" in undefined["reason"]
    assert defined["p_holm"] == defined["p"]


def test_hgkt_is_the_reference_of_its_own_updates():
    """VFMGL is not there at that budget: without this nobody would be compared."""
    final = classified(methods=("fedavg", "fedavg_hgkt", "hgkt", "vfmgl"))
    halfway = final[final["method"] != "vfmgl"].assign(budget="hgkt_updates")
    table = compare_methods(pd.concat([final, halfway]), unit="patient")
    assert {budget: set(rows["method"]) for budget, rows in table.groupby("budget")} == {
        "rounds": {"fedavg", "fedavg_hgkt", "hgkt"},
        "hgkt_updates": {"fedavg", "fedavg_hgkt"},
    }
    assert table.groupby("budget")["reference"].unique().map(list).to_dict() == {"rounds": ["vfmgl"], "hgkt_updates": ["hgkt"]}
    expected = one(compare_methods(final, "hgkt", unit="patient"), method="fedavg", center="A")
    assert one(table, budget="hgkt_updates", method="fedavg", center="A")["p"] == expected["p"]
    part = table[table["budget"] == "hgkt_updates"]
    assert part["p_holm"].to_numpy() == pytest.approx(statistics.holm(part["p"])), "a family of its own"


def test_leads_over_controls_are_their_parents_and_a_family_of_their_own():
    final = classified(methods=("fedavg", "hgkt", "hgkt_beta0", "hgkt_kd", "vfmgl_task", "vfmgl_random", "vfmgl", "hgkt_random"))
    table = compare_controls(pd.concat([final, final.assign(budget="updates")]), unit="patient")
    assert table.drop_duplicates("method").set_index("method")["reference"].to_dict() == {
        "hgkt_beta0": "hgkt",
        "hgkt_random": "hgkt",
        "vfmgl_task": "hgkt_kd",
        "vfmgl_random": "vfmgl",
    }
    assert list(table.columns) == COMPARED and len(table) == 4 * 2 and set(table["budget"]) == {"rounds"}
    alone = one(compare_methods(final, "hgkt", unit="patient"), method="hgkt_beta0", center="A")
    row = one(table, method="hgkt_beta0", center="A")
    assert tuple(row[["difference", "low", "high", "p"]]) == tuple(alone[["difference", "low", "high", "p"]])
    assert table["p_holm"].to_numpy() == pytest.approx(statistics.holm(table["p"])) and (table["p_holm"] > table["p"]).any()
    nothing = compare_controls(final[~final["method"].isin(["hgkt", "hgkt_kd", "vfmgl"])], unit="patient")
    assert nothing.empty and list(nothing.columns) == COMPARED, "a control without its parent"


def test_a_control_that_is_none_has_no_difference_no_p_and_is_in_no_family():
    final = classified(methods=("fedavg", "hgkt", "hgkt_beta0", "vfmgl_random", "vfmgl"))
    why, marked = "nothing was dropped: no comparison", final["method"] == "vfmgl_random"
    same = final[final["method"] == "vfmgl"].assign(method="vfmgl_random")
    final = pd.concat([final[~marked].assign(no_comparison=""), same.assign(no_comparison=why)], ignore_index=True)
    for table in (compare_methods(final, unit="patient"), compare_controls(final, unit="patient")):
        rows, others = table[table["method"] == "vfmgl_random"], table[table["method"] != "vfmgl_random"]
        assert len(rows) == 2 and rows[["difference", "low", "high", "p", "p_holm"]].isna().all(axis=None)
        assert set(rows["reason"]) == {why} and set(rows["test"]) == {""}
        assert others["p_holm"].to_numpy() == pytest.approx(statistics.holm(others["p"])) and others["p"].notna().all()
