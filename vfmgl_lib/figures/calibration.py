"""Reliability diagrams: whether a model's probabilities come true."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from vfmgl_lib.evaluation.comparison import in_order
from vfmgl_lib.evaluation.generalization import OWN_SPLIT
from vfmgl_lib.figures.comparison import PAPER_METHODS
from vfmgl_lib.figures.style import (
    FAINT,
    MM,
    MUTED,
    REFERENCE,
    columns_of,
    footnote,
    journal,
    method_style,
    names,
    panel_grid,
    share_legend,
    write_in_panel,
)
from vfmgl_lib.figures.words import undefined
from vfmgl_lib.methods.registry import METHODS


@journal
def reliability_diagrams(table: pd.DataFrame, methods: Sequence[str] = PAPER_METHODS, budget: str = "rounds") -> Figure:
    """Share of positives over the mean predicted probability of each bin, a panel a centre; on the diagonal probabilities come true.

    The reference has bars, 95 % intervals, and the sizes of its bins below; the other methods have lines alone.

    Args:
        table: from `evaluation.curves.reliability`, of one seed.
        methods: those drawn; None: all there are.
    Raises: ValueError: several seeds.
    """
    table = table[(table["budget"] == budget) & (table["split_id"] == OWN_SPLIT)]
    if table["seed"].nunique() > 1:
        raise ValueError(f"a reliability diagram is of one seed, got {', '.join(map(str, sorted(table['seed'].unique())))}")
    drawn, absent = in_order(table["method"], methods)
    centers = sorted(table["center"].unique())
    printed, styles = names(centers), method_style(drawn)
    per_row = columns_of(centers)
    figure, axes = panel_grid(len(centers), per_row=per_row, panel=50 * MM, extra=20 * MM)
    for place, (axis, center) in enumerate(zip(axes, centers, strict=True)):
        here = table[table["center"] == center]
        axis.set(title=f"centre {printed[center]}", xlim=(-0.02, 1.02), ylim=(-0.12, 1.05), xlabel="predicted probability")
        axis.set_ylabel("" if place % per_row else "share of positives")
        for ticks in (axis.set_xticks, axis.set_yticks):
            ticks([0, 0.5, 1], ["0", "0.5", "1"])
        of_any = here[here["method"] == here["method"].iloc[0]]
        n, positives = int(of_any["n"].sum()), int(of_any["positives"].sum())
        if positives in (0, n):
            write_in_panel(axis, f"nothing to come true: only one class, {positives} of {n} positive")
            continue
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, zorder=1)
        axis.text(0.02, 0.98, f"{positives} of {n}\npositive", ha="left", va="top", fontsize=6, color=MUTED, transform=axis.transAxes)
        for method in drawn:
            line = here[here["method"] == method].dropna(subset=["bin"]).sort_values("bin")
            axis.plot(line["probability"], line["share"], label=METHODS[method].title, **styles[method] | {"markersize": 3})
            if method == REFERENCE:
                axis.vlines(line["probability"], line["low"], line["high"], color=styles[method]["color"], linewidth=1.6, alpha=0.6)
                for row in line.itertuples():
                    axis.text(row.bin + 0.1, -0.07, f"{row.n}", ha="center", va="center", fontsize=5, color=MUTED)
    share_legend(figure, next((axis for axis in axes if axis.lines), axes[0]), columns=6)
    scores = table[table["method"] == REFERENCE].drop_duplicates("center")
    brier = ", ".join(f"{printed[row.center]} {row.brier:.3f}" for row in scores.itertuples() if row.bin == row.bin)
    lacking = undefined(table[table["method"].isin(drawn)].assign(metric="", value=lambda rows: rows["bin"]), printed, lead="Not drawn")
    lacking = lacking and f" {lacking}"
    title = METHODS[REFERENCE].title
    bars = f" Bars: 95 % interval of {title}, in bins of five patients or more; numbers: samples in its bins. Its Brier score: {brier}."
    footnote(figure, f"Above the diagonal probabilities are too low.{bars if REFERENCE in drawn else ''}{lacking} {absent}")
    return figure
