"""The local models of all centres side by side: what `cam`, `features` and `correlation` say of one model, asked of each of them.

Tables of features are given by stage and centre. A table without rows says that the data do not have what is asked for: known lesions,
or classes of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation.classification import class_names, probability_columns
from vfmgl_lib.evaluation.heterogeneity import center_predictability, predictability_obstacle
from vfmgl_lib.interpretation import cam, correlation
from vfmgl_lib.interpretation.features import SEGMENTATION, feature_names, principal_components
from vfmgl_lib.interpretation.mrmr import ENGINES, NO_PYMRMR, has_pymrmr, mrmr, shortfall
from vfmgl_lib.models.students import Student

Device = torch.device | str
Stages = Mapping[str, Mapping[str, pd.DataFrame]]  # stage -> training centre -> features of its local model, of the same images
RANDOM_SETS = 5  # of random weights that the trained models are held against
NO_CLASSES = "mRMR selects by the image's class, which a segmentation does not have: adaptive and common features do not apply."
LOCALISED = "model center images patients undefined inside area gain low high gain_over_place place_low place_high verdict reason".split()


def maps_of(
    students: Mapping[str, Student], tests: Mapping[str, ImageDataset], layer: str, device: Device = "cpu", target: int | None = None
) -> pd.DataFrame:
    """The maps of each centre's images (`cam.activation_maps`) by its own student; both arguments by centre."""
    return pd.concat([cam.activation_maps(students[c], tests[c], layer, device=device, target=target) for c in tests], ignore_index=True)


def known_lesions(manifest: Manifest, ids: pd.Series, size: int, on_phantoms: bool, target: int | None = None) -> dict[str, np.ndarray]:
    """`cam.lesions`, {} for real images of a classification: nobody has outlined theirs."""
    return cam.lesions(manifest, ids, size, target) if manifest.task_kind == "segmentation" or on_phantoms else {}


def localise(
    students: Mapping[str, Student],
    manifest: Manifest,
    maps: pd.DataFrame,
    lesions: dict[str, np.ndarray],
    layer: str,
    seed: int,
    device: Device = "cpu",
    target: int | None = None,
) -> pd.DataFrame:
    """Where the evidence of the trained students lies, beside that of `RANDOM_SETS` sets of random weights, whose mean counts.

    Args:
        students: by centre.
        maps: from `maps_of` the same students and their centres' test images.
        lesions: from `known_lesions`. Test images whose lesion is empty are left out, and those of a classification's negative class.
        seed: of the random weights and of the bootstrap.
        target: the class that maps and lesions are of; None: a segmentation's foreground.
    Returns: as `cam.localisation_summary`; no rows where no lesion is known.
    """
    if not lesions:
        return pd.DataFrame(columns=LOCALISED)
    table, size = manifest.select(split="test"), len(next(iter(lesions.values())))
    table = table[table["center"].isin(list(students))]
    positive = table if manifest.task_kind == "segmentation" else table[table["label"] == 1]
    images = {center: ImageDataset(manifest, rows, size) for center, rows in positive.groupby("center")}
    found = [cam.localisation(maps[maps["id"].isin(positive["id"])], lesions, "trained")]
    for draw in range(RANDOM_SETS):
        random = {center: cam.randomised(students[center], seed + draw) for center in images}
        found.append(cam.localisation(maps_of(random, images, layer, device, target), lesions, "random weights"))
    return cam.localisation_summary(pd.concat(found), seed)


def components(features: Stages) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`features.principal_components` of every local model on its own centre's images; both tables with stage, the second with center."""
    points, explained = [], []
    for stage, tables in features.items():
        for center, table in tables.items():
            projected, share = principal_components(table[table["center"] == center])
            points.append(projected.assign(stage=stage))
            explained.append(share.assign(stage=stage, center=center))
    return pd.concat(points), pd.concat(explained)


def centers_told(features: Mapping[tuple[str, str], pd.DataFrame], seed: int) -> tuple[pd.DataFrame, str]:
    """How well the centre of a test image is told from the features of each model (`heterogeneity.center_predictability`).

    Args:
        features: (model, stage) -> its features of the images of all centres.
    Returns: model, stage, balanced_accuracy, low, high, chance, patients; and why it cannot be asked ("" where it can; else no rows).
    """
    asked = {key: table[table["split"] == "test"].drop(columns=["split", "label"]) for key, table in features.items()}
    wanted = ["balanced_accuracy", "low", "high", "chance", "patients"]
    if obstacle := predictability_obstacle(next(iter(asked.values()))):
        return pd.DataFrame(columns=["model", "stage", *wanted]), obstacle
    told = pd.DataFrame([center_predictability(table, seed).iloc[0][wanted] for table in asked.values()]).reset_index(drop=True)
    return pd.concat([pd.DataFrame(list(asked), columns=["model", "stage"]), told], axis=1), ""


