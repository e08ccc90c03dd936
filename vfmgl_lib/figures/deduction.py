"""What DDBL keeps and drops, what the KL pulls beside the task, and what the shared model that teaches is worth at a centre."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.evaluation.ddbl_artefacts import ALL
from vfmgl_lib.evaluation.ddbl_tables import taught
from vfmgl_lib.figures.style import (
    DOUBLE,
    MM,
    MUTED,
    center_style,
    empty_figure,
    grid,
    journal,
    names,
    new_figure,
    panel_grid,
    whole_numbers,
)

LIMIT = "#333333"  # the threshold: no centre has this colour
TINY = 1e-12  # a divergence of 0 or, by rounding, just under it has no place on a logarithmic axis
FROM_ROUND_TWO = "Stage II starts in round 2: with one round there is nothing to keep or drop."


@journal
def divergence_over_threshold(batches: pd.DataFrame, rule: str, all_centers: Sequence[str] | None = None) -> Figure:
    """KL / threshold of every batch over the rounds, logarithmic: what lies above 1 is dropped. A panel a centre.

    Args:
        batches: from `evaluation.ddbl_tables.stage_two_batches`; those of a round are drawn side by side, in the order of their steps.
        rule: of `evaluation.ddbl_tables.rule_in_words`.
    """
    if batches.empty:
        return empty_figure(FROM_ROUND_TWO)
    centers = sorted(batches["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure, axes = panel_grid(len(centers), panel=50 * MM, extra=14 * MM, sharex=True, sharey=True)
    drawn = batches.assign(ratio=batches["ratio"].clip(lower=TINY), place=_side_by_side(batches))
    bottom, top = 0.4 * min(drawn["ratio"].min(), 1), 5 * max(drawn["ratio"].max(), 1)
    for axis, center in zip(axes, centers, strict=True):
        axis.axhspan(1, top, color=LIMIT, alpha=0.09, linewidth=0)
        axis.axhline(1, color=LIMIT, linewidth=1)
        rows = drawn[drawn["center"] == center]
        kept, dropped = rows[rows["kept"] == 1], rows[rows["kept"] == 0]
        style = {"color": styles[center]["color"], "linestyle": "none"}
        axis.plot(kept["place"], kept["ratio"], "o", alpha=0.55, markeredgewidth=0, **style)
        axis.plot(dropped["place"], dropped["ratio"], "x", markersize=4.5, **style)
        axis.set(ylim=(bottom, top), yscale="log")
        axis.set_title(f"centre {printed[center]}: {len(kept)} of {len(rows)} kept")
        _round_axis(axis, batches)
    for axis in axes[::4]:
        axis.set_ylabel("KL of the batch / threshold")
    entries = [
        Line2D([], [], marker="o", linestyle="none", color=MUTED, label="batch kept"),
        Line2D([], [], marker="x", linestyle="none", color=MUTED, label="batch dropped"),
        Line2D([], [], color=LIMIT, label=f"threshold: {rule}; shaded: dropped"),
    ]
    figure.legend(handles=entries, loc="outside upper center", ncols=3)
    return figure


@journal
def kept_share(rounds: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """Share of batches kept in stage II over the rounds, a line a centre; equal values are drawn side by side.

    Args:
        rounds: a study's table: round, center, stage, kept_share (0 to 1).
    """
    table = rounds[rounds["stage"] == "II"]
    if table.empty:
        return empty_figure(FROM_ROUND_TWO)
    centers = sorted(table["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure = new_figure(120 * MM, 56 * MM)
    axis = figure.subplots()
    for place, center in enumerate(centers):
        line = table[table["center"] == center].sort_values("round")
        shift = 0.3 * ((place + 0.5) / len(centers) - 0.5)
        axis.plot(line["round"] + shift, 100 * line["kept_share"], label=printed[center], **styles[center])
    axis.set(ylabel="batches kept (%)", ylim=(-3, 103))
    _round_axis(axis, table)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", title="centre")
    return figure


@journal
def gradient_ratios(batches: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """|grad KL| / |grad task| of the batches at which it was measured, over the rounds, logarithmic. A panel a centre.

    Args:
        batches: from `evaluation.ddbl_tables.stage_two_batches`.
    """
    if batches.empty:
        return empty_figure(FROM_ROUND_TWO)
    measured = batches.assign(place=_side_by_side(batches)).query("gradient_ratio > 0")
    if measured.empty:
        return empty_figure("The gradients were not measured: deduction.gradient_every is 0.")
    centers = sorted(batches["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure, axes = panel_grid(len(centers), panel=50 * MM, extra=14 * MM, sharex=True, sharey=True)
    for axis, center in zip(axes, centers, strict=True):
        rows = measured[measured["center"] == center]
        axis.axhline(1, color=LIMIT, linewidth=1)
        axis.plot(rows["place"], rows["gradient_ratio"], linestyle="none", alpha=0.7, markeredgewidth=0, **styles[center])
        axis.set(yscale="log", ylim=(0.5 * min(measured["gradient_ratio"].min(), 1), 2 * max(measured["gradient_ratio"].max(), 1)))
        axis.set_title(f"centre {printed[center]}: median {rows['gradient_ratio'].median():.2g}")
        _round_axis(axis, batches)
    for axis in axes[::4]:
        axis.set_ylabel("|∇KL| / |∇task loss|")
    entries = [Line2D([], [], color=LIMIT, label="the KL pulls as hard as the task, on the tensors that it reaches")]
    figure.legend(handles=entries, loc="outside upper center")
    return figure


@journal
def teacher_worth(rounds: pd.DataFrame, score: str, all_centers: Sequence[str] | None = None) -> Figure:
    """Task loss and score of the shared model that teaches, over the rounds, against the untrained student's (dashed); a colour a centre.

    Args:
        rounds: a study's table.
        score: what the score is, e.g. "Dice of the foreground".
    """
    table = taught(rounds)
    if table.empty:
        return empty_figure("No round in which the teacher of stage II was measured.")
    centers = sorted(table["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure = new_figure(DOUBLE, 58 * MM)
    axes = figure.subplots(1, 2)
    for axis, (column, label) in zip(axes, (("task_loss", "task loss"), ("score", score)), strict=True):
        for center in centers:
            line = table[table["center"] == center].sort_values("round")
            axis.plot(line["round"], line[f"shared_{column}"], label=printed[center], **styles[center])
            axis.axhline(line[f"untrained_{column}"].iloc[0], color=styles[center]["color"], linestyle="dashed", linewidth=0.8)
        axis.set(ylabel=f"{label}, training images")
        _round_axis(axis, table)
    axes[1].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color=MUTED, linestyle="dashed", label="untrained student"))
    figure.legend(handles, [*labels, "untrained student"], loc="outside upper center", ncols=min(len(handles), 6))
    return figure


@journal
def artefact_shares(found: pd.DataFrame, sentence: str, all_centers: Sequence[str] | None = None) -> Figure:
    """Share of images with an artefact in kept and in dropped batches, and the difference with its 95 % limits; a row a centre and all.

    Args:
        found: from `evaluation.ddbl_artefacts.dropped_and_kept`; without rows the figure says why.
        sentence: of `evaluation.ddbl_artefacts.what_was_dropped`.
    """
    if found.empty:
        return empty_figure(sentence)
    centers = [center for center in found["center"] if center != ALL]
    styles, printed = center_style(centers, all_centers), names(centers)
    figure = new_figure(DOUBLE, (22 + 7 * len(found)) * MM)
    shares, differences = figure.subplots(1, 2, sharey=True)
    for place, row in enumerate(found.to_dict("records")):
        style = {"color": styles[row["center"]]["color"] if row["center"] in styles else LIMIT, "linestyle": "none"}
        shares.plot(100 * row["share_kept"], place, "o", **style)
        shares.plot(100 * row["share_dropped"], place, "x", markersize=4.5, **style)
        differences.plot(100 * row["difference"], place, "D", **style)
        differences.plot([100 * row["low"], 100 * row["high"]], [place, place], color=style["color"])
        told = f"{row['dropped']} of {row['dropped'] + row['kept']} dropped"
        differences.text(1.02, place, told, transform=differences.get_yaxis_transform(), va="center", fontsize=6)
    kinds = {row.center: f"{printed[row.center]}: {row.kind or 'none'}" for row in found.itertuples() if row.center in printed}
    shares.set_yticks(range(len(found)), [kinds.get(center, center) for center in found["center"]])
    shares.set(ylim=(len(found) - 0.5, -0.5), xlabel="images with an artefact, mean over batches (%)")
    shares.set_xlim(left=0)
    differences.axvline(0, color=LIMIT, linewidth=0.7)
    differences.set(xlabel="dropped less kept (percentage points), 95 % limits")
    for axis in (shares, differences):
        grid(axis, "x")
    entries = [Line2D([], [], marker="o", linestyle="none", color=MUTED, label="kept batches")]
    entries.append(Line2D([], [], marker="x", linestyle="none", color=MUTED, label="dropped batches"))
    figure.legend(handles=entries, loc="outside upper center", ncols=2)
    return figure


def _side_by_side(batches: pd.DataFrame) -> pd.Series:
    """Places of batches on the round axis, those of a round in the order of their steps."""
    steps = batches.groupby(["center", "round"])["step"]
    spread = (batches["step"] - steps.transform("min") + 0.5) / (steps.transform("max") - steps.transform("min") + 1) - 0.5
    return batches["round"] + 0.6 * spread


def _round_axis(axis: Axes, table: pd.DataFrame) -> None:
    axis.set(xlabel="round (the first has no stage II)", xlim=(table["round"].min() - 0.5, table["round"].max() + 0.5))
    whole_numbers(axis)
    grid(axis)
