"""VFMGL beside the other methods: decision curves, radar charts, intervals at two budgets.

`results`, `tests`, `dca` and `final` are tables of `evaluation.results`; of several seeds the means are drawn. The values of a method are
those of the model that a centre uses after the last round: its own or, of FedAvg, FedProx and HarmoFL, the shared one that it took over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes

from vfmgl_lib.evaluation.comparison import SEGMENTATION, at_home, classification_metrics, home_tests, in_order, over_fewer
from vfmgl_lib.evaluation.curves import TREAT_ALL, TREAT_NONE, mean_curves
from vfmgl_lib.evaluation.generalization import OWN_SPLIT
from vfmgl_lib.evaluation.margin import LOWER_IS_BETTER, lower_is_better
from vfmgl_lib.evaluation.multiclass import KAPPAS
from vfmgl_lib.evaluation.results import ALL
from vfmgl_lib.figures.style import (
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    REFERENCE,
    SINGLE,
    columns_for,
    columns_of,
    footnote,
    grid,
    journal,
    method_style,
    names,
    new_figure,
    panel_grid,
    share_legend,
    write_in_panel,
)
from vfmgl_lib.figures.words import LENGTHS, axis_label, class_counts, seeds_there, set_sizes, short, undefined
from vfmgl_lib.methods.registry import METHODS

BUDGETS = {
    "rounds": "as many rounds as VFMGL",
    "updates": "as many updates of the student as VFMGL",
    "epochs": "as many rounds and, by local epochs, as many updates as VFMGL",
    "compute": "as many passes of the student as VFMGL",
    "hgkt_updates": "as many updates of the student as HGKT",
}
PAPER_METHODS = (*(name for name, method in METHODS.items() if method.in_paper), REFERENCE)  # more polygons are not read


@journal
def decision_curves(dca: pd.DataFrame, methods: Sequence[str] | None = None, budget: str = "rounds") -> Figure:
    """Net benefit over the threshold probability, a panel a centre, with treating all and none (paper: Fig. 2B).

    The axis ends a little under zero: how harmful a model or treating all gets at high thresholds is cut off.

    Args:
        dca: from `evaluation.curves.decision_curve`; "treat all" and "treat none" are methods, too. Curves of several seeds are averaged.
        methods: those drawn; None: all there are.
    """
    dca = dca[(dca["budget"] == budget) & (dca["split_id"] == OWN_SPLIT)]
    drawn, absent = in_order(set(dca["method"]) - {TREAT_ALL, TREAT_NONE}, methods)
    centers = sorted(dca["center"].unique())
    printed = names(centers)
    styles: dict[str, dict[str, Any]] = {TREAT_ALL: {"color": MUTED, "linewidth": 0.8, "linestyle": "solid", "zorder": 1.5}}
    styles |= {TREAT_NONE: {"color": "black", "linewidth": 0.8, "linestyle": "solid", "zorder": 1.4}}
    styles |= {method: style | {"marker": ""} for method, style in method_style(drawn).items()}
    curves = mean_curves(dca)
    own = dca[dca["method"].isin(drawn)].drop_duplicates(["center", "method", "seed"])
    lacking = undefined(own.assign(metric="", value=own["net_benefit"]), printed, lead="No curve")
    lacking = lacking and f" {lacking}"
    per_row = columns_of(centers)
    figure, axes = panel_grid(len(centers), per_row=per_row, panel=48 * MM, extra=18 * MM)
    for place, (axis, center) in enumerate(zip(axes, centers, strict=True)):
        here = curves[curves["center"] == center]
        n, positives = here[["n", "positives"]].iloc[0].astype(int)
        axis.set(
            title=f"centre {printed[center]}", xlim=(0, 1), xlabel="threshold probability", ylabel="" if place % per_row else "net benefit"
        )
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        if positives in (0, n):
            write_in_panel(axis, f"no decision to weigh: only one class, {positives} of {n} positive")
            axis.set_yticks([])
            continue
        axis.text(0.98, 0.97, class_counts(here), ha="right", va="top", fontsize=6, color=MUTED, transform=axis.transAxes)
        for method, style in styles.items():
            line = here[here["method"] == method]
            title = METHODS[method].title if method in METHODS else method
            axis.plot(line["threshold"], line["net_benefit"], label=title, **style)
        top = here["net_benefit"].max()
        axis.set(ylim=(-0.12 * top, 1.08 * top))
        grid(axis)
    seeds = dca.groupby("method", as_index=False)["seed"].nunique().rename(columns={"seed": "seeds"})
    mean = f" Means over {seeds_there(seeds[seeds['method'].isin(drawn)])}." if dca["seed"].nunique() > 1 else ""
    share_legend(figure, next((axis for axis in axes if axis.lines), axes[0]), columns=6)
    footnote(figure, f"Net benefit: TP/n − FP/n · p/(1 − p) at threshold p. Values far under zero are cut off.{mean}{lacking} {absent}")
    return figure


@journal
def radar(
    results: pd.DataFrame,
    metrics: Sequence[str] | None = None,
    methods: Sequence[str] = PAPER_METHODS,
    budget: str = "rounds",
    low: float | None = None,
) -> Figure:
    """Radar chart of the metrics, a panel a centre, a polygon a method (paper: Figs. 2C, 3, 4 and 5).

    Where a metric is undefined the polygon is open; distances have no place here, because less is better.

    Args:
        results: a results table.
        metrics: at least three; None: AUC, accuracy, sensitivity, specificity, PPV and NPV (of more than two classes all but
            kappa), or of a segmentation Dice, IoU, PPV, sensitivity and specificity.
        methods: those drawn; more than six polygons are not told apart.
        low: value at the middle of the charts; None: a round one under the smallest value, the same in all panels.
    Raises: ValueError: fewer than three metrics, or a distance among them.
    """
    shown = SEGMENTATION if (results["metric"] == "dice").any() else classification_metrics(results)
    metrics = list(metrics or (metric for metric in shown if metric not in KAPPAS))  # they may be below 0
    if len(metrics) < 3 or set(metrics) & set(LOWER_IS_BETTER):
        raise ValueError(f"a radar chart takes at least three metrics of which more is better, got {', '.join(metrics)}")
    drawn, absent = in_order(results["method"], methods)
    table = at_home(results, metrics, drawn, budget)
    table = table[table["center"] != ALL]
    centers = sorted(table["center"].unique())
    printed, styles = names(centers), method_style(drawn)
    low, rings = _rings(table["value"].min(), low)
    columns = columns_for(len(centers))
    rows, width = math.ceil(len(centers) / columns), {1: SINGLE, 2: 124 * MM}.get(columns, DOUBLE)
    figure = new_figure(width, rows * (0.74 * width / columns + 10 * MM) + 16 * MM)
    angles = np.linspace(0, 2 * np.pi, len(metrics), endpoint=False)
    for place, center in enumerate(centers):
        axis = cast(PolarAxes, figure.add_subplot(rows, columns, place + 1, projection="polar"))
        here = table[table["center"] == center].pivot(index="method", columns="metric", values="value").reindex(columns=metrics)
        _spokes(axis, angles, [short(metric) for metric in metrics], low, rings)
        axis.set_title(f"centre {printed[center]}", pad=13)
        for method in drawn:
            values = here.loc[method].to_numpy(dtype=float) if method in here.index else np.full(len(metrics), np.nan)
            around = np.append(values, values[:1])
            axis.plot(
                np.append(angles, angles[0]), around, label=METHODS[method].title, clip_on=False, **styles[method] | {"markersize": 2.4}
            )
        for angle, name in zip(angles, metrics, strict=True):
            if here[name].isna().all():
                axis.text(angle, (low + 1) / 2, "n/a", ha="center", va="center", fontsize=5.5, color=MUTED)
    share_legend(figure, figure.axes[0], columns=6 if width == DOUBLE else 3)
    start = f"The middle of the charts is {low:g}, not 0." if low else "The middle of the charts is 0."
    distances = " ASSD and HD95, of which less is better, are in the tables." if "dice" in metrics else ""
    footnote(figure, f"{_test_sets(table, printed)} {start} Compared after {BUDGETS[budget]}.{distances} {absent}")
    footnote(figure, undefined(table, printed))
    return figure


def _rings(smallest: float, low: float | None) -> tuple[float, np.ndarray]:
    """The value in the middle, under the smallest one, and those of the four rings, the last of which is 1."""
    if low is None:
        low = max((start for start in (0.2, 0.6, 0.8, 0.9, 0.96) if start < smallest), default=0.0)
    return low, np.linspace(low, 1, 5)[1:]


def _spokes(axis: PolarAxes, angles: np.ndarray, titles: Sequence[str], low: float, rings: np.ndarray) -> None:
    """Rings, spokes and their names; the first metric is at the top, the others follow clockwise."""
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_ylim(low, 1)
    axis.set_xticks(angles, [])
    for angle, title in zip(angles, titles, strict=True):
        right, up = np.sin(angle), np.cos(angle)
        side = "left" if right > 0.1 else "right" if right < -0.1 else "center"
        height = "bottom" if up > 0.9 else "top" if up < -0.9 else "center"
        axis.text(angle, 1 + 0.05 * (1 - low), title, ha=side, va=height, fontsize=6)
    axis.set_yticks(rings, [])
    back = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    for ring in rings:
        axis.text(angles[1] / 2, ring, f"{ring:g}", ha="center", va="center", fontsize=4.8, color=MUTED, bbox=back, zorder=6)
    axis.grid(color=FAINT, linewidth=0.5)
    axis.spines["polar"].set(color=FAINT, linewidth=0.6)


def _test_sets(table: pd.DataFrame, printed: Mapping[str, str]) -> str:
    """How large each centre's test set is; `table` has several metrics, of which some are shares of a part only."""
    return set_sizes(table[table["n"] > 0].assign(unit=table["unit"].replace(list(LENGTHS), "image")), printed)


