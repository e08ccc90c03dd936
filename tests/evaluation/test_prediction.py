"""A student that gives NaN or infinity for an image: no class, no mask, no number, and the reason."""

import hashlib
import math

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vfmgl_lib.data.label_masks import encoded
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import COLUMNS, Manifest
from vfmgl_lib.evaluation.metric import metrics_of
from vfmgl_lib.evaluation.prediction import chosen_cutoff, predict
from vfmgl_lib.evaluation.results import with_distances
from vfmgl_lib.evaluation.segmentation import OVERLAPS, dice, overlaps
from vfmgl_lib.models.students import ResNet18, UNet

SIDE = 32


def _data(root, kind) -> ImageDataset:
    rows = []
    for number, grey in enumerate((200, 20, 120)):
        Image.fromarray(np.full((SIDE, SIDE, 3), grey, np.uint8)).save(root / f"{number}.png")
        Image.fromarray(np.resize(np.array((0, 255), np.uint8), (SIDE, SIDE))).save(root / f"{number}_mask.png")
        sha256 = hashlib.sha256((root / f"{number}.png").read_bytes()).hexdigest()
        label = number % 2 if kind == "classification" else f"{number}_mask.png"
        rows.append((f"A/test/{number}", f"{number}.png", sha256, "A", f"P{number}", "test", label, ""))
    classes = ("0", "1") if kind == "classification" else ("background", "nucleus")
    manifest = Manifest(root, kind, classes, pd.DataFrame(rows, columns=list(COLUMNS)))
    return ImageDataset(manifest, manifest.table, SIDE)


def _predicted(root, kind, monkeypatch, value) -> pd.DataFrame:
    student = (ResNet18 if kind == "classification" else UNet)(2, 4)
    infer = student.infer

    def broken(batch, *more):
        logits = infer(batch, *more)
        logits[batch["image"].mean(dim=(1, 2, 3)) < 0.2, 1] = value
        return logits

    monkeypatch.setattr(student, "infer", broken)
    return predict(student, _data(root, kind), batch_size=2, device=torch.device("cpu"), masks=root / "out")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_undefined_is_no_class_no_mask_and_no_metric(kind, value, tmp_path, monkeypatch):
    table = _predicted(tmp_path, kind, monkeypatch, value)
    columns = ["probability"] if kind == "classification" else ["tp", "fp", "fn", "tn", "dice"]
    assert table[columns].isna().all(axis=1).tolist() == [False, True, False]
    if kind == "segmentation":
        assert (table["mask_file"] == "").tolist() == [False, True, False]
        assert len(list((tmp_path / "out").rglob("*.png"))) == 2
        assert np.isnan(overlaps(table)["iou"][1]) and np.isnan(dice(*table.loc[1, ["tp", "fp", "fn"]]))
    for metric in metrics_of(table, "image", 0.5):
        assert math.isnan(metric.value) and metric.reason == "1 of 3 predictions are undefined: the model gives NaN or infinity"
    assert len(metrics_of(table, "image", 0.5)) == (6 if kind == "classification" else len(OVERLAPS))
    defined = metrics_of(table.drop(index=1), "image", 0.5)
    assert any(math.isfinite(metric.value) for metric in defined)


@pytest.mark.parametrize(("classes", "values"), [(("background", "a"), (0, 7)), (("background", "a", "b"), (4, 900, 0))])
def test_predicted_masks_hold_the_values_of_the_data(classes, values, tmp_path, monkeypatch):
    rows, random = [], np.random.default_rng(0)
    for number in range(3):
        indices = random.integers(0, len(classes), (SIDE, SIDE)).astype(np.uint8)
        Image.fromarray(random.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)).save(tmp_path / f"{number}.png")
        Image.fromarray(encoded(indices, values)).save(tmp_path / f"{number}_mask.png")
        rows.append((f"A/test/{number}", f"{number}.png", "0" * 64, "A", f"P{number}", "test", f"{number}_mask.png", ""))
    manifest = Manifest(tmp_path, "segmentation", classes, pd.DataFrame(rows, columns=list(COLUMNS)), mask_values=values)
    data, student = ImageDataset(manifest, manifest.table, SIDE), UNet(len(classes), 4)
    monkeypatch.setattr(
        student, "infer", lambda batch, *more: torch.nn.functional.one_hot(batch["target"], len(classes)).movedim(-1, 1) * 5.0
    )
    table = predict(student, data, batch_size=2, device=torch.device("cpu"), masks=tmp_path / "out")
    for row in table.itertuples():
        number = row.id.split("/")[-1]
        truth, found = (np.asarray(Image.open(place)) for place in (tmp_path / f"{number}_mask.png", tmp_path / "out" / row.mask_file))
        assert np.array_equal(truth, found) and row.dice == 1 and row.fp == row.fn == 0
    final = table.assign(mask_path=[str(tmp_path / "out" / name) for name in table["mask_file"]])
    assert (with_distances(final, manifest)["hd95"] == 0).all()


def test_no_cutoff_is_chosen_on_a_set_with_an_undefined_prediction():
    def rows(split, chances):
        return pd.DataFrame({"patient": list("abcd"), "split": split, "probability": chances, "label": [0, 0, 1, 1]})

    train, broken = rows("train", [0.1, 0.2, 0.6, 0.9]), rows("val", [0.1, math.nan, 0.7, 0.8])
    assert chosen_cutoff({"val": broken, "train": train}, "patient") == (0.6, "train")
    assert math.isnan(chosen_cutoff({"val": broken}, "patient").value)
