"""Leads of a plan's contrasts with their limits (`tools.sweep.effects`): one figure a question."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vfmgl_lib.figures.style import DOUBLE, FAINT, MM, REFERENCE, footnote, journal, new_figure
from vfmgl_lib.methods.registry import METHODS

METRICS = {"auc": "AUC", "dice": "Dice"}
ROW, HEAD = 5.2 * MM, 19 * MM


@journal
def forest(effects: pd.DataFrame, asks: str, margins: Mapping[Any, float]) -> Figure:
    """A row a contrast and set: the lead, its 95 % limits, the range of small differences, and the numbers in words.

    Args:
        effects: rows of one question, in the order in which they are drawn from the top.
        asks: the question, the figure's title.
        margins: main metric -> the difference below which an effect is called small; drawn as a band.
    """
    rows = effects.reset_index(drop=True)
    places = _places(rows)
    figure = new_figure(DOUBLE, HEAD + ROW * (max(places) + 1.4))
    axis = figure.subplots()
    color = METHODS[REFERENCE].color
    for place, row in zip(places, rows.to_dict("records"), strict=True):
        margin = margins.get(row["metric"], 0)
        axis.fill_betweenx([place - 0.5, place + 0.5], -margin, margin, color=FAINT, alpha=0.55, linewidth=0, zorder=0)
        named = row["p_holm"] == row["p_holm"]
        axis.plot([row["low"], row["high"]], [place, place], color=color, linewidth=1.2, solid_capstyle="butt")
        axis.plot(row["lead"], place, "o", color=color, markerfacecolor=color if named else "white", markersize=4, zorder=3)
        axis.text(1.02, place, _numbers(row), transform=axis.get_yaxis_transform(), va="center", fontsize=6)
    axis.axvline(0, color="black", linewidth=0.7, zorder=1)
    axis.set_yticks(places, [row.contrast.replace(" - ", " \N{MINUS SIGN} ") for row in rows.itertuples()])
    axis.set_ylim(max(places) + 0.7, -0.7)
    _name_sets(axis, rows, places)
    reach = 1.08 * max(0.01, *rows[["lead", "low", "high"]].abs().max().fillna(0), *margins.values())
    axis.set_xlim(-reach, reach)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    there = [name for name in METRICS if (rows["metric"] == name).any()]
    axis.set_xlabel(f"lead of the first over the second ({' or '.join(METRICS[name] for name in there)})")
    axis.set_title(asks, loc="left")
    small = ", ".join(f"{METRICS[name]} {margins[name]:g}" for name in there if name in margins)
    footnote(
        figure,
        "Lines: 95 % limits for other runs and other centres; none with fewer than three of either. Filled: primary contrasts, whose p is "
        f"corrected by Holm; open: exploratory. Band: differences called small ({small}). Runs: done of planned.",
    )
    return figure


def _places(rows: pd.DataFrame) -> list[float]:
    """Heights, with half a row between two sets."""
    changes = (rows["set"] != rows["set"].shift()).cumsum() - 1
    return [float(number + 0.9 * (change + 1)) for number, change in enumerate(changes)]


def _name_sets(axis: Axes, rows: pd.DataFrame, places: list[float]) -> None:
    for number in rows.index[rows["set"] != rows["set"].shift()]:
        text = rows.loc[number, "set"].replace("_", " ")
        axis.text(0, places[number] - 0.9, text, transform=axis.get_yaxis_transform(), va="center", fontweight="bold", fontsize=6.5)


def _numbers(row: Mapping) -> str:
    runs = f"{row['runs']}/{row['planned']} runs"
    if row["lead"] != row["lead"]:
        return f"{row['verdict']}, {runs}"
    limits = f" ({row['low']:+.3f} to {row['high']:+.3f})" if row["low"] == row["low"] else ""
    return f"{row['lead']:+.3f}{limits}, {runs}".replace("-", "\N{MINUS SIGN}")
