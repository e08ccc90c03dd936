"""What DDBL keeps and drops: KL against its threshold, share of batches kept, which batches to look at."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.figures.style import MM, MUTED, center_style, grid, journal, names, new_figure, nothing, panel_grid, whole_numbers

LIMIT = "#333333"  # the threshold: no centre has this colour
TINY = 1e-12  # a divergence of 0 or, by rounding, just under it has no place on a logarithmic axis


def stage_two_batches(steps: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """Every batch of stage II beside what it was held against.

    Args:
        steps, rounds: a study's tables.
    Returns: round, center, step, task_loss (of the batch), local_task_loss (l_task: mean of the round's stage I), divergence (KL),
        threshold (kappa * l_task), ratio (divergence / threshold), kept (0 or 1). Empty for a study of one round.
    """
    batches = steps[steps["stage"] == "II"]
    local = rounds.loc[rounds["stage"] == "I", ["round", "center", "task_loss"]].rename(columns={"task_loss": "local_task_loss"})
    columns = ["round", "center", "step", "task_loss", "local_task_loss", "divergence", "threshold", "ratio", "kept"]
    merged = batches.merge(local, on=["round", "center"], how="left", validate="many_to_one")
    return merged.assign(ratio=merged["divergence"] / merged["threshold"]).reindex(columns=columns)


@journal
def divergence_over_threshold(batches: pd.DataFrame, keep_ratio: float, all_centers: Sequence[str] | None = None) -> Figure:
    """KL / threshold of every batch over the rounds, logarithmic: what lies above 1 is dropped. A panel a centre.

    Args:
        batches: from `stage_two_batches`; the batches of a round are drawn side by side, in the order of their steps.
        keep_ratio: kappa, dimensionless.
    """
    if batches.empty:
        return nothing("Stage II starts in round 2: with one round there is nothing to keep or drop.")
    centers = sorted(batches["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure, axes = panel_grid(len(centers), panel=50 * MM, extra=14 * MM, sharex=True, sharey=True)
    steps = batches.groupby(["center", "round"])["step"]
    spread = 0.6 * ((batches["step"] - steps.transform("min") + 0.5) / (steps.transform("max") - steps.transform("min") + 1) - 0.5)
    drawn = batches.assign(ratio=batches["ratio"].clip(lower=TINY), place=batches["round"] + spread)
    bottom, top = 0.4 * min(drawn["ratio"].min(), 1), 5 * max(drawn["ratio"].max(), 1)
    for axis, center in zip(axes, centers, strict=True):
        axis.axhspan(1, top, color=LIMIT, alpha=0.09, linewidth=0)
        axis.axhline(1, color=LIMIT, linewidth=1)
        rows = drawn[drawn["center"] == center]
        kept, dropped = rows[rows["kept"] == 1], rows[rows["kept"] == 0]
        style = {"color": styles[center]["color"], "linestyle": "none"}
        axis.plot(kept["place"], kept["ratio"], "o", alpha=0.55, markeredgewidth=0, **style)
        axis.plot(dropped["place"], dropped["ratio"], "x", markersize=4.5, **style)
        axis.set(ylim=(bottom, top), yscale="log", xlabel="round (the first has no stage II)")
        axis.set_xlim(batches["round"].min() - 0.5, batches["round"].max() + 0.5)
        axis.set_title(f"centre {printed[center]}: {len(kept)} of {len(rows)} kept")
        whole_numbers(axis)
        grid(axis)
    for axis in axes[::4]:
        axis.set_ylabel("KL of the batch / threshold")
    entries = [
        Line2D([], [], marker="o", linestyle="none", color=MUTED, label="batch kept"),
        Line2D([], [], marker="x", linestyle="none", color=MUTED, label="batch dropped"),
        Line2D([], [], color=LIMIT, label=f"threshold: KL = {keep_ratio:g} $\\ell_{{task}}$; shaded: dropped"),
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
        return nothing("Stage II starts in round 2: with one round there is nothing to keep or drop.")
    centers = sorted(table["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure = new_figure(120 * MM, 56 * MM)
    axis = figure.subplots()
    for place, center in enumerate(centers):
        line = table[table["center"] == center].sort_values("round")
        shift = 0.3 * ((place + 0.5) / len(centers) - 0.5)
        axis.plot(line["round"] + shift, 100 * line["kept_share"], label=printed[center], **styles[center])
    axis.set(xlabel="round (the first has no stage II)", ylabel="batches kept (%)", ylim=(-3, 103))
    axis.set_xlim(table["round"].min() - 0.5, table["round"].max() + 0.5)
    whole_numbers(axis)
    grid(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", title="centre")
    return figure


def telling_batches(batches: pd.DataFrame) -> pd.DataFrame:
    """The batch furthest under and the batch furthest over the threshold, by KL / threshold: two rows, with `shown` saying what each is.

    Where nothing was dropped the second is the kept batch nearest to the threshold, and `shown` says that.
    """
    if batches.empty:
        return batches.assign(shown=pd.Series(dtype=str))
    ranked = batches.sort_values("ratio")
    kept = ranked[ranked["kept"] == 1]
    dropped = ranked[ranked["kept"] == 0]
    rows = []
    if len(kept):
        rows.append(kept.head(1).assign(shown="kept, lowest KL"))
    if len(dropped):
        rows.append(dropped.tail(1).assign(shown="dropped, highest KL"))
    elif len(kept) > 1:
        rows.append(kept.tail(1).assign(shown="highest KL, kept as well"))
    return pd.concat(rows, ignore_index=True)


def what_happened(batches: pd.DataFrame) -> str:
    """In one or two sentences: how many batches were dropped, and how far the median batch is from its threshold.

    Args:
        batches: from `stage_two_batches`.
    """
    if batches.empty:
        return "Stage II starts in round 2: this run has no batch to keep or drop."
    dropped = int((batches["kept"] == 0).sum())
    median = f"The median of KL / threshold is {batches['ratio'].median():.2g}."
    if not dropped:
        return f"No batch was dropped: this run does not exercise DDBL's selection. {median}"
    return f"{dropped} of {len(batches)} batches were dropped. {median}"