@journal
def both_budgets(results: pd.DataFrame, metric: str, methods: Sequence[str] | None = None) -> Figure:
    """A metric of every method with its 95 % interval, a panel a centre: at matched rounds and at the first of the others in `BUDGETS`.

    A row has room for two points: the note names the budgets that are in the tables alone. Several seeds are small points around their
    mean. A method that is reported at one round for both budgets, or at one of the two alone, has one point; the note names the latter.

    Args:
        results: a results table; pooled rows, where the metric has them, become the last panel.
    """
    drawn, absent = in_order(results["method"], methods)
    budgets, others = (there := [budget for budget in BUDGETS if (results["budget"] == budget).any()])[:2], there[2:]
    every = pd.concat([at_home(results, [metric], drawn, budget) for budget in budgets], ignore_index=True)
    runs = results[(results["metric"] == metric) & home_tests(results)].rename(columns={"test_center": "center"})
    pooled = [ALL] if (every["center"] == ALL).any() else []
    centers = [*sorted(set(every["center"]) - {ALL}), *pooled]
    printed, styles = names(centers) | {ALL: "all centres"}, method_style(drawn)
    per_row = len(centers) if len(centers) == 5 else columns_for(len(centers))
    figure, axes = panel_grid(len(centers), per_row=per_row, panel=(14 + 4.2 * len(drawn)) * MM, extra=14 * MM, sharex=True, sharey=True)
    for place, (axis, center) in enumerate(zip(axes, centers, strict=True)):
        axis.set_title(printed[center] if center == ALL else f"centre {printed[center]}")
        axis.set(yticks=range(len(drawn)), yticklabels=[METHODS[method].title for method in drawn], ylim=(len(drawn) - 0.4, -0.6))
        axis.tick_params(axis="y", length=0)
        grid(axis, "x")
        if place >= len(centers) - per_row:
            axis.set_xlabel(axis_label(metric, every))
            axis.tick_params(labelbottom=True)
        here = every[every["center"] == center]
        if here["value"].isna().all():
            write_in_panel(axis, f"not defined: {here['reason'].iloc[0]}")
            continue
        _draw_budgets(axis, here, runs[runs["center"] == center], styles)
    several = every["seeds"].max() > 1
    _budget_legend(figure, budgets, several)
    kinds = ", ".join(sorted({kind for kind in every["interval"] if kind}))
    bars = f"Bars: 95 % interval ({kinds}" if kinds else "No intervals ("
    spread = f"mean of {seeds_there(every)} and of their limits)." if several else "one seed, so no spread of runs)."
    spread = f"; {spread}" if kinds else spread
    same = _single_points(every, budgets) if len(budgets) > 1 else ""
    same += f" In the tables alone: {'; '.join(BUDGETS[budget] for budget in others)}." if others else ""
    line = f" Vertical line: {METHODS[REFERENCE].title} at as many rounds." if REFERENCE in drawn else ""
    footnote(figure, f"{_test_sets(every[every['center'] != ALL], printed)} {bars}{spread}{same}{line} {absent}")
    once = every.drop_duplicates(["center", "method"])
    footnote(figure, undefined(once, printed))
    if lower_is_better(metric):
        footnote(figure, _over_fewer_images(every, printed))
    bare = once[once["value"].notna() & (once["low"].notna() | (once["reason"] != ""))]
    bare = bare.assign(value=bare["low"], reason=bare["reason"].str.removeprefix("no interval: "))
    footnote(figure, undefined(bare, printed, lead="No interval"))
    return figure


