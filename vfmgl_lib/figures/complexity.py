"""How light the student is beside its teacher, and that what was exported is what was trained."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vfmgl_lib.figures.style import COLORS, DOUBLE, FAINT, MM, MUTED, footnote, grid, journal, new_figure
from vfmgl_lib.figures.words import short

COLOR = {"teacher": COLORS[1], "student": COLORS[0], "student, exported": COLORS[2]}
QUANTITIES = {"parameters": (1e6, "parameters (M)"), "macs": (1e9, "MACs an image (G)"), "bytes": (2**20, "weights on disk, float32 (MiB)")}
LIMIT = 500  # MiB, the paper's
MIB = 2**20


@journal
def sizes(counts: pd.DataFrame) -> Figure:
    """Teacher and student: parameters, MACs, weights; the student's bar gives the ratio, student : teacher.

    Args:
        counts: from `evaluation.complexity.counted`.
    """
    pair = counts.set_index("model").loc[["teacher", "student"]]
    figure = new_figure(DOUBLE, 38 * MM)
    for axis, (name, (unit, label)) in zip(figure.subplots(1, len(QUANTITIES), sharey=True), QUANTITIES.items(), strict=True):
        values = pair[name].to_numpy(dtype=float) / unit
        axis.barh(range(2), values, color=[COLOR[model] for model in pair.index], height=0.62)
        axis.set(xlabel=label, xlim=(0, values.max() * 1.3), yticks=range(2), ylim=(1.6, -0.6))
        axis.set_yticklabels(pair.index)
        for place, value in enumerate(values):
            smaller = f"  (1 : {values[0] / value:.2g})" if place else ""
            axis.text(value, place, f" {value:.3g}{smaller}", va="center", fontsize=6.5)
    footnote(figure, "; ".join(f"{row.model.capitalize()}: {row.network}, {row.image_size} px" for row in counts.itertuples()) + ".")
    return figure


@journal
def latency(footprints: pd.DataFrame) -> Figure:
    """Time of one call by batch size: a dot at the median, a line to the 95th percentile.

    Args:
        footprints: from `evaluation.complexity.measured`.
    """
    table = _labelled(footprints)
    table["p95_ms"] = table["p95_ms"].fillna(table["p50_ms"])
    figure = new_figure(DOUBLE * 0.75, (18 + 6 * len(table)) * MM)
    axis = figure.subplots()
    for place, row in enumerate(table.itertuples()):
        color = COLOR[row.model]
        axis.plot([row.p50_ms, row.p95_ms], [place, place], color=color, linewidth=2.2, solid_capstyle="round")
        axis.plot([row.p50_ms], [place], marker="o", color=color, markersize=5)
        axis.annotate(
            f"{row.p50_ms:,.0f} ms" if row.p50_ms >= 100 else f"{row.p50_ms:.3g} ms",
            (row.p95_ms, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
        )
    axis.set(xscale="log", xlabel="milliseconds a call (dot: median, end of line: 95th percentile)")
    low, high = axis.get_xlim()
    axis.set(xlim=(low, high * 2.5), yticks=range(len(table)), ylim=(len(table) - 0.5, -0.5))
    axis.set_yticklabels(table["label"])
    grid(axis, "x")
    footnote(figure, _how(table))
    return figure


@journal
def memory(footprints: pd.DataFrame) -> Figure:
    """Peak memory of the whole process: what Python and the runtime take, and what the model adds; the paper's 500 MiB as a line.

    Args:
        footprints: from `evaluation.complexity.measured`; on a GPU its own memory is drawn.
    """
    table = _labelled(footprints)
    on_gpu = table["gpu_bytes"].notna()
    added = np.where(on_gpu, table["gpu_bytes"], table["added_bytes"]) / MIB
    before = np.where(on_gpu, 0, table["peak_bytes"] - table["added_bytes"]) / MIB
    figure = new_figure(DOUBLE * 0.75, (18 + 6 * len(table)) * MM)
    axis = figure.subplots()
    axis.barh(range(len(table)), before, color=FAINT, height=0.62)
    axis.barh(range(len(table)), added, left=before, color=[COLOR[model] for model in table["model"]], height=0.62)
    for place, total in enumerate(before + added):
        axis.text(total, place, f" {total:.0f}", va="center", fontsize=6.5)
    axis.axvline(LIMIT, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axis.text(LIMIT, -0.62, " the paper's 500 MiB", fontsize=6, color=MUTED, va="bottom", ha="left")
    axis.set(xlabel="MiB at the peak (grey: Python and the runtime, before a model is loaded)")
    axis.set(xlim=(0, max(float((before + added).max()) * 1.15, LIMIT * 1.4)), yticks=range(len(table)), ylim=(len(table) - 0.5, -0.5))
    axis.set_yticklabels(table["label"])
    footnote(figure, _how(table))
    return figure


@journal
def agreement(table: pd.DataFrame, quantity: str) -> Figure:
    """What the study wrote down against what the exported model predicts, one dot a test image, and the difference of the two.

    Args:
        table: study, predicted; one row an image.
        quantity: what both are, e.g. "probability of class 1".
    """
    figure = new_figure(DOUBLE * 0.75, 62 * MM)
    left, right = figure.subplots(1, 2)
    both = table[["study", "predicted"]].to_numpy(dtype=float)
    low, high = both.min(), both.max()
    pad = 0.05 * (high - low) or 0.05
    left.axline((low, low), slope=1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    left.plot(both[:, 0], both[:, 1], "o", color=COLOR["student, exported"], alpha=0.7)
    left.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal", title=quantity)
    left.set(xlabel="in the study", ylabel="predicted by the exported model")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=4))
    difference = both[:, 1] - both[:, 0]
    right.plot(range(len(difference)), difference, "o", color=COLOR["student, exported"], alpha=0.7)
    largest = float(np.abs(difference).max())
    reach = max(largest * 1.3, 1e-9)
    right.axhline(0, color=MUTED, linewidth=0.8)
    right.set(ylim=(-reach, reach), xlabel="test image", title=f"difference, at most {largest:.1e}" if largest else "no difference at all")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


@journal
def int8_cost(table: pd.DataFrame) -> Figure:
    """Float32 beside int8, a panel a split, a row a metric.

    Args:
        table: from `tools.export.int8_cost`; metrics that are undefined are left out.
    """
    shown = table[table["float32"].notna() & table["int8"].notna()]
    splits = [split for split in ("val", "test") if (shown["split"] == split).any()]
    figure = new_figure(DOUBLE * 0.75, 52 * MM)
    for axis, split in zip(figure.subplots(1, max(len(splits), 1), squeeze=False)[0], splits, strict=False):
        part = shown[shown["split"] == split].reset_index(drop=True)
        axis.plot(part["float32"], part.index, "o", color=COLOR["student"], markersize=6, markerfacecolor="white", label="float32")
        axis.plot(part["int8"], part.index, "x", color=COLOR["teacher"], markersize=4.5, label="int8")
        title = "validation: decides" if split == "val" else "test: reports"
        axis.set(xlim=(-0.03, 1.03), ylim=(len(part) - 0.5, -0.5), yticks=part.index, title=title, xlabel="value")
        axis.set_yticklabels(short(name) for name in part["metric"])
        grid(axis, "x")
        axis.legend(loc="best")
    return figure


def _labelled(footprints: pd.DataFrame) -> pd.DataFrame:
    """Rows in drawing order with a label each."""
    place = {model: number for number, model in enumerate(COLOR)}
    table = footprints.assign(place=footprints["model"].map(place)).sort_values(["device", "batch", "place"]).reset_index(drop=True)
    images = ["1 image" if batch == 1 else f"{batch} images" for batch in table["batch"]]
    several = table["device"].nunique() > 1
    return table.assign(
        label=[f"{row.model}, {text}{f', {row.device}' * several}" for row, text in zip(table.itertuples(), images, strict=True)]
    )


def _how(table: pd.DataFrame) -> str:
    runtimes = ", ".join(dict.fromkeys(table["runtime"]))
    threads = table["threads"].iloc[0]
    runs = f"{table['runs'].min()} to {table['runs'].max()} calls each; no line: too few for a percentile"
    return f"Each in a process of its own, {threads} {'thread' if threads == 1 else 'threads'}, {runs}. {runtimes}."
