"""How the centres differ, before anything is trained: patients, examples, counts, pixel values, and whether a centre can be told."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vfmgl_lib.data.label_masks import class_color
from vfmgl_lib.evaluation.heterogeneity import STAINS
from vfmgl_lib.figures.mask_colors import class_entries, has_classes, outline_classes
from vfmgl_lib.figures.style import (
    COLORS,
    DOUBLE,
    FAINT,
    MM,
    MUTED,
    SEQUENTIAL,
    bare,
    center_style,
    footnote,
    grid,
    heatmap,
    journal,
    names,
    new_figure,
    share_legend,
)

SPLIT_COLORS = {"train": "#3B4F63", "val": "#8FA3B8", "test": "#D3DCE6"}  # dark to light: read in grey print, too
OUTLINE = "#FFD400"
LABEL = 28 * MM  # room for the names of the rows, inches
SHOWN = 0.995  # of the pixels: few are stained far more deeply than the rest
FAR = 0.1  # a distance of so much is always drawn light: a scale by the largest one would make equal centres look far apart
LINE_HEIGHT = 4.0  # of table_one, mm; all its lengths are mm
MM_PER_POINT = 25.4 / 72
STUB, WIDEST_COLUMN, COLUMNS = 25.0, 16.0, 20
DIGIT = 1.4  # width
TABLE_ROWS = (
    ("Patients", "n"),
    ("Age in years, mean", "age_mean"),
    ("Age in years, SD", "age_std"),
    ("FIGO stage", ""),
    *((f"  {stage}", f"figo_{stage}") for stage in ("I", "II", "III", "IV")),
    ("Histologic type", ""),
    *((f"  {kind}", f"histology_{kind}") for kind in ("I", "II")),
)


@journal
def image_grid(samples: pd.DataFrame, row: str = "center", columns: int = 6, classes: Sequence[str] = (), overlaid: bool = False) -> Figure:
    """Images in rows, one row for each value of the column `row`, in the order of the table.

    Args:
        samples: id, label, image (S, S, 3) in [0, 1], mask (S, S) bool, class indices or None, and `row`. A mask is drawn as an outline,
            of class indices in one colour a class; a label is text on the image.
        columns: at most so many images a row.
        classes: names, the background first: for the legend where masks hold class indices.
        overlaid: of a segmentation whose classes are in the images already, as `vfmgl predict --overlay` writes them.
    """
    groups = [(name, group.head(columns)) for name, group in samples.groupby(row, sort=False)]
    columns = max(len(group) for _, group in groups)
    cell = min(28 * MM, (DOUBLE - LABEL) / columns)
    several = has_classes(samples["mask"]) or (overlaid and len(classes) > 2)
    figure = new_figure(columns * cell + LABEL, len(groups) * cell + (8 if several else 2) * MM, layout="compressed")
    axes = figure.subplots(len(groups), columns, squeeze=False)
    for line, (name, group) in zip(axes, groups, strict=True):
        for axis in line:
            bare(axis)
        for axis, sample in zip(line, group.itertuples(), strict=False):
            axis.imshow(sample.image, vmin=0, vmax=1, interpolation="nearest")
            if sample.mask is not None and sample.mask.dtype != bool:
                outline_classes(axis, sample.mask)
            elif sample.mask is not None and sample.mask.any() and not sample.mask.all():
                axis.contour(sample.mask, levels=[0.5], colors=OUTLINE, linewidths=0.55)
            if sample.label:
                printed = f"class {sample.label}" if sample.label.isdigit() else sample.label.replace("$", r"\$")
                box = {"boxstyle": "round,pad=0.2", "facecolor": "black", "edgecolor": "none", "alpha": 0.65}
                axis.text(0.04, 0.05, printed, transform=axis.transAxes, color="white", fontsize=6, bbox=box)
        # A long name is broken, not shortened: here it has the height of an image.
        printed = textwrap.fill(str(name), 18).replace("$", r"\$")
        line[0].set_ylabel(printed, rotation=0, ha="right", va="center", weight="bold", labelpad=4)
    if several and len(classes) > 1:
        entries = class_entries(classes)
        figure.legend(handles=entries, loc="outside upper center", ncols=min(len(entries), 6))
    return figure


@journal
def color_distributions(profile: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """Density of pixel values, or of the stains' optical densities, a panel a channel, a line a centre.

    Args:
        profile: center, channel, value, density, from `evaluation.samples.color_profile` or `evaluation.heterogeneity.stain_profile`.
    """
    channels = list(dict.fromkeys(profile["channel"]))
    styles, printed = center_style(profile["center"], all_centers), names(sorted(profile["center"].unique()))
    figure = new_figure(DOUBLE if len(channels) > 1 else 120 * MM, 58 * MM)
    stained = set(channels) <= set(STAINS)
    axes = figure.subplots(1, len(channels), squeeze=False, sharey=not stained)[0]
    label = "optical density (0: no stain)" if stained else "pixel value (0 black, 1 full)"
    for axis, channel in zip(axes, channels, strict=True):
        for center, line in profile[profile["channel"] == channel].groupby("center"):
            axis.plot(line["value"], line["density"], color=styles[center]["color"], label=printed[center])
        axis.set(title=channel, xlabel=label, xlim=(0, _end(profile[profile["channel"] == channel]) if stained else 1))
    # Pixel values share their range and so a height; one stain may be spread ten times as wide as the other.
    tops = [_top(profile[profile["channel"] == channel]) if stained else _top(profile) for channel in channels]
    for axis, (top, _) in zip(axes, tops, strict=True):
        axis.set_ylim(0, top)
    if any(cut for _, cut in tops):
        footnote(figure, "Densities above the axis are cut off; all values are in the table.")
    if stained:
        footnote(figure, f"Each axis ends where {100 * SHOWN:g} % of every centre's pixels are shown.")
    axes[0].set_ylabel("density of pixels")
    share_legend(figure, axes[0])
    return figure


def _top(profile: pd.DataFrame) -> tuple[float, bool]:
    """Where the axis of these densities ends, and whether some are above it."""
    highest = profile["density"].max()
    # One bin may hold most pixels, of a scan's dark background or of a stain's bare glass; it would flatten everything else.
    top = 3 * profile.groupby(["center", "channel"])["density"].quantile(0.95).max()
    return (top, True) if 0 < top < highest else (1.05 * highest, False)


def _end(profile: pd.DataFrame) -> float:
    """The value below which `SHOWN` of the pixels of each centre lie; rows of one channel."""
    ends = []
    for _, line in profile.groupby("center"):
        share = line["density"].cumsum() / line["density"].sum()
        ends.append(line["value"][share >= SHOWN].min())
    return max(ends)


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
def counts(table: pd.DataFrame, positive: str, of_pixels: bool = False) -> Figure:
    """Images per centre and split, and how much of them is positive, or of each of more than two classes.

    Args:
        table: from `evaluation.samples.sample_counts`: center, split, images, patients, positive_share or share[<class>] (0 to 1).
        positive: what the shares are of, e.g. "images of class MI".
        of_pixels: shares of foreground classes, which have the colours of their outlines, and need not come to the whole.
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
        if "positive_share" not in rows:
            continue
        jitter = {"train": -0.2, "val": 0.0, "test": 0.2}[split]
        right.plot(100 * rows["positive_share"], places + jitter, "o", color=color, markeredgecolor="#3B4F63", markeredgewidth=0.6)
    for place, center, total in zip(places, centers, start, strict=True):
        patients = int(table.loc[table["center"] == center, "patients"].sum())
        left.annotate(
            f"{int(total)} images, {patients} patients", (total, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6
        )
    left.set(yticks=places, yticklabels=[printed[c] for c in centers], xlabel="images", xlim=(0, 1.45 * start.max()))
    left.invert_yaxis()
    if "positive_share" in table:
        right.set(xlabel=f"{positive} (%)", xlim=(0, max(100 * table["positive_share"].max() * 1.15, 1)))
    else:
        _class_shares(right, table, centers, positive, of_pixels)
    for place in places[:-1]:
        right.axhline(place + 0.5, color=FAINT, linewidth=0.5)
    grid(right, "x")
    share_legend(figure, left)
    return figure


def _class_shares(axis: Axes, table: pd.DataFrame, centers: Sequence[str], label: str, of_pixels: bool) -> None:
    """A bar a centre: the shares of the classes in all its images."""
    columns = [name for name in table if str(name).startswith("share[")]
    weighted = table[columns].mul(table["images"], axis=0).groupby(table["center"]).sum()
    shares = weighted.div(table.groupby("center")["images"].sum(), axis=0).reindex(centers)
    printed, start = names([name[len("share[") : -1] for name in columns]), np.zeros(len(centers))
    for place, (column, name) in enumerate(zip(columns, printed.values(), strict=True)):
        share, color = 100 * shares[column].to_numpy(), class_color(place + 1) if of_pixels else COLORS[place % len(COLORS)]
        edge = "#3B4F63" if of_pixels else "none"  # one of the outlines' colours is white
        axis.barh(np.arange(len(centers)), share, left=start, height=0.62, color=color, edgecolor=edge, linewidth=0.4, label=name)
        start = start + share
    axis.set(xlabel=f"{label} (%)", xlim=(0, 1.1 * max(start.max(), 1) if of_pixels else 100))
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(3, len(columns)), fontsize=6)


