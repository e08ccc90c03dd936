"""Adaptive and common features (paper: "Adaptive knowledge and common knowledge", Fig. 8): which features of the centres' local models
belong together.

The paper names mRMR and Pearson's correlation and gives no details. Ours: every local model sees the training images of all centres; its
features are cut at mean ± SD of these images into three levels, and mRMR (MIQ) selects k of them by the class. Within a class, over the
same images,

    adaptive   the features of a centre with the highest mean |r| to the others selected in that centre
    common     the features of a centre with the highest |r| to any feature selected in another centre

are chosen on training images and stay the same for the test images. A feature that is at one value (mostly 0, behind a rectifier) in all
but one or two of these images is not chosen: whatever fires in the same image would go with it at r = 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from vfmgl_lib.interpretation.features import check_features, feature_names
from vfmgl_lib.interpretation.mrmr import mrmr

LEVELS = 3
SPLITS = ("train", "test")
NUMBERS = "label stage kind within_train between_train within_test between_test similarity pairs undefined".split()
FEWEST = 3  # images: two points are always on a line
Tables = Mapping[str, pd.DataFrame]  # training centre -> features of its local model, of the same images in the same order


def discretised(values: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Levels −1, 0, 1: below mean − SD of the training rows, between, above mean + SD.

    Args:
        values: (n, d).  train: (n,) bool, the training rows.
    Returns: (n, d) int8; a feature that is constant over the training rows is 0 in all of them.
    Raises: ValueError: fewer training rows than levels.
    """
    if train.sum() < LEVELS:
        raise ValueError(f"{train.sum()} training images cannot be cut into {LEVELS} levels, expected at least {LEVELS}")
    mean, std = values[train].mean(axis=0), values[train].std(axis=0)
    # Rounding must not make levels of a constant.
    width = np.maximum(std, 1e-6 * np.abs(mean))
    return (values > mean + width).astype(np.int8) - (values < mean - width).astype(np.int8)


def usable(tables: Tables) -> pd.Series:
    """Center -> how many features of its model have more than one level over the training images; the others tell nothing."""
    return pd.Series({center: len(_informative(table)) for center, table in tables.items()}, name="features")


def _informative(table: pd.DataFrame) -> list[str]:
    names, train = feature_names(table), (table["split"] == "train").to_numpy()
    levels = discretised(table[names].to_numpy(dtype=np.float64), train)[train]
    return [name for name, varies in zip(names, np.ptp(levels, axis=0) > 0, strict=True) if varies]


def select_features(tables: Tables, k: int, scheme: str = "MIQ", engine: str = "fast") -> pd.DataFrame:
    """mRMR's k features of every local model, from the training rows of all centres and their class.

    Args:
        tables: from `features.features_of`; training and test rows of all training centres.
        k: features a model.
        scheme, engine: as for `mrmr`.
    Returns: model_center, rank (from 1), feature.
    Raises: ValueError: tables of different images, a feature that is not finite, one class only, fewer than k features that vary, fewer
        training images than levels; the message names centre and number.
    """
    _check_tables(tables)
    rows = []
    for center, table in tables.items():
        names, train = _informative(table), (table["split"] == "train").to_numpy()
        labels = table.loc[train, "label"].to_numpy()
        if len(np.unique(labels)) < 2:
            raise ValueError(f"mRMR selects by the class, but all {len(labels)} training images are of class {labels[0]}")
        if len(names) < k:
            raise ValueError(
                f"model of center {center!r}: {k} features asked for, {len(names)} of its {len(feature_names(table))} have more than one "
                f"level over {train.sum()} training images; ask for at most {len(names)} (interpretation.features)"
            )
        levels = discretised(table[names].to_numpy(dtype=np.float64), train)[train]
        order = mrmr(levels, labels, k, scheme, engine)
        rows += [(center, rank, names[column]) for rank, column in enumerate(order, 1)]
    return pd.DataFrame(rows, columns=["model_center", "rank", "feature"])


def _check_tables(tables: Tables) -> None:
    first = next(iter(tables.values()), None)
    if first is None:
        raise ValueError("features of at least one local model are needed, got none")
    for center, table in tables.items():
        check_features(table)
        if list(table["id"]) != list(first["id"]):
            raise ValueError(f"model of center {center!r}: its {len(table)} images are not those of the first model, in the same order")


def choose(tables: Tables, selected: pd.DataFrame, label: int, top: int) -> pd.DataFrame:
    """The adaptive and the common features of one class, `top` of each kind and centre, from training rows alone.

    Args:
        selected: from `select_features`.
        label: the class whose images are correlated.
    Returns: label, kind, model_center, rank, feature, strength (mean |r| within the centre; highest |r| to another one).
    Raises: ValueError: fewer than three training images of the class, fewer than `top` features that vary over them; one centre only has
        nothing in common with others.
    """
    if len(tables) < 2:
        raise ValueError(f"common features need local models of at least 2 centers, got {', '.join(tables)}")
    values = {center: _values(table, group["feature"], "train", label) for center, table, group in _grouped(tables, selected)}
    values = {center: np.where(_is_sparse(own), np.nan, own) for center, own in values.items()}
    rows = []
    for center, own in values.items():
        others = np.concatenate([other for name, other in values.items() if name != center], axis=1)
        within = np.abs(correlation(own, own))
        np.fill_diagonal(within, np.nan)
        names = selected.loc[selected["model_center"] == center, "feature"].to_numpy()
        strengths = {"adaptive": _ignoring_nan(np.nanmean, within), "common": _ignoring_nan(np.nanmax, np.abs(correlation(own, others)))}
        for kind, strength in strengths.items():
            known = np.flatnonzero(np.isfinite(strength))
            if len(known) < top:
                raise ValueError(
                    f"model of center {center!r}, class {label}: {top} {kind} features asked for, {len(known)} of the {len(names)} "
                    f"selected ones vary over the {len(own)} training images of the class; lower interpretation.top"
                )
            best = known[np.argsort(-strength[known], kind="stable")][:top]
            rows += [(label, kind, center, rank, names[place], strength[place]) for rank, place in enumerate(best, 1)]
    return pd.DataFrame(rows, columns=["label", "kind", "model_center", "rank", "feature", "strength"])


