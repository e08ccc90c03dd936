"""Figures that not every task has: each function draws what applies to the given tables, or says why nothing does.

Each returns the figure and its numbers. Where nothing applies, the figure holds one sentence and the table has no rows. Figures that are
made for two classes have, of more, a panel for each centre and class (`evaluation.one_vs_rest`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from vfmgl_lib.config.sections import DataSettings
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation.classification import class_names, is_classification
from vfmgl_lib.evaluation.comparison import statistics_table
from vfmgl_lib.evaluation.confusion import confusion_table
from vfmgl_lib.evaluation.curves import decision_curve, reliability, roc_points
from vfmgl_lib.evaluation.of_classes import of_each_class
from vfmgl_lib.evaluation.one_vs_rest import BETWEEN, for_each_class, results_for_each_class, with_class
from vfmgl_lib.evaluation.samples import overlay_table, read_samples, telling_images
from vfmgl_lib.figures import calibration, comparison, confusion, heterogeneity, interpretation, of_classes, overlays, roc, style
from vfmgl_lib.figures.statistics_tables import write_statistics
from vfmgl_lib.interpretation.cam import case_table
from vfmgl_lib.interpretation.features import neighbors

Drawn = tuple[Figure, pd.DataFrame]
# Budget -> name of its statistics table, first words of the note.
STATISTICS = {
    "rounds": ("statistics_at_matched_rounds", "At matched rounds."),
    "updates": ("statistics_at_matched_updates", "At matched updates."),
    "epochs": ("statistics_at_matched_updates", "At matched updates."),
    "hgkt_updates": ("statistics_at_hgkt_updates", f"After {comparison.BUDGETS['hgkt_updates']}."),
    "compute": ("statistics_at_compute", f"After {comparison.BUDGETS['compute']}."),
}


def roc_chart(final: pd.DataFrame, results: pd.DataFrame, unit: str, budget: str) -> Drawn:
    """ROC curves of all methods at home (Fig. 2A); arguments as for `evaluation.curves.roc_points` and `roc.roc_curves`."""
    if not is_classification(final):
        return _none("A segmentation has no ROC curves.")
    final, results, restored = _as_two(final, results)
    points = roc_points(final, unit=unit, budget=budget)
    return roc.roc_curves(points, results, budget=budget), restored(points)


def external_roc_chart(final: pd.DataFrame, results: pd.DataFrame, unit: str, chosen: Mapping[str, str], trained: Sequence[str]) -> Drawn:
    """ROC curves of every centre's VFMGL model at the external centres (Supp. Figs. 1 and 13).

    Args:
        final, results: of one seed.
        chosen: external centre -> the centre whose model it is given.
        trained: the training centres.
    """
    if not is_classification(final):
        return _none("A segmentation has no ROC curves.")
    names = class_names(final)
    final, results, restored = _as_two(final, results)
    points = roc_points(final, unit=unit, external=True)
    chosen = {f"{center}{BETWEEN}{name}": model for center, model in chosen.items() for name in names} or chosen
    return roc.external_roc_curves(points, results, chosen=chosen, all_centers=trained), restored(points)


def decision_chart(final: pd.DataFrame, unit: str, budget: str) -> Drawn:
    """Decision curves (Fig. 2B)."""
    if not is_classification(final):
        return _none("A segmentation has no decision curves.")
    final, _, restored = _as_two(final)
    curves = decision_curve(final, unit=unit)
    return comparison.decision_curves(curves, budget=budget), restored(curves)


def reliability_chart(final: pd.DataFrame, unit: str, budget: str) -> Drawn:
    """Reliability diagrams; `final` is of one seed."""
    if not is_classification(final):
        return _none("A segmentation has no reliability diagrams.")
    final, _, restored = _as_two(final)
    bins = reliability(final, unit=unit)
    return calibration.reliability_diagrams(bins, budget=budget), restored(bins)


def confusion_chart(final: pd.DataFrame, unit: str, budget: str) -> Drawn:
    """Confusion matrices of VFMGL's models; the numbers are those of all methods. `final` is of one seed."""
    names = class_names(final)
    if not names:
        return _none("Two classes have no matrix of confusions here: their sensitivity and specificity are in the tables.")
    table = confusion_table(final, unit=unit)
    return confusion.confusion_matrices(table, names, budget=budget), table


def _as_two(
    final: pd.DataFrame, results: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, Callable[[pd.DataFrame], pd.DataFrame]]:
    """Predictions and results of more than two classes as those of each class against the others; of two as they are.

    The third gives a table that is made of them its centres and classes back.
    """
    results = pd.DataFrame() if results is None else results
    names, centers = class_names(final), list(dict.fromkeys(final["test_center"]))
    if not names:
        return final, results, lambda table: table
    spread = results_for_each_class(results, names) if len(results) else results
    return for_each_class(final), spread, lambda table: with_class(table, centers, names)


def outline_chart(final: pd.DataFrame, manifest: Manifest, data: DataSettings, budget: str) -> Drawn:
    """Outlines of all methods on the best, the median and the worst test image (Supp. Figs. 14 and 15); `final` is of one seed."""
    if is_classification(final):
        return _none("A classification has no outlines.")
    telling = telling_images(final, budget=budget)
    pictures = read_samples(manifest, telling["id"], data)
    table = overlay_table(telling, pictures, final, budget=budget, mask_values=manifest.mask_values)
    return overlays.overlays(table, classes=manifest.classes), table.drop(columns=["image", "truth", "mask"])


