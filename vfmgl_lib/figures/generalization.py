"""Models away from home: other centres, external centres, the ablation, other divisions of the data, subgroups of patients.

Drawn are the tables of `evaluation.generalization`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from vfmgl_lib.evaluation.generalization import ABLATION, SIGNIFICANT, STEPS
from vfmgl_lib.evaluation.margin import FAILURE, SURE_PATIENTS, lower_is_better
from vfmgl_lib.evaluation.results import ALL
from vfmgl_lib.figures.rounds import frame_home, metric_colors
from vfmgl_lib.figures.style import (
    COLORS,
    DIVERGING,
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    center_style,
    columns_for,
    empty_figure,
    footnote,
    grid,
    heatmap,
    journal,
    names,
    new_figure,
    panel_grid,
    share_legend,
    text_on,
    write_in_panel,
)
from vfmgl_lib.figures.words import LENGTHS, axis_label, seeds_there, set_sizes, short, title, undefined
from vfmgl_lib.methods.registry import METHODS

PAPER: dict[str, Any] = {"color": "#333333", "marker": "D", "markerfacecolor": "white", "linestyle": "none", "markersize": 3.6}
GROUP_STYLE = {
    "younger": {"color": COLORS[0], "marker": "o"},
    "older": {"color": COLORS[1], "marker": "s"},
    "well_differentiated": {"color": COLORS[2], "marker": "^"},
}


@journal
def generalization_map(table: pd.DataFrame, metric: str, all_centers: Sequence[str] | None = None) -> Figure:
    """Every model at every centre, and which generalise where (paper: Fig. 6).

    Left the values, ticked where a model generalises and framed at home; right an arrow from a model to each centre it generalises to.
    External centres have columns of their own behind a line and no arrows: they have no model to compare with.

    Args:
        table: from `evaluation.generalization.cross_centers`.
        all_centers: those of the task, which the colours go by.
    """
    models = sorted(table["model_center"].unique())
    external = sorted(set(table["test_center"]) - set(models))
    printed = names([*models, *external])
    margin, distance = table["margin"].iloc[0], lower_is_better(metric)
    figure = new_figure(DOUBLE, (44 + 6.5 * max(len(models), 4)) * MM)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    top = max(1.0, float(table["value"].max())) if distance else 1.0
    columns = [*models, *external]
    numbers = table.pivot(index="model_center", columns="test_center", values="value").reindex(index=models, columns=columns)
    texts = numbers.map(f"{{:.{1 if distance and top >= 10 else 2}f}}".format)
    for row in table[table["generalizes"].fillna(False).astype(bool)].itertuples():
        texts.loc[row.model_center, row.test_center] += "\u2009✓"
    shown, size = numbers.rename(index=printed, columns=printed), 6.5 if len(columns) < 7 else 5.6
    picture = heatmap(left, shown, metric_colors(metric), (0, top), texts, size=size, room=66 / len(columns))
    if external:
        left.axvline(len(models), color="white", linewidth=6, zorder=1.5)
    frame_home(left, models, columns)
    left.set(xlabel="test set of centre", ylabel="model trained at centre")
    chance = " (0.5: chance)" if metric == "auc" else ""
    figure.colorbar(picture, ax=left, shrink=0.9, pad=0.02, label=axis_label(metric, table) + chance)
    limit = f"{margin:g} {table['unit'].iloc[0]}" if distance else f"{margin:g}"
    _arrows(right, table, models, printed, center_style(models, all_centers))
    tested = table.rename(columns={"test_center": "center"})
    unknown = table["generalizes"].isna() & (table["model_center"] != table["test_center"]) & table["test_center"].isin(models)
    dotted = " Dotted: no verdict." if unknown.any() else ""
    outside = f" External, without a model of their own: {', '.join(printed[name] for name in external)}." if external else ""
    footnote(
        figure,
        f"✓ and arrow: the model is behind the test centre's own model by {limit} at most, by the one-sided 95 % limit over patients. "
        f"At least {SURE_PATIENTS} of them, none losing more than {FAILURE} margins: a failure rarer than one in ten may be missed. "
        f"Frame and disc: at home.{dotted}{outside} "
        f"{set_sizes(tested, printed)}{_seeds(table)}",
    )
    tested = tested.assign(metric=metric)
    footnote(figure, undefined(tested, printed, "model_center", "all models"))
    unanswered = tested.assign(
        value=np.where(unknown & tested["value"].notna(), np.nan, 0.0), reason=tested["reason"].str.split("; ").str[0]
    )
    unanswered = unanswered[tested["model_center"] != tested["center"]]
    footnote(figure, undefined(unanswered, printed, "model_center", "all other models", lead="No verdict"))
    return figure


def _arrows(axis: Axes, table: pd.DataFrame, models: list[str], printed: Mapping[str, str], styles: Mapping[str, dict]) -> None:
    """The centres on a circle, an arrow in the model's colour to every centre that it generalises to."""
    axis.set(xlim=(-1.75, 1.75), ylim=(-1.45, 1.45))
    axis.set_aspect("equal")
    axis.set_axis_off()
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(models)) / len(models)
    places = {name: np.array([np.cos(angle), np.sin(angle)]) for name, angle in zip(models, angles, strict=True)}
    away = table[(table["model_center"] != table["test_center"]) & table["test_center"].isin(models)]
    for row in away.itertuples():
        about: dict[str, Any] = {"posA": places[row.model_center], "posB": places[row.test_center], "connectionstyle": "arc3,rad=0.13"}
        about |= {"shrinkA": 10, "shrinkB": 10, "mutation_scale": 7}
        if pd.isna(row.generalizes):
            axis.add_patch(FancyArrowPatch(**about, arrowstyle="-", color=FAINT, linestyle=(0, (1, 1.5)), linewidth=0.8))
        elif row.generalizes:
            axis.add_patch(FancyArrowPatch(**about, arrowstyle="-|>", color=styles[row.model_center]["color"], linewidth=1.1))
    for name, place in places.items():
        axis.plot(*place, "o", markersize=13, color=styles[name]["color"], zorder=3)
        own = table[(table["model_center"] == name) & (table["test_center"] == name)]["value"]
        value = f"{own.iloc[0]:.2f}" if len(own) and own.notna().all() else "n/a"
        shade = matplotlib.colors.LinearSegmentedColormap.from_list("one", [styles[name]["color"]] * 2)
        axis.text(place[0], place[1], value, ha="center", va="center", fontsize=5, color=text_on(shade, 0), weight="bold", zorder=4)
        side = "center" if abs(place[0]) < 0.3 else "left" if place[0] > 0 else "right"
        height = "center" if abs(place[1]) < 0.9 else "bottom" if place[1] > 0 else "top"
        axis.text(1.22 * place[0], 1.22 * place[1], printed[name], ha=side, va=height, fontsize=6.5, weight="bold")
    reached = away["generalizes"].fillna(False).astype(bool)
    if not reached.any():
        said = "none is shown\nto generalise" if away["generalizes"].notna().any() else "no verdict\non any pair"
        axis.text(0, 0, said, ha="center", va="center", color=MUTED)
    axis.set_title(f"{int(reached.sum())} of {int(away['generalizes'].notna().sum())} pairs generalise", loc="center")


