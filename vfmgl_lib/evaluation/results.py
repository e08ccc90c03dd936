"""From predictions to result tables: every metric with its count and interval, and paired comparisons of the methods.

Everything here reads predictions (and mask files, for distances); nothing trains, so that it can be done again at any time. Cutoffs come
from the same model's predictions on its own validation set, where there is none on its training set (`prediction.chosen_cutoff`).

Intervals: where a patient counts once, DeLong for an AUC and Wilson for a share; where several samples of one patient count, and for every
mean over images, those with patients as clusters (`statistics.auc_interval`, `ratio_interval`), of whom there must be five. Tests are by
patient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from vfmgl_lib.data.images import decode_mask
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.data.preprocessing import input_spacing, squashed_mask
from vfmgl_lib.evaluation import statistics
from vfmgl_lib.evaluation.classification import by_patient, class_names, is_classification, probability_columns
from vfmgl_lib.evaluation.metric import ONE_CLASS, Metric, calls, is_share, measured, metric_names, no_cutoff, parts, units_of
from vfmgl_lib.evaluation.multiclass import BOOTSTRAP, BOOTSTRAPPED, bootstrapped, no_sample_of
from vfmgl_lib.evaluation.one_vs_rest import AUC_OF, auc_of, of_class
from vfmgl_lib.evaluation.prediction import Cutoff, chosen_cutoff
from vfmgl_lib.evaluation.segmentation import (
    COUNTS,
    DISTANCES,
    class_column,
    class_distances,
    class_titles,
    count_columns,
    is_distance,
    overlap_names,
    overlaps,
)
from vfmgl_lib.evaluation.statistics import NO_INTERVAL, Interval
from vfmgl_lib.methods.budgets import reference_at
from vfmgl_lib.methods.registry import METHODS

SHARED, ADAPTED = "shared", "adapted"  # the shared model with averaged statistics; with those re-estimated where it is tested
STAGES = ("untrained", "I", "II", SHARED, ADAPTED)  # a later stage is what the method uses
RUN = ["method", "seed", "split_id", "budget"]
MODEL = [*RUN, "model_center"]
COLUMNS = [*MODEL, "test_center", "split", "metric", "unit", "value", "low", "high", "interval", "n", "numerator", "denominator", "reason"]
ALL = "all"
NOT_LOCAL = (SHARED, ADAPTED, ALL)  # values of model_center that are no centre's own model
OVER_PATIENTS, CLUSTERED = "t over patients", "DeLong by patient"
COMPARED = "seed split_id budget center metric method reference difference low high p p_holm test n patients reason".split()
NO_COMPARISON = "no comparison"  # the last words of why a control is none
TOGETHER = 1e-3  # by so much the probabilities of K classes may miss 1, as rounded ones do
DISJOINT = "disjoint pairs"  # how an AUC of 0 or 1 has its interval (`statistics.auc_interval`)


def final_predictions(predictions: pd.DataFrame, report_rounds: Mapping[str, int]) -> pd.DataFrame:
    """The predictions of the reported models: each model after its last stage, at the round of each budget.

    Args:
        predictions: a study's table.
        report_rounds: budget ("rounds", "updates") -> round (`Study.report_rounds`).
    Returns: the rows with a column `budget`; where two budgets are the same round, its rows are there for both.
    Raises: ValueError: a round without predictions.
    """
    parts = []
    for budget, number in report_rounds.items():
        rows = predictions[predictions["round"] == number]
        if rows.empty:
            raise ValueError(f"no predictions of round {number} (matched {budget}), there are rounds {sorted(set(predictions['round']))}")
        place = rows["stage"].map({stage: position for position, stage in enumerate(STAGES)})
        last = place.groupby(rows["model_center"]).transform("max")
        parts.append(rows[place == last].assign(budget=budget))
    return pd.concat(parts, ignore_index=True)


def with_distances(final: pd.DataFrame, manifest: Manifest, progress: bool = False) -> pd.DataFrame:
    """ASSD and HD95 of every prediction whose mask was kept, as further columns.

    They are taken at the size of the predicted mask, in mm where every image of the manifest has a spacing (scaled with the image), else
    in pixels of that size.

    Args:
        final: final predictions; of a segmentation with `mask_path` (absolute, "" where no mask was kept).
    Returns: the table with assd, hd95 (NaN where undefined or not kept), distance_unit ("mm" or "px") and distance_reason, of more than two
        classes also of each (`segmentation.class_distances`); that of a classification as it came.
    Raises: ValueError: a prediction without a mask in the manifest, or a file that is not there; names it.
    """
    if is_classification(final):
        return final
    truth = manifest.table.set_index("id")
    unit = "mm" if (manifest.table["spacing"] != "").all() else "px"
    measured: dict[str, dict[str, float | str]] = {}
    masks: dict[tuple[str, tuple[int, int]], tuple[np.ndarray, tuple[int, int]]] = {}
    wanted = final.loc[final["mask_path"] != "", ["id", "mask_path"]].drop_duplicates("mask_path")
    for identity, path in tqdm(wanted.itertuples(index=False, name=None), total=len(wanted), desc="distances", disable=not progress):
        if identity not in truth.index:
            raise ValueError(f"prediction {path}: the manifest of {manifest.root} has no image {identity!r}")
        predicted = _predicted_mask(path, manifest.mask_values)
        key = identity, predicted.shape
        if key not in masks:
            masks[key] = true_mask(manifest, truth.at[identity, "label"], predicted.shape)
        mask, original = masks[key]
        spacing = (1.0, 1.0)
        if unit == "mm":
            row, column = (float(part) for part in truth.at[identity, "spacing"].split(","))
            spacing = input_spacing((row, column), original, predicted.shape, manifest.reading.resize)
        measured[path] = class_distances(predicted, mask, manifest.classes, spacing)
    columns: dict[str, list] = {}
    for title in [None, *class_titles(final)[1:]]:
        assd, hd95, reason, why = (n if title is None else class_column(n, title) for n in (*DISTANCES, "reason", "distance_reason"))
        for name in (assd, hd95):
            columns[name] = [measured[path][name] if path in measured else math.nan for path in final["mask_path"]]
        columns["distance_unit"] = [unit] * len(final)
        columns[why] = [measured[path][reason] if path in measured else "no mask was kept" for path in final["mask_path"]]
    return final.assign(**columns)


def _predicted_mask(path: str, mask_values: Sequence[int]) -> np.ndarray:
    if not Path(path).is_file():
        raise ValueError(f"predicted mask {path}: no such file; was the study's folder moved or emptied?")
    return decode_mask(Path(path), path, mask_values)


def true_mask(manifest: Manifest, label: str, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """A mask of the manifest, squashed as the student sees it: (H, W) uint8 class indices, and the (rows, columns) it has on disk."""
    pixels = decode_mask(manifest.root / label, str(manifest.root / label), manifest.mask_values)
    return squashed_mask(pixels, shape[0], manifest.reading.resize), pixels.shape


def per_case(final: pd.DataFrame) -> pd.DataFrame:
    """Metrics of overlap of each patient's images together (of a volume's slices): counts summed, then one value a patient and model."""
    key = [*MODEL, "test_center", "split", "patient"]
    grouped = final.groupby(key, sort=False)[count_columns(final)]
    counts = grouped.sum().where(grouped.count().eq(grouped.size(), axis=0)).reset_index()  # of an undefined image nothing is known
    images = final.groupby(key, sort=False).size().reset_index(name="images")
    return pd.concat([counts.merge(images, on=key), overlaps(counts)], axis=1)


def results_table(final: pd.DataFrame, *, unit: str) -> pd.DataFrame:
    """Every metric of every model on every set, with interval, and the counts of all centres together.

    Args:
        final: final predictions; of one or several methods, seeds and divisions.
        unit: "patient" (mean probability of a patient's images is scored) or "image"; a segmentation: "image".
    Returns: one row a method, seed, split_id, budget, model_center, test_center, split and metric: unit ("patient", "image", "mm", "px"),
        value, low, high (95 %), interval (how), n (what the metric is over), numerator, denominator (of a share), reason (why value or
        interval is NaN). A metric "cutoff" is the model's cutoff, in the row of the set that it was chosen on: its split is "val" or
        "train", n its patients. "brier" is the mean squared difference of probability and label; what more than two
        classes have says `metric.metric_names`. model_center and test_center "all":
        every centre's own model on its own test set, counted together (no AUC: scores of different models are not on one scale).
    Raises: ValueError: `check_predictions`.
    """
    check_predictions(final)
    rows: list[dict] = []
    for run, of_run in final.groupby(RUN, sort=False):
        about = dict(zip(RUN, run, strict=True))
        homes: dict[str, pd.DataFrame] = {}
        without: list[str] = []
        for model, of_model in of_run.groupby("model_center", sort=False):
            chosen = _cutoff(of_model, model, unit)
            if chosen is not None and "probability" in final:
                own = of_model[(of_model["test_center"] == model) & (of_model["split"] == chosen.split)]
                metric = Metric("cutoff", chosen.value, own["patient"].nunique(), "" if chosen.split else ONE_CLASS)
                rows.append(_row(metric, unit, NO_INTERVAL, "", about, model, model, chosen.split or "train"))
            cutoff = None if chosen is None else chosen.value
            for (test, split), part in of_model.groupby(["test_center", "split"], sort=False):
                units = units_of(part, unit, cutoff)
                metrics = measured(part, units, metric_names(part), no_cutoff(cutoff))
                rows += [_row(*_with_interval(metric, units, unit), about, model, test, split) for metric in metrics]
                if model == test and split == "test":
                    homes[model] = units
                    without += [model] if not class_names(part) and (cutoff is None or math.isnan(cutoff)) else []
        if homes:  # counted together, undefined where one model has no cutoff and so calls nobody
            pooled = pd.concat(homes.values(), ignore_index=True)
            names = calls(of_run) if is_classification(pooled) else metric_names(pooled)
            metrics = measured(pooled, pooled, names, f"no cutoff at {', '.join(without)}" if without else "")
            rows += [_row(*_with_interval(metric, pooled, unit), about, ALL, ALL, "test") for metric in metrics]
    return pd.DataFrame(rows, columns=COLUMNS)


def check_predictions(final: pd.DataFrame) -> None:
    """Raises: ValueError: a probability outside [0, 1], those of K classes that are not 1 together, a label that is no class, a number of
    pixels that is negative or missing; names the sample.

    NaN for the probability, for all of them or for all numbers of pixels, is an undefined prediction and is right.
    """
    if columns := probability_columns(final):
        wrong, right = ~(final[columns].ge(0) & final[columns].le(1)).all(axis=1), "the probability must lie in [0, 1]"
        if len(columns) > 1:
            wrong |= ((final[columns].sum(axis=1) - 1).abs() > TOGETHER) | ~final["label"].astype(int).between(0, len(columns) - 1)
            right = f"the probabilities must lie in [0, 1] and be 1 together, the label a class from 0 to {len(columns) - 1}"
            columns = [*columns, "label"]
    else:
        columns, right = count_columns(final), "numbers of pixels must be at least 0"
        wrong = ~final[columns].ge(0).all(axis=1)
    wrong &= ~final[[name for name in columns if name != "label"]].isna().all(axis=1)
    if wrong.any():
        row = final[wrong].iloc[0]
        raise ValueError(
            f"method {row['method']}, model of {row['model_center']}, sample {row['id']}: "
            f"{right}, got {', '.join(str(row[name]) for name in columns)}"
        )


def _cutoff(of_model: pd.DataFrame, model: str, unit: str) -> Cutoff | None:
    """None: the model has no training set of its own here."""
    own = dict(tuple(of_model[of_model["test_center"] == model].groupby("split")))
    return chosen_cutoff(own, unit) if "train" in own else None


def _with_interval(metric: Metric, units: pd.DataFrame, unit: str) -> tuple[Metric, str, Interval, str]:
    """The metric, its unit, its interval and how that is made."""
    unit = units["distance_unit"].iloc[0] if is_distance(metric.name) else unit
    if math.isnan(metric.value):
        return metric, unit, NO_INTERVAL, ""
    patient, clustered = units["patient"].to_numpy(), units["patient"].duplicated().any()
    if metric.name in BOOTSTRAPPED and class_names(units):
        interval = bootstrapped(units, metric.name)
        return metric, unit, interval, BOOTSTRAP if math.isfinite(interval.low) else ""
    if one := AUC_OF.fullmatch(metric.name):
        units = of_class(units, one[1])
    if metric.name == "auc" or one:
        interval = statistics.auc_interval(units["probability"].to_numpy(), units["label"].to_numpy(), patient)
        how = DISJOINT if metric.value in (0, 1) else CLUSTERED if clustered else "DeLong"
    elif is_share(units, metric.name) and not clustered:
        interval, how = statistics.wilson(int(metric.numerator), int(metric.denominator)), "Wilson"
    else:
        interval, how = statistics.ratio_interval(*parts(units, metric.name), patient), OVER_PATIENTS
    return metric, unit, interval, how if math.isfinite(interval.low) else ""


def _row(metric: Metric, unit: str, interval: Interval, how: str, about: dict, model: str, test: str, split: str) -> dict:
    return {
        **about,
        **{"model_center": model, "test_center": test, "split": split, "metric": metric.name, "unit": unit, "value": metric.value},
        **{"low": interval.low, "high": interval.high, "interval": how, "n": metric.n},
        **{"numerator": metric.numerator, "denominator": metric.denominator, "reason": metric.reason or interval.reason},
    }


def compare_methods(final: pd.DataFrame, reference: str = "vfmgl", *, unit: str, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Paired comparison of every method with the reference: each centre's own models on its own test set.

    Tests are by patient (`paired_estimate`). Holm's correction is over all centres and methods of one metric, budget, seed and division:
    the family that `statistics.holm` states. VFMGL has no budget "hgkt_updates": there the reference is HGKT, which that budget is of.

    Args:
        final: final predictions; with a column `no_comparison` (`study.study.mark_controls`) what it says is the reason of rows that
            have no difference and no p, and are in no family.
        unit: as for `results_table`.
        metrics: "auc" (default of a classification), of more than two classes also "auc[<class>]"; any of `segmentation.overlap_names`
            (default "dice").
    Returns: seed, split_id, budget, center, metric, method, reference, difference (reference less method; of overlaps the mean over
        patients of their mean differences), low, high, p, p_holm, test, n (samples), patients, reason.
    Raises: ValueError: the reference is not there; two methods with different test sets (names samples); `check_predictions`.
    """
    check_predictions(final)
    if reference not in set(final["method"]):
        raise ValueError(f"the reference {reference!r} is not among the methods {', '.join(dict.fromkeys(final['method']))}")
    wanted = metrics or (["auc"] if is_classification(final) else ["dice"])
    own = final[(final["model_center"] == final["test_center"]) & (final["split"] == "test")]
    found = []
    for (run_seed, split_id, budget, center), rows in own.groupby(["seed", "split_id", "budget", "test_center"], sort=False):
        sides = dict(tuple(rows.groupby("method", sort=False)))
        first = reference_at(budget) if reference == reference_at("rounds") else reference
        for method in [name for name in sides if name != first and first in sides]:
            pair = paired(sides[first], sides[method], first, method, center)
            nothing = next(filter(None, sides[method].get("no_comparison", pd.Series(dtype=str)).dropna()), "")
            for metric in wanted:
                if metric not in (possible := overlap_names(pair) if "tp" in pair else ("auc", *map(auc_of, class_names(pair)))):
                    raise ValueError(f"metric {metric!r} cannot be compared, expected one of {', '.join(possible)}")
                about = {"seed": run_seed, "split_id": split_id, "budget": budget, "center": center, "metric": metric, "method": method}
                tested = _tested([pair], metric, unit)
                if nothing:
                    tested |= statistics.Test(math.nan, math.nan, math.nan, math.nan, nothing)._asdict() | {"test": ""}
                found.append({**about, "reference": first, **tested})
    table = pd.DataFrame(found, columns=COMPARED)
    return table.assign(p_holm=statistics.holm_families(table))


def compare_controls(final: pd.DataFrame, *, unit: str, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """What each part of the method is worth: the lead of a method over its control (`Method.parent`), tested as in `compare_methods`.

    At matched rounds: a control makes the rounds, the updates and the passes of the method that it is held against. Holm's family is this
    table's own: all controls and centres of one metric, seed and division.

    Args: as for `compare_methods`.
    Returns: its columns; `method` is the control, `reference` its parent, whose lead the difference is. Without rows where no control
        and its parent are there.
    """
    rows = final[final["budget"] == "rounds"]
    there = set(rows["method"])
    pairs = [(method.parent, name) for name, method in METHODS.items() if method.is_control and {name, method.parent} <= there]
    parts = [compare_methods(rows[rows["method"].isin(pair)], pair[0], unit=unit, metrics=metrics) for pair in pairs]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COMPARED)
    return table.assign(p_holm=statistics.holm_families(table))


def paired(first: pd.DataFrame, second: pd.DataFrame, one: str, other: str, center: str) -> pd.DataFrame:
    """Both methods' rows of each sample side by side.

    Raises: ValueError: samples that only one of them has, or labels that differ (of a mask, its numbers of pixels inside and in all).
    """
    alone = sorted(set(first["id"]) ^ set(second["id"]))
    if alone:
        raise ValueError(
            f"centre {center}: {one} and {other} were tested on different samples and cannot be compared; "
            f"only one of them has {', '.join(alone[:3])} ({len(alone)} in all)"
        )
    pair = first.merge(second, on="id", suffixes=("", "_other"), validate="one_to_one")
    if is_classification(pair):
        differing = pair["label"] != pair["label_other"]
    else:
        apart = [[class_column(name, title) for name in ("tp", "fn")] for title in class_titles(first)]
        sums = [
            pair[names].sum(axis=1) != pair[[f"{n}_other" for n in names]].sum(axis=1) for names in (["tp", "fn"], list(COUNTS), *apart)
        ]
        differing = np.logical_or.reduce(sums) & pair[["tp", "tp_other"]].notna().all(axis=1)
    if differing.any():
        raise ValueError(
            f"centre {center}: {one} and {other} were tested with different labels, e.g. of {pair.loc[differing, 'id'].iloc[0]}"
        )
    return pair


def _tested(pairs: Sequence[pd.DataFrame], metric: str, unit: str) -> dict:
    estimate, n = paired_estimate(pairs, metric, unit)
    is_auc = metric.startswith("auc")
    clustered = "by patient" if is_auc and n > estimate.patients else ""
    name = " ".join(filter(None, ["paired DeLong" if is_auc else "paired t over patients", clustered]))
    found = estimate.test()
    return {**found._asdict(), "test": name if math.isfinite(found.p) else "", "n": n, "patients": estimate.patients}


def paired_estimate(pairs: Sequence[pd.DataFrame], metric: str, unit: str) -> tuple[statistics.Estimate, int]:
    """The difference of two models on the same samples, judged by patient, and over how many samples it is.

    AUC: DeLong's covariance, patients with several samples as clusters (of the mean over classes `statistics.macro_auc_contrast`).
    Overlaps and distances: the mean over patients of each patient's mean difference. Of several runs the mean difference counts: it is that
    of these very runs, for other patients.

    Args:
        pairs: from `paired`, one a run, all of the same samples.
        metric: "auc", "auc[<class>]", any of `segmentation.overlap_names`, or of `segmentation.distance_names` where they were measured.
        unit: as for `results_table`.
    """
    columns = [f"{name}{side}" for name in probability_columns(pairs[0]) or ["tp"] for side in ("", "_other")]
    if count := sum(int(pair[columns].isna().any(axis=1).sum()) for pair in pairs):
        patients = pairs[0]["patient"].nunique()
        reason = f"{count} of {sum(map(len, pairs))} pairs have an undefined prediction: a model gives NaN or infinity"
        return statistics.Estimate(math.nan, math.nan, math.nan, patients, reason), patients if unit == "patient" else len(pairs[0])
    if one := AUC_OF.fullmatch(metric):
        return _auc_difference([of_class(pair, one[1]) for pair in pairs], unit)
    if metric == "auc":
        return _auc_difference(pairs, unit)
    difference = _differences(pairs, metric)
    if difference.empty:
        return statistics.Estimate(math.nan, math.nan, math.nan, 0, "no pairs"), 0
    return statistics.over_patients(difference.to_numpy(), difference.index.get_level_values("patient")), len(difference)


def patient_differences(pairs: Sequence[pd.DataFrame], metric: str) -> pd.Series:
    """Each patient's mean difference, of which `paired_estimate` takes the mean."""
    return _differences(pairs, metric).groupby(level="patient").mean()


def _differences(pairs: Sequence[pd.DataFrame], metric: str) -> pd.Series:
    """Of each image the mean over runs, by id and patient; images without a value in a run or model are left out."""
    values = []
    for pair in pairs:
        mine, other = side_values(pair, metric)
        values.append((mine - other).set_axis(pd.MultiIndex.from_frame(pair[["id", "patient"]])))
    return pd.concat(values, axis=1).mean(axis=1, skipna=False).dropna()


def side_values(pair: pd.DataFrame, metric: str) -> tuple[pd.Series, pd.Series]:
    """The metric of each image (an overlap or a distance) of both models of a pair."""
    if is_distance(metric):
        return pair[metric].astype(float), pair[f"{metric}_other"].astype(float)
    names = count_columns(pair)
    sides = (pair[[f"{name}{side}" for name in names]].set_axis(names, axis=1) for side in ("", "_other"))
    return tuple(overlaps(side)[metric].set_axis(pair.index).astype(float) for side in sides)


def _auc_difference(pairs: Sequence[pd.DataFrame], unit: str) -> tuple[statistics.Estimate, int]:
    names, columns = class_names(pairs[0]), probability_columns(pairs[0])
    sides = [[f"{name}{side}" for name in columns] for side in ("", "_other")]
    if unit == "patient":
        for pair in pairs:
            by_patient(pair)  # refuses a patient with images of both classes
    by = [pair.groupby("patient" if unit == "patient" else "id", sort=True) for pair in pairs]
    tables = [samples[[*sides[0], *sides[1], "label"]].mean() for samples in by]
    label, patient = tables[0]["label"].to_numpy(dtype=int), by[0]["patient"].first().to_numpy()
    reason = no_sample_of(label, names) if names else ""
    if not names and len(np.unique(label)) < 2:
        reason = f"only one class: {label.sum()} positive, {(1 - label).sum()} negative"
    if reason:
        return statistics.Estimate(math.nan, math.nan, math.nan, len(np.unique(patient)), reason), len(label)
    weights = (np.tile([1.0, -1.0], len(pairs)) / len(pairs)).tolist()
    if names:
        chances = np.stack([table[side].to_numpy() for table in tables for side in sides])
        return statistics.macro_auc_contrast(chances, label, weights, patient), len(label)
    scores = np.stack([table[side[0]].to_numpy() for table in tables for side in sides])
    return statistics.auc_contrast(scores, label, weights, patient), len(label)
