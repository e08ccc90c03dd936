"""Penultimate features of the students: tables of them, their principal components, neighbours, scores and the cases to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy
import torch

from vfmgl_lib.data.loading import ImageDataset, fixed_batches, load_batches
from vfmgl_lib.evaluation.classification import by_patient, class_names, own_class
from vfmgl_lib.evaluation.one_vs_rest import of_class
from vfmgl_lib.evaluation.statistics import MIN_PATIENTS, too_few
from vfmgl_lib.models.students import Student

ABOUT = ("id", "patient", "center", "split", "label")
SEGMENTATION = -1  # the label of an image that has a mask instead
SCORES = ["stage", "center", "split", "patient", "label", "score"]
SCORE_TESTS = "stage center split n_0 mean_0 std_0 n_1 mean_1 std_1 test patients t p reason".split()


@torch.inference_mode()
def features_of(student: Student, data: ImageDataset, *, batch_size: int = 32, device: torch.device | str = "cpu") -> pd.DataFrame:
    """Penultimate features (ResNet18: mean of layer4's map; UNet: mean of the bottleneck's), one row a sample in the data set's order.

    Returns: id, patient, center, split, label (class index; -1 for a segmentation), f0 … fD−1.
    Raises: ValueError: a feature that is not finite; the message names image and feature.
    """
    student = student.to(device).eval()
    rows = [
        student.embed(batch["image"].to(device)).float().cpu().numpy()
        for batch in load_batches(data, fixed_batches(len(data), batch_size, join_last=False))
    ]
    values = np.concatenate(rows)
    about = data.table[list(ABOUT)].copy()
    if not pd.api.types.is_integer_dtype(about["label"]):
        about["label"] = SEGMENTATION
    table = pd.DataFrame(values, columns=[f"f{place}" for place in range(values.shape[1])])
    return check_features(pd.concat([about, table], axis=1))


def feature_names(features: pd.DataFrame) -> list[str]:
    """The columns with numbers: all but id, patient, center, split and label."""
    return [name for name in features.columns if name not in ABOUT]


def check_features(features: pd.DataFrame) -> pd.DataFrame:
    """The table itself.

    Raises: ValueError: a feature that is not finite; the message names image and feature.
    """
    values = features[feature_names(features)].to_numpy()
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        name = feature_names(features)[column]
        raise ValueError(f"image {features['id'].iloc[row]!r}: feature {name} is {values[row, column]}, expected a finite number")
    return features


def principal_components(features: pd.DataFrame, components: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """PCA fitted on the training rows alone; all rows are projected. Features are centred, not scaled.

    Args:
        features: from `features_of`, of one model.
    Returns: (id, patient, center, split, label, pc1, pc2, …) and (component, explained: share of the training rows' variance,
        explained_test: share of the test rows' variance around their own mean that lies along it; NaN without test rows).
    Raises: ValueError: too few training rows or features, features that do not vary.
    """
    from sklearn.decomposition import PCA

    columns = feature_names(check_features(features))
    values = features[columns].to_numpy(dtype=np.float64)
    train, test = (values[(features["split"] == split).to_numpy()] for split in ("train", "test"))
    if min(len(train) - 1, len(columns)) < components:
        raise ValueError(f"{components} components need {components + 1} training images and as many features, got {train.shape}")
    if not np.ptp(train, axis=0).any():
        raise ValueError(f"all {len(columns)} features are constant over the {len(train)} training images: there is nothing to project")
    model = PCA(components, svd_solver="full").fit(train)
    projected = pd.DataFrame(model.transform(values), columns=[f"pc{i + 1}" for i in range(components)], index=features.index)
    explained = pd.DataFrame({"component": projected.columns, "explained": model.explained_variance_ratio_})
    spread = test.var(axis=0).sum() if len(test) > 1 else 0.0
    explained["explained_test"] = (test @ model.components_.T).var(axis=0) / spread if spread > 0 else np.nan
    return features[list(ABOUT)].join(projected), explained


def neighbors(features: pd.DataFrame, sample: str, count: int = 3) -> pd.DataFrame:
    """The training images nearest to a sample: Euclidean distance of features in units of their SD over the training images.

    Args:
        features: from `features_of`, of one model; its training rows are the candidates. Images of the sample's own patient are left out.
        sample: an id of the table.
    Returns: id, patient, center, split, label, distance (per square root of the number of features), nearest first.
    Raises: KeyError: an unknown id.
    """
    columns = feature_names(features)
    found = features[features["id"] == sample]
    if found.empty:
        raise KeyError(f"image {sample!r} is not among the {len(features)} of the table")
    train = features[(features["split"] == "train") & (features["patient"] != found["patient"].iloc[0])]
    spread = features.loc[features["split"] == "train", columns].std().to_numpy()
    scale = np.where(spread > 0, spread, np.inf)  # a constant feature tells nothing apart
    steps = (train[columns].to_numpy() - found[columns].to_numpy()) / scale
    nearest = train[list(ABOUT)].assign(distance=np.sqrt((steps**2).mean(axis=1)))
    return nearest.sort_values(["distance", "id"]).head(count).reset_index(drop=True)


def score_table(predictions: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Scores of every centre's own model on its own images, as the score charts show them.

    Args:
        predictions: rows of a study's `predictions` of one round, with stage, model_center, test_center, split, id, patient, probability,
            label; those of other models or centres are left out.
        unit: "patient" (mean probability of its images) or "image".
    Returns: stage, center, split, patient, label, score; no rows for a segmentation, which scores no images. Of more than two classes each
        against the others, with its name in a column `class`: label 1 is that class and the score its probability.
    """
    if names := class_names(predictions):
        parts = [score_table(of_class(predictions, name), unit).assign(**{"class": name}) for name in names]
        return pd.concat(parts, ignore_index=True)
    if "probability" not in predictions:
        return pd.DataFrame(columns=SCORES)
    own = predictions[predictions["model_center"] == predictions["test_center"]]
    parts = []
    for (stage, center, split), rows in own.groupby(["stage", "test_center", "split"], sort=False):
        scores = by_patient(rows) if unit == "patient" else rows
        about = {"stage": stage, "center": center, "split": split}
        columns = {"patient": scores["patient"], "label": scores["label"].astype(int), "score": scores["probability"]}
        parts.append(pd.DataFrame(columns).assign(**about))
    return pd.concat(parts, ignore_index=True)[SCORES]


def score_tests(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean ± SD of both classes and the independent two-tailed t-test with pooled variance, as in the paper's Fig. 7c.

    The pooled variance is what the paper's printed summaries give (centre D, training: p = 9e-6; Welch's test gives another value).
    A patient counts once a class, with the mean of its scores. Where patients have images of both classes their groups are not
    independent: then the test is of the patients' own differences, and those of one class are left out of it. With fewer than
    `statistics.MIN_PATIENTS` of a class (of pairs: in all) there is none.

    Args:
        scores: from `score_table`.
    Returns: stage, center, split (of more than two classes also class), n_0, mean_0, std_0, n_1, mean_1, std_1 (of the scores), test
        ("independent t", "paired t" or ""), patients (in the test), t, p, reason (why p is NaN). SDs divide by n − 1.
    """
    rows, keys = [], ["stage", "center", "split", *(["class"] if "class" in scores else [])]
    for key, part in scores.groupby(keys, sort=False):
        row: dict[str, object] = dict(zip(keys, key, strict=True))
        for label in (0, 1):
            values = part.loc[part["label"] == label, "score"]
            row |= {f"n_{label}": len(values), f"mean_{label}": values.mean(), f"std_{label}": values.std(ddof=1)}
        wide = part.pivot_table(index="patient", columns="label", values="score").reindex(columns=[0, 1])
        both = wide.dropna()
        groups = [both[label] if len(both) else wide[label].dropna() for label in (0, 1)]
        patients = len(both) or sum(map(len, groups))
        reason = _no_test(part, groups, patients)
        name, function = ("paired t", scipy.stats.ttest_rel) if len(both) else ("independent t", scipy.stats.ttest_ind)
        test = (np.nan, np.nan) if reason else function(groups[1], groups[0])
        row |= {"test": "" if reason else name, "patients": patients, "t": float(test[0]), "p": float(test[1])}
        rows.append(row | {"reason": reason})
    return pd.DataFrame(rows, columns=[*keys, *SCORE_TESTS[3:]])


def _no_test(part: pd.DataFrame, groups: list[pd.Series], patients: int) -> str:
    positive = int(part["label"].sum())
    if positive in (0, len(part)):
        return f"only one class: {positive} positive, {len(part) - positive} negative"
    fewest = min(map(len, groups))  # as for an AUC: of each class; of pairs both are the patients
    if fewest < MIN_PATIENTS:
        return too_few(fewest, "" if fewest == patients else " of one class")
    if all(np.ptp(values) == 0 for values in groups):
        return "the scores of each class are all equal"
    return ""


def own_cases(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """The images of each centre with the score that its own model gives them.

    The score is the probability of the positive class, of more than two classes that of the image's own, or, for a segmentation, the
    foreground Dice; its classes are images with and without foreground.

    Args:
        predictions: rows of a study's `predictions` of one round and stage; those of other centres' models are left out.
    Returns: center, label (the number of the class; of a segmentation 1 or 0), id, score.
    Raises: ValueError: no such rows.
    """
    own = predictions[(predictions["model_center"] == predictions["test_center"]) & (predictions["split"] == split)]
    if own.empty:
        raise ValueError(f"the predictions have no rows of a centre's own model on its own {split} images")
    if class_names(own):
        own = own.assign(score=own_class(own), label=own["label"].astype(int))
    elif "probability" in own:
        own = own.assign(score=own["probability"], label=own["label"].astype(int))
    else:
        own = own.assign(score=own["dice"], label=(own["tp"] + own["fn"] > 0).astype(int))
    return own.rename(columns={"test_center": "center"})[["center", "label", "id", "score"]]


def median_cases(predictions: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """One image of each class per centre by a rule that leaves no choice: the one with the median score of its class.

    Of an even number the lower of the two in the middle; of equal scores the first id.

    Args: as for `own_cases`.
    Returns: center, label, id, score, of (images of that class), sorted by centre, the highest class first. A class that a centre does not
        have has no row.
    """
    rows = []
    for (center, label), part in own_cases(predictions, split).groupby(["center", "label"]):
        ordered = part.sort_values(["score", "id"], ignore_index=True)
        case = ordered.iloc[(len(ordered) - 1) // 2]
        rows.append((center, label, case["id"], float(case["score"]), len(ordered)))
    table = pd.DataFrame(rows, columns=["center", "label", "id", "score", "of"])
    return table.sort_values(["center", "label"], ascending=[True, False], ignore_index=True)


def critical_table(stages: pd.DataFrame, which: Sequence[str] = ()) -> pd.DataFrame:
    """The robustness-critical stages of every centre, as Supplementary Table 7 lists them.

    Args:
        stages: a study's table.  which: centres; (): all.
    Returns: center, student_stage, score (mean λ in the last round), rank (1: highest), critical (in the last round), rounds (how many had
        it among the critical ones), of (rounds).
    Raises: ValueError: a study without transfer has no such stages.
    """
    if stages.empty:
        raise ValueError("the study has no table of stages: its method transfers nothing from a teacher")
    scores = stages.drop_duplicates(["center", "round", "student_stage"])
    scores = scores[scores["center"].isin(which)] if len(which) else scores
    counts = scores.groupby(["center", "student_stage"])["critical"].agg(["sum", "size"]).reset_index()
    counts = counts.rename(columns={"sum": "rounds", "size": "of"})
    last = scores[scores["round"] == scores["round"].max()][["center", "student_stage", "stage_score", "critical"]]
    table = last.rename(columns={"stage_score": "score"}).merge(counts, on=["center", "student_stage"])
    table.insert(3, "rank", table.groupby("center")["score"].rank(ascending=False, method="first").astype(int))
    return table.assign(critical=table["critical"].astype(bool)).reset_index(drop=True)
