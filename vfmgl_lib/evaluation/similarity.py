"""How like an external centre's images each training centre's are, and whose model it is given (paper: "external validation").

The paper says only that the scores are estimated "based on data deduction" and prints them; ours is one reading. Every centre sends
the mean penultimate feature of its images under the shared model, an aggregate of a few hundred numbers. What all centres have in
common would make every pair alike, so the mean of the training centres' means is taken off first; the score is Pearson's correlation
of what is left.

Labels cannot enter: the only input is a table of features.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

FEATURE = re.compile(r"f[0-9]+")
SCORES = ("center", "model_center", "similarity")
# Norm of a centred mean, relative to the raw one, below which it is rounding and not a difference.
FLAT = 1e-6


def similarity_scores(mean_features: pd.DataFrame) -> pd.DataFrame:
    """Pearson correlation of each external centre's centred mean feature with each training centre's.

    Args:
        mean_features: `mean_features.csv` of one study at one round: center, split ("train": a training centre's training set, "test": an
            external centre's test set), f0 … fD-1. Further columns are not read.
    Returns: center (the external one), model_center, similarity in [-1, 1]; the most similar model first. No rows: no external centre.
    Raises: ValueError: a missing column, a centre twice, fewer than two training centres or features, NaN or infinite features, a centre
        whose features are constant or do not differ from the mean of the centres.
    """
    features = [name for name in mean_features.columns if FEATURE.fullmatch(str(name))]
    missing = [name for name in ("center", "split") if name not in mean_features]
    if missing or len(features) < 2:
        found = f"it lacks {', '.join(missing)}" if missing else f"it has {len(features)} of the columns f0, f1, …"
        raise ValueError(f"mean_features must have center, split and at least two features f0, f1, …; {found}")
    twice = mean_features["center"][mean_features["center"].duplicated()]
    if len(twice):
        raise ValueError(f"mean_features must have one row a centre, of one study and one round; {twice.iloc[0]} has several")
    table = mean_features.set_index("center")
    values = table[features].astype(float)
    _check(values)
    training, external = values[table["split"] == "train"], values[table["split"] != "train"]
    if external.empty:
        return pd.DataFrame(columns=list(SCORES))
    if len(training) < 2:
        raise ValueError(
            f"mean_features must have at least two training centres (split 'train'), got {len(training)}: after taking off the mean "
            "of the centres' means nothing is left of a single one"
        )
    middle = training.mean()
    # Pearson's r of two vectors is the scalar product of them centred over their entries and scaled to length 1.
    own, others = _directions(training, middle), _directions(external, middle)
    scores = pd.DataFrame(others @ own.T, external.index, training.index).clip(-1, 1)
    tidy = scores.rename_axis(index="center", columns="model_center").stack().rename("similarity").reset_index()
    return tidy.sort_values(["center", "similarity", "model_center"], ascending=[True, False, True], ignore_index=True)


def choose_model(scores: pd.DataFrame) -> dict[str, str]:
    """External centre -> the most similar training centre, whose local model it is given; of equals the first by name.

    Args:
        scores: from `similarity_scores`.
    Raises: ValueError: a score is NaN: then there is no choice.
    """
    undefined = scores[scores["similarity"].isna()]
    if len(undefined):
        row = undefined.iloc[0]
        raise ValueError(f"similarity of {row['center']} to {row['model_center']} is NaN, expected a number in [-1, 1]")
    best = scores.sort_values(["center", "similarity", "model_center"], ascending=[True, False, True]).drop_duplicates("center")
    return dict(zip(best["center"], best["model_center"], strict=True))


def _check(values: pd.DataFrame) -> None:
    broken = ~np.isfinite(values)
    if broken.any(axis=None):
        center = broken.any(axis=1).idxmax()
        name, count = broken.loc[center].idxmax(), int(broken.loc[center].sum())
        bad = values.loc[center, name]
        raise ValueError(f"mean features must be finite: {center} has {bad} in {name} and {count} such features in all")
    constant = values.max(axis=1) == values.min(axis=1)
    if constant.any():
        center = constant.idxmax()
        raise ValueError(
            f"mean features must differ from one another: all {values.shape[1]} of {center} are {values.loc[center].iloc[0]:g}, "
            "a correlation with a constant is not defined"
        )


def _directions(values: pd.DataFrame, middle: pd.Series) -> np.ndarray:
    """Each row less `middle` and less its own mean, at length 1: (n, D)."""
    rest = values.to_numpy() - middle.to_numpy()
    rest = rest - rest.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rest, axis=1)
    flat = length <= FLAT * np.linalg.norm(values.to_numpy(), axis=1)
    if flat.any():
        raise ValueError(
            f"mean features of {values.index[int(np.argmax(flat))]} differ from the mean of the training centres' means by a constant "
            "at most: its correlation with another centre is not defined"
        )
    return rest / length[:, None]