def class_chart(results: pd.DataFrame, classes: Sequence[str], budget: str) -> Drawn:
    """Dice of each foreground class; the numbers hold IoU and the distances too."""
    table = of_each_class(results, budget)
    if table.empty:
        return _none("Only a segmentation of more than two classes has a Dice of each class.")
    return of_classes.dice_of_classes(table, classes), table


def counts_chart(counts: pd.DataFrame, classes: Sequence[str], is_segmentation: bool) -> Figure:
    """Images per centre and how much of them is positive, or of each class; `counts` is from `samples.sample_counts`."""
    if len(classes) > 2:
        return heterogeneity.counts(counts, "foreground pixels" if is_segmentation else "images of each class", of_pixels=is_segmentation)
    return heterogeneity.counts(counts, f"{'foreground pixels:' if is_segmentation else 'images of class'} {classes[1]}")


def write_budgets(results: pd.DataFrame, tests: pd.DataFrame, folder: Path, note: str) -> dict[str, Styler]:
    """Writes the statistics table of every budget that the results have, in the order of `STATISTICS`: file name -> table to show."""
    written = {}
    for budget, (name, words) in STATISTICS.items():
        if (results["budget"] == budget).any():
            table = statistics_table(results, tests, budget=budget)
            written[name] = write_statistics(table, folder, name, f"{words} {note}")
    return written


def localisation_chart(summary: pd.DataFrame) -> Drawn:
    """How much of the maps' energy lies in the lesion; `summary` is from `local_models.localise`."""
    if summary.empty:
        return _none("Nobody has outlined the lesions of these images: localisation is not measurable here.")
    return interpretation.localisation(summary), summary


def predictability_chart(told: pd.DataFrame, obstacle: str) -> Drawn:
    """How well the centre is told from each model's features; arguments from `local_models.centers_told`."""
    return _none(f"Not measurable here: {obstacle}.") if obstacle else (interpretation.center_predictability(told), told)


def score_chart(scores: pd.DataFrame, tests: pd.DataFrame, classes: Sequence[str], seed: int) -> Drawn:
    """Score charts of both classes (Fig. 7c), or of each class and the others; arguments as for `interpretation.score_charts`."""
    if scores.empty:
        return _none("A segmentation scores pixels, not images: there is no score chart. Its Dice is in notebooks 04 and 05.")
    return interpretation.score_charts(scores, tests, classes, seed), scores


def correlation_chart(maps: pd.DataFrame, label: int, classes: Sequence[str]) -> Drawn:
    """Heatmaps of adaptive and common features of one class (Fig. 8); `maps` is from `local_models.feature_maps`."""
    if maps.empty:
        return _none("A segmentation has no classes of images: adaptive and common features do not apply.")
    own = maps[maps["label"] == label]
    return interpretation.correlation_heatmaps(own, f"Class {classes[label]}"), own


def correlation_charts(maps: pd.DataFrame, classes: Sequence[str]) -> dict[str, Drawn]:
    """Name of the figure -> `correlation_chart` of every class, of two the positive one first; one that says why there is none."""
    if maps.empty:
        return {"heatmaps": correlation_chart(maps, 0, classes)}
    if len(classes) == 2:
        return {"heatmaps_positive": correlation_chart(maps, 1, classes), "heatmaps_negative": correlation_chart(maps, 0, classes)}
    return {f"heatmaps_class_{label}": correlation_chart(maps, label, classes) for label in range(len(classes))}


def case_words(predictions: pd.DataFrame, classes: Sequence[str]) -> tuple[Sequence[str], str]:
    """How the kinds of cases are called, in the order of their numbers, and how their score is called."""
    if is_classification(predictions):
        return classes, "score"
    return ("no foreground", "foreground"), "Dice" if len(classes) == 2 else "mean Dice"


def case_drawer(
    cases: pd.DataFrame,
    words: tuple[Sequence[str], str],
    manifest: Manifest,
    data: DataSettings,
    maps: pd.DataFrame,
    lesions: dict[str, np.ndarray],
    features: Mapping[str, pd.DataFrame],
) -> Callable[[Sequence[str]], Figure]:
    """The function that draws the sheet of some cases (`interpretation.case_sheet`), as `case_browser` asks for it.

    Args:
        cases: center, label, id, score: all that may be drawn.
        words: from `case_words`.
        maps: id, map.
        lesions: id -> (S, S) bool; {} where no lesion's place is known.
        features: centre -> features of its local model, for the nearest training images.
    """
    names, score = words
    by_id = cases.set_index("id", drop=False)

    def nearest(center: str, case: str) -> pd.DataFrame:
        found = neighbors(features[center], case)
        return found.assign(case=case, image=list(read_samples(manifest, found["id"], data)["image"]))

    def draw(ids: Sequence[str]) -> Figure:
        rows = by_id.loc[list(ids)]
        sheet = case_table(rows, read_samples(manifest, list(ids), data), maps, data.image_size, lesions)
        near = pd.concat([nearest(row.center, row.id) for row in rows.itertuples()])
        return interpretation.case_sheet(sheet, near, names, score, manifest.classes)

    return draw


def save_drawn(drawn: Drawn, folder: Path, name: str, note: str = "") -> Figure:
    """Saves a figure that has numbers, as `style.save_figure` does; one that says why there are none is only returned."""
    figure, table = drawn
    return figure if table.empty else style.save_figure(figure, table, folder, name, note)


def save_rows(table: pd.DataFrame, folder: Path, name: str, note: str = "") -> pd.DataFrame:
    """Saves a table that has rows, as `style.save_table` does; the table is returned."""
    return table if table.empty else style.save_table(table, folder, name, note)


def _none(why: str) -> Drawn:
    return style.empty_figure(why.replace("$", r"\$")), pd.DataFrame()