def _draw_budgets(axis: Axes, table: pd.DataFrame, runs: pd.DataFrame, styles: Mapping[str, dict]) -> None:
    """A row a method; `table`: one centre at the budgets, means over seeds; `runs`: the same, a row a seed."""
    for height, method in enumerate(styles):
        points = table[table["method"] == method]
        numbers = points[["value", "low", "high"]].round(12)
        single = len(points) == 1 or bool((numbers.nunique(dropna=False) == 1).all())
        for _, point in points.head(1 if single else None).iterrows():
            shift = 0.0 if single else -0.19 if point["budget"] == "rounds" else 0.19
            seeds = runs[(runs["method"] == method) & (runs["budget"] == point["budget"])]["value"] if point["seeds"] > 1 else ()
            _interval(axis, point, height + shift, styles[method], filled=point["budget"] == "rounds", runs=seeds)
        if points["value"].isna().all():
            why = "not defined" if len(points) else "not in the results"
            axis.text(0.5, height, why, ha="center", va="center", fontsize=5.5, color=MUTED, transform=axis.get_yaxis_transform())
    reference = table[(table["method"] == REFERENCE) & (table["budget"] == "rounds")]
    for value in reference["value"].dropna():
        axis.axvline(value, color=styles[REFERENCE]["color"], linewidth=0.6, alpha=0.6, zorder=1)


