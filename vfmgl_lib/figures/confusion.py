"""Confusion matrices: which class the samples of each class are taken for."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from vfmgl_lib.evaluation.generalization import OWN_SPLIT
from vfmgl_lib.figures.style import MM, REFERENCE, SEQUENTIAL, columns_for, footnote, heatmap, journal, names, panel_grid, write_in_panel
from vfmgl_lib.methods.registry import METHODS


@journal
def confusion_matrices(table: pd.DataFrame, classes: Sequence[str], method: str = REFERENCE, budget: str = "rounds") -> Figure:
    """A panel a centre: shares of a row, the samples of one class, with their numbers.

    Args:
        table: from `evaluation.confusion.confusion_table`, of one seed.
        classes: names, in the order of their numbers.
    Raises: ValueError: several seeds, or nothing of this method and budget.
    """
    rows = table[(table["method"] == method) & (table["budget"] == budget) & (table["split_id"] == OWN_SPLIT)]
    if rows.empty:
        raise ValueError(f"the table has nothing of {method!r} at budget {budget!r}, it has {', '.join(sorted(set(table['method'])))}")
    if rows["seed"].nunique() > 1:
        raise ValueError(f"confusion matrices are of one seed, got {', '.join(map(str, sorted(rows['seed'].unique())))}")
    centers, order = sorted(rows["center"].unique()), list(classes)
    printed, named = names(centers), names(order)
    per_row = min(columns_for(len(centers)), max(1, 12 // len(order)))
    width = 150 / per_row / len(order)  # of a field, mm
    figure, axes = panel_grid(len(centers), per_row=per_row, panel=(26 + 9 * len(order)) * MM, extra=14 * MM)
    for place, (axis, center) in enumerate(zip(axes, centers, strict=True)):
        here = rows[rows["center"] == center]
        axis.set_title(f"centre {printed[center]}")
        if here["count"].isna().any():
            write_in_panel(axis, f"not defined: {here['reason'].iloc[0]}")
            continue
        shares, counts = (here.pivot(index="true", columns="predicted", values=name).loc[order, order] for name in ("share", "count"))
        texts = (100 * shares).map("{:.0f} %\n".format) + counts.map("({:.0f})".format)
        shown = shares.rename(index=named, columns=named)
        texts = texts.rename(index=named, columns=named).mask(shown.notna() & (counts.to_numpy() == 0), "0")
        heatmap(axis, shown, SEQUENTIAL, (0, 1), texts, room=width, tilt=30)
        axis.set(xlabel="class called", ylabel="" if place % per_row else "class")
    unit = "Shares of the samples of a class; in brackets their numbers. Called is the class of the highest probability."
    lacking = rows[rows["share"].isna() & rows["count"].notna()].drop_duplicates(["center", "true"])
    absent = ", ".join(f"{named[row.true]} at {printed[row.center]}" for row in lacking.itertuples())
    footnote(figure, f"{METHODS[method].title}. {unit}" + f" No test sample: {absent}." * bool(absent))
    return figure
