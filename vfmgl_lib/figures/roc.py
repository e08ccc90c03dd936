"""ROC curves with their AUCs: every method at every centre (paper: Fig. 2A), every model at external centres (Supp. Figs. 1 and 13)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vfmgl_lib.evaluation.comparison import at_home, in_order
from vfmgl_lib.evaluation.generalization import OWN_SPLIT, over_seeds
from vfmgl_lib.figures.comparison import BUDGETS
from vfmgl_lib.figures.style import (
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    REFERENCE,
    center_style,
    columns_of,
    empty_figure,
    footnote,
    journal,
    method_style,
    names,
    new_figure,
    write_in_panel,
)
from vfmgl_lib.figures.words import class_counts, seeds_there, undefined, with_interval
from vfmgl_lib.methods.registry import METHODS

LINE = 3.1 * MM  # height of a line of the tables under the curves, inches


@journal
def roc_curves(points: pd.DataFrame, results: pd.DataFrame, methods: Sequence[str] | None = None, budget: str = "rounds") -> Figure:
    """ROC curve of every method on every centre's test set, its AUC with 95 % interval below (paper: Fig. 2A).

    Args:
        points: from `evaluation.curves.roc_points`.
        results: a results table, for the AUCs.
        methods: those drawn; None: all there are. The paper's figure has five.
        budget: of the results.
    """
    drawn, absent = in_order(points["method"], methods)
    auc = at_home(results, ["auc"], drawn, budget)
    titles = {method: METHODS[method].title for method in drawn}
    styles = {method: style | {"marker": ""} for method, style in method_style(drawn).items()}
    figure = _roc_figure(points[points["method"].isin(drawn)], auc, "method", titles, styles)
    lacking = _without_curve(points[points["method"].isin(drawn)], "method")
    footnote(figure, f"{_auc_note(auc)} Compared after {BUDGETS[budget]}.{lacking} {absent}")
    return figure


@journal
def external_roc_curves(
    points: pd.DataFrame,
    results: pd.DataFrame,
    *,
    method: str = REFERENCE,
    chosen: Mapping[str, str] | None = None,
    budget: str = "rounds",
    all_centers: Sequence[str] | None = None,
) -> Figure:
    """ROC curve of every centre's model on every external centre (paper: Supp. Figs. 1 and 13).

    Args:
        points: from `evaluation.curves.roc_points(external=True)`; no rows: a figure that says so.
        results: a results table, for the AUCs.
        chosen: external centre -> training centre whose model was chosen by similarity; drawn heavier and starred.
        all_centers: training centres, which the colours go by.
    """
    points = points[points["method"] == method]
    if points.empty:
        return empty_figure(f"There is no external centre with predictions of {METHODS[method].title}.")
    rows = results[(results["budget"] == budget) & (results["split_id"] == OWN_SPLIT) & (results["split"] == "test")]
    rows = rows[(rows["metric"] == "auc") & (rows["method"] == method) & rows["test_center"].isin(points["center"])]
    auc = over_seeds(rows).rename(columns={"test_center": "center"})
    models = sorted(set(points["model_center"]) - {"shared"})
    styles = {
        model: {"color": style["color"], "linestyle": line, "linewidth": 1.0}
        for (model, style), line in zip(center_style(models, all_centers).items(), _lines(len(models)), strict=True)
    }
    titles = names(models)
    if (points["model_center"] == "shared").any():
        titles["shared"], styles["shared"] = "shared model", {"color": MUTED, "linestyle": (0, (1.2, 1.2)), "linewidth": 1.0}
    figure = _roc_figure(points, auc, "model_center", titles, styles, chosen or {}, kind="external centre")
    star = " ★ and heavy line: chosen by similarity of features, before labels were read." if chosen else ""
    lacking = _without_curve(points, "model_center")
    footnote(figure, f"A line is the model of a centre ({METHODS[method].title}). {_auc_note(auc)}{star}{lacking}")
    return figure


def _without_curve(points: pd.DataFrame, key: str) -> str:
    """What has no curve where others have one, and why."""
    some = points.groupby("center")["false_positive_rate"].transform("count") > 0
    rows = points[some].drop_duplicates(["center", key])
    printed = names(sorted(set(rows["center"]))) | names(sorted(set(rows[key]) - {"shared"})) | {"shared": "shared model"}
    said = undefined(rows.assign(metric="", value=rows["false_positive_rate"]), printed, key, "all", "No curve")
    return said and f" {said}"


def _lines(count: int) -> list[object]:
    """Line styles in turn, so that neighbouring colours differ in grey print, too."""
    return [("solid", (0, (4, 1.6)), (0, (4, 1.3, 1.1, 1.3)), (0, (8, 1.8)))[place % 4] for place in range(count)]


def _auc_note(auc: pd.DataFrame) -> str:
    kinds = ", ".join(sorted({kind for kind in auc["interval"] if kind}))
    averaged = f" Curves of {seeds_there(auc)} are averaged vertically; their AUCs and the limits of their intervals are means."
    seeds = averaged if auc["seeds"].max() > 1 else ""
    return f"AUC with 95 % interval ({kinds})." + seeds if kinds else f"AUC.{seeds}"


def _roc_figure(
    points: pd.DataFrame,
    auc: pd.DataFrame,
    key: str,
    titles: Mapping[str, str],
    styles: Mapping[str, dict],
    chosen: Mapping[str, str] | None = None,
    kind: str = "centre",
) -> Figure:
    """A panel a centre with the curves, and below it a table of AUCs which is the legend as well."""
    centers = sorted(points["center"].unique())
    printed, chosen = names(centers), chosen or {}
    columns = columns_of(centers)
    width = {1: 66 * MM, 2: 124 * MM}.get(columns, DOUBLE)
    rows = math.ceil(len(centers) / columns)
    square, table = width / columns - 7 * MM, LINE * (len(titles) + 0.5)
    figure = new_figure(width, rows * (square + table + 6 * MM) + 8 * MM)
    cells = figure.add_gridspec(2 * rows, columns, height_ratios=[square, table] * rows)
    for place, center in enumerate(centers):
        line, column = divmod(place, columns)
        axis, below = figure.add_subplot(cells[2 * line, column]), figure.add_subplot(cells[2 * line + 1, column])
        here = points[points["center"] == center]
        _unit_square(axis, f"{kind} {printed[center]}", "sensitivity" if column == 0 else "")
        below.set_axis_off()
        if here["false_positive_rate"].isna().all():
            write_in_panel(axis, f"no curve: {here['reason'].iloc[0]}")
            continue
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=1)
        axis.text(0.98, 0.03, class_counts(here), ha="right", va="bottom", fontsize=6, color=MUTED, transform=axis.transAxes)
        drawn = {name: title for name, title in titles.items() if (here[key] == name).any()}
        heavy = {name: styles[name] | ({"linewidth": 1.9, "zorder": 4} if chosen.get(center) == name else {}) for name in drawn}
        for name in drawn:
            curve = here[here[key] == name]
            axis.plot(curve["false_positive_rate"], curve["true_positive_rate"], **heavy[name])
        marked = {name: f"★ {title}" if chosen.get(center) == name else title for name, title in drawn.items()}
        _auc_table(below, auc[auc["center"] == center].set_index(key), marked, heavy, len(titles), small=columns > 3)
    return figure


def _unit_square(axis: Axes, title: str, ylabel: str) -> None:
    axis.set(title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="1 − specificity", ylabel=ylabel)
    axis.set_box_aspect(1)
    axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axis.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])


def _auc_table(axis: Axes, auc: pd.DataFrame, titles: Mapping[str, str], styles: Mapping[str, dict], lines: int, *, small: bool) -> None:
    """Line, name, AUC (low–high), a row each; `axis` is `lines` rows high. The lines stand left of the axis, under the scale's numbers."""
    axis.set(xlim=(0, 1), ylim=(lines - 0.3, -0.7))
    size = 5.2 if small else 5.8
    for place, (name, title) in enumerate(titles.items()):
        axis.plot([-0.15, -0.03], [place, place], clip_on=False, **styles[name])
        weight = "bold" if styles[name]["linewidth"] > 1.5 else "normal"
        axis.text(0, place, title, va="center", fontsize=size, weight=weight)
        text = with_interval(auc.loc[name], 2) if name in auc.index else "not in the results"
        axis.text(1, place, text, va="center", ha="right", fontsize=size, weight=weight)
