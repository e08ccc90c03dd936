"""What the methods outline on the same images, beside the truth (paper: Supp. Figs. 14 and 15)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.evaluation.comparison import in_order
from vfmgl_lib.evaluation.samples import MEAN
from vfmgl_lib.figures.mask_colors import CASING, DASHES, class_entries, has_classes, outline, outline_classes
from vfmgl_lib.figures.style import DOUBLE, MM, MUTED, REFERENCE, bare, footnote, journal, names, new_figure
from vfmgl_lib.methods.registry import METHODS

PER_ROW = 6
TRUTH, PREDICTED = "#FFD400", "#00D5FF"  # seen on grey slices and on stained tissue; in grey print the dashes tell them apart
LABEL = 16 * MM  # room for the words at a row, inches


@journal
def overlays(table: pd.DataFrame, methods: Sequence[str] | None = None, classes: Sequence[str] = ()) -> Figure:
    """Contours of truth and prediction of every method on the same images, which are the rows; Dice in the corner.

    More than six methods go on in further lines. Each row is cut to what is outlined in it by anyone, with a margin. Of more than two
    classes each has its colour, and dashes tell the truth from the prediction.

    Args:
        table: from `evaluation.samples.overlay_table`.
        methods: those drawn; None: all there are.
        classes: names, the background first: for the legend of more than two.
    """
    several = has_classes(table["truth"])
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
            _draw(axis, first["truth"][window], TRUTH, dashed=True)
            if method not in here.index:
                _caption(axis, "no prediction")
                continue
            row = here.loc[method]
            if row["mask"] is None:
                _caption(axis, f"mask not kept\n{row['dice']:.2f}")
                continue
            _draw(axis, row["mask"][window], PREDICTED, dashed=False)
            _caption(axis, ("" if row["mask"].any() else "nothing found\n") + f"{row['dice']:.2f}")
        for axis in panels:
            axis.set_axis_off()
    colors = (MUTED, MUTED) if several else (TRUTH, PREDICTED)
    entries = [
        Line2D([], [], color=colors[0], linestyle=DASHES, linewidth=0.9, path_effects=CASING, label="truth"),
        Line2D([], [], color=colors[1], linewidth=0.9, path_effects=CASING, label="prediction"),
    ]
    entries += class_entries(classes) if several else []
    figure.legend(handles=entries, loc="outside upper center", ncols=min(len(entries), 6))
    rule = "by the mean of the methods' Dice" if by == MEAN else f"by the Dice of {METHODS[by].title}"
    cut = f"Cut to what is outlined; Dice is of the whole image{', the mean over the foreground classes' * several}."
    footnote(figure, f"Best, median and worst test image with foreground, chosen {rule}. {cut} {absent}")
    return figure


def _window(masks: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """A square around all foreground with a margin, at least two fifths of the image."""
    everything = np.logical_or.reduce([mask > 0 for mask in masks])
    side = everything.shape[0]
    if not everything.any():
        return slice(None), slice(None)
    spans = [np.flatnonzero(everything.any(axis=axis))[[0, -1]] for axis in (1, 0)]
    length = int(min(side, max(0.4 * side, *(1.3 * (end - start + 1) for start, end in spans))))
    starts = [int(np.clip((start + end + 1 - length) // 2, 0, side - length)) for start, end in spans]
    return slice(starts[0], starts[0] + length), slice(starts[1], starts[1] + length)


def _draw(axis: Axes, mask: np.ndarray, color: str, *, dashed: bool) -> None:
    if mask.dtype == bool:
        outline(axis, mask, color, dashed=dashed)
    else:
        outline_classes(axis, mask, dashed=dashed)


def _caption(axis: Axes, text: str) -> None:
    box = {"boxstyle": "round,pad=0.2", "facecolor": "black", "edgecolor": "none", "alpha": 0.65}
    axis.text(0.04, 0.05, text, transform=axis.transAxes, color="white", fontsize=5.5, bbox=box, zorder=5)