@journal
def center_confusion(table: pd.DataFrame) -> Figure:
    """Which centre the images of each centre are taken for: shares of a row, with counts, the accuracy and chance.

    Args:
        table: from `evaluation.heterogeneity.center_predictability`.
    """
    centers = sorted(table["center"].unique())
    printed = names(centers)
    wide = {name: table.pivot(index="center", columns="predicted", values=name) for name in ("share", "images")}
    shares, images = (wide[name].rename(index=printed, columns=printed) for name in wide)
    texts = (100 * shares).map("{:.0f} %\n".format) + images.map("({})".format)
    width = min(DOUBLE / MM, max(104, 46 + 15 * len(centers)))  # room for the title
    figure = new_figure(width * MM, max(62, 34 + 9 * len(centers)) * MM)
    axis = figure.subplots()
    room = min(15, (DOUBLE / MM - 60) / len(centers))
    picture = heatmap(axis, shares, SEQUENTIAL, (0, 1), texts.mask(images == 0, "0"), room=room, tilt=30)
    axis.set(xlabel="centre it is taken for", ylabel="centre the image is from")
    bar = figure.colorbar(picture, ax=axis, shrink=0.9, label="share of the centre's images")
    said = table.iloc[0]
    bar.ax.axhline(said["chance"], color="white", linewidth=1.2)
    bar.ax.annotate("chance ", (0, said["chance"]), xycoords=("axes fraction", "data"), ha="right", va="center", fontsize=5.5, color=MUTED)
    limits = f"95 % interval {said['low']:.2f} to {said['high']:.2f}" if np.isfinite(said["low"]) else "too few patients for an interval"
    axis.set_title(f"Balanced accuracy {said['balanced_accuracy']:.2f}\n{limits}, chance {said['chance']:.2f}")
    sizes = f"{table['images'].sum()} images of {said['patients']} patients"
    about = f"Logistic regression on simple statistics of {sizes}, cross-validated by patient."
    footnote(figure, f"{about} In brackets: images.")
    return figure


