"""The paper's numbers and ours side by side, from the table of `evaluation.paper`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vfmgl_lib.figures.style import DOUBLE, FAINT, MM, MUTED, SINGLE, empty_figure, footnote, grid, journal, new_figure, share_legend

PAPER: dict[str, Any] = {"marker": "D", "color": "#D55E00", "markersize": 4, "linestyle": "none"}
OURS: dict[str, Any] = {"marker": "o", "color": "#0072B2", "markersize": 4, "linestyle": "none"}
LEFT_OUT = ("t_test_p", "parameters", "flops", "memory_bytes_upper", "assd")  # not on a scale from -1 to 1
STATES = {"compared": "#009E73", "not comparable": "#E69F00", "not measurable here": "#8C8C8C"}


def names_of_rows(table: pd.DataFrame) -> list[str]:
    """What each row is about in a few words, e.g. "A, test, AUC"; the method where it is not VFMGL alone."""
    found = []
    for row in table.itertuples():
        method = "" if row.method == "VFMGL" else row.method
        found.append(
            ", ".join(filter(None, [row.center, row.split.replace("<=", " ≤ ").replace(">", " > "), method, _in_words(row.metric)]))
        )
    return found


def _in_words(metric: str) -> str:
    return " ".join({"auc": "AUC", "dice": "Dice", "eec": "EEC"}.get(word, word) for word in metric.split("_"))


@journal
def beside_paper(table: pd.DataFrame) -> Figure:
    """Every number of the paper with ours in one row; ours is hollow where the two are not of the same patients.

    Numbers that do not lie between -1 and 1 (p values, distances, parameters) are in the table only.

    Args:
        table: rows of one task and one set of data from `evaluation.paper.paper_rows`.
    """
    shown = table[~table["metric"].isin(LEFT_OUT)].reset_index(drop=True)
    if shown.empty:
        return empty_figure("Not in the paper: it prints no number of this task between -1 and 1.")
    figure = new_figure(DOUBLE, (26 + 3.6 * max(len(shown), 1)) * MM)
    axis = figure.subplots()
    for place, row in shown.iterrows():
        ends = [row["paper"], row["measured"]]
        axis.plot(ends, [place, place], color=FAINT, linewidth=1.5, zorder=1)
        spreads = [(row["paper"] - row["paper_std"], row["paper"] + row["paper_std"], -0.2, PAPER), (row["low"], row["high"], 0.2, OURS)]
        if np.isnan(row["low"]):
            spreads[1] = (row["measured"] - row["std"], row["measured"] + row["std"], 0.2, OURS)
        for low, high, beside, style in spreads:
            if np.isfinite(low):
                axis.plot([low, high], [place + beside] * 2, color=style["color"], linewidth=0.8, zorder=2)
        fill: dict[str, Any] = {} if row["status"] == "compared" else {"markerfacecolor": "white"}
        axis.plot(row["paper"], place, zorder=3, label="paper (line above: SD)" if place == 0 else None, **PAPER)
        axis.plot(row["measured"], place, zorder=4, **OURS, **fill)
        if np.isnan(row["measured"]):
            axis.text(1.01, place, "not measurable", va="center", fontsize=5.5, color=MUTED, transform=axis.get_yaxis_transform())
    axis.plot([], [], label="ours, of the same centres", **OURS)
    axis.plot([], [], label="ours, of other data", markerfacecolor="white", **OURS)
    axis.plot([], [], color=OURS["color"], linewidth=0.8, label="95 % interval of ours or, without one, SD")
    axis.set(yticks=range(len(shown)), yticklabels=names_of_rows(shown), ylim=(len(shown) - 0.4, -0.6))
    axis.tick_params(axis="y", labelsize=5.5, length=0)
    axis.set_xlabel("AUC, accuracy, Dice, sensitivity, specificity, similarity or their difference, as the row says")
    grid(axis, "x")
    share_legend(figure, axis)
    left = len(table) - len(shown)
    footnote(figure, f"{left} further numbers are on other scales and in the table only." if left else "")
    return figure


@journal
def states(counted: pd.DataFrame) -> Figure:
    """How many of the paper's numbers are compared, stand beside ours, or are not measurable, per task and data.

    Args:
        counted: from `evaluation.paper.headline`.
    """
    figure = new_figure(SINGLE, (22 + 6 * len(counted)) * MM)
    axis = figure.subplots()
    left = np.zeros(len(counted))
    for state, color in STATES.items():
        count = counted[state].to_numpy(dtype=float)
        axis.barh(range(len(counted)), count, left=left, color=color, label=state, height=0.7)
        for place, (start, length) in enumerate(zip(left, count, strict=True)):
            if length:
                axis.text(start + length / 2, place, f"{length:.0f}", ha="center", va="center", fontsize=6, color="black")
        left += count
    labels = counted["task"] + counted["data"].map(lambda data: f"\n{data}" if data else "")
    axis.set(yticks=range(len(counted)), yticklabels=labels, ylim=(len(counted) - 0.4, -0.6), xlabel="numbers in the paper")
    axis.tick_params(axis="y", labelsize=5.5, length=0)
    share_legend(figure, axis)
    return figure
