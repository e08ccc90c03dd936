"""What HGKT learns: losses over the steps, whether the projections fit, pair weights lambda and how far they moved, the stages' scores."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vfmgl_lib.evaluation.hgkt_tables import as_initialised
from vfmgl_lib.figures.style import (
    ACCENT,
    DIVERGING,
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    SEQUENTIAL,
    SINGLE,
    center_style,
    grid,
    heatmap,
    journal,
    names,
    new_figure,
    panel_grid,
    share_legend,
    whole_numbers,
)

STEP_PANELS = {
    "task_loss": "task loss",
    "match_loss": "matching loss $\\mathcal{L}_{match}$",
    "outer_loss": "outer loss",
    "hypergradient_norm": "norm of the hypergradient",
}


@journal
def losses(steps: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """Losses and hypergradient over the steps of stage I; a panel each, a line a centre, grey lines where a round ends.

    Args:
        steps: from `evaluation.hgkt_tables.stage_one_steps`.
    """
    styles, printed = center_style(steps["center"], all_centers), names(sorted(steps["center"].unique()))
    figure = new_figure(DOUBLE, 82 * MM)
    axes = figure.subplots(2, 2, sharex=True)
    ends = steps.groupby(["center", "round"])["total_step"].max()
    only = len(printed) == 1
    for axis, (column, title) in zip(axes.flat, STEP_PANELS.items(), strict=True):
        for end in ends.loc[ends.index[0][0]].iloc[:-1]:
            axis.axvline(end + 0.5, color=FAINT, linewidth=0.7, zorder=0)
        for center, line in steps.groupby("center"):
            line = line.dropna(subset=column)  # no outer loss where phi did not move (transfer.hypergradient_every)
            axis.plot(line["total_step"], line[column], color=styles[center]["color"], label=printed[center], marker=".", markersize=3)
        axis.set_title(title)
        whole_numbers(axis)
        grid(axis)
        if column == "hypergradient_norm" and steps[column].min() > 0 and steps[column].max() > 20 * steps[column].min():
            axis.set_yscale("log")
    for axis in axes[1]:
        axis.set_xlabel("step (batch) through all rounds" + (" · grey: a round ends" if only else ""))
    for axis in axes[:, 0]:
        axis.set_ylabel("loss")
    axes[0, 1].set_ylabel("loss")
    axes[1, 1].set_ylabel("norm")
    share_legend(figure, axes[0, 0])
    return figure


BALANCE_PANELS = {
    "match_to_task": "$\\mathcal{L}_{match}$ / task loss",
    "r2": "$R^2$, median pair and range",
    "moved": "movement of $\\lambda$ / spread",
}


@journal
def balances(table: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """The matching loss beside the task loss, R2 with its range over the pairs, and lambda's movement by its spread; a line a centre.

    Args:
        table: from `evaluation.hgkt_tables.balance`.
    """
    styles, printed = center_style(table["center"], all_centers), names(sorted(table["center"].unique()))
    figure, axes = panel_grid(len(BALANCE_PANELS))
    for axis, (column, title) in zip(axes, BALANCE_PANELS.items(), strict=True):
        for center, line in table.groupby("center"):
            color = styles[center]["color"]
            axis.plot(line["round"], line[column], color=color, label=printed[center], marker=".")
            if column == "r2":
                axis.fill_between(line["round"], line["r2_low"], line["r2_high"], color=color, alpha=0.15, linewidth=0)
        axis.axhline(0 if column == "r2" else 1, color=MUTED, linewidth=0.7, linestyle=":", zorder=0)
        axis.set(title=title, xlabel="round")
        whole_numbers(axis)
        grid(axis)
    if table["match_to_task"].max() > 20:
        axes[0].set_yscale("log")
    axes[0].set_ylabel("ratio")
    axes[1].set_ylabel("$R^2$")
    axes[2].set_ylabel("ratio")
    share_legend(figure, axes[0])
    return figure


@journal
def pair_fit(stages: pd.DataFrame) -> Figure:
    """R2 of the projections per teacher block and student stage after stage I of the first and the last round, coloured from 0 to 1.

    Args:
        stages: rows of one centre: round, teacher_block, student_stage, r2.
    """
    blocks, columns = (list(dict.fromkeys(stages[c])) for c in ("teacher_block", "student_stage"))
    rounds, size = sorted({stages["round"].min(), stages["round"].max()}), 6 if len(columns) < 5 else 5
    figure = new_figure(DOUBLE if len(rounds) > 1 else SINGLE, (26 + 9 * len(blocks)) * MM)
    axes = list(figure.subplots(1, len(rounds), sharey=True, squeeze=False)[0])
    for axis, number in zip(axes, rounds, strict=True):
        part = stages[stages["round"] == number].pivot(index="teacher_block", columns="student_stage", values="r2")
        picture = heatmap(axis, part.reindex(index=blocks, columns=columns), SEQUENTIAL, (0, 1), size=size)
        axis.set_title(f"round {number}")
    figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.02, label="$R^2$ (below 0: as 0)")
    axes[0].set_ylabel("teacher")
    axes[0].set_xlabel("student stage")
    return figure


@journal
def pair_weights(stages: pd.DataFrame) -> Figure:
    """Mean lambda per teacher block and student stage in the first and last round on one colour scale, and the change on its own.

    Robustness-critical stages, those frozen in stage II, are framed and named in bold with a star. A study of one round has one panel.

    Args:
        stages: rows of one centre: round, teacher_block, student_stage, pair_weight, critical.
    Raises: ValueError: for rows of several centres.
    """
    if stages["center"].nunique() != 1:
        raise ValueError(f"pair_weights draws one center, got {sorted(stages['center'].unique())}")
    blocks, columns = (list(dict.fromkeys(stages[c])) for c in ("teacher_block", "student_stage"))
    rounds, size = sorted({stages["round"].min(), stages["round"].max()}), 6 if len(columns) < 5 else 5
    tables = {}
    for number in rounds:
        part = stages[stages["round"] == number]
        table = part.pivot(index="teacher_block", columns="student_stage", values="pair_weight")
        critical = part.groupby("student_stage")["critical"].max().reindex(columns) == 1
        tables[number] = table.reindex(index=blocks, columns=columns), critical
    shown = stages.loc[stages["round"].isin(rounds), "pair_weight"]
    low, high = shown.min(), shown.max()
    high = high if high > low else low + 1e-6
    panels = 1 if len(rounds) == 1 else 3
    figure = new_figure(DOUBLE if panels > 1 else SINGLE, (26 + 9 * len(blocks)) * MM)
    axes = list(figure.subplots(1, panels, sharey=True, squeeze=False)[0])
    untouched = " (as initialised)" if panels > 1 and as_initialised(stages) else ""
    for axis, number in zip(axes, rounds, strict=False):
        table, critical = tables[number]
        picture = heatmap(axis, table, SEQUENTIAL, (low, high), size=size)
        _mark_critical(axis, critical, len(blocks))
        axis.set_title(f"round {number}{untouched}")
    figure.colorbar(picture, ax=axes[: len(rounds)], shrink=0.9, pad=0.02, label="mean $\\lambda$ (of 0 to 6)")
    if panels > 1:
        change = tables[rounds[-1]][0] - tables[rounds[0]][0]
        widest = max(change.abs().to_numpy().max(), 1e-6)
        decimals = int(np.clip(1 - np.floor(np.log10(widest)), 2, 4))
        picture = heatmap(axes[-1], change, DIVERGING, (-widest, widest), change.map(f"{{:+.{decimals}f}}".format), size=size)
        axes[-1].set_title(f"change, {rounds[0]} to {rounds[-1]}")
        figure.colorbar(picture, ax=axes[-1], shrink=0.9, pad=0.04, label="change of $\\lambda$")
    axes[0].set_ylabel("teacher")
    axes[0].set_xlabel("student stage (★ and frame: robustness-critical)")
    return figure


@journal
def trajectories(table: pd.DataFrame) -> Figure:
    """lambda of every pair over the rounds; a panel a teacher block, a line a student stage, an open circle where it starts.

    Args:
        table: from `evaluation.hgkt_tables.trajectory`, of one centre.
    Raises: ValueError: for rows of several centres.
    """
    if table["center"].nunique() != 1:
        raise ValueError(f"trajectories draws one center, got {sorted(table['center'].unique())}")
    blocks, stages = (list(dict.fromkeys(table[column])) for column in ("teacher_block", "student_stage"))
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(stages)))
    first, last = table["round"].min(), table["round"].max()
    figure, axes = panel_grid(len(blocks), sharex=True, sharey=True)
    for axis, block in zip(axes, blocks, strict=True):
        for stage, color in zip(stages, shades, strict=True):
            line = table[(table["teacher_block"] == block) & (table["student_stage"] == stage)].sort_values("round")
            axis.plot(line["round"], line["pair_weight"], color=color, label=stage, marker=".", markersize=3)
            axis.plot(first, line["pair_weight"].iloc[0], "o", color=color, markerfacecolor="white", markersize=5)
        axis.set(title=block, xlabel="round")
        axis.set_xticks(range(first, last + 1) if last - first < 10 else np.linspace(first, last, 4).round())
        grid(axis)
    axes[0].set_ylabel("mean $\\lambda$ (of 0 to 6)")
    start = "start: every pair at 1" if first == 0 else "first round"
    axes[0].plot([], [], "o", color=MUTED, markerfacecolor="white", markersize=5, label=start)
    share_legend(figure, axes[0])
    return figure


@journal
def chosen_stages(table: pd.DataFrame) -> Figure:
    """In how many runs each student stage was critical, round by round; coloured by their share.

    Args:
        table: from `evaluation.hgkt_tables.times_chosen`.
    """
    stages = list(dict.fromkeys(table["student_stage"]))
    share, counts = (
        table.pivot(index="student_stage", columns="round", values=name).reindex(stages).rename(columns=str) for name in ("share", "chosen")
    )
    figure = new_figure(SINGLE, (20 + 7 * len(stages)) * MM)
    axis = figure.subplots()
    texts = counts.map("{:.0f}".format) if share.shape[1] <= 12 else None
    picture = heatmap(axis, share, SEQUENTIAL, (0, 1), texts, size=6 if texts is not None else 0)
    axis.set_xticks(axis.get_xticks(), list(share), rotation=0, ha="center")  # numbers need no slant
    axis.set(title=f"runs, of {table['runs'].max()}, in which a stage was critical", xlabel="round", ylabel="student stage")
    figure.colorbar(picture, ax=axis, pad=0.03, label="share of the runs")
    return figure


def _mark_critical(axis: Axes, critical: Sequence[bool], blocks: int) -> None:
    """Frames of the robustness-critical stages; their names in bold with a star."""
    for place in np.flatnonzero(critical):
        axis.add_patch(Rectangle((place + 0.03, 0.03), 0.94, blocks - 0.06, fill=False, edgecolor=ACCENT, linewidth=1.6))
    labels = [label.get_text() for label in axis.get_xticklabels()]
    axis.set_xticklabels([f"★ {name}" if marked else name for name, marked in zip(labels, critical, strict=True)])
    for label, marked in zip(axis.get_xticklabels(), critical, strict=True):
        label.set_fontweight("bold" if marked else "normal")


@journal
def stage_scores(stages: pd.DataFrame) -> Figure:
    """Score of every student stage over the rounds, a panel a centre; filled where the stage was critical (frozen in stage II).

    Args:
        stages: center, round, student_stage, stage_score, critical.
    """
    scores = stages.drop_duplicates(["center", "round", "student_stage"])
    columns = list(dict.fromkeys(scores["student_stage"]))
    shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.85, len(columns)))
    centers = sorted(scores["center"].unique())
    printed = names(centers)
    figure, axes = panel_grid(len(centers), sharex=True, sharey=True)
    first, last = scores["round"].min(), scores["round"].max()
    gap = 0.11 * (scores["stage_score"].max() - scores["stage_score"].min())
    for axis, center in zip(axes, centers, strict=True):
        here = scores[scores["center"] == center]
        ends = here[here["round"] == here["round"].max()].set_index("student_stage")["stage_score"]
        places = _apart(ends, gap)
        for stage, color in zip(columns, shades, strict=True):
            line = here[here["student_stage"] == stage].sort_values("round")
            axis.plot(line["round"], line["stage_score"], color=color, label="_line")
            frozen = line[line["critical"] == 1]
            axis.plot(line["round"], line["stage_score"], "o", color=color, markerfacecolor="white", markersize=4.5)
            axis.plot(frozen["round"], frozen["stage_score"], "o", color=color, markersize=4.5)
            axis.annotate(
                stage,
                (last, places[stage]),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=6,
                color=color,
                annotation_clip=False,
            )
        axis.set(title=f"centre {printed[center]}", xlabel="round")
        # A name takes about a third of a narrow panel, which lies to the right of the last round.
        axis.set_xlim(first - 0.3, last + 0.3 + (0.12 if len(centers) == 1 else 0.45) * (last - first + 0.6))
        axis.set_xticks(sorted(scores["round"].unique()) if last - first < 6 else np.linspace(first, last, 4).round())
        grid(axis)
    axes[0].set_ylabel("stage score: mean $\\lambda$")
    axes[0].plot([], [], "o", color=MUTED, label="critical (frozen in stage II)")
    axes[0].plot([], [], "o", color=MUTED, markerfacecolor="white", label="free")
    share_legend(figure, axes[0])
    return figure


def _apart(values: pd.Series, gap: float) -> pd.Series:
    """Heights of labels at these values, neighbours pushed apart up and down until they are about `gap` apart."""
    placed = values.sort_values()
    heights = placed.to_numpy(copy=True)
    for _ in range(100):
        lack = np.maximum(gap - np.diff(heights), 0) / 2
        heights[1:] += lack
        heights[:-1] -= lack
    return pd.Series(heights, placed.index)
