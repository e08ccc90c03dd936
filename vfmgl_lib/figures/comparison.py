"""VFMGL beside the other methods: ROC and decision curves, radar charts, intervals at both budgets, statistics as tables.

`results`, `tests`, `dca` and `final` are tables of `evaluation.results`; of several seeds the means are drawn. The values of a method are
those of the model that a centre uses after the last round: its own or, of FedAvg, FedProx and HarmoFL, the shared one that it took over.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pandas.io.formats.style import Styler
from sklearn.metrics import roc_curve

from vfmgl_lib.comparators.methods import METHODS
from vfmgl_lib.evaluation.classification import by_patient
from vfmgl_lib.evaluation.decision_curve import TREAT_ALL, TREAT_NONE
from vfmgl_lib.evaluation.generalization import LOWER_IS_BETTER, OWN_SPLIT, over_seeds
from vfmgl_lib.figures.rounds import LENGTHS, TITLES, axis_label, set_sizes
from vfmgl_lib.figures.style import (
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    REFERENCE,
    SINGLE,
    center_style,
    columns_for,
    footnote,
    grid,
    journal,
    method_style,
    names,
    new_figure,
    nothing,
    panel_grid,
    save_table,
    say,
    share_legend,
)
from vfmgl_lib.files import write_text

BUDGETS = {"rounds": "as many rounds as VFMGL", "updates": "as many updates of the student as VFMGL"}
CLASSIFICATION = ("auc", "accuracy", "sensitivity", "specificity", "ppv", "npv")
SEGMENTATION = ("dice", "iou", "ppv", "sensitivity", "specificity")
DISTANCES = ("assd", "hd95")
PAPER_METHODS = ("fedavg", "fedprox", "harmofl", "metafed", "frozen_probe", "vfmgl")  # the paper's five and Virchow: six polygons are read
SHORT = TITLES | {"dice": "Dice", "dice_mean_of_classes": "Dice, mean of classes"}
POOLED = "all"
LINE = 3.1 * MM  # height of a line of the tables under the ROC curves, inches
AVERAGED = "Curves of several seeds are averaged vertically; their AUCs and the limits of their intervals are means."
LATEX = str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {c: f"\\{c}" for c in "&%$#_{}"})


def in_order(there: Iterable[str], methods: Sequence[str] | None = None) -> tuple[list[str], str]:
    """Methods to draw, in the order of `METHODS`, and a sentence that names those wanted and not there.

    Args:
        there: methods a table has.
        methods: those wanted; None: all of `METHODS`.
    Raises: ValueError: a wanted method that is not in `METHODS`, or none of those wanted in the table.
    """
    there, wanted = set(there), list(METHODS if methods is None else methods)
    unknown = [method for method in wanted if method not in METHODS]
    if unknown:
        raise ValueError(f"methods {unknown} are unknown, known are {', '.join(METHODS)}")
    drawn = [method for method in METHODS if method in wanted and method in there]
    if not drawn:
        raise ValueError(f"the table has none of the methods {', '.join(wanted)}, it has {', '.join(sorted(there)) or 'none'}")
    absent = [METHODS[method].title for method in METHODS if method in wanted and method not in there]
    return drawn, f"Not in the results, so not drawn: {', '.join(absent)}." if absent else ""


def undefined(
    table: pd.DataFrame, printed: Mapping[str, str], about: str = "method", everyone: str = "all methods", lead: str = "Not defined"
) -> str:
    """One sentence a reason: at which centres, for what, a value is missing and why.

    Args:
        table: center, metric, value, reason and the column `about`.
        about: what is listed behind the centre.  everyone: how it is called where nothing of it has a value.
        lead: first words of each sentence.
    """
    sentences = []
    missing = table[table["value"].isna()].assign(reason=lambda t: t["reason"].replace("", "no reason recorded"))
    several = table["metric"].nunique() > 1
    for reason, rows in missing.groupby("reason", sort=False):
        places: dict[str, list[str]] = {}
        for (center, metric), group in rows.groupby(["center", "metric"], sort=False):
            whole = table[(table["center"] == center) & (table["metric"] == metric)][about]
            titles = [METHODS[key].title if key in METHODS else printed.get(key, key) for key in dict.fromkeys(group[about])]
            who = everyone if set(group[about]) == set(whole) else ", ".join(titles)
            places.setdefault(f"{printed[center]} ({{}}{who})", []).append(SHORT.get(metric, metric))
        shown = [place.format(f"{', '.join(metrics)}: " if several else "") for place, metrics in places.items()]
        sentences.append(f"{lead} ({reason}): {'; '.join(shown[:6])}{'; …' if len(shown) > 6 else ''}.")
    return " ".join(sentences)


def at_home(results: pd.DataFrame, metrics: Sequence[str], methods: Sequence[str], budget: str) -> pd.DataFrame:
    """Every method's models on their own centres' test sets in the data's own division, means over the seeds.

    Args:
        results: rows of any division, budget and seed.
    Returns: columns of `over_seeds`, with `center` for the test centre; the pooled rows have the centre "all".
    Raises: ValueError: a metric that the results do not have at this budget.
    """
    rows = results[(results["budget"] == budget) & (results["split_id"] == OWN_SPLIT) & (results["split"] == "test")]
    rows = rows[rows["model_center"] == rows["test_center"]]
    lacking = [metric for metric in metrics if not (rows["metric"] == metric).any()]
    if lacking:
        has = ", ".join(dict.fromkeys(rows["metric"])) or "none"
        raise ValueError(f"the results at budget {budget!r} have no metric {', '.join(lacking)}, they have {has}")
    rows = rows[rows["metric"].isin(metrics) & rows["method"].isin(methods)]
    return over_seeds(rows).rename(columns={"test_center": "center"})


def roc_points(final: pd.DataFrame, *, unit: str, budget: str = "rounds", external: bool = False) -> pd.DataFrame:
    """ROC curves of the models on their own centres' test sets or, `external`, of all models on external centres'.

    Args:
        final: final predictions of a classification.
        unit: "patient" (the mean probability of a patient's images is scored) or "image".
    Returns: method, model_center, center, false_positive_rate, true_positive_rate (both in [0, 1]), n, positives, seeds, reason. A test
        set of one class has one row without rates, and the reason. Curves of several seeds are averaged vertically (Fawcett 2006,
        algorithm 3), at every false positive rate that one of them has.
    """
    rows = final[(final["budget"] == budget) & (final["split_id"] == OWN_SPLIT) & (final["split"] == "test")]
    trained = set(rows["model_center"]) - {"shared"}
    rows = rows[~rows["test_center"].isin(trained)] if external else rows[rows["model_center"] == rows["test_center"]]
    found = []
    for (method, model, center), group in rows.groupby(["method", "model_center", "test_center"]):
        scores = [by_patient(part) if unit == "patient" else part for _, part in group.groupby("seed")]
        labels = scores[0]["label"].astype(int)
        positives, n = int(labels.sum()), len(labels)
        about = {"method": method, "model_center": model, "center": center, "n": n, "positives": positives, "seeds": len(scores)}
        if positives in (0, n):
            reason = f"only one class: {positives} positive, {n - positives} negative"
            rates, reached = np.array([np.nan]), np.array([np.nan])
        else:
            reason = ""
            rates, reached = _mean_curve([roc_curve(part["label"].astype(int), part["probability"])[:2] for part in scores])
        found.append(pd.DataFrame({"false_positive_rate": rates, "true_positive_rate": reached}).assign(**about, reason=reason))
    columns = ["method", "model_center", "center", "false_positive_rate", "true_positive_rate", "n", "positives", "seeds", "reason"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _mean_curve(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean true positive rate at every false positive rate of the curves; one curve stays as it is."""
    if len(curves) == 1:
        return curves[0]
    rates = np.unique(np.concatenate([rate for rate, _ in curves]))
    # Where a curve rises steeply it has two values: the lower one ends what lies left of it, the upper one begins what lies right.
    upper = np.mean([np.interp(rates, rate, hit) for rate, hit in curves], axis=0)
    lower = np.mean([np.interp(-rates[::-1], -rate[::-1], hit[::-1])[::-1] for rate, hit in curves], axis=0)
    return np.repeat(rates, 2), np.column_stack([lower, upper]).ravel()


@journal
def roc_curves(points: pd.DataFrame, results: pd.DataFrame, methods: Sequence[str] | None = None, budget: str = "rounds") -> Figure:
    """ROC curve of every method on every centre's test set, its AUC with 95 % interval below (paper: Fig. 2A).

    Args:
        points: from `roc_points`.
        results: a results table, for the AUCs.
        methods: those drawn; None: all there are. The paper's figure has five.
        budget: of the results.
    """
    drawn, absent = in_order(points["method"], methods)
    auc = at_home(results, ["auc"], drawn, budget)
    titles = {method: METHODS[method].title for method in drawn}
    styles = {method: style | {"marker": ""} for method, style in method_style(drawn).items()}
    figure = _roc_figure(points[points["method"].isin(drawn)], auc, "method", titles, styles)
    footnote(figure, f"{_auc_note(auc)} Compared after {BUDGETS[budget]}. {absent}")
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
        points: from `roc_points(external=True)`; no rows: a figure that says so.
        results: a results table, for the AUCs.
        chosen: external centre -> training centre whose model was chosen by similarity; drawn heavier and starred.
        all_centers: training centres, which the colours go by.
    """
    points = points[points["method"] == method]
    if points.empty:
        return nothing(f"There is no external centre with predictions of {METHODS[method].title}.")
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
    footnote(figure, f"A line is the model of a centre ({METHODS[method].title}). {_auc_note(auc)}{star}")
    return figure


def _lines(count: int) -> list[object]:
    """Line styles in turn, so that neighbouring colours differ in grey print, too."""
    return [("solid", (0, (4, 1.6)), (0, (4, 1.3, 1.1, 1.3)), (0, (8, 1.8)))[place % 4] for place in range(count)]


def _auc_note(auc: pd.DataFrame) -> str:
    kinds = ", ".join(sorted({kind for kind in auc["interval"] if kind}))
    seeds = f" {AVERAGED}" if auc["seeds"].max() > 1 else ""
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
    columns = columns_for(len(centers))
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
            say(axis, f"no curve: {here['reason'].iloc[0]}")
            continue
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=1)
        axis.text(0.98, 0.03, _positives(here), ha="right", va="bottom", fontsize=6, color=MUTED, transform=axis.transAxes)
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


def _positives(rows: pd.DataFrame) -> str:
    """ "7 of 20 positive" """
    n, positives = rows[["n", "positives"]].iloc[0].astype(int)
    return f"{positives} of {n}\npositive"


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


def with_interval(row: Mapping, decimals: int) -> str:
    """ "0.83 (0.72–0.91)", without what is not defined; "–" without a value."""
    value, low, high = (row[name] for name in ("value", "low", "high"))
    if pd.isna(value):
        return "–"
    interval = "" if pd.isna(low) or pd.isna(high) else f" ({low:.{decimals}f}–{high:.{decimals}f})"
    return f"{value:.{decimals}f}{interval}"


@journal
def decision_curves(dca: pd.DataFrame, methods: Sequence[str] | None = None, budget: str = "rounds") -> Figure:
    """Net benefit over the threshold probability, a panel a centre, with treating all and none (paper: Fig. 2B).

    The axis ends a little under zero: how harmful a model or treating all gets at high thresholds is cut off.

    Args:
        dca: from `evaluation.decision_curve`; "treat all" and "treat none" are methods, too. Curves of several seeds are averaged.
        methods: those drawn; None: all there are.
    """
    dca = dca[(dca["budget"] == budget) & (dca["split_id"] == OWN_SPLIT)]
    drawn, absent = in_order(set(dca["method"]) - {TREAT_ALL, TREAT_NONE}, methods)
    centers = sorted(dca["center"].unique())
    printed = names(centers)
    styles = {TREAT_ALL: {"color": MUTED, "linewidth": 0.8, "linestyle": "solid", "zorder": 1.5}}
    styles |= {TREAT_NONE: {"color": "black", "linewidth": 0.8, "linestyle": "solid", "zorder": 1.4}}
    styles |= {method: style | {"marker": ""} for method, style in method_style(drawn).items()}
    curves = dca.groupby(["center", "method", "threshold"])[["net_benefit", "n", "positives"]].mean().reset_index()
    per_row = columns_for(len(centers))
    figure, axes = panel_grid(len(centers), per_row=per_row, panel=48 * MM, extra=18 * MM)
    for place, (axis, center) in enumerate(zip(axes, centers, strict=True)):
        here = curves[curves["center"] == center]
        n, positives = here[["n", "positives"]].iloc[0].astype(int)
        axis.set(
            title=f"centre {printed[center]}", xlim=(0, 1), xlabel="threshold probability", ylabel="" if place % per_row else "net benefit"
        )
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        if positives in (0, n):
            say(axis, f"no decision to weigh: only one class, {positives} of {n} positive")
            axis.set_yticks([])
            continue
        axis.text(0.98, 0.97, _positives(here), ha="right", va="top", fontsize=6, color=MUTED, transform=axis.transAxes)
        for method, style in styles.items():
            line = here[here["method"] == method]
            title = METHODS[method].title if method in METHODS else method
            axis.plot(line["threshold"], line["net_benefit"], label=title, **style)
        top = here["net_benefit"].max()
        axis.set(ylim=(-0.12 * top, 1.08 * top))
        grid(axis)
    mean = f" Means over {dca['seed'].nunique()} seeds." if dca["seed"].nunique() > 1 else ""
    share_legend(figure, next((axis for axis in axes if axis.lines), axes[0]), columns=6)
    footnote(figure, f"Net benefit: TP/n − FP/n · p/(1 − p) at threshold p. Values far under zero are cut off.{mean} {absent}")
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
        metrics: at least three; None: AUC, accuracy, sensitivity, specificity, PPV and NPV, or of a segmentation Dice, IoU, PPV,
            sensitivity and specificity.
        methods: those drawn; more than six polygons are not told apart.
        low: value at the middle of the charts; None: a round one under the smallest value, the same in all panels.
    Raises: ValueError: fewer than three metrics, or a distance among them.
    """
    metrics = list(metrics or (SEGMENTATION if (results["metric"] == "dice").any() else CLASSIFICATION))
    if len(metrics) < 3 or set(metrics) & set(DISTANCES):
        raise ValueError(f"a radar chart takes at least three metrics of which more is better, got {', '.join(metrics)}")
    drawn, absent = in_order(results["method"], methods)
    table = at_home(results, metrics, drawn, budget)
    table = table[table["center"] != POOLED]
    centers = sorted(table["center"].unique())
    printed, styles = names(centers), method_style(drawn)
    low, rings = _rings(table["value"].min(), low)
    columns = columns_for(len(centers))
    rows, width = math.ceil(len(centers) / columns), {1: SINGLE, 2: 124 * MM}.get(columns, DOUBLE)
    figure = new_figure(width, rows * (0.74 * width / columns + 10 * MM) + 16 * MM)
    angles = np.linspace(0, 2 * np.pi, len(metrics), endpoint=False)
    for place, center in enumerate(centers):
        axis = figure.add_subplot(rows, columns, place + 1, projection="polar")
        here = table[table["center"] == center].pivot(index="method", columns="metric", values="value").reindex(columns=metrics)
        _spokes(axis, angles, [SHORT[metric] for metric in metrics], low, rings)
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


def _spokes(axis: Axes, angles: np.ndarray, titles: Sequence[str], low: float, rings: np.ndarray) -> None:
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
    """A metric of every method with its 95 % interval, a panel a centre: at matched rounds and at matched updates.

    Several seeds are small points around their mean. A method that is reported at one round for both budgets has one point.

    Args:
        results: a results table; pooled rows, where the metric has them, become the last panel.
    """
    drawn, absent = in_order(results["method"], methods)
    budgets = [budget for budget in BUDGETS if (results["budget"] == budget).any()]
    every = pd.concat([at_home(results, [metric], drawn, budget) for budget in budgets], ignore_index=True)
    runs = results[(results["metric"] == metric) & _home_tests(results)].rename(columns={"test_center": "center"})
    pooled = [POOLED] if (every["center"] == POOLED).any() else []
    centers = [*sorted(set(every["center"]) - {POOLED}), *pooled]
    printed, styles = names(centers) | {POOLED: "all centres"}, method_style(drawn)
    per_row = len(centers) if len(centers) == 5 else columns_for(len(centers))
    figure, axes = panel_grid(len(centers), per_row=per_row, panel=(14 + 4.2 * len(drawn)) * MM, extra=14 * MM, sharex=True, sharey=True)
    for place, (axis, center) in enumerate(zip(axes, centers, strict=True)):
        axis.set_title(printed[center] if center == POOLED else f"centre {printed[center]}")
        axis.set(yticks=range(len(drawn)), yticklabels=[METHODS[method].title for method in drawn], ylim=(len(drawn) - 0.4, -0.6))
        axis.tick_params(axis="y", length=0)
        grid(axis, "x")
        if place >= len(centers) - per_row:
            axis.set_xlabel(axis_label(metric, every))
            axis.tick_params(labelbottom=True)
        here = every[every["center"] == center]
        if here["value"].isna().all():
            say(axis, f"not defined: {here['reason'].iloc[0]}")
            continue
        _draw_budgets(axis, here, runs[runs["center"] == center], styles)
    several = every["seeds"].max() > 1
    _budget_legend(figure, budgets, several)
    kinds = ", ".join(sorted({kind for kind in every["interval"] if kind}))
    bars = f"Bars: 95 % interval ({kinds}" if kinds else "No intervals ("
    spread = f"; mean of {every['seeds'].max()} seeds and of their limits)." if several else "; one seed, so no spread of runs)."
    same = " Where there is one point, one model serves both budgets." if len(budgets) > 1 else ""
    line = f" Vertical line: {METHODS[REFERENCE].title} at as many rounds." if REFERENCE in drawn else ""
    footnote(figure, f"{_test_sets(every[every['center'] != POOLED], printed)} {bars}{spread}{same}{line} {absent}")
    once = every.drop_duplicates(["center", "method"])
    footnote(figure, undefined(once, printed))
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


def _budget_legend(figure: Figure, budgets: Sequence[str], several: bool) -> None:
    """Filled and open dots; `several`: seeds are drawn."""
    face = {"rounds": MUTED, "updates": "white"}
    entries = [
        Line2D([], [], color=MUTED, linewidth=0.9, marker="o", markerfacecolor=face[budget], label=f"after {BUDGETS[budget]}")
        for budget in budgets
    ]
    if several:
        entries.append(Line2D([], [], linestyle="none", marker="|", markersize=5, color=MUTED, label="each seed"))
    figure.legend(handles=entries, loc="outside upper center", ncols=3)


def _home_tests(results: pd.DataFrame) -> pd.Series:
    """Which rows are of models on their own test sets in the data's own division."""
    return (results["split"] == "test") & (results["split_id"] == OWN_SPLIT) & (results["model_center"] == results["test_center"])


def _interval(axis: Axes, point: pd.Series, height: float, style: Mapping, *, filled: bool, runs: Sequence[float]) -> None:
    """A dot with its interval; `runs`: values of the seeds, small strokes."""
    color = style["color"]
    axis.plot([point["low"], point["high"]], [height, height], color=color, linewidth=1.6 if style["linewidth"] > 1.5 else 0.9)
    axis.plot(runs, [height] * len(runs), "|", color=color, markersize=4, markeredgewidth=0.7, zorder=3)
    face = color if filled else "white"
    axis.plot(point["value"], height, style["marker"], color=color, markerfacecolor=face, markersize=4, markeredgewidth=0.8, zorder=4)


def statistics_table(
    results: pd.DataFrame,
    tests: pd.DataFrame | None = None,
    metrics: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    budget: str = "rounds",
) -> pd.DataFrame:
    """Every method's metrics at every centre with interval, which is the best of the centre, and the test against the reference.

    Args:
        results: a results table.
        tests: from `results.compare_methods`, of one seed; None: no tests.
        metrics: None: those of a classification or a segmentation that the results have.
    Returns: center ("all": counts of all centres summed), method, title, metric, unit, value, low, high, interval, std, seeds, n, best,
        p, p_holm, test, tested_seed, reference, reason; in the order in which they are printed.
    Raises: ValueError: tests of several seeds.
    """
    there = set(results["metric"])
    known = ("dice", "dice_mean_of_classes", *SEGMENTATION[1:], *DISTANCES) if "dice" in there else CLASSIFICATION
    metrics = list(metrics or (metric for metric in known if metric in there))
    drawn, _ = in_order(results["method"], methods)
    table = at_home(results, metrics, drawn, budget)
    sign = np.where(table["metric"].isin(LOWER_IS_BETTER), -1, 1)
    group = [table["center"], table["metric"]]
    score = (table["value"] * sign).rename("score")
    highest, lowest = score.groupby(group).transform("max"), score.groupby(group).transform("min")
    # Equal shares may differ in the last bit, where they are means over seeds. Where all are equal, none is the best.
    table["best"] = (score >= highest - 1e-12) & (highest > lowest + 1e-12)
    key = ["center", "method", "metric"]
    if tests is not None:
        tests = tests[(tests["budget"] == budget) & (tests["split_id"] == OWN_SPLIT)]
        if tests["seed"].nunique() > 1:
            seeds = ", ".join(map(str, sorted(tests["seed"].unique())))
            raise ValueError(f"p values of several seeds cannot be put into one, got seeds {seeds}: give those of one")
        table = table.merge(tests[[*key, "seed", "p", "p_holm", "test", "reference"]], on=key, how="left")
        table = table.rename(columns={"seed": "tested_seed"})
    else:
        table = table.assign(tested_seed=np.nan, p=np.nan, p_holm=np.nan, test="", reference="")
    table[["test", "reference"]] = table[["test", "reference"]].fillna("")
    table["title"] = [METHODS[method].title for method in table["method"]]
    places = {"center": [*sorted(set(table["center"]) - {POOLED}), POOLED], "method": list(METHODS), "metric": metrics}
    order = pd.DataFrame({name: table[name].map(values.index) for name, values in places.items()}).sort_values(list(places)).index
    columns = [*key[:2], "title", "metric", "unit", "value", "low", "high", "interval", "std", "seeds", "n"]
    return table.loc[order, [*columns, "best", "p", "p_holm", "test", "tested_seed", "reference", "reason"]].reset_index(drop=True)


def table_note(table: pd.DataFrame, note: str = "") -> str:
    """What stands under the printed table: intervals, marks, tests, and what is not defined, as plain text.

    Args:
        table: from `statistics_table`.
        note: first words, e.g. data, teacher and budget.
    """
    kinds = ", ".join(sorted({kind for kind in table["interval"] if kind}))
    sentences = [
        f"{note.rstrip('.')}." if note else "",
        f"Value (95 % interval: {kinds})." if kinds else "",
        "Bold: the best of the centre.",
    ]
    if table["seeds"].max() > 1:
        sentences.append(f"Means over {table['seeds'].max()} seeds, also of the limits.")
    tested = table[table["test"] != ""]
    if len(tested):
        one = f", of seed {int(tested['tested_seed'].iloc[0])} alone" if table["seeds"].max() > 1 else ""
        against = ", ".join(METHODS[name].title for name in dict.fromkeys(tested["reference"]))
        sentences.append(f"p: {', '.join(sorted(set(tested['test'])))} against {against}, corrected by Holm{one}.")
    printed = {center: "all centres" if center == POOLED else center for center in table["center"]}
    return " ".join(filter(None, [*sentences, undefined(table, printed)]))


def styled_table(table: pd.DataFrame, note: str = "", escape: str = "html") -> Styler:
    """The table as it is printed: centres and methods as rows, metrics as columns, the best of a centre in bold.

    Args:
        table: from `statistics_table`.
        note: see `table_note`.
        escape: "html" or "latex": names of centres are the user's and may hold anything.
    """
    cells, marks = {}, {}
    sizes = table.groupby(["center", "title"])["n"].max()  # of a sensitivity n is the positives only
    for (center, title, metric), row in table.set_index(["center", "title", "metric"]).iterrows():
        place = ("all centres" if center == POOLED else center, title)
        unit = f" ({row['unit']})" if row["unit"] in LENGTHS else ""
        name = SHORT.get(metric, metric) + unit
        cells.setdefault(place, {}).setdefault("n", f"{int(sizes[center, title])}")
        cells[place][name] = with_interval(row, 2 if unit else 3)
        marks[place, name] = row["best"]
        if (table.loc[table["metric"] == metric, "test"] != "").any():
            cells[place][f"p ({name})"] = _p_value(row)
    shown = pd.DataFrame.from_dict(cells, orient="index").fillna("–")
    shown.index = pd.MultiIndex.from_tuples(cells, names=["centre", "method"])
    bold = pd.DataFrame("", shown.index, shown.columns)
    for (place, name), best in marks.items():
        bold.loc[place, name] = "font-weight: bold;" if best else ""
    text = table_note(table, note)
    styler = Styler(shown, uuid="statistics", cell_ids=False, caption=html.escape(text) if escape == "html" else text.translate(LATEX))
    styler = styler.format(escape=escape).apply(lambda _: bold, axis=None)
    for axis in ("index", "columns"):
        styler = styler.format_index(escape=escape, axis=axis)
    left = {"selector": "caption", "props": "caption-side: bottom; text-align: left; font-size: 85%; max-width: 70em;"}
    cell = {"selector": "th, td", "props": "padding: 0.15em 0.7em; text-align: left; vertical-align: top; white-space: nowrap;"}
    rule = {"selector": "tbody tr:has(th.level0) > *", "props": "border-top: 1px solid #999999;"}
    return styler.set_table_styles([left, cell, rule]).set_table_attributes('style="border-collapse: collapse"')


def _p_value(row: pd.Series) -> str:
    if row["method"] == row["reference"] or pd.isna(row["p_holm"]):
        return "–"
    return "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"


def write_statistics(table: pd.DataFrame, folder: Path | str, name: str, note: str = "") -> Styler:
    """Writes name.html, name.tex (packages booktabs and multirow) and name.csv, each whole or not at all.

    Args:
        table: from `statistics_table`.
        note: first words under the table, and the CSV's column `source`.
    Returns: the table for the screen, so that a cell can end with this call.
    """
    folder = Path(folder)
    shown = styled_table(table, note)
    write_text(folder / f"{name}.html", shown.to_html(doctype_html=True))
    tex = styled_table(table, note, escape="latex")
    tex.table_styles, tex.table_attributes = [], None  # those of the screen
    columns = "ll" + "l" * tex.data.shape[1]
    text = tex.to_latex(column_format=columns, hrules=True, clines="skip-last;index", multirow_align="t", convert_css=True)
    write_text(folder / f"{name}.tex", "% needs \\usepackage{booktabs, multirow}\n" + text)
    save_table(table, folder, name, note)
    return shown
