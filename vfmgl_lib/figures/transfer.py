"""What HGKT learns: losses over the steps, pair weights lambda, scores of the student's stages."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vfmgl_lib.figures.style import (
    ACCENT,
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    SEQUENTIAL,
    center_style,
    grid,
    journal,
    names,
    new_figure,
    panel_grid,
    share_legend,
    text_on,
    whole_numbers,
)

STEP_PANELS = {
    "task_loss": "task loss",
    "match_loss": "matching loss $\\mathcal{L}_{match}$",
    "outer_loss": "outer loss",
    "hypergradient_norm": "norm of the hypergradient",
}


def stage_one_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """The steps of stage I with `total_step`, counted from 1 through all rounds of a centre."""
    table = steps[steps["stage"] == "I"].sort_values(["center", "round", "step"], ignore_index=True)
    return table.assign(total_step=table.groupby("center").cumcount() + 1)


@journal
def losses(steps: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """Losses and hypergradient over the steps of stage I; a panel each, a line a centre, grey lines where a round ends.

    Args:
        steps: from `stage_one_steps`: center, round, total_step, task_loss, match_loss, outer_loss, hypergradient_norm.
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


def shown_rounds(rounds: Sequence[int]) -> list[int]:
    """First, middle and last of the rounds there are, without repeats."""
    rounds = sorted(set(rounds))
    return sorted({rounds[0], rounds[(len(rounds) - 1) // 2], rounds[-1]})


@journal
def pair_weights(stages: pd.DataFrame) -> Figure:
    """Mean lambda per teacher block and student stage in the first, middle and last round, on one colour scale.

    Robustness-critical stages, those frozen in stage II, are framed and named in bold with a star.

    Args:
        stages: rows of one centre: round, teacher_block, student_stage, pair_weight, critical.
    Raises: ValueError: for rows of several centres.
    """
    if stages["center"].nunique() != 1:
        raise ValueError(f"pair_weights draws one center, got {sorted(stages['center'].unique())}")
    blocks, columns = (list(dict.fromkeys(stages[c])) for c in ("teacher_block", "student_stage"))
    rounds = shown_rounds(stages["round"])
    shown = stages[stages["round"].isin(rounds)]
    low, high = shown["pair_weight"].min(), shown["pair_weight"].max()
    high = high if high > low else low + 1e-6
    cmap = matplotlib.colormaps[SEQUENTIAL]
    width = min(DOUBLE, (34 + 50 * len(rounds)) * MM)
    figure = new_figure(width, (24 + 9 * len(blocks)) * MM)
    axes = figure.subplots(1, len(rounds), sharey=True, squeeze=False)[0]
    for axis, number in zip(axes, rounds, strict=True):
        part = shown[shown["round"] == number]
        values = part.pivot(index="teacher_block", columns="student_stage", values="pair_weight").reindex(index=blocks, columns=columns)
        critical = part.groupby("student_stage")["critical"].max().reindex(columns) == 1
        picture = axis.imshow(values, cmap=cmap, vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(values.to_numpy()):
            color = text_on(cmap, (value - low) / (high - low))
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=color)
        for place in np.flatnonzero(critical):
            frame = Rectangle((place - 0.47, -0.47), 0.94, len(blocks) - 0.06, fill=False, edgecolor=ACCENT, linewidth=1.6)
            axis.add_patch(frame)
        axis.set_xticks(
            range(len(columns)), [f"★ {c}" if critical[c] else c for c in columns], rotation=35, ha="right", rotation_mode="anchor"
        )
        for label, marked in zip(axis.get_xticklabels(), critical, strict=True):
            label.set_weight("bold" if marked else "normal")
        axis.set_yticks(range(len(blocks)), blocks)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(f"round {number}")
    axes[0].set_ylabel("teacher")
    axes[len(axes) // 2].set_xlabel("student stage (★ and frame: robustness-critical)")
    figure.colorbar(picture, ax=list(axes), shrink=0.9, pad=0.02, label="mean $\\lambda$ (of 0 to 6)")
    return figure


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
    figure, axes = panel_grid(len(centers), sharex=True, sharey=True)
    for axis, center in zip(axes, centers, strict=True):
        for stage, color in zip(columns, shades, strict=True):
            line = scores[(scores["center"] == center) & (scores["student_stage"] == stage)].sort_values("round")
            axis.plot(line["round"], line["stage_score"], color=color, label=stage)
            frozen = line[line["critical"] == 1]
            axis.plot(line["round"], line["stage_score"], "o", color=color, markerfacecolor="white", markersize=4.5)
            axis.plot(frozen["round"], frozen["stage_score"], "o", color=color, markersize=4.5)
        axis.set(title=names(centers)[center], xlabel="round")
        whole_numbers(axis)
        grid(axis)
    axes[0].set_ylabel("stage score: mean $\\lambda$")
    axes[0].plot([], [], "o", color=MUTED, label="critical (frozen in stage II)")
    axes[0].plot([], [], "o", color=MUTED, markerfacecolor="white", label="free")
    share_legend(figure, axes[0], 4 if len(centers) == 1 else 8)
    return figure
