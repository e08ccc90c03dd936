"""What leaves a centre, and what a server could see of its images."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vfmgl_lib.figures.style import DOUBLE, MM, MUTED, bare, footnote, journal, new_figure

LABEL = 42 * MM  # room for the words at a row, inches
LINE = 4.5 * MM  # for the numbers under an image
PER_ROW = 6
TRUTH = "true images"  # the view that the others are held against


@journal
def reconstructions(table: pd.DataFrame) -> Figure:
    """The true images and, in a row each, what is known without an update and what an attack made of it.

    Args:
        table: from `evaluation.inversion.inversion`: view, epsilon (NaN: no update was needed), id, image (S, S, 3) in [0, 1],
            psnr (dB), ssim.
    Raises: ValueError: no row of the true images.
    """
    views, shown = list(dict.fromkeys(table["view"])), list(dict.fromkeys(table["id"]))[:PER_ROW]
    if TRUTH not in views:
        raise ValueError(f"views {views}: there is no {TRUTH!r} to hold the others against")
    cell = min(20 * MM, (DOUBLE - LABEL) / len(shown))
    figure = new_figure(len(shown) * cell + LABEL, len(views) * (cell + LINE) + 8 * MM, layout="compressed")
    axes = figure.subplots(len(views), len(shown), squeeze=False)
    for line, view in zip(axes, views, strict=True):
        rows = table[table["view"] == view].set_index("id")
        for place, (axis, identifier) in enumerate(zip(line, shown, strict=True)):
            row = rows.loc[identifier]
            axis.imshow(np.clip(row["image"], 0, 1), interpolation="nearest")
            bare(axis)
            axis.set_xlabel(f"image {place + 1}" if view == TRUTH else f"{row['psnr']:.1f} dB, {row['ssim']:.2f}", fontsize=6, labelpad=2)
        label, budget = textwrap.fill(view.replace("$", r"\$"), 24), rows["epsilon"].iloc[0]
        if math.isfinite(budget):
            label += f"\nε = {_plain(budget)}"
        style = {"weight": "bold"} if view == TRUTH else {"color": MUTED} if math.isnan(budget) else {}
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=4, linespacing=1.3, **style)
    known = "" if table.loc[table["view"] != TRUTH, "epsilon"].notna().all() else " Grey words: known without an update."
    footnote(figure, f"Under each image: PSNR and SSIM against the true one.{known}")
    return figure


def _plain(value: float) -> str:
    """Two digits, from 10 000 on as a power of ten: 8.8, 770, 2 x 10^6."""
    if value < 1e4:
        return f"{float(f'{value:.2g}'):g}"
    digit, power = f"{value:.0e}".split("e")
    return f"${digit} \\times 10^{{{int(power)}}}$"
