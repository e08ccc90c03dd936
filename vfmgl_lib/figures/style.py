"""What all figures share: journal widths, colours that survive colour blindness and grey print, names, saving.

Centres keep one colour and one marker through all figures: they go by the position among the names of all centres, so a figure
of some centres only is given the names of all (`all_centers`).
"""

from __future__ import annotations

import functools
import math
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vfmgl_lib import __version__
from vfmgl_lib.base.files import temporary_name, write_text
from vfmgl_lib.evaluation.one_vs_rest import BETWEEN
from vfmgl_lib.methods.registry import METHODS

MM = 1 / 25.4
SINGLE, DOUBLE = 89 * MM, 183 * MM  # a journal's column and page width, inches
SCREEN_DPI, FILE_DPI = 150, 200
NAME_LENGTH = 16  # longer names are shortened, at the end of a word where it can be

# Okabe and Ito 2008, without yellow (too light for lines on white); grey is the eighth.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C8C")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
SEQUENTIAL = "viridis"  # perceptually uniform
DIVERGING = "PuOr"  # orange below the middle, purple above: told apart by colour-blind eyes, too
ACCENT, MUTED, FAINT = "#FF2D55", "#6B6B6B", "#D9D9D9"  # frames on a heat map, secondary text, lines in the background
NO_VALUE = "#EDEDED"  # field of a heat map without a value
LETTER = 1.6  # width of a letter in the names at a heat map's fields, mm, with the space between two names

REFERENCE = "vfmgl"  # drawn last, thicker, in a colour that no other method comes near
# The kinds of lines of `Method.line`. So many colours alone are not told apart by everybody, nor in grey print. The reference has the only
# heavy solid line; what is compared with it is dark or light in turn, in four kinds of dashes.
LINES = {
    "solid": "solid",
    "dashed": (0, (4, 1.6)),
    "dotted": (0, (1.2, 1.2)),
    "dash_dot": (0, (4, 1.3, 1.1, 1.3)),
    "long_dashes": (0, (8, 1.8)),
}

# Tried in this order, glyph by glyph; what is not installed is left out, because matplotlib warns at every text otherwise.
FONTS = ("Arial", "Liberation Sans", "DejaVu Sans", "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei")
_INSTALLED = {font.name for font in font_manager.fontManager.ttflist}

STYLE: dict[Any, Any] = {  # matplotlib's types list every key
    "font.family": [name for name in FONTS if name in _INSTALLED],
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.6,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}
P = ParamSpec("P")


@contextmanager
def own_style() -> Iterator[None]:
    """Within it figures are drawn in this style on matplotlib's defaults, whatever the user's settings are; it may be nested."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # all but the backend and what else is no matter of looks
        matplotlib.rcParams.update(STYLE)
        yield


def journal(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws the figure in this style, whatever style is active outside."""

    @functools.wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with own_style():
            return function(*args, **kwargs)

    return styled


class _Figure(Figure):
    """Drawn in this style also where a notebook shows it: what a figure lacks until then, as ticks, would come in the user's.

    One that has been saved is shown as its file, so that it is not laid out and drawn two more times; after a change it is drawn anew.
    """

    _saved: bytes | None = None

    def saved_as(self, png: Path) -> None:
        self._saved, self.stale = png.read_bytes(), False

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if self._saved is None or self.stale:
            raise NotImplementedError  # IPython draws it then
        width, height = (round(inches * SCREEN_DPI) for inches in self.get_size_inches())
        bundle = {"image/png": self._saved, "text/plain": repr(self)}
        display(bundle, raw=True, metadata={"image/png": {"width": width, "height": height}})

    def draw(self, renderer: RendererBase) -> None:
        with own_style():
            super().draw(renderer)


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """An empty figure, sizes in inches; unknown to pyplot, so a notebook shows it once and memory is freed with it."""
    return _Figure(figsize=(width, height), layout=layout, dpi=SCREEN_DPI)