@journal
def center_distances(table: pd.DataFrame) -> Figure:
    """Wasserstein distance between the pixel values of every two centres, a panel a channel.

    All panels have one colour scale, from 0 to the largest distance, but at least to `FAR`.

    Args:
        table: from `evaluation.heterogeneity.center_distances`; pixel values or stains, not both.
    Raises: ValueError: if both are there, whose units differ; one centre alone.
    """
    channels = list(dict.fromkeys(table["channel"]))
    stained = [channel in STAINS for channel in channels]
    if any(stained) != all(stained):
        raise ValueError(f"center_distances draws pixel values or stains, which differ in unit, got {', '.join(channels)}")
    centers = sorted(table["center"].unique())
    if len(centers) < 2:
        raise ValueError(f"center_distances draws at least 2 centers, got {', '.join(centers)}")
    printed = names(centers)
    figure = new_figure(DOUBLE if len(channels) > 1 else 120 * MM, max(52, 26 + 8 * len(centers)) * MM)
    axes = figure.subplots(1, len(channels), squeeze=False, sharey=True)[0]
    top, small = max(table["distance"].max(), FAR), 6 if len(centers) < 7 else 5
    room = ((DOUBLE if len(channels) > 1 else 120 * MM) / MM - 50) / len(channels) / (len(centers) - 1)
    for axis, channel in zip(axes, channels, strict=True):
        part = table[table["channel"] == channel].pivot(index="center", columns="other", values="distance")
        # Symmetric with zeros on the diagonal: what is below it says all.
        lower = np.tril(np.ones((len(centers), len(centers)), bool), -1)
        values = part.reindex(index=centers, columns=centers).where(lower).iloc[1:, :-1].rename(index=printed, columns=printed)
        texts = values.map("{:.3f}".format if len(centers) < 7 else "{:.2f}".format)
        picture = heatmap(axis, values, SEQUENTIAL, (0, top), texts, size=small, room=room, tilt=90, missing="", bare="white")
        axis.set_title(channel)
    unit = "optical density" if all(stained) else "pixel value, 0 to 1"
    figure.colorbar(picture, ax=list(axes), shrink=0.9, label=f"Wasserstein distance\n({unit})")
    return figure


