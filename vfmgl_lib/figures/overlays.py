"""What the methods outline on the same images, beside the truth (paper: Supp. Figs. 14 and 15)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.evaluation.comparison import in_order
from vfmgl_lib.evaluation.samples import MEAN
from vfmgl_lib.figures.style import DOUBLE, MM, REFERENCE, bare, footnote, journal, names, new_figure
from vfmgl_lib.methods.registry import METHODS

PER_ROW = 6
TRUTH, PREDICTED = "#FFD400", "#00D5FF"  # seen on grey slices and on stained tissue; in grey print the dashes tell them apart
CASING = [effects.Stroke(linewidth=1.2, foreground="black"), effects.Normal()]
LABEL = 16 * MM  # room for the words at a row, inches


@journal
def overlays(table: pd.DataFrame, methods: Sequence[str] | None = None) -> Figure:
    """Contours of truth and prediction of every method on the same images, which are the rows; Dice in the corner.

    More than six methods go on in further lines. Each row is cut to what is outlined in it by anyone, with a margin.

    Args:
        table: from `evaluation.samples.overlay_table`.
        methods: those drawn; None: all there are.
    """
    drawn, absent = in_order(table["method"], methods)
    rows = [(shown, group.set_index("method")) for shown, group in table.groupby("shown", sort=False)]
    printed = names(sorted(table["center"].unique()))
    lines = math.ceil((len(drawn) + 1) / (PER_ROW + 1))
    columns = math.ceil((len(drawn) + 1) / lines)
    cell = min(30 * MM, (DOUBLE - LABEL) / columns)
    figure = new_figure(columns * cell + LABEL, len(rows) * lines * (cell + 2.5 * MM) + 14 * MM, layout="compressed")
    axes = figure.subplots(len(rows) * lines, columns, squeeze=False)
    for axis in axes.flat:
        bare(axis)
    by = table["by"].iloc[0]
    kind = "mean Dice" if by == MEAN else "Dice"
    for place, (shown, here) in enumerate(rows):
        first = here.iloc[0]
        window = _window([first["truth"], *(mask for mask in here["mask"] if mask is not None)])
        panels = iter(axes[place * lines : (place + 1) * lines].flat)
        axis = next(panels)
        axis.imshow(first["image"][window], vmin=0, vmax=1, interpolation="nearest")
        axis.set_title("image" if place == 0 else "", fontsize=6, weight="normal")
        label = f"{shown}\n{printed[first['center']]}\n{kind} {first['score']:.2f}"
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=6.5, labelpad=4)
        for axis, method in zip(panels, drawn, strict=False):
            weight = "bold" if method == REFERENCE else "normal"
            axis.set_title(textwrap.fill(METHODS[method].title, 13) if place == 0 else "", fontsize=6, weight=weight)
            axis.imshow(first["image"][window], vmin=0, vmax=1, interpolation="nearest")
            _outline(axis, first["truth"][window], TRUTH, dashed=True)
            if method not in here.index:
                _caption(axis, "no prediction")
                continue
            row = here.loc[method]
            if row["mask"] is None:
                _caption(axis, f"mask not kept\n{row['dice']:.2f}")
                continue
            _outline(axis, row["mask"][window], PREDICTED, dashed=False)
            _caption(axis, ("" if row["mask"].any() else "nothing found\n") + f"{row['dice']:.2f}")
        for axis in panels:
            axis.set_axis_off()
    entries = [
        Line2D([], [], color=TRUTH, linestyle=(0, (2.5, 1)), linewidth=0.9, path_effects=CASING, label="truth"),
        Line2D([], [], color=PREDICTED, linewidth=0.9, path_effects=CASING, label="prediction"),
    ]
    figure.legend(handles=entries, loc="outside upper center", ncols=2)
    rule = "by the mean of the methods' Dice" if by == MEAN else f"by the Dice of {METHODS[by].title}"
    cut = "Cut to what is outlined; Dice is of the whole image."
    footnote(figure, f"Best, median and worst test image with foreground, chosen {rule}. {cut} {absent}")
    return figure


def _window(masks: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """A square around all foreground with a margin, at least two fifths of the image."""
    everything = np.logical_or.reduce(masks)
    side = everything.shape[0]
    if not everything.any():
        return slice(None), slice(None)
    spans = [np.flatnonzero(everything.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    length = int(min(side, max(0.4 * side, *(1.3 * (end - start + 1) for start, end in spans))))
    starts = [int(np.clip((start + end + 1 - length) // 2, 0, side - length)) for start, end in spans]
    return slice(starts[0], starts[0] + length), slice(starts[1], starts[1] + length)


def _outline(axis: Axes, mask: np.ndarray, color: str, *, dashed: bool) -> None:
    """The border of a mask, over a dark casing where it is solid; a mask that is empty or full has none."""
    if mask.any() and not mask.all():
        style = (0, (2.5, 1)) if dashed else "solid"
        lines = axis.contour(mask, levels=[0.5], colors=color, linewidths=0.65, linestyles=[style], zorder=3 if dashed else 2)
        lines.set_path_effects(CASING)


def _caption(axis: Axes, text: str) -> None:
    box = {"boxstyle": "round,pad=0.2", "facecolor": "black", "edgecolor": "none", "alpha": 0.65}
    axis.text(0.04, 0.05, text, transform=axis.transAxes, color="white", fontsize=5.5, bbox=box, zorder=5)