def _seeds(table: pd.DataFrame) -> str:
    """Whether values are means over seeds."""
    several = "seeds" in table and table["seeds"].max() > 1
    return f" Means of {seeds_there(table, 'step' if 'step' in table else 'model_center')}." if several else ""


@journal
def external_similarity(table: pd.DataFrame, metric: str, all_centers: Sequence[str] | None = None) -> Figure:
    """How similar an external centre's features are to a training centre's, and how its model fares there; a panel an external centre.

    Args:
        table: from `evaluation.generalization.external`; no rows: a figure that says so.
        all_centers: training centres, which the colours go by.
    """
    if table.empty:
        return empty_figure("There is no external centre: every centre of these data trains a model.")
    centers = sorted(table["center"].unique())
    local = table[table["model_center"] != "shared"]
    models = sorted(local["model_center"].unique())
    printed, styles = names([*centers, *models]), center_style(models, all_centers)
    figure, axes = panel_grid(len(centers), per_row=columns_for(len(centers)), panel=58 * MM, extra=14 * MM, sharex=True, sharey=True)
    for axis, center in zip(axes, centers, strict=True):
        here = local[local["center"] == center]
        axis.set_title(f"external centre {printed[center]}")
        axis.set(xlabel="similarity to the training centre (r)")
        grid(axis)
        if here["value"].isna().all():
            write_in_panel(axis, f"not defined: {here['reason'].iloc[0]}")
            continue
        for row in here.itertuples():
            style = styles[row.model_center]
            axis.plot([row.similarity] * 2, [row.low, row.high], color=style["color"], linewidth=1)
            axis.plot(row.similarity, row.value, linestyle="none", label=printed[row.model_center], **style | {"markersize": 5})
            if row.chosen:
                axis.plot(row.similarity, row.value, "o", markersize=11, markerfacecolor="none", color="black", markeredgewidth=1.1)
        for value in table[(table["center"] == center) & (table["model_center"] == "shared")]["value"].dropna():
            axis.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), zorder=1)
        axis.margins(x=0.12)
    for axis in axes[:: columns_for(len(centers))]:
        axis.set_ylabel(axis_label(metric, table))
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    entries = [found[printed[model]] for model in models if printed[model] in found]
    entries.append(Line2D([], [], linestyle="none", marker="o", markersize=8, markerfacecolor="none", color="black", label="chosen"))
    if (table["model_center"] == "shared").any():
        entries.append(Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)), label="shared model"))
    figure.legend(handles=entries, loc="outside upper center", ncols=8 if len(centers) > 1 else 4, handletextpad=0.4, columnspacing=1.4)
    kinds = ", ".join(sorted({kind for kind in table["interval"] if kind}))
    bars = f" Bars: 95 % interval ({kinds})." if kinds else ""
    rule = "The model of the most similar training centre is chosen, before labels are read."
    footnote(figure, f"{set_sizes(table, printed)}{bars} {rule}")
    footnote(figure, undefined(table.assign(metric=metric), printed | {"shared": "shared model"}, "model_center", "all models"))
    return figure