@journal
def table_one(table: pd.DataFrame) -> Figure:
    """The patients of each centre, set and class, laid out as the paper's Table 1 turned: a column a group.

    What does not fit the width goes into further blocks below, whole centres together.

    Args:
        table: center, set, label, n, age_mean, age_std, figo_I to figo_IV, histology_I, histology_II; one row a group, as in
            data_manifests/table1_endometrial_patients.csv. What is missing is drawn as a dash.
    """
    blocks = _blocks(table)
    widest = max(len(block) for block in blocks)
    column = min(WIDEST_COLUMN, (DOUBLE / MM - STUB - 2) / widest)
    width, height = STUB + column * widest, (len(TABLE_ROWS) + 4.5) * LINE_HEIGHT
    figure = new_figure((width + 2) * MM, (height * len(blocks) + 8) * MM)
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set(xlim=(0, width), ylim=(height * len(blocks) - LINE_HEIGHT, -0.3 * LINE_HEIGHT))
    printed = names(dict.fromkeys(table["center"]))
    for place, block in enumerate(blocks):
        _draw_block(axis, block.assign(center=block["center"].map(printed)), place * height, column)
    meaning = "NMI: no myometrial invasion; MI: myometrial invasion. " if set(table["label"]) <= {"NMI", "MI"} else ""
    dash = "–: not known, or the age of a single patient." if table[[c for _, c in TABLE_ROWS if c]].isna().any(axis=None) else ""
    footnote(figure, f"Numbers of patients, except for the age. {meaning}{dash}".strip())
    return figure


def _blocks(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows in parts of at most `COLUMNS`, whole centres together, in the order of the table."""
    blocks: list[list[pd.DataFrame]] = []
    free = 0
    for _, rows in table.groupby("center", sort=False):
        if len(rows) > free:
            blocks.append([])
            free = COLUMNS
        blocks[-1].append(rows)
        free -= len(rows)
    return [pd.concat(block, ignore_index=True) for block in blocks]


def _draw_block(axis: Axes, block: pd.DataFrame, top: float, column: float) -> None:
    """Three lines of headings, then the values, ruled as tables are in print; lengths in mm."""
    right = STUB + column * len(block)
    line = iter(top + LINE_HEIGHT * np.arange(len(TABLE_ROWS) + 4))
    heavy, thin = dict[str, Any](color="black", linewidth=0.9), dict[str, Any](color="black", linewidth=0.4)
    axis.plot((0, right), (top - 0.1 * LINE_HEIGHT,) * 2, clip_on=False, **heavy)
    for keys, weight in ((["center"], "bold"), (["center", "set"], "normal")):
        y = next(line) + LINE_HEIGHT / 2
        for key, group in block.groupby(keys, sort=False):
            start, end = STUB + column * group.index[0], STUB + column * (group.index[-1] + 1)
            _fit(axis, (start + end) / 2, y, key[-1], end - start, weight)
            axis.plot((start + 0.8, end - 0.8), (y + 0.5 * LINE_HEIGHT,) * 2, **thin)
    y = next(line) + LINE_HEIGHT / 2
    middles = STUB + column * (np.arange(len(block)) + 0.5)
    for x, label in zip(middles, block["label"], strict=True):
        _fit(axis, x, y, label, column)
    axis.plot((0, right), (y + 0.55 * LINE_HEIGHT,) * 2, **thin)
    # Counts end below one another, the longest of a column in its middle.
    longest = block["n"].map(lambda n: len(f"{n:.0f}"))
    edges = middles + 0.5 * DIGIT * longest
    for title, name in TABLE_ROWS:
        y = next(line) + 0.7 * LINE_HEIGHT
        axis.text(0, y, title, va="center", fontsize=6.5)
        for x, edge, value in zip(middles, edges, block[name] if name else (), strict=False):
            text = "–" if pd.isna(value) else f"{value:.1f}" if name.startswith("age") else f"{value:.0f}"
            place, side = (edge, "right") if text.isdigit() else (x, "center")
            axis.text(place, y, text, ha=side, va="center", fontsize=6.5, color=MUTED if text in ("0", "–") else "black")
    axis.plot((0, right), (y + 0.7 * LINE_HEIGHT,) * 2, clip_on=False, **heavy)


def _fit(axis: Axes, x: float, y: float, text: str, room: float, weight: str = "normal") -> None:
    """A centred heading, smaller where it would be wider than `room` mm."""
    width = (0.7 if weight == "bold" else 0.62) * MM_PER_POINT * len(text)  # at one point, of a wide typeface
    axis.text(x, y, text, ha="center", va="center", weight=weight, fontsize=min(7, max(4, (room - 0.5) / width)))
