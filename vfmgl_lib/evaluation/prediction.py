"""A student's predictions on a data set, as rows of `predictions.csv`, and the cutoff that is chosen on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image

from vfmgl_lib.data.label_masks import encoded
from vfmgl_lib.data.loading import ImageDataset, fixed_batches, load_batches
from vfmgl_lib.data.names import probability_column
from vfmgl_lib.evaluation.classification import by_patient, youden_cutoff
from vfmgl_lib.evaluation.segmentation import image_counts, image_dice, undefined_counts
from vfmgl_lib.models.batch_norm import uses_batch_statistics
from vfmgl_lib.models.students import Student


@torch.inference_mode()
def predict(student: Student, data: ImageDataset, *, batch_size: int, device: torch.device, masks: Path | None = None) -> pd.DataFrame:
    """One row per sample, in the data set's order.

    Args:
        student: put into eval mode here.
        masks: folder for a segmentation's predicted masks (PNG at the student's size, values as in the data's own masks, of two classes
            0/255; named by the sample's id); none: not written.
    Returns: columns id, patient, test_center, split and, for classification, probability (of class 1; of more than two classes one column
        a class, `classification.probability_column`) and label; for segmentation tp, fp, fn, tn (pixels at the student's size), dice, of
        more than two classes also those of each (`segmentation.image_counts`), and mask_file (relative to `masks`). Where the student gives
        NaN or infinity the probability, or the counts and the Dice, are NaN and there is no mask: undefined is no class.
    """
    student.eval()
    rows, hashes = [], data.table["sha256"].tolist()
    for batch in load_batches(data, fixed_batches(len(data), batch_size, uses_batch_statistics(student))):
        logits = student.infer(batch, [hashes[row] for row in batch["row"].tolist()], device).float().cpu()
        defined = logits.isfinite().flatten(1).all(1)
        if logits.dim() == 2 and logits.shape[1] > 2:
            chances = logits.softmax(1).masked_fill(~defined[:, None], math.nan)
            columns = [probability_column(name) for name in data.classes]
            values = zip(chances.tolist(), batch["target"].tolist(), strict=True)
            rows += [dict(zip(columns, own, strict=True)) | {"label": y} for own, y in values]
            continue
        if logits.dim() == 2:
            chance = logits.softmax(1)[:, 1].masked_fill(~defined, math.nan)
            rows += [{"probability": p, "label": y} for p, y in zip(chance.tolist(), batch["target"].tolist(), strict=True)]
            continue
        named = zip(batch["row"].tolist(), defined.tolist(), logits.argmax(1).numpy(), batch["target"].numpy(), strict=True)
        for row, whole, predicted, mask in named:
            if not whole:
                rows.append(undefined_counts(data.classes) | {"mask_file": ""})
                continue
            counts = image_counts(predicted, mask, data.classes)
            name = f"{data.table['id'][row]}.png" if masks else ""
            if masks:
                (masks / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(encoded(predicted, data.mask_values)).save(masks / name)
            rows.append({**counts, **image_dice(counts), "mask_file": name})
    about = data.table[["id", "patient", "center", "split"]].rename(columns={"center": "test_center"})
    return pd.concat([about, pd.DataFrame(rows)], axis=1)


@torch.inference_mode()
def mean_embedding(student: Student, data: ImageDataset, *, batch_size: int, device: torch.device) -> np.ndarray:
    """(D,) float64, the mean of `Student.embed` over a data set; the student is put into eval mode."""
    student.eval()
    batches = load_batches(data, fixed_batches(len(data), batch_size, uses_batch_statistics(student)))
    total = cast(torch.Tensor, sum(student.embed(batch["image"].to(device)).double().sum(0) for batch in batches))
    return total.cpu().numpy() / len(data)


def scoring_unit(table: pd.DataFrame, is_segmentation: bool) -> str:
    """ "patient" where every patient of a classification has one class (its images' mean probability is scored), else "image"."""
    if is_segmentation or table.groupby("patient")["label"].nunique().max() > 1:
        return "image"
    return "patient"


class Cutoff(NamedTuple):
    """value: a probability, NaN where there is none; split: the set it was chosen on, "val" or "train", "" where there is none."""

    value: float
    split: str


def chosen_cutoff(own: Mapping[str, pd.DataFrame], unit: str) -> Cutoff:
    """Youden's cutoff of a model on its own centre's validation set; where there is none, or one class in it, on its training set.

    The paper chooses on training data, to which a model is fitted and on which its probabilities are too good.

    Args:
        own: split -> the model's predictions on that set of its own centre, as `predict` gives them; "test" is not looked at.
        unit: "patient" or "image".
    Returns: NaN for a segmentation and for more than two classes, which have no cutoff, or where neither set has both classes.
    """
    for split in ("val", "train"):
        if split in own and "probability" in own[split] and own[split]["probability"].notna().all():
            scores = by_patient(own[split]) if unit == "patient" else own[split]
            value = youden_cutoff(scores["probability"].to_numpy(), scores["label"].to_numpy(dtype=int))
            if math.isfinite(value):
                return Cutoff(value, split)
    return Cutoff(math.nan, "")
