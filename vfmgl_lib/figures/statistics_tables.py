"""The comparison as tables for print: every metric with its interval, the best of a centre, p values; as HTML, LaTeX and CSV."""

from __future__ import annotations

import html
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from vfmgl_lib.base.files import write_text
from vfmgl_lib.evaluation.results import ALL, NO_COMPARISON
from vfmgl_lib.figures.style import save_table
from vfmgl_lib.figures.words import LENGTHS, seeds_there, short, undefined, with_interval
from vfmgl_lib.methods.registry import METHODS

LATEX = str.maketrans({"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {c: f"\\{c}" for c in "&%$#_{}"})


def table_note(table: pd.DataFrame, note: str = "") -> str:
    """What stands under the printed table: intervals, marks, tests, and what is not defined, as plain text.

    Args:
        table: from `evaluation.comparison.statistics_table`.
        note: first words, e.g. data, teacher and budget.
    """
    kinds = ", ".join(sorted({kind for kind in table["interval"] if kind}))
    sentences = [
        f"{note.rstrip('.')}." if note else "",
        f"Value (95 % interval: {kinds})." if kinds else "",
        "Bold: the best of the centre; of none where a test, of means over patients, has the other sign.",
    ]
    if sets := sorted({name for names in table["cutoff_from"] if names for name in names.split(", ")}, reverse=True):
        where = " and ".join({"val": "validation", "train": "training"}[name] for name in sets)
        sentences.append(f"Cutoffs are Youden's on the {where} sets{', whichever a centre has' if len(sets) > 1 else ''}.")
    if table["seeds"].max() > 1:
        sentences.append(f"Means over {seeds_there(table)}, also of the limits.")
    if table["over_fewer"].any():
        sentences.append("[n of N]: over fewer images, those with a predicted pixel, and so never the best.")
    tested = table[table["test"] != ""]
    if len(tested):
        one = f", of seed {int(tested['tested_seed'].iloc[0])} alone" if table["seeds"].max() > 1 else ""
        against = ", ".join(METHODS[name].title for name in dict.fromkeys(tested["reference"]))
        sentences.append(f"p: {', '.join(sorted(set(tested['test'])))} against {against}, corrected by Holm{one}.")
    for reason, rows in table[table["test_reason"].str.endswith(NO_COMPARISON)].groupby("test_reason", sort=False):
        sentences.append(f"{', '.join(dict.fromkeys(rows['title']))}: {reason}.")
    printed = {center: "all centres" if center == ALL else center for center in table["center"]}
    return " ".join(filter(None, [*sentences, undefined(table, printed)]))


def styled_table(table: pd.DataFrame, note: str = "", escape: str = "html") -> Styler:
    """The table as it is printed: centres and methods as rows, metrics as columns, the best of a centre in bold.

    Args:
        table: from `evaluation.comparison.statistics_table`.
        note: see `table_note`.
        escape: "html" or "latex": names of centres are the user's and may hold anything.
    """
    cells: dict[tuple[str, str], dict[str, str]] = {}
    marks: dict[tuple[tuple[str, str], str], bool] = {}
    sizes = table.groupby(["center", "title"])["n"].max()  # of a sensitivity n is the positives only
    most = table.groupby(["center", "metric"])["n"].max()
    for (center, title, metric), row in table.set_index(["center", "title", "metric"]).iterrows():
        place = ("all centres" if center == ALL else center, title)
        unit = f" ({row['unit']})" if row["unit"] in LENGTHS else ""
        name = short(metric).replace(r"\$", "$") + unit
        cells.setdefault(place, {}).setdefault("n", f"{int(sizes[center, title])}")
        few = f" [{int(row['n'])} of {int(most[center, metric])}]" if row["over_fewer"] and row["n"] else ""
        cells[place][name] = with_interval(row, 2 if unit else 3) + few
        marks[place, name] = row["best"]
        if (table.loc[table["metric"] == metric, "test"] != "").any():
            cells[place][f"p ({name})"] = _p_value(row)
    shown = pd.DataFrame.from_dict(cells, orient="index").fillna("–")
    shown.index = pd.MultiIndex.from_tuples(cells, names=["centre", "method"])
    bold = pd.DataFrame("", shown.index, shown.columns)
    for (place, name), best in marks.items():
        bold.loc[place, name] = "font-weight: bold;" if best else ""
    text = table_note(table, note)
    styler = Styler(shown, uuid="statistics", cell_ids=False, caption=html.escape(text) if escape == "html" else text.translate(LATEX))
    styler = styler.format(escape=escape).apply(lambda _: bold, axis=None)
    for axis in ("index", "columns"):
        styler = styler.format_index(escape=escape, axis=axis)
    left = {"selector": "caption", "props": "caption-side: bottom; text-align: left; font-size: 85%; max-width: 70em;"}
    cell = {"selector": "th, td", "props": "padding: 0.15em 0.7em; text-align: left; vertical-align: top; white-space: nowrap;"}
    rule = {"selector": "tbody tr:has(th.level0) > *", "props": "border-top: 1px solid #999999;"}
    return styler.set_table_styles([left, cell, rule]).set_table_attributes('style="border-collapse: collapse"')


def _p_value(row: pd.Series) -> str:
    if row["method"] == row["reference"] or pd.isna(row["p_holm"]):
        return "–"
    return "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}"


def write_statistics(table: pd.DataFrame, folder: Path | str, name: str, note: str = "") -> Styler:
    """Writes name.html, name.tex (packages booktabs and multirow) and name.csv, each whole or not at all.

    Args:
        table: from `evaluation.comparison.statistics_table`.
        note: first words under the table, and the CSV's column `source`.
    Returns: the table for the screen, so that a cell can end with this call.
    """
    folder = Path(folder)
    shown = styled_table(table, note)
    write_text(folder / f"{name}.html", shown.to_html(doctype_html=True))
    tex = styled_table(table, note, escape="latex")
    tex.table_styles, tex.table_attributes = [], None  # those of the screen
    columns = "ll" + "l" * tex.data.shape[1]
    text = tex.to_latex(column_format=columns, hrules=True, clines="skip-last;index", multirow_align="t", convert_css=True)
    write_text(folder / f"{name}.tex", "% needs \\usepackage{booktabs, multirow}\n" + text)
    save_table(table, folder, name, note)
    return shown
