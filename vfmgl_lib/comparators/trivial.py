"""Trivial baselines without learning features: what a centre gets from colour or brightness alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
from skimage.filters import threshold_otsu
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.evaluation.segmentation import dice, pixel_counts

DESCRIPTIONS = {
    "cross_entropy": "intensity and colour statistics + logistic regression",
    "dice": "Otsu threshold of the grey image",
}


def color_statistics(data: ImageDataset) -> np.ndarray:
    """(n, 9): mean, standard deviation and skewness of each colour channel, per image."""
    features = []
    for index in range(len(data)):
        pixels = data[index]["image"].flatten(1).double().numpy()
        mean, deviation = pixels.mean(1), pixels.std(1)
        skewness = ((pixels - mean[:, None]) ** 3).mean(1) / np.maximum(deviation, 1e-12) ** 3
        features.append(np.concatenate([mean, deviation, skewness]))
    return np.array(features)


def trivial_classification(train: ImageDataset, others: list[ImageDataset]) -> list[pd.DataFrame]:
    """Logistic regression on colour statistics of one centre's training set, applied to each data set of `others`.

    Returns: tables as `evaluation.prediction.predict` gives them. A training set of one class yields that class's frequency (0 or 1).
    """
    labels = train.table["label"].to_numpy(dtype=int)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    one_class = len(np.unique(labels)) < 2
    if not one_class:
        model.fit(color_statistics(train), labels)
    tables = []
    for data in others:
        probability = np.full(len(data), float(labels[0])) if one_class else model.predict_proba(color_statistics(data))[:, 1]
        tables.append(_about(data).assign(probability=probability, label=data.table["label"].to_numpy(dtype=int)))
    return tables


def trivial_segmentation(train: ImageDataset, others: list[ImageDataset]) -> list[pd.DataFrame]:
    """Otsu's threshold per image; whether the dark or the bright side is foreground is what gives the higher training Dice.

    Returns: tables as `evaluation.prediction.predict` gives them, without mask files.
    """
    dark = max((True, False), key=lambda side: _otsu_counts(train, side)["dice"].mean())
    return [pd.concat([_about(data), _otsu_counts(data, dark)], axis=1) for data in others]


def _otsu_counts(data: ImageDataset, dark: bool) -> pd.DataFrame:
    rows = []
    for index in range(len(data)):
        item = data[index]
        grey = item["image"].mean(0).numpy()
        # A constant image has no threshold; nothing of it is foreground.
        predicted = np.zeros(grey.shape, bool) if grey.min() == grey.max() else (grey <= threshold_otsu(grey)) == dark
        counts = pixel_counts(predicted, item["target"].numpy() == 1)
        rows.append({**counts, "dice": float(dice(counts["tp"], counts["fp"], counts["fn"])), "mask_file": ""})
    return pd.DataFrame(rows)


def _about(data: ImageDataset) -> pd.DataFrame:
    return data.table[["id", "patient", "center", "split"]].rename(columns={"center": "test_center"})
