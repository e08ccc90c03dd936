"""Trivial baselines without learning features: what a centre gets from colour, brightness or place alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import skimage
import torch

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.names import probability_column
from vfmgl_lib.evaluation.segmentation import image_counts, image_dice

Rule = Callable[[np.ndarray], np.ndarray]  # a grey image (S, S) in [0, 1] -> class indices (S, S)

DESCRIPTIONS = {
    "cross_entropy": "intensity and colour statistics + logistic regression",
    "dice": "Otsu threshold of the grey image (dark or bright side; of more classes the nearest mean brightness), or the training masks' "
    "common place: what fits the training set best",
}


def color_statistics(data: ImageDataset) -> np.ndarray:
    """(n, 9): mean, standard deviation and skewness of each colour channel, per image."""
    features = []
    for index in range(len(data)):
        item: dict[str, Any] = data[index]
        pixels = item["image"].flatten(1).double().numpy()
        mean, deviation = pixels.mean(1), pixels.std(1)
        skewness = ((pixels - mean[:, None]) ** 3).mean(1) / np.maximum(deviation, 1e-12) ** 3
        features.append(np.concatenate([mean, deviation, skewness]))
    return np.array(features)


def trivial_classification(train: ImageDataset, others: list[ImageDataset]) -> list[pd.DataFrame]:
    """Logistic regression on colour statistics of one centre's training set, applied to each data set of `others`.

    Returns: tables as `evaluation.prediction.predict` gives them. A training set of one class yields that class's frequency (0 or 1); of
        more than two classes one that the training set lacks has the probability 0.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = train.table["label"].to_numpy(dtype=int)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    one_class = len(np.unique(labels)) < 2
    if not one_class:
        model.fit(color_statistics(train), labels)
    tables = []
    for data in others:
        if len(names := train.classes) > 2:
            chances = np.zeros((len(data), len(names)))
            chances[:, np.unique(labels)] = 1 if one_class else model.predict_proba(color_statistics(data))
            table = _about(data).assign(**{probability_column(name): chances[:, number] for number, name in enumerate(names)})
            tables.append(table.assign(label=data.table["label"].to_numpy(dtype=int)))
            continue
        probability = np.full(len(data), float(labels[0])) if one_class else model.predict_proba(color_statistics(data))[:, 1]
        tables.append(_about(data).assign(probability=probability, label=data.table["label"].to_numpy(dtype=int)))
    return tables


def trivial_segmentation(train: ImageDataset, others: list[ImageDataset]) -> list[pd.DataFrame]:
    """What brightness or place alone give: of a few rules the one with the highest training Dice.

    By brightness: the dark or the bright side of Otsu's threshold per image; of more than two classes each pixel's class is the one whose
    mean brightness over the training set is nearest. By place: one mask for all, each class where at least half as many training masks
    have it as anywhere (an organ in the middle of every slice needs no image).

    Returns: tables as `evaluation.prediction.predict` gives them, without mask files.
    """
    place = _common_place(train)
    by_brightness: tuple[Rule, ...] = (partial(_otsu, dark=True), partial(_otsu, dark=False))
    rules = (*(by_brightness if len(train.classes) == 2 else (_nearest_brightness(train),)), lambda grey: place)
    best = max(rules, key=lambda rule: _counts(train, rule)["dice"].mean())
    return [pd.concat([_about(data), _counts(data, best)], axis=1) for data in others]


def _common_place(train: ImageDataset) -> np.ndarray:
    """(S, S) class indices; where several foreground classes are common, the one that is nearest to its own most frequent place."""
    masks: list[Any] = [train[index]["target"] for index in range(len(train))]
    targets, place = torch.stack(masks), np.zeros(masks[0].shape, np.uint8)
    best = np.zeros(place.shape)
    for index in range(1, len(train.classes)):
        mean = (targets == index).float().mean(0).numpy()
        share = mean / max(mean.max(), np.finfo(mean.dtype).tiny)
        common = (mean > 0) & (mean >= mean.max() / 2) & (share > best)
        place[common], best[common] = index, share[common]
    return place


def _otsu(grey: np.ndarray, dark: bool) -> np.ndarray:
    # A constant image has no threshold; nothing of it is foreground.
    constant = grey.min() == grey.max()
    return np.zeros(grey.shape, np.uint8) if constant else ((grey <= skimage.filters.threshold_otsu(grey)) == dark).astype(np.uint8)


def _nearest_brightness(train: ImageDataset) -> Rule:
    count = len(train.classes)
    sums, counts = np.zeros(count), np.zeros(count)
    for index in range(len(train)):
        item: dict[str, Any] = train[index]
        grey, target = item["image"].mean(0).numpy(), item["target"].numpy()
        sums += np.bincount(target.ravel(), grey.ravel(), count)
        counts += np.bincount(target.ravel(), minlength=count)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)  # a class that the set does not have is never the nearest
    return lambda grey: np.abs(grey[..., None] - means).argmin(-1)


def _counts(data: ImageDataset, rule: Rule) -> pd.DataFrame:
    rows = []
    for index in range(len(data)):
        item: dict[str, Any] = data[index]
        counts = image_counts(rule(item["image"].mean(0).numpy()), item["target"].numpy(), data.classes)
        rows.append({**counts, **image_dice(counts), "mask_file": ""})
    return pd.DataFrame(rows)


def _about(data: ImageDataset) -> pd.DataFrame:
    return data.table[["id", "patient", "center", "split"]].rename(columns={"center": "test_center"})
