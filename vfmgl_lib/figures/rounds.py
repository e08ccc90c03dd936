"""How the centres fare over the federated rounds, and what the last round's models do elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vfmgl_lib.evaluation.margin import lower_is_better
from vfmgl_lib.evaluation.progress import MODELS
from vfmgl_lib.evaluation.results import ADAPTED, SHARED
from vfmgl_lib.figures.style import (
    DIVERGING,
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    SEQUENTIAL,
    center_style,
    footnote,
    grid,
    heatmap,
    journal,
    names,
    new_figure,
    share_legend,
    whole_numbers,
)
from vfmgl_lib.figures.words import axis_label, set_sizes, undefined

MODEL_STYLE: dict[str, dict[str, Any]] = {
    "trivial": {"marker": "|", "color": "#333333", "markersize": 17, "markeredgewidth": 1.5},
    "untrained": {"marker": "o", "color": "#7A7A7A", "markerfacecolor": "white", "markersize": 5.5},
    "first round": {"marker": "o", "color": "#56B4E9", "markersize": 5},
    "last round": {"marker": "D", "color": "#0072B2", "markersize": 5},
}
OFFSET = {"trivial": 0.0, "untrained": -0.24, "first round": 0.0, "last round": 0.24}  # within a centre's row, of its height
HOME = "#000000"  # frame of a model at home: no colour of the two scales


@journal
def metric_over_rounds(table: pd.DataFrame, metric: str, all_centers: Sequence[str] | None = None) -> Figure:
    """A metric over the rounds on training, validation and test sets, a line a centre; round 0 is the untrained student.

    A split that the table does not have gets no panel.

    Args:
        table: from `evaluation.progress.own_models`.
    """
    splits = [split for split in ("train", "val", "test") if (table["split"] == split).any()]
    titles = {"train": "training", "val": "validation", "test": "test (never chosen on)"}
    styles, printed = center_style(table["center"], all_centers), names(sorted(table["center"].unique()))
    figure = new_figure(DOUBLE if len(splits) > 1 else 120 * MM, 70 * MM)
    axes = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, splits, strict=True):
        for center, line in table[table["split"] == split].sort_values("round").groupby("center"):
            axis.plot(line["round"], line["value"], label=printed[center], **styles[center])
        axis.set(title=titles[split], xlabel="round (0: untrained)")
        axis.set_xlim(table["round"].min() - 0.3, table["round"].max() + 0.3)
        whole_numbers(axis)
        grid(axis)
        if metric == "auc":
            axis.axhline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axis.annotate(
                "chance",
                (1, 0.5),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                fontsize=6,
                color=MUTED,
            )
    axes[0].set_ylabel(axis_label(metric, table))
    axes[0].set_ylim(-0.03, 1.03)
    share_legend(figure, axes[0])
    if "test" in splits:
        footnote(figure, set_sizes(table[table["split"] == "test"], printed))
    footnote(figure, undefined(table.assign(metric=metric), printed, "split", "all sets"))
    return figure


@journal
def final_comparison(table: pd.DataFrame, metric: str) -> Figure:
    """Trivial baseline, untrained student, first and last round per centre on the test sets.

    Args:
        table: from `evaluation.progress.comparison`.
    """
    centers = sorted(table["center"].unique())
    printed = names(centers)
    figure = new_figure(DOUBLE, (30 + 9 * len(centers)) * MM)
    axis = figure.subplots()
    for place, center in enumerate(centers):
        rows = table[table["center"] == center].set_index("model")["value"].reindex(list(MODELS))
        ends = ["untrained", "last round"]
        axis.plot(rows[ends], [place + OFFSET[end] for end in ends], color=FAINT, linewidth=2.5, zorder=1, solid_capstyle="round")
        lost = [model for model in MODELS if np.isnan(rows[model])]
        if lost:
            axis.text(
                1.01, place, "undefined: " + ", ".join(lost), va="center", fontsize=6, color=MUTED, transform=axis.get_yaxis_transform()
            )
        # Each model has a height of its own, the bar reaches over all of them: equal values stay visible.
        for layer, model in enumerate((*MODELS[1:], MODELS[0])):
            label = model if place == 0 else None
            axis.plot(rows[model], place + OFFSET[model], linestyle="none", label=label, zorder=2 + layer, **MODEL_STYLE[model])
    axis.set(yticks=range(len(centers)), yticklabels=[printed[c] for c in centers], ylim=(len(centers) - 0.4, -0.6))
    axis.set(xlabel=f"{axis_label(metric, table)} on the centre's test set", xlim=(-0.02, 1.02))
    if metric == "auc":
        axis.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    grid(axis, "x")
    share_legend(figure, axis)
    footnote(figure, set_sizes(table, printed))
    footnote(figure, undefined(table.assign(metric=metric), printed, "model", "all models"))
    return figure


@journal
def cross_center_matrix(table: pd.DataFrame, metric: str) -> Figure:
    """Every model of the last round (rows) on every centre's test set (columns); a frame marks a model at home.

    The scale is 0 to 1 in every study, so that two matrices can be compared; an AUC's colours part at 0.5, which is chance.

    Args:
        table: from `evaluation.progress.last_models`.
    """
    centers = sorted(table["test_center"].unique())
    models = list(dict.fromkeys(table["model_center"]))
    printed = names(centers) | {SHARED: "shared model", ADAPTED: "shared, adapted"}
    values = table.pivot(index="model_center", columns="test_center", values="value").reindex(index=models, columns=centers)
    width = min(DOUBLE / MM, 52 + 17 * len(centers))
    figure = new_figure(width * MM, (30 + 9 * len(models)) * MM)
    axis = figure.subplots()
    shown = values.rename(index=printed, columns=printed)
    picture = heatmap(axis, shown, metric_colors(metric), (0, 1), size=7, room=(width - 52) / len(centers))
    frame_home(axis, models, centers)
    axis.set(xlabel="test set of centre", ylabel="model trained at centre")
    chance = " (0.5: chance)" if metric == "auc" else ""
    figure.colorbar(picture, ax=axis, shrink=0.9, label=axis_label(metric, table) + chance)
    tested = table.rename(columns={"test_center": "center"})
    footnote(figure, set_sizes(tested, printed))
    footnote(figure, undefined(tested.assign(metric=metric), printed, "model_center", "all models"))
    return figure


def metric_colors(metric: str) -> str:
    """Bright is better; the colours of an AUC part at 0.5, which is chance."""
    return DIVERGING if metric == "auc" else f"{SEQUENTIAL}_r" if lower_is_better(metric) else SEQUENTIAL


def frame_home(axis: Axes, models: Sequence[str], tested: Sequence[str], width: float = 1.4) -> None:
    """Frames every model on its own centre's test set, in a heat map of models and test sets."""
    for row, name in enumerate(models):
        if name in tested:
            place = (list(tested).index(name) + 0.03, row + 0.04)
            axis.add_patch(Rectangle(place, 0.94, 0.92, fill=False, edgecolor=HOME, linewidth=width, zorder=3))