@journal
def ablation(table: pd.DataFrame, metric: str) -> Figure:
    """HGKT, HGKT+KD and HGKT+KD+DDBL at every pair of model and test centre (a–c), and what each step changes (d–f; paper: Fig. 9).

    Args:
        table: from `evaluation.generalization.ablation`; a step or a matrix whose method is not in it is an empty panel that says so.
    """
    models, tested = sorted(table["model_center"].unique()), sorted(table["test_center"].unique())
    printed, distance = names(dict.fromkeys([*tested, *models])), lower_is_better(metric)
    matrices = _ablation_matrices(table, models, tested)
    differences = {
        (before, after): rows.pivot(index="model_center", columns="test_center", values="difference").reindex(index=models, columns=tested)
        for (before, after), rows in table.groupby(["before", "after"])
    }
    widest = max((float(np.nanmax(np.abs(d.to_numpy()), initial=0)) for d in differences.values()), default=0) or 0.01
    top = float(np.nanmax([m.to_numpy() for m in matrices.values()], initial=1)) if distance else 1.0
    small = 6 if len(tested) < 5 else 5.2 if len(tested) < 8 else 4.4
    figure = new_figure(DOUBLE, 2 * (22 + 6.2 * max(len(models), 4)) * MM)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    colors = f"{DIVERGING}_r" if distance else DIVERGING
    options: dict[str, Any] = {"size": small, "room": 48 / len(tested)}
    pictures: list[Collection | None] = [None, None]
    for letter, axis, method in zip("abc", axes[0], ABLATION, strict=True):
        axis.set_title(f"{letter}  {METHODS[method].title}")
        if method in matrices:
            shown = matrices[method].rename(index=printed, columns=printed)
            pictures[0] = heatmap(axis, shown, metric_colors(metric), (0, top), **options)
            frame_home(axis, models, tested, 0.8)
        else:
            _absent(axis, [method])
    for letter, axis, (before, after) in zip("def", axes[1], STEPS, strict=True):
        start, end = METHODS[before].title, METHODS[after].title
        if (before, after) not in differences:
            axis.set_title(f"{letter}  {start} → {end}")
            _absent(axis, [method for method in (before, after) if method not in matrices])
            continue
        rows = table[(table["before"] == before) & (table["after"] == after)]
        axis.set_title(f"{letter}  {start} → {end}\n{_summary(rows)}", fontsize=7)
        clear = rows.assign(clear=rows["significant"] != "").pivot(index="model_center", columns="test_center", values="clear")
        stars = clear.reindex(index=models, columns=tested).fillna(False).replace({True: "*", False: ""})
        values = differences[before, after]
        shown = values.rename(index=printed, columns=printed)
        pictures[1] = heatmap(axis, shown, colors, (-widest, widest), values.map(_change) + stars, **options)
        frame_home(axis, models, tested, 0.8)
    for axis in axes[1]:
        axis.set_xlabel("test set of centre")
    for axis in axes[:, 0]:
        axis.set_ylabel("model of centre")
    title = axis_label(metric, table) if distance else short(metric)
    for line, picture, label in zip(axes, pictures, (title, f"change of {title}"), strict=True):
        if picture is not None:
            figure.colorbar(picture, ax=list(line), shrink=0.9, pad=0.01, label=label)
    kinds = ", ".join(sorted({kind for kind in table["test"] if kind}))
    one = " of one seed, where it has the sign of the mean" if table["seeds"].max() > 1 else ""
    star = f"*: p < {SIGNIFICANT:g} ({kinds}{one}, Holm over all steps and pairs)." if kinds else "Not tested for significance."
    better = " Less is better: purple still means better." if distance else ""
    counts = table.rename(columns={"test_center": "center", "difference": "value"}).assign(metric=metric)
    footnote(figure, f"{star}{better} Frame: at home. VFMGL is HGKT+KD+DDBL. {set_sizes(counts, printed)}{_seeds(table)}")
    footnote(figure, undefined(counts, printed, "model_center", "all models"))
    return figure


