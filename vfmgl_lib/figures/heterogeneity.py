"""How the centres differ, before anything is trained: examples, pixel values, counts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vfmgl_lib.figures.style import DOUBLE, FAINT, MM, center_style, footnote, grid, journal, names, new_figure, share_legend

SPLIT_COLORS = {"train": "#3B4F63", "val": "#8FA3B8", "test": "#D3DCE6"}  # dark to light: read in grey print, too
OUTLINE = "#FFD400"
LABEL = 28 * MM  # room for the names of the rows, inches


@journal
def image_grid(samples: pd.DataFrame, row: str = "center", columns: int = 6) -> Figure:
    """Images in rows, one row for each value of the column `row`, in the order of the table.

    Args:
        samples: id, label, image (S, S, 3) in [0, 1], mask (S, S) bool or None, and `row`. A mask is drawn as an outline,
            a label as text on the image.
        columns: at most so many images a row.
    """
    groups = [(name, group.head(columns)) for name, group in samples.groupby(row, sort=False)]
    columns = max(len(group) for _, group in groups)
    cell = min(28 * MM, (DOUBLE - LABEL) / columns)
    figure = new_figure(columns * cell + LABEL, len(groups) * cell + 2 * MM, layout="compressed")
    axes = figure.subplots(len(groups), columns, squeeze=False)
    for line, (name, group) in zip(axes, groups, strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, sample in zip(line, group.itertuples(), strict=False):
            axis.imshow(sample.image, vmin=0, vmax=1, interpolation="nearest")
            if sample.mask is not None and sample.mask.any() and not sample.mask.all():
                axis.contour(sample.mask, levels=[0.5], colors=OUTLINE, linewidths=0.55)
            if sample.label:
                printed = f"class {sample.label}" if sample.label.isdigit() else sample.label.replace("$", r"\$")
                box = {"boxstyle": "round,pad=0.2", "facecolor": "black", "edgecolor": "none", "alpha": 0.65}
                axis.text(0.04, 0.05, printed, transform=axis.transAxes, color="white", fontsize=6, bbox=box)
        # A long name is broken, not shortened: here it has the height of an image.
        printed = textwrap.fill(str(name), 18).replace("$", r"\$")
        line[0].set_ylabel(printed, rotation=0, ha="right", va="center", weight="bold", labelpad=4)
    return figure


@journal
def color_distributions(profile: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """Density of pixel values, a panel a channel, a line a centre.

    Args:
        profile: center, channel, value (0 to 1), density.
    """
    channels = list(dict.fromkeys(profile["channel"]))
    styles, printed = center_style(profile["center"], all_centers), names(sorted(profile["center"].unique()))
    figure = new_figure(DOUBLE if len(channels) > 1 else 120 * MM, 58 * MM)
    axes = figure.subplots(1, len(channels), squeeze=False, sharey=True)[0]
    for axis, channel in zip(axes, channels, strict=True):
        for center, line in profile[profile["channel"] == channel].groupby("center"):
            axis.plot(line["value"], line["density"], color=styles[center]["color"], label=printed[center])
        axis.set(title=channel, xlabel="pixel value (0 black, 1 full)", xlim=(0, 1))
    # One bin may hold most pixels of a scan's dark background; it would flatten everything else.
    axes[0].set_ylim(0, 1.05 * profile["density"].max())
    top = 3 * profile.groupby(["center", "channel"])["density"].quantile(0.95).max()
    if 0 < top < profile["density"].max():
        axes[0].set_ylim(0, top)
        footnote(figure, "Densities above the axis are cut off; all values are in the table.")
    axes[0].set_ylabel("density of pixels")
    share_legend(figure, axes[0])
    return figure


@journal
def brightness_contrast(statistics: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """One dot an image: mean against standard deviation of its pixels; the cross is the centre's mean.

    Args:
        statistics: center, brightness, contrast (both 0 to 1).
    """
    styles, printed = center_style(statistics["center"], all_centers), names(sorted(statistics["center"].unique()))
    figure = new_figure(120 * MM, 68 * MM)
    axis = figure.subplots()
    for center, dots in statistics.groupby("center"):
        color, marker = styles[center]["color"], styles[center]["marker"]
        axis.scatter(dots["brightness"], dots["contrast"], s=9, color=color, marker=marker, alpha=0.45, linewidth=0, label=printed[center])
    for center, dots in statistics.groupby("center"):
        x, y = dots["brightness"].mean(), dots["contrast"].mean()
        axis.plot(x, y, "+", color="white", markersize=10, markeredgewidth=3.5)
        axis.plot(x, y, "+", color=styles[center]["color"], markersize=9, markeredgewidth=1.8)
    axis.set(xlabel="brightness: mean pixel value of an image (0 to 1)", ylabel="contrast: SD of an image's pixel values")
    grid(axis, "both")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", title="centre (+ its mean)", markerscale=1.6)
    return figure


@journal
def counts(table: pd.DataFrame, positive: str) -> Figure:
    """Images per centre and split, and how much of them is positive.

    Args:
        table: center, split, images, patients, positive_share (0 to 1).
        positive: what positive_share is a share of, e.g. "images of class MI".
    """
    centers = sorted(table["center"].unique())
    printed, places = names(centers), np.arange(len(centers))
    figure = new_figure(DOUBLE, (26 + 7 * len(centers)) * MM)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    start = np.zeros(len(centers))
    for split, color in SPLIT_COLORS.items():
        rows = table[table["split"] == split].set_index("center").reindex(centers)
        if rows["images"].isna().all():
            continue
        images = rows["images"].fillna(0).to_numpy()
        left.barh(places, images, left=start, height=0.62, color=color, label=split)
        start = start + images
        jitter = {"train": -0.2, "val": 0.0, "test": 0.2}[split]
        right.plot(100 * rows["positive_share"], places + jitter, "o", color=color, markeredgecolor="#3B4F63", markeredgewidth=0.6)
    for place, center, total in zip(places, centers, start, strict=True):
        patients = int(table.loc[table["center"] == center, "patients"].sum())
        left.annotate(
            f"{int(total)} images, {patients} patients", (total, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6
        )
    left.set(yticks=places, yticklabels=[printed[c] for c in centers], xlabel="images", xlim=(0, 1.45 * start.max()))
    left.invert_yaxis()
    right.set(xlabel=f"{positive} (%)", xlim=(0, max(100 * table["positive_share"].max() * 1.15, 1)))
    for place in places[:-1]:
        right.axhline(place + 0.5, color=FAINT, linewidth=0.5)
    grid(right, "x")
    share_legend(figure, left)
    return figure
