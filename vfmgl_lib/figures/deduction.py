"""What DDBL keeps and drops: KL against the task loss, share of batches kept, which batches to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.figures.style import DOUBLE, MM, MUTED, center_style, grid, journal, names, new_figure, panel_grid, whole_numbers

LIMIT = "#333333"  # the threshold: no centre has this colour
TINY = 1e-12  # a divergence of 0 or, by rounding, just under it has no place on a logarithmic axis


def stage_two_batches(steps: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """Every batch of stage II beside what it was held against.

    Args:
        steps, rounds: a study's tables.
    Returns: round, center, step, task_loss (of the batch), local_task_loss (l_task: mean of the round's stage I), divergence (KL),
        threshold (kappa * l_task), kept (0 or 1). Empty for a study of one round.
    """
    batches = steps[steps["stage"] == "II"]
    local = rounds.loc[rounds["stage"] == "I", ["round", "center", "task_loss"]].rename(columns={"task_loss": "local_task_loss"})
    columns = ["round", "center", "step", "task_loss", "local_task_loss", "divergence", "threshold", "kept"]
    return batches.merge(local, on=["round", "center"], how="left", validate="many_to_one").reindex(columns=columns)


@journal
def divergence_against_task_loss(batches: pd.DataFrame, keep_ratio: float, all_centers: Sequence[str] | None = None) -> Figure:
    """KL of every batch against l_task, with the line KL = kappa * l_task: what lies above it is dropped. A panel a centre.

    Args:
        batches: from `stage_two_batches`.
        keep_ratio: kappa, dimensionless.
    """
    if batches.empty:
        return _nothing("Stage II starts in round 2: with one round there is nothing to keep or drop.")
    centers = sorted(batches["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure, axes = panel_grid(len(centers), panel=50 * MM, extra=14 * MM, sharex=True, sharey=True)
    divergence = batches["divergence"].clip(lower=TINY)
    low, high = batches["local_task_loss"].min(), batches["local_task_loss"].max()
    pad = 0.12 * (high - low) or 0.1 * high
    x = np.array([max(low - pad, low / 2), high + pad])
    bottom, top = 0.4 * divergence.min(), 6 * max(divergence.max(), keep_ratio * x[1])
    for axis, center in zip(axes, centers, strict=True):
        axis.fill_between(x, keep_ratio * x, top, color=LIMIT, alpha=0.09, linewidth=0)
        axis.plot(x, keep_ratio * x, color=LIMIT, linewidth=1)
        rows = batches[batches["center"] == center]
        kept, dropped = rows[rows["kept"] == 1], rows[rows["kept"] == 0]
        style = {"color": styles[center]["color"], "linestyle": "none"}
        axis.plot(kept["local_task_loss"], kept["divergence"].clip(lower=TINY), "o", alpha=0.55, markeredgewidth=0, **style)
        axis.plot(dropped["local_task_loss"], dropped["divergence"].clip(lower=TINY), "x", markersize=4.5, **style)
        axis.set(xlim=x, ylim=(bottom, top), yscale="log", xlabel="local task loss $\\ell_{task}$")
        axis.set_title(f"{printed[center]}: {len(kept)} of {len(rows)} kept")
        grid(axis)
    for axis in axes[::4]:
        axis.set_ylabel("KL of the batch (nats)")
    entries = [
        Line2D([], [], marker="o", linestyle="none", color=MUTED, label="batch kept"),
        Line2D([], [], marker="x", linestyle="none", color=MUTED, label="batch dropped"),
        Line2D([], [], color=LIMIT, label=f"threshold: KL = {keep_ratio:g} $\\ell_{{task}}$"),
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
        return _nothing("Stage II starts in round 2: with one round there is nothing to keep or drop.")
    centers = sorted(table["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure = new_figure(120 * MM, 56 * MM)
    axis = figure.subplots()
    for place, center in enumerate(centers):
        line = table[table["center"] == center].sort_values("round")
        shift = 0.3 * ((place + 0.5) / len(centers) - 0.5)
        axis.plot(line["round"] + shift, 100 * line["kept_share"], label=printed[center], **styles[center])
    axis.set(xlabel="round (the first has no stage II)", ylabel="batches kept (%)", ylim=(-4, 104))
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
        return batches.assign(ratio=pd.Series(dtype=float), shown=pd.Series(dtype=str))
    ranked = batches.assign(ratio=batches["divergence"] / batches["threshold"]).sort_values("ratio")
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


def _nothing(text: str) -> Figure:
    """An empty figure that says why it is empty."""
    figure = new_figure(DOUBLE, 24 * MM)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color=MUTED, transform=axis.transAxes)
    return figure
