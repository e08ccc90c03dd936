"""Metrics of more than two classes of pixels equal MONAI's and scikit-learn's to 1e-9; what is undefined is NaN with the reason."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from vfmgl_lib.evaluation.metric import metrics_of, units_of
from vfmgl_lib.evaluation.results import check_predictions, paired, paired_estimate, per_case
from vfmgl_lib.evaluation.segmentation import (
    NEITHER,
    class_distances,
    class_titles,
    count_columns,
    image_counts,
    image_dice,
    metric_and_class,
    overlap_names,
    overlaps,
    pixel_counts,
    undefined_counts,
)

CLASSES = ("background", "disc", "bar [left]", "corner")
FOREGROUND = (1, 2, 3)
EXACT = {"abs": 1e-9, "rel": 0}


def _masks(count: int = 8, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """(count, side, side) predictions and truths of blobs; class 2 is missing in some truths, 3 in some predictions, 1 in one in both."""
    random, masks = np.random.default_rng(5), []
    for _ in range(2):
        stack = np.zeros((count, side, side), np.int64)
        for image in stack:
            for place in FOREGROUND:
                row, column = random.integers(2, side - 8, 2)
                image[row : row + random.integers(3, 8), column : column + random.integers(3, 8)] = place
        masks.append(stack)
    predicted, truth = masks
    truth[1][truth[1] == 2] = 0
    predicted[2][predicted[2] == 3] = 0
    for stack in (predicted, truth):
        stack[3][stack[3] == 1] = 0
    return predicted, truth


def _table(predicted, truth, classes=CLASSES) -> pd.DataFrame:
    counts = [image_counts(one, other, classes) for one, other in zip(predicted, truth, strict=True)]
    rows = [{"id": f"i{n}", "patient": f"p{n // 2}", **found, **image_dice(found)} for n, found in enumerate(counts)]
    return pd.DataFrame(rows)


def test_names():
    columns = _table(*_masks()).columns
    assert class_titles(columns) == list(CLASSES) and len(count_columns(columns)) == 20
    assert metric_and_class("dice[bar [left]]") == ("dice", "bar [left]") and metric_and_class("hd95") == ("hd95", None)
    assert overlap_names(columns)[:6] == overlap_names(["tp"]) and "iou[bar [left]]" in overlap_names(columns)
    assert not [name for name in overlap_names(columns) if "background" in name]


def test_two_classes_have_the_counts_that_they_had():
    predicted, truth = _masks()
    two = image_counts(predicted[0] == 1, truth[0] == 1, CLASSES[:2])
    assert two == pixel_counts(predicted[0] == 1, truth[0] == 1) and list(image_dice(two)) == ["dice"]


def test_overlaps_equal_monai():
    from monai import metrics  # here: importing it takes seconds

    predicted, truth = _masks()
    hot = [torch.nn.functional.one_hot(torch.from_numpy(one), 4).movedim(-1, 1).double() for one in (predicted, truth)]
    expected = {
        "dice": metrics.DiceMetric(include_background=True, reduction="none", ignore_empty=False)(*hot).double().numpy(),
        "iou": metrics.MeanIoU(include_background=True, reduction="none", ignore_empty=False)(*hot).double().numpy(),
    }
    table = _table(predicted, truth)
    found = overlaps(table)
    for name, values in expected.items():
        for place in FOREGROUND:
            np.testing.assert_allclose(found[f"{name}[{CLASSES[place]}]"], values[:, place], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found[name], values[:, 1:].mean(1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["dice_mean_of_classes"], expected["dice"].mean(1), rtol=0, atol=1e-9)
    assert found.at[3, "dice[disc]"] == 1 and found.at[1, "dice[bar [left]]"] == 0, "absent in both, and in the truth alone"


def test_overlaps_equal_scikit_learn():
    predicted, truth = _masks()
    found = overlaps(_table(predicted, truth))
    for row, (one, other) in enumerate(zip(predicted, truth, strict=True)):
        pair, labels = (other.ravel(), one.ravel()), list(FOREGROUND)
        about = {"labels": labels, "average": None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = {
                "dice": f1_score(*pair, **about, zero_division=1.0),
                "iou": jaccard_score(*pair, **about, zero_division=1.0),
                "ppv": precision_score(*pair, **about, zero_division=np.nan),
                "sensitivity": recall_score(*pair, **about, zero_division=np.nan),
                "specificity": [recall_score(other.ravel() != place, one.ravel() != place) for place in labels],
            }
        if not (one == 1).any() and not (other == 1).any():
            values["iou"][0] = 1.0
        for name, expected in values.items():
            by_class = [found.at[row, f"{name}[{CLASSES[place]}]"] for place in labels]
            assert by_class == pytest.approx(list(expected), nan_ok=True, **EXACT), name
            assert found.at[row, name] == pytest.approx(np.nanmean(expected), nan_ok=True, **EXACT), name


def test_distances_equal_monai():
    from monai import metrics

    predicted, truth = _masks()
    spacing = (0.7, 1.3)
    for one, other in zip(predicted, truth, strict=True):
        hot = [torch.nn.functional.one_hot(torch.from_numpy(mask), 4).movedim(-1, 0)[None] for mask in (one, other)]
        found = class_distances(one, other, CLASSES, spacing)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assd = metrics.compute_average_surface_distance(*hot, symmetric=True, spacing=spacing)[0].tolist()
            hd95 = metrics.compute_hausdorff_distance(*hot, percentile=95, spacing=spacing)[0].tolist()
        both = [place for place in FOREGROUND if (one == place).any() and (other == place).any()]
        for place in both:
            assert found[f"assd[{CLASSES[place]}]"] == pytest.approx(assd[place - 1], rel=1e-6)
            assert found[f"hd95[{CLASSES[place]}]"] == pytest.approx(hd95[place - 1], rel=1e-6)
        there = [place for place in FOREGROUND if (one == place).any() or (other == place).any()]
        if both == there:
            assert found["assd"] == pytest.approx(np.mean([assd[place - 1] for place in there]), rel=1e-6) and found["reason"] == ""
        else:
            assert math.isnan(found["assd"]) and math.isnan(found["hd95"]) and "empty" in found["reason"]


def test_a_missed_class_makes_no_distance_better():
    truth = np.zeros((16, 16), int)
    truth[2:6, 2:6], truth[9:14, 9:14] = 1, 2
    predicted = np.where(truth == 1, 1, 0)
    found = class_distances(predicted, truth, CLASSES)
    assert found["assd[disc]"] == 0 and math.isnan(found["assd"]) and found["reason"] == "bar [left]: empty prediction"
    assert class_distances(truth, truth, CLASSES)["assd"] == 0, "corner is in neither"
    nothing = class_distances(np.zeros((4, 4), int), np.zeros((4, 4), int), CLASSES)
    assert math.isnan(nothing["assd"]) and nothing["reason"] == NEITHER


def test_metrics_are_means_over_images_and_an_undefined_prediction_makes_them_so():
    table = _table(*_masks())
    values = {metric.name: metric for metric in metrics_of(table, "image", None)}
    assert values["dice"].value == pytest.approx(table["dice"].mean(), **EXACT)
    assert values["dice"].value == pytest.approx(np.mean([values[f"dice[{name}]"].value for name in CLASSES[1:]]), **EXACT)
    with_disc = (_masks()[1] == 1).any((1, 2)).sum()
    assert values["sensitivity[disc]"].n == with_disc < 8 and values["dice[disc]"].n == 8
    never = table.assign(**{"tp[corner]": 0, "fn[corner]": 0})
    (lacking,) = [metric for metric in metrics_of(never, "image", None) if metric.name == "sensitivity[corner]"]
    assert math.isnan(lacking.value) and lacking.reason == "no image has foreground of class 'corner'"
    undefined = pd.concat([table, pd.DataFrame([{"id": "x", "patient": "x", **undefined_counts(CLASSES)}])], ignore_index=True)
    assert set(undefined.columns) == set(table.columns)
    assert all(math.isnan(metric.value) and "1 of 9" in metric.reason for metric in metrics_of(undefined, "image", None))
    assert list(units_of(table, "image", None).columns).count("dice[disc]") == 1


def _final(table) -> pd.DataFrame:
    about = {"method": "vfmgl", "seed": 0, "split_id": "own", "budget": "rounds", "model_center": "A", "test_center": "A", "split": "test"}
    return table.assign(**about, mask_path="")


def test_a_case_is_its_images_counts_summed():
    predicted, truth = _masks()
    cases = per_case(_final(_table(predicted, truth))).set_index("patient")
    for number in range(4):
        part = slice(2 * number, 2 * number + 2)
        expected = f1_score(truth[part].ravel(), predicted[part].ravel(), labels=FOREGROUND, average=None, zero_division=1.0)
        assert cases.at[f"p{number}", "dice"] == pytest.approx(expected.mean(), **EXACT)
        assert cases.at[f"p{number}", "dice[corner]"] == pytest.approx(expected[2], **EXACT)


def test_models_are_compared_by_the_mean_and_by_each_class():
    predicted, truth = _masks(16)
    mine, other = _final(_table(predicted, truth)), _final(_table(np.roll(predicted, 1, 2), truth))
    pair = paired(mine, other, "one", "two", "A")
    for metric in ("dice", "dice[bar [left]]", "iou"):
        difference = overlaps(mine)[metric] - overlaps(other)[metric]
        estimate, n = paired_estimate([pair], metric, "image")
        assert estimate.value == pytest.approx(difference.groupby(mine["patient"]).mean().mean(), **EXACT) and n == 16
    swapped = other.rename(columns={"tp[disc]": "tp[corner]", "tp[corner]": "tp[disc]", "fn[disc]": "fn[corner]", "fn[corner]": "fn[disc]"})
    with pytest.raises(ValueError, match="different labels"):
        paired(mine, swapped, "one", "two", "A")


def test_a_negative_number_of_pixels_of_a_class_is_refused():
    final = _final(_table(*_masks()))
    check_predictions(final)
    with pytest.raises(ValueError, match="numbers of pixels must be at least 0"):
        check_predictions(final.assign(**{"fp[disc]": -1}))