def _single_points(table: pd.DataFrame, budgets: Sequence[str]) -> str:
    """What one point means instead of two."""
    there = table.groupby("method", sort=False)["budget"].agg(set)
    alone = {budget: [METHODS[name].title for name in METHODS if there.get(name) == {budget}] for budget in budgets}
    named = [f"{', '.join(titles)} after {BUDGETS[budget]} alone" for budget, titles in alone.items() if titles]
    return f" Where there is one point, one model serves both budgets{'; but ' if named else ''}{'; '.join(named)}."


def _over_fewer_images(table: pd.DataFrame, printed: Mapping[str, str]) -> str:
    """Which distances leave out images without a predicted pixel, and so look better than they are."""
    fewer = table[over_fewer(table)].drop_duplicates(["center", "method", "n"])
    most = table.groupby("center")["n"].max()
    shown = [f"{printed[row.center]}, {METHODS[row.method].title}: {int(row.n)} of {int(most[row.center])}" for row in fewer.itertuples()]
    listed = "; ".join(shown[:12]) + "; …" * (len(shown) > 12)
    return f"Over fewer images, those with a predicted pixel, and so not comparable: {listed}." if shown else ""


def _budget_legend(figure: Figure, budgets: Sequence[str], several: bool) -> None:
    """Filled and open dots; `several`: seeds are drawn."""
    entries = []
    for budget in budgets:
        face = MUTED if budget == "rounds" else "white"
        entries.append(Line2D([], [], color=MUTED, linewidth=0.9, marker="o", markerfacecolor=face, label=f"after {BUDGETS[budget]}"))
    if several:
        entries.append(Line2D([], [], linestyle="none", marker="|", markersize=5, color=MUTED, label="each seed"))
    figure.legend(handles=entries, loc="outside upper center", ncols=3)


def _interval(axis: Axes, point: pd.Series, height: float, style: Mapping, *, filled: bool, runs: Sequence[float]) -> None:
    """A dot with its interval; `runs`: values of the seeds, small strokes."""
    color = style["color"]
    axis.plot([point["low"], point["high"]], [height, height], color=color, linewidth=1.6 if style["linewidth"] > 1.5 else 0.9)
    axis.plot(runs, [height] * len(runs), "|", color=color, markersize=4, markeredgewidth=0.7, zorder=3)
    face = color if filled else "white"
    dot = {"marker": style["marker"], "markerfacecolor": face, "markersize": 4, "markeredgewidth": 0.8}  # by name: a marker may be a tuple
    axis.plot(point["value"], height, linestyle="none", color=color, zorder=4, **dot)