def _ablation_matrices(table: pd.DataFrame, models: Sequence[str], tested: Sequence[str]) -> dict[str, pd.DataFrame]:
    """method -> model centre × test centre, from whichever step has it."""
    matrices: dict[str, pd.DataFrame] = {}
    for role in ("before", "after"):
        for method, rows in table.groupby(role):
            first = rows.drop_duplicates(["model_center", "test_center"])
            wide = first.pivot(index="model_center", columns="test_center", values=f"value_{role}")
            matrices.setdefault(method, wide.reindex(index=models, columns=tested))
    return matrices


def _change(value: float) -> str:
    """With its sign and three decimals; what rounds to nothing is no loss, and what is nothing at all is 0."""
    return "0" if value == 0 else f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")


def _absent(axis: Axes, methods: Sequence[str]) -> None:
    """An empty panel of a matrix whose method is not there."""
    write_in_panel(axis, f"{' and '.join(METHODS[method].title for method in methods)}: not in the results")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _summary(step: pd.DataFrame) -> str:
    """ "mean +0.011, better in 22 of 36" """
    defined = step.dropna(subset=["difference"])
    if defined.empty:
        return "not defined"
    if (defined["difference"] == 0).all():
        return f"no change in any of {len(defined)}"
    return f"mean {_change(defined['difference'].mean())}, better in {int(defined['improved'].sum())} of {len(defined)}"


