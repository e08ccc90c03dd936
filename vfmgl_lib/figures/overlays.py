"""What the methods outline on the same images, beside the truth (paper: Supp. Figs. 14 and 15)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.data.images import decode_mask
from vfmgl_lib.evaluation.generalization import OWN_SPLIT
from vfmgl_lib.figures.comparison import in_order
from vfmgl_lib.figures.style import DOUBLE, MM, REFERENCE, footnote, journal, names, new_figure
from vfmgl_lib.methods.registry import METHODS

MEAN = "mean"
PER_ROW = 6
TRUTH, PREDICTED = "#FFD400", "#00D5FF"  # seen on grey slices and on stained tissue; in grey print the dashes tell them apart
CASING = [effects.Stroke(linewidth=1.2, foreground="black"), effects.Normal()]
LABEL = 16 * MM  # room for the words at a row, inches


def telling_images(final: pd.DataFrame, by: str = MEAN, budget: str = "rounds") -> pd.DataFrame:
    """The best, the median and the worst test image of all centres, by the Dice of their own centres' models.

    Images without foreground are left out: there both an empty prediction (Dice 1) and any other (0) show nothing.

    Args:
        final: final predictions of a segmentation, one seed.
        by: "mean": the mean of the Dice over the methods, which favours none; or a method's key: by its Dice.
    Returns: shown ("best", "median", "worst"), id, center, score (the Dice chosen by), by; of fewer than three images the first ones.
    Raises: ValueError: several seeds, no such method, or no image with foreground.
    """
    rows = _at_home(final, budget)
    rows = rows[rows["tp"] + rows["fn"] > 0]
    if by != MEAN:
        rows = rows[rows["method"] == by]
    if rows.empty:
        raise ValueError(
            f"there is no test image with foreground to choose from by {by!r}, methods are {', '.join(final['method'].unique())}"
        )
    scores = rows.groupby(["id", "test_center"])["dice"].mean().reset_index().sort_values(["dice", "id"], ascending=[False, True])
    places = dict.fromkeys([0, (len(scores) - 1) // 2, len(scores) - 1])
    chosen = scores.iloc[list(places)].rename(columns={"test_center": "center", "dice": "score"})
    chosen.insert(0, "shown", ["best", "median", "worst"] if len(places) == 3 else ["best", "worst"][: len(places)])
    return chosen.assign(by=by).reset_index(drop=True)


def overlay_table(chosen: pd.DataFrame, samples: pd.DataFrame, final: pd.DataFrame, budget: str = "rounds") -> pd.DataFrame:
    """The chosen images with the truth and every method's mask.

    Args:
        chosen: from `telling_images`.
        samples: id, image, mask of these images, from `samples.read_samples` at the student's size.
        final: as in `telling_images`, with mask_path ("": not kept).
    Returns: shown, id, center, score, by, image, truth, method, mask ((S, S) bool, None where not kept), dice.
    Raises: ValueError: a mask of another size than its image; the message names the file.
    """
    rows = _at_home(final, budget)[["id", "method", "dice", "mask_path"]]
    table = chosen.merge(samples[["id", "image", "mask"]].rename(columns={"mask": "truth"}), on="id").merge(rows, on="id")
    masks = []
    for row in table.itertuples():
        mask = decode_mask(Path(row.mask_path)).astype(bool) if row.mask_path else None
        if mask is not None and mask.shape != row.image.shape[:2]:
            raise ValueError(f"{row.mask_path} is {mask.shape}, its image {row.image.shape[:2]}: read the images at the student's size")
        masks.append(mask)
    return table.assign(mask=pd.Series(masks, table.index, dtype=object)).drop(columns="mask_path")


def _at_home(final: pd.DataFrame, budget: str) -> pd.DataFrame:
    rows = final[(final["budget"] == budget) & (final["split_id"] == OWN_SPLIT) & (final["split"] == "test")]
    rows = rows[rows["model_center"] == rows["test_center"]]
    if rows["seed"].nunique() > 1:
        raise ValueError(f"overlays show one seed, got {', '.join(map(str, sorted(rows['seed'].unique())))}")
    return rows


@journal
def overlays(table: pd.DataFrame, methods: Sequence[str] | None = None) -> Figure:
    """Contours of truth and prediction of every method on the same images, which are the rows; Dice in the corner.

    More than six methods go on in further lines. Each row is cut to what is outlined in it by anyone, with a margin.

    Args:
        table: from `overlay_table`: shown, id, center, score, by, image (S, S, 3) in [0, 1], truth and mask (S, S) bool, method, dice.
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
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
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