class Selection(NamedTuple):
    """mRMR's features of every local model.

    Attributes:
        chosen: stage -> from `correlation.select_features`; {} where nothing can be selected.
        top: how many of them are shown for each centre and kind.
        varying: center and, for each stage, how many features have more than one level over the training images.
        words: how many were asked for and selected, or why none.
    """

    chosen: dict[str, pd.DataFrame]
    top: int
    varying: pd.DataFrame
    words: str


def select(features: Stages, wanted: int, top: int) -> Selection:
    """Selects `wanted` features of every local model, or as many as vary in the model that has fewest; at most `top` of them are shown."""
    if not _has_classes(_first(features)):
        return Selection({}, 0, pd.DataFrame(), NO_CLASSES)
    varying = pd.DataFrame({stage: correlation.usable(tables) for stage, tables in features.items()})
    count = min(wanted, int(varying.to_numpy().min()))
    chosen = {stage: correlation.select_features(tables, count) for stage, tables in features.items()}
    top = min(top, count)
    width = len(feature_names(_first(features)))
    words = f"Asked for {wanted} of {width} features a model; {count} selected, {top} shown a centre."
    return Selection(chosen, top, varying.rename_axis("centre"), words)


def compare_engines(features: pd.DataFrame, among: int = 40, wanted: int = 10) -> tuple[pd.DataFrame, str]:
    """The first features that each mRMR engine selects from one model's training images.

    Args:
        features: of one model.  among: so many of its features are offered.  wanted: so many are selected.
    Returns: engine, 1, 2, … (names of features), largest shortfall (bits, `mrmr.shortfall`: 0 where each step takes the best feature); and
        "equal", "equal but for ties", or why there are no rows or no second engine.
    """
    if not _has_classes(features):
        return pd.DataFrame(columns=["engine", "largest shortfall"]), NO_CLASSES
    part = features[features["split"] == "train"]
    levels = correlation.discretised(part[feature_names(part)[:among]].to_numpy(), np.ones(len(part), bool))
    found = {
        engine: mrmr(levels, part["label"], min(wanted, levels.shape[1]), engine=engine)
        for engine in (ENGINES if has_pymrmr() else ENGINES[:1])
    }
    orders = pd.DataFrame(found, index=range(1, len(found[ENGINES[0]]) + 1)).map("f{}".format).T
    orders["largest shortfall"] = pd.Series({engine: shortfall(levels, part["label"], order).max() for engine, order in found.items()})
    if len(found) == 1:
        return orders.rename_axis("engine").reset_index(), f"No cross-check: {NO_PYMRMR}."
    same = (found[ENGINES[0]] == found[ENGINES[1]]).all()
    return orders.rename_axis("engine").reset_index(), "equal" if same else "equal but for ties"


def feature_maps(features: Stages, selection: Selection) -> pd.DataFrame:
    """`correlation.correlation_maps` of all classes and stages, with a column `stage`; the last class, of two the positive, comes first."""
    parts = [pd.DataFrame(columns=["label", "kind", "split", "r", "stage"])] if not selection.chosen else []
    for stage, chosen in selection.chosen.items():
        for label in sorted(_first(features)["label"].unique(), reverse=True):
            best = correlation.choose(features[stage], chosen, label, selection.top)
            parts.append(correlation.correlation_maps(features[stage], best).assign(stage=stage))
    return pd.concat(parts, ignore_index=True)


def logit_gaps(student: Student, data: ImageDataset, predictions: pd.DataFrame, device: Device = "cpu") -> np.ndarray:
    """How far the mean of each image's CAM, with the biases, is from the difference of the logits that was predicted for it.

    Of more than two classes that of the image's own class and the mean of the others (`cam.against_others`).

    Args:
        predictions: id, probability (of more than two classes those of each, and label): of this student.
    Returns: (n,) |difference| / (1 + largest |logit|); none for a student whose maps are no sums of its output
        (`Student.pooled_classifier`), such as a UNet.
    """
    classifier = student.pooled_classifier
    if classifier is None:
        return np.zeros(0)
    exact = cam.activation_maps(student, data, list(student.stages)[-1], device=device)
    by_id, bias = predictions.set_index("id").loc[exact["id"]], classifier.bias.detach().cpu()
    if class_names(predictions):
        own, logits = by_id["label"].to_numpy(dtype=int), torch.from_numpy(np.log(by_id[probability_columns(by_id)].to_numpy(dtype=float)))
        logit = np.array([float(cam.against_others(one, label)) for one, label in zip(logits, own, strict=True)])
        evidence = np.array([found.mean() for found in exact["map"]]) + np.array([float(cam.against_others(bias, label)) for label in own])
        return np.abs(evidence - logit) / (1 + np.abs(logit).max())
    probability = by_id["probability"]
    logit = np.log(probability / (1 - probability)).to_numpy()
    evidence = np.array([found.mean() for found in exact["map"]]) + bias.numpy()[1] - bias.numpy()[0]
    return np.abs(evidence - logit) / (1 + np.abs(logit).max())


def _first(features: Stages) -> pd.DataFrame:
    return next(iter(next(iter(features.values())).values()))


def _has_classes(features: pd.DataFrame) -> bool:
    return bool((features["label"] != SEGMENTATION).any())
