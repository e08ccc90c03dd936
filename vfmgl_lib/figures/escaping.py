"""Tables on a page show text as text: a centre, a patient or a file may be called `<img src=x onerror=…>`, and a page must not run that."""

from __future__ import annotations

import pandas as pd
from pandas.io.formats.style import Styler

CONTENT = ("c.display_value", "caption", "caption[0]")  # all that pandas' template prints of a table's content
BLANK = '"&nbsp;"'  # pandas' own, in a cell of the head without a name


def _escaping(template: str) -> str:
    """pandas' template with the content escaped where it is printed: whatever formatted it before, nothing gets round that."""
    for value in CONTENT:
        if f"{{{{{value}}}}}" not in template:
            raise RuntimeError(f"pandas {pd.__version__}: its template prints no {value}; vfmgl_lib.figures.escaping has to be adapted")
        template = template.replace(f"{{{{{value}}}}}", f"{{{{ {value} if {value} == {BLANK} else {value} | e }}}}")
    return template


class EscapingStyler(Styler):
    """pandas' Styler, which by itself takes cells, labels and captions for HTML. Tooltips, which are HTML in a cell, do not work in it."""

    template_html_table = Styler.env.from_string(_escaping(Styler.loader.get_source(Styler.env, "html_table.tpl")[0]))


def escape_tables() -> None:
    """From now on `DataFrame.style` is an `EscapingStyler`: a cell that ends with a table need not ask for it, and cannot forget to."""
    pd.DataFrame.style = property(EscapingStyler)
