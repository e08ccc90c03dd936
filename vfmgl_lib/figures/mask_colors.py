"""Outlines of masks of several classes on images: one colour a class (`data.label_masks`), seen on dark and on stained images."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from vfmgl_lib.data.label_masks import class_color
from vfmgl_lib.figures.style import NAME_LENGTH

CASING = [effects.Stroke(linewidth=1.2, foreground="black"), effects.Normal()]
DASHES = (0, (2.5, 1))


def outline(axis: Axes, mask: np.ndarray, color: str, *, dashed: bool = False, width: float = 0.65) -> None:
    """The border of a mask (H, W) bool, over a dark casing; a mask that is empty or full has none."""
    if mask.any() and not mask.all():
        style = DASHES if dashed else "solid"
        lines = axis.contour(mask, levels=[0.5], colors=color, linewidths=width, linestyles=[style], zorder=3 if dashed else 2)
        lines.set_path_effects(CASING)


def outline_classes(axis: Axes, mask: np.ndarray, *, dashed: bool = False, width: float = 0.65) -> None:
    """The border of each foreground class of a mask (H, W) of class indices, in the class's colour."""
    for index in np.unique(mask[mask > 0]):
        outline(axis, mask == index, class_color(int(index)), dashed=dashed, width=width)


def has_classes(masks: pd.Series) -> bool:
    """Whether masks hold class indices of several classes, not the bool of one foreground."""
    return any(mask is not None and mask.dtype != bool for mask in masks)


def class_entries(classes: Sequence[str]) -> list[Line2D]:
    """Entries of a legend, one a colour; classes that share one share the entry.

    Args:
        classes: names, the background first.
    """
    named, longest = dict[str, list[str]](), 2 * NAME_LENGTH
    for index, name in enumerate(classes[1:], 1):
        short = name if len(name) <= longest else f"{name[: longest - 1]}…"
        named.setdefault(class_color(index), []).append((f"class {short}" if short.isdigit() else short).replace("$", r"\$"))
    return [Line2D([], [], color=color, linewidth=1.2, path_effects=CASING, label=" / ".join(names)) for color, names in named.items()]
