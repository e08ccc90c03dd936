"""Looking through cases by hand: centre, class and case by menus where there is a live front end, a static grid where there is none.

Papermill and HTML have nobody to turn a menu: there the same cases that a rule chose are drawn in one figure.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import ipywidgets
import pandas as pd
from IPython import get_ipython
from matplotlib.figure import Figure

from vfmgl_lib.figures.style import FILE_DPI, own_style

WIDTH = "860px"


def has_front_end() -> bool:
    """True where a person's notebook shows the running cell: front ends name the cell in their request, papermill and nbclient do not."""
    shell = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return bool((parent or {}).get("metadata", {}).get("cellId"))


def case_browser(
    cases: pd.DataFrame,
    draw: Callable[[Sequence[str]], Figure],
    classes: Sequence[str],
    chosen: Sequence[str],
    interactive: bool | None = None,
) -> ipywidgets.VBox | Figure:
    """Menus for centre, class and case with the case's sheet below them; without a front end, the sheet of the chosen cases.

    Args:
        cases: center, label, id, score; one row a case that may be looked at.
        draw: ids -> figure of these cases.
        classes: names, negative first; a label of −1 (no classes) is offered as "all".
        chosen: ids of the static grid; the first one is what the browser opens with.
        interactive: None: where `has_front_end`.
    Raises: ValueError: no cases, a chosen id that is not among them.
    """
    known = set(cases["id"])
    if not len(cases) or not len(chosen) or not known.issuperset(chosen):
        missing = sorted(set(chosen) - known)
        raise ValueError(f"the browser needs cases and chosen ones among them, got {len(cases)} cases, chosen but unknown: {missing}")
    if not (has_front_end() if interactive is None else interactive):
        return draw(list(chosen))
    return _menus(cases, draw, classes, chosen[0])


def _menus(cases: pd.DataFrame, draw: Callable[[Sequence[str]], Figure], classes: Sequence[str], first: str) -> ipywidgets.VBox:
    start = cases.set_index("id").loc[first]
    center = ipywidgets.Dropdown(description="centre", options=sorted(cases["center"].unique()), value=start["center"])
    label = ipywidgets.Dropdown(description="class")
    case = ipywidgets.Dropdown(description="case", layout=ipywidgets.Layout(width="420px"))
    picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width=WIDTH))
    said = ipywidgets.HTML()

    def offer_classes() -> None:
        there = sorted(cases.loc[cases["center"] == center.value, "label"].unique(), reverse=True)
        kept = label.value
        label.options = [(classes[value] if value >= 0 else "all", int(value)) for value in there]
        label.value = kept if kept in there else int(there[0])

    def offer_cases() -> None:
        part = cases[(cases["center"] == center.value) & (cases["label"] == label.value)].sort_values(["score", "id"])
        case.options = [(f"{row.score:.3f}  {row.id}", row.id) for row in part.itertuples()]

    def show() -> None:
        said.value = "<i>drawing …</i>"
        file = io.BytesIO()
        with own_style():
            draw([case.value]).savefig(file, format="png", dpi=FILE_DPI)
        picture.value = file.getvalue()
        said.value = ""

    filling = False

    def changed(change: dict) -> None:
        nonlocal filling
        if filling:  # a menu that is being filled reports every step of it
            return
        filling = True
        try:
            if change["owner"] is center:
                offer_classes()
            if change["owner"] is not case:
                offer_cases()
        finally:
            filling = False
        show()

    offer_classes()
    label.value = int(start["label"])
    offer_cases()
    case.value = first
    for menu in (center, label, case):
        menu.observe(changed, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([center, label, case]), said, picture])