def _grouped(tables: Tables, selected: pd.DataFrame):
    for center, table in tables.items():
        yield center, table, selected[selected["model_center"] == center]


def _values(table: pd.DataFrame, names: pd.Series, split: str, label: int) -> np.ndarray:
    """(n, k) features of one class and split."""
    rows = (table["split"] == split) & (table["label"] == label)
    if rows.sum() < FEWEST:
        raise ValueError(f"class {label} has {rows.sum()} {split} images, a correlation needs at least {FEWEST}")
    return table.loc[rows, list(names)].to_numpy(dtype=np.float64)


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pearson's r of every column of (n, d) with every column of (n, e): (d, e), NaN where a column is constant."""
    return _standardised(one).T @ _standardised(other)


def _standardised(values: np.ndarray) -> np.ndarray:
    centered = values - values.mean(axis=0)
    length = np.linalg.norm(centered, axis=0)
    # A constant column's rest is rounding; far below any feature's own.
    length[length <= 1e-9 * np.linalg.norm(values, axis=0)] = np.nan
    return centered / length


def _is_sparse(values: np.ndarray) -> np.ndarray:
    """(k,) bool: columns that leave their most frequent value in fewer than three rows."""
    most = np.array([np.unique(column, return_counts=True)[1].max() for column in values.T])
    return len(values) - most < FEWEST


def _ignoring_nan(statistic, values: np.ndarray) -> np.ndarray:
    """`statistic` of every row, NaN for a row of NaN alone."""
    found = np.full(len(values), np.nan)
    known = np.isfinite(values).any(axis=1)
    found[known] = statistic(values[known], axis=1)
    return found


def correlation_maps(tables: Tables, chosen: pd.DataFrame) -> pd.DataFrame:
    """The heatmaps of Fig. 8 of one stage as a table: both kinds, training and test, for each class in `chosen`.

    Args:
        chosen: from `choose`, of one or more classes.
    Returns: label, kind, split, row_center, row_feature, column_center, column_feature, r in [−1, 1] (NaN where a feature is constant
        over the images of that class and split); ordered by centre and rank.
    Raises: ValueError: fewer than three images of a class in a split.
    """
    parts = []
    for (label, kind), features in chosen.groupby(["label", "kind"], sort=False):
        about = features[["model_center", "feature"]].reset_index(drop=True)
        rows, columns = (about.loc[index].reset_index(drop=True) for index in np.indices((len(about),) * 2).reshape(2, -1))
        for split in SPLITS:
            values = [_values(table, group["feature"], split, label) for _, table, group in _grouped(tables, features)]
            stacked = np.concatenate(values, axis=1)
            part = pd.DataFrame({"label": label, "kind": kind, "split": split}, index=rows.index)
            part[["row_center", "row_feature"]] = rows
            part[["column_center", "column_feature"]] = columns
            parts.append(part.assign(r=np.clip(correlation(stacked, stacked), -1, 1).ravel()))
    return pd.concat(parts, ignore_index=True)


def map_summary(maps: pd.DataFrame) -> pd.DataFrame:
    """What the eye sees in the heatmaps, as numbers.

    Args:
        maps: from `correlation_maps`, with a column `stage`.
    Returns: label, stage, kind, and for both splits mean |r| between different features of one centre (within_…) and of two centres
        (between_…), the similarity of the training and the test map: Pearson's r of their upper triangles, over `pairs` pairs of features,
        and `undefined` pairs (a constant feature).
    """
    rows = []
    for key, part in maps.groupby(["label", "stage", "kind"], sort=False):
        row: dict[str, object] = dict(zip(("label", "stage", "kind"), key, strict=True))
        upper = {}
        for split in SPLITS:
            here = part[part["split"] == split]
            side = round(len(here) ** 0.5)
            same = (here["row_center"] == here["column_center"]).to_numpy().reshape(side, side)
            above = np.triu_indices(side, 1)
            upper[split] = here["r"].to_numpy().reshape(side, side)[above]
            for name, pairs in (("within", same[above]), ("between", ~same[above])):
                row[f"{name}_{split}"] = float(np.nanmean(np.abs(upper[split][pairs])))
        known = np.isfinite(upper["train"]) & np.isfinite(upper["test"])
        similarity = np.corrcoef(upper["train"][known], upper["test"][known])[0, 1] if known.sum() > 1 else np.nan
        rows.append(row | {"similarity": float(similarity), "pairs": int(known.sum()), "undefined": int((~known).sum())})
    return pd.DataFrame(rows, columns=NUMBERS)