@journal
def robustness(table: pd.DataFrame, metric: str, paper: pd.DataFrame | None = None, all_centers: Sequence[str] | None = None) -> Figure:
    """Every centre's own model on several divisions of the data: each value, mean ± SD and, where given, the paper's mean ± SD.

    Args:
        table: from `evaluation.generalization.robustness`; of one division no SD is drawn.
        paper: center (names as in `table`), value, std; None: nothing beside ours.
        all_centers: those of the task, which the colours go by.
    """
    centers = sorted(table["center"].unique())
    printed, styles = names(centers), center_style(centers, all_centers)
    figure = new_figure(max(89 * MM, min(DOUBLE, (34 + 22 * len(centers)) * MM)), 66 * MM)
    axis = figure.subplots()
    beside = paper.dropna(subset=["value"]).set_index("center") if paper is not None else pd.DataFrame(columns=["value", "std"])
    for place, center in enumerate(centers):
        rows = table[table["center"] == center].sort_values("split_id")
        values = rows["value"].dropna().to_numpy()
        style = styles[center]
        if not len(values):
            axis.text(place, 0.5, "not\ndefined", ha="center", va="center", fontsize=6, color=MUTED, transform=axis.get_xaxis_transform())
        spread = np.linspace(-0.26, -0.02, len(values)) if len(values) > 1 else np.full(len(values), -0.14)
        dots = {"marker": style["marker"], "linestyle": "none", "markersize": 3.2, "markeredgewidth": 0}
        axis.plot(place + spread, values, color=style["color"], alpha=0.55, **dots)
        _mean_and_sd(axis, place + 0.12, rows["mean"].iloc[0], rows["std"].iloc[0], color=style["color"], marker="_")
        if center in beside.index:
            _mean_and_sd(axis, place + 0.3, *beside.loc[center, ["value", "std"]], **PAPER)
    axis.set_xticks(range(len(centers)), [printed[center] for center in centers])
    axis.set(xlim=(-0.5, len(centers) - 0.5), xlabel="centre", ylabel=axis_label(metric, table))
    axis.tick_params(axis="x", length=0)
    grid(axis)
    entries = [Line2D([], [], linestyle="none", marker="o", color=MUTED, alpha=0.6, markersize=3.2, label="one division of the data")]
    if table["std"].notna().any():
        entries.append(Line2D([], [], color=MUTED, marker="_", markersize=8, markeredgewidth=1.6, label="mean ± SD"))
    if len(beside):
        entries.append(Line2D([], [], **PAPER, label="paper, mean ± SD"))
    figure.legend(handles=entries, loc="outside upper center", ncols=3)
    divisions = ", ".join(dict.fromkeys(table["split_id"]))
    size = table.groupby("center")["n"].agg(["min", "max"])
    shown = ", ".join(
        f"{printed[c]} {int(a)}" + (f"–{int(b)}" if b > a else "") for c, (a, b) in zip(size.index, size.to_numpy(), strict=True)
    )
    what = "Images" if table["unit"].iloc[0] in LENGTHS else f"{table['unit'].iloc[0].capitalize()}s"
    one = "" if table["std"].notna().any() else " One division, so no SD."
    footnote(figure, f"{what} in the test sets: {shown}. Divisions (share of training, seed): {divisions}.{one}")
    footnote(figure, undefined(table.assign(metric=metric), printed, "split_id", "all divisions"))
    return figure


def _mean_and_sd(axis: Axes, place: float, mean: float, sd: float, **style: Any) -> None:
    """A mean with a bar of one SD to each side; without a bar where there is no SD."""
    if pd.notna(sd):
        axis.plot([place, place], [mean - sd, mean + sd], color=style["color"], linewidth=1.1)
    size = {"markersize": 8, "markeredgewidth": 1.6} if style["marker"] == "_" else {}
    if pd.notna(sd) or style["marker"] != "_":
        axis.plot(place, mean, **style | size)


