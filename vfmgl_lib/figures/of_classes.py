"""A segmentation's Dice of each foreground class, where there are more than two classes."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from vfmgl_lib.evaluation.comparison import in_order
from vfmgl_lib.evaluation.results import ALL
from vfmgl_lib.figures.style import MM, SEQUENTIAL, columns_for, footnote, heatmap, journal, names, panel_grid
from vfmgl_lib.figures.words import seeds_there
from vfmgl_lib.methods.registry import METHODS

LONGEST = 14  # classes in a row of panels together, so that their numbers can be read


@journal
def dice_of_classes(table: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """A panel a centre: methods by foreground classes.

    Args:
        table: from `evaluation.of_classes.of_each_class`.
        classes: names, the background first.
    """
    rows, order = table[(table["metric"] == "dice") & (table["center"] != ALL)], list(classes[1:])
    methods, _ = in_order(rows["method"])
    centers, titles = sorted(rows["center"].unique()), {method: METHODS[method].title for method in methods}
    printed, named = names(centers), names(order)
    per_row = min(columns_for(len(centers)), max(1, LONGEST // len(order)))
    width = 110 / per_row / len(order)  # of a field, mm
    figure, axes = panel_grid(len(centers), per_row=per_row, panel=(24 + 5 * len(methods)) * MM, extra=10 * MM)
    for place, (axis, center) in enumerate(zip(axes, centers, strict=True)):
        values = rows[rows["center"] == center].pivot(index="method", columns="class", values="value").loc[methods, order]
        heatmap(axis, values.rename(index=titles, columns=named), SEQUENTIAL, (0, 1), room=width, tilt=30)
        axis.set(title=f"centre {printed[center]}", xlabel="", ylabel="")
        if place % per_row:
            axis.set_yticks([])
    rule = "A class that neither truth nor prediction has counts with 1 in its image."
    seeds = f" and over {seeds_there(rows)}" * int(rows["seeds"].max() > 1)
    footnote(figure, f"Dice, means over the images of each centre's test set{seeds}. {rule}")
    return figure
