"""A report of one page: tables and figures of a study and the card of its model. HTML without scripts; it loads nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jinja2
import pandas as pd
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_text

TEMPLATE = Path(__file__).with_suffix(".html")
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)  # a card begins with its data for the hub


def write_report(
    file: Path | str,
    title: str,
    card: Path | str,
    *,
    tables: Mapping[str, pd.DataFrame] | None = None,
    figures: Mapping[str, Path | str] | None = None,
    notes: Iterable[str] = (),
) -> Path:
    """Writes the page, whole or not at all.

    Args:
        card: a model's card as `export_model` writes it, Markdown; its headings go one level down.
        tables: heading -> table, shown with its index, NaN as a dash.
        figures: heading -> PNG; its pixels go into the page.
        notes: lines of text, such as `Workspace.warnings`.
    Returns: the page's path.
    """
    file = Path(file)
    text = re.sub(r"^(#+ )", r"##\1", _FRONT.sub("", Path(card).read_text("utf-8")), flags=re.MULTILINE)
    renderer = IPythonRenderer(escape=True, exclude_anchor_links=True)
    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    content = page.render(
        title=title,
        version=__version__,
        notes=list(notes),
        tables=[(heading, table.to_html(na_rep="–", border=0, float_format="{:.2f}".format)) for heading, table in (tables or {}).items()],
        figures=[(heading, base64.b64encode(Path(png).read_bytes()).decode()) for heading, png in (figures or {}).items()],
        card=MarkdownWithMath(renderer=renderer).render(text),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, content)
    return file