@journal
def subgroups(table: pd.DataFrame, metrics: Sequence[str] | None = None) -> Figure:
    """A model on groups of test patients with 95 % intervals; a panel a metric, a row a centre.

    Args:
        table: from `evaluation.generalization.subgroups`, one seed. A group without a value is named below with its reason.
        metrics: None: all there are, "auc" and "accuracy" first.
    Raises: ValueError: several seeds, or none of the metrics.
    """
    if table["seed"].nunique() > 1:
        raise ValueError(f"subgroups draws one seed, got {', '.join(map(str, sorted(table['seed'].dropna().unique())))}")
    order = ("auc", "accuracy", "sensitivity", "specificity")
    metrics = [name for name in (metrics or order) if (table["metric"] == name).any()]
    if not metrics:
        raise ValueError(f"the table has none of the metrics wanted, it has {', '.join(dict.fromkeys(table['metric'])) or 'no rows'}")
    if table.loc[table["metric"].isin(metrics), "value"].isna().all():
        reasons = "; ".join(dict.fromkeys(filter(None, table["reason"]))) or "no group has a value"
        return empty_figure(f"No subgroups here: {reasons}.")
    centers = [*sorted(set(table["center"]) - {ALL}), *([ALL] if (table["center"] == ALL).any() else [])]
    outside = set(table[table["split"] == "external"]["center"])
    printed = names(centers) | {ALL: "all centres"}
    titles = table.drop_duplicates("group", keep="last").set_index("group")["title"]
    groups = [group for group in GROUP_STYLE if group in titles.index]
    figure = new_figure(DOUBLE, (26 + 3.4 * len(groups) * len(centers)) * MM)
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for place, center in enumerate(centers):
            if place % 2:
                axis.axhspan(place - 0.5, place + 0.5, color="#F4F4F4", zorder=0)
            for group, shift in zip(groups, np.linspace(-0.27, 0.27, len(groups)) if len(groups) > 1 else [0], strict=True):
                rows = table[(table["center"] == center) & (table["group"] == group) & (table["metric"] == metric)]
                for row in rows.dropna(subset=["value"]).itertuples():
                    style = GROUP_STYLE[group]
                    axis.plot([row.low, row.high], [place + shift] * 2, color=style["color"], linewidth=1)
                    axis.plot(row.value, place + shift, linestyle="none", markersize=4, **style)
        axis.set(xlim=(-0.02, 1.02), xlabel=title(metric), ylim=(len(centers) - 0.5, -0.5))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.tick_params(axis="y", length=0)
        grid(axis, "x")
    axes[0].set_yticks(range(len(centers)), [f"{printed[c]}{' (external)' if c in outside else ''}" for c in centers])
    for group in groups:
        axes[0].plot([], [], linestyle="none", markersize=4, label=titles[group], **GROUP_STYLE[group])
    share_legend(figure, axes[0])
    n = table.groupby(["group", "center"])["n"].max()
    counts = [f"{titles[g]}: " + ", ".join(f"{printed[c]} {int(n[g, c])}" for c in centers if (g, c) in n.index) for g in groups]
    kinds = ", ".join(sorted({kind for kind in table["interval"] if kind}))
    bars = f"Bars: 95 % interval ({kinds}). " if kinds else ""
    pooled = table[table["center"] == ALL]
    apart = " An AUC is not pooled." if "auc" in metrics and len(pooled) and "auc" not in set(pooled["metric"]) else ""
    footnote(figure, f"{bars}Patients: {'; '.join(counts)}. Cutoffs: {_cutoffs(table)}.{apart}")
    footnote(figure, undefined(table.assign(group=table["title"]), printed, "group", "all groups"))
    return figure


def _cutoffs(table: pd.DataFrame) -> str:
    """Which sets they were chosen on, each whole, whatever the group."""
    kinds = {"val": "validation sets", "train": "training sets"}
    return f"of the whole {' and '.join(kinds[name] for name in kinds if (table['cutoff_from'] == name).any()) or 'training sets'}"