def panel_grid(count: int, *, per_row: int = 4, panel: float = 42 * MM, extra: float = 10 * MM, **share: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` equal panels, at most `per_row` in a row; `panel` high each, inches."""
    columns = min(count, per_row)
    rows = math.ceil(count / per_row)
    width = SINGLE if columns == 1 else DOUBLE
    figure = new_figure(width, rows * panel + extra)
    axes = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def columns_for(count: int) -> int:
    """How many of `count` panels stand side by side: no row is much shorter than the others."""
    return count if count <= 4 else math.ceil(count / 2) if count <= 8 else 4


def columns_of(places: Sequence[str]) -> int:
    """`columns_for`; of centres and classes ("centre · class") a row a centre, where it has at most four."""
    first = places[0].partition(BETWEEN)
    classes = sum(place.startswith(f"{first[0]}{BETWEEN}") for place in places) if first[1] else 0
    return classes if 1 < classes <= 4 else columns_for(len(places))


def names(centers: Iterable[str]) -> dict[str, str]:
    """Name -> what is printed: at most `NAME_LENGTH` characters, still different from one another, `$` not read as mathematics.

    A centre and a class ("centre · class", `evaluation.one_vs_rest`) have so many each. A long name loses its last words; its middle,
    where another name begins alike.
    """
    centers = list(dict.fromkeys(centers))
    parts = {part for center in centers for part in center.split(BETWEEN)}
    beginnings = Counter(map(_beginning, parts))
    short = {part: _beginning(part) if beginnings[_beginning(part)] == 1 else f"{part[: NAME_LENGTH - 6]}…{part[-5:]}" for part in parts}
    short |= {part: part for part in parts if len(part) <= NAME_LENGTH}
    printed: dict[str, str] = {}
    for center in centers:
        text = BETWEEN.join(short[part] for part in center.split(BETWEEN))
        same = sum(other.split("\u2009#")[0] == text for other in printed.values())
        printed[center] = f"{text}\u2009#{same + 1}" if same else text
    return {center: text.replace("$", r"\$") for center, text in printed.items()}


def _beginning(name: str) -> str:
    """A long name's first words with "…", as many as have room; of a first word that is too long, its beginning."""
    if len(name) <= NAME_LENGTH:
        return name
    words = name[:NAME_LENGTH].rsplit(" ", 1)[0] if " " in name[NAME_LENGTH // 2 : NAME_LENGTH] else name[: NAME_LENGTH - 1]
    return words.rstrip(" ,;:(-–") + "…"


def center_style(centers: Iterable[str], all_centers: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """Center -> colour and marker as keywords of `Axes.plot`.

    Args:
        centers: those drawn.
        all_centers: those of the task, which the colours go by; None: those drawn are all.
    Raises: ValueError: if a drawn centre is not among all.
    """
    everyone = sorted(set(all_centers if all_centers is not None else centers))
    unknown = sorted(set(centers) - set(everyone))
    if unknown:
        raise ValueError(f"centers {unknown} are not among all centers {everyone}")
    order = {center: place for place, center in enumerate(everyone)}
    return {c: {"color": COLORS[order[c] % len(COLORS)], "marker": MARKERS[order[c] % len(MARKERS)]} for c in sorted(set(centers))}


def method_style(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Method -> colour, line style, marker, width and drawing order as keywords of `Axes.plot`, in the order of `METHODS`.

    Raises: ValueError: an unknown method; the message lists those that there are.
    """
    methods = set(methods)
    if unknown := sorted(methods - set(METHODS)):
        raise ValueError(f"methods {unknown} have no style, known are {', '.join(METHODS)}")
    styles: dict[str, dict[str, Any]] = {}
    for place, (name, method) in enumerate(METHODS.items()):
        if name in methods:
            width, layer = (1.9, 4) if name == REFERENCE else (1.0, 2 + place / 100)
            line = {"color": method.color, "linestyle": LINES[method.line], "marker": method.marker}
            styles[name] = line | {"linewidth": width, "zorder": layer}
    return styles


def whole_numbers(axis: Axes) -> None:
    """Ticks of the x axis at whole numbers only: rounds have no halves."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, nbins=6))


def grid(axis: Axes, which: Literal["both", "x", "y"] = "y") -> None:
    """Faint lines across one axis."""
    axis.grid(True, axis=which)


def share_legend(figure: Figure, axis: Axes, columns: int = 8) -> None:
    """One legend for all panels, above them, from the entries of one."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), columns), handletextpad=0.4, columnspacing=1.4)


def bare(axis: Axes) -> None:
    """Neither ticks nor a frame: the axis holds an image."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def write_in_panel(axis: Axes, text: str, width: int = 26) -> None:
    """Words in the middle of a panel that has nothing else to show, at most `width` characters a line."""
    lines = textwrap.fill(text, width)
    axis.text(0.5, 0.5, lines, ha="center", va="center", color=MUTED, transform=axis.transAxes, linespacing=1.4)


def empty_figure(text: str) -> Figure:
    """An empty figure that says why it is empty."""
    figure = new_figure(DOUBLE, 24 * MM)
    axis = figure.subplots()
    axis.set_axis_off()
    write_in_panel(axis, text, 110)
    return figure


def text_on(cmap: matplotlib.colors.Colormap, share: float) -> str:
    """Black or white, whichever is read better on `cmap(share)`, share in [0, 1]."""
    red, green, blue, _ = cmap(float(np.clip(share, 0, 1)))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def heatmap(
    axis: Axes,
    values: pd.DataFrame,
    cmap: str,
    scale: tuple[float, float],
    texts: pd.DataFrame | None = None,
    *,
    size: float = 6,
    room: float = 0,
    tilt: float = 35,
    missing: str = "n/a",
    bare: str = NO_VALUE,
) -> Collection:
    """Fields coloured by their values, with texts in them that are black or white, and names at both sides.

    Args:
        values: rows from the top; index and columns are printed as they are.
        scale: values at both ends of the colours.
        texts: of the fields that have a value, in the shape of `values`; None: the value with two decimals.
        size: of the texts, points; 0: none.
        room: width of a field, mm; names of columns that are longer are turned by `tilt` degrees.
        missing, bare: text and colour of a field without a value.
    Returns: what `Figure.colorbar` takes.
    """
    import seaborn

    colors, numbers = matplotlib.colormaps[cmap], values.to_numpy(dtype=float)
    texts = values.map("{:.2f}".format) if texts is None else texts
    options = {"cbar": False, "xticklabels": False, "yticklabels": False}
    seaborn.heatmap(numbers, ax=axis, mask=~np.isfinite(numbers), cmap=colors, vmin=scale[0], vmax=scale[1], **options)
    axis.set_facecolor(bare)
    for (row, column), value in np.ndenumerate(numbers) if size else ():
        known = np.isfinite(value)
        if text := texts.iat[row, column] if known else missing:
            color = text_on(colors, (value - scale[0]) / (scale[1] - scale[0])) if known else MUTED
            style: dict[str, Any] = {"ha": "center", "va": "center", "color": color, "fontsize": size, "linespacing": 1.25}
            axis.text(column + 0.5, row + 0.5, text, **style)
    turned = {"rotation": tilt, "ha": "right", "va": "center" if tilt == 90 else "top", "rotation_mode": "anchor"}
    is_long = LETTER * max(map(len, values.columns), default=0) > room
    axis.set_xticks(np.arange(len(values.columns)) + 0.5, values.columns, **(turned if is_long else {"rotation": 0}))
    axis.set_yticks(np.arange(len(values)) + 0.5, values.index, rotation=0)
    axis.tick_params(length=0)
    return axis.collections[-1]


def footnote(figure: Figure, text: str) -> None:
    """Adds a paragraph in small print under the panels."""
    if not text:
        return
    # Names of centres come here with their dollar signs escaped.
    wrapped = textwrap.fill(re.sub(r"(?<!\\)\$", r"\\$", text), int(figure.get_figwidth() / MM * 0.92))
    text = "\n".join(filter(None, [figure.get_supxlabel(), wrapped]))
    figure.supxlabel(text, x=0.01, ha="left", fontsize=5.5, color=MUTED, linespacing=1.3)


def save_figure(figure: Figure, table: pd.DataFrame, folder: Path | str, name: str, note: str = "") -> Figure:
    """Writes name.png (200 dpi), name.pdf and name.csv, the numbers the figure shows; each file whole or not at all.

    Args:
        table: tidy; columns that hold arrays must have been dropped.
        folder: made if missing.
        note: small print under the figure, e.g. the teacher: outputs of a random one must say so. The CSV gets it, too, see `save_table`.
    Returns: the figure, so that a cell can end with this call and show it.
    Raises: ValueError: a table that has a column `source` already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with own_style():
        footnote(figure, note)
        write_png(figure, folder / f"{name}.png")
        figure.set_layout_engine(None)  # all parts have their places now; to find them again takes half the time of a drawing
        with _whole_file(folder / f"{name}.pdf") as file:
            figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    if isinstance(figure, _Figure):
        figure.saved_as(folder / f"{name}.png")
    save_table(table, folder, name, note)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """200 dpi, whole or not at all."""
    with _whole_file(path) as file:
        figure.savefig(file, format="png", dpi=FILE_DPI, metadata={"Software": None})


def save_table(table: pd.DataFrame, folder: Path | str, name: str, note: str = "") -> pd.DataFrame:
    """Writes name.csv, whole or not at all, with `note` and the library's version as last column `source`.

    A CSV that is passed on still names teacher and data, and what another version made can be told.

    Args:
        note: one line; "": no such column.
    Returns: the table as it came, without the column.
    Raises: ValueError: a table that has a column `source` already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = table.copy()
    if note:
        written.insert(len(table.columns), "source", f"{note} vfmgl_lib {__version__}")
    write_text(folder / f"{name}.csv", written.to_csv(index=False))
    return table


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    temporary = temporary_name(path, f".{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
