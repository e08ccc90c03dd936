"""A name that is HTML is shown, not run: in tables, in the model card, from a hostile folder's name on."""

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from pandas.io.formats.style import Styler

from vfmgl_lib.figures.escaping import EscapingStyler, _escaping, escape_tables
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tools.batch.execution import write_html

model_card = importlib.import_module("vfmgl_lib.tools.export.model_card")  # the package has the function under that name
HOSTILE = "<img src=x onerror=alert(1)>"
SHOWN = "&lt;img src=x onerror=alert(1)&gt;"


@pytest.fixture
def kept(monkeypatch):
    """`DataFrame.style` as it was, after the test."""
    monkeypatch.setattr(pd.DataFrame, "style", pd.DataFrame.style)


@pytest.fixture
def table():
    index = pd.MultiIndex.from_tuples([(HOSTILE, "val"), ("A & B", "test")], names=[HOSTILE, "split"])
    return pd.DataFrame({HOSTILE: [HOSTILE, [HOSTILE]], "Dice": [0.71234, None]}, index=index).rename_axis(columns=HOSTILE)


@pytest.mark.parametrize(
    "formatted",
    [
        lambda style: style,
        lambda style: style.format(str),
        lambda style: style.format({"Dice": "{:.2f}"}, na_rep="–").format_index(str.title, axis="columns"),
        lambda style: style.hide(axis="index").format(precision=2),
        lambda style: style.set_caption((HOSTILE, "short")),
    ],
)
def test_nothing_in_a_table_is_html(kept, table, formatted):
    assert HOSTILE in Styler(table).set_caption(HOSTILE)._repr_html_(), "pandas' own way; if it escapes, this module is not needed"
    escape_tables()
    page = formatted(table.style.set_caption(HOSTILE))._repr_html_()
    assert "<img" not in page.lower() and "&lt;img" in page.lower()
    assert "0.71" in page and "&amp;nbsp;" not in page, "numbers and pandas' own blanks stay"


def test_a_changed_template_is_noticed():
    with pytest.raises(RuntimeError, match=r"prints no c\.display_value; vfmgl_lib\.figures\.escaping has to be adapted"):
        _escaping("<td>{{cell.text}}</td>")


def test_a_folder_with_a_hostile_name(kept, phantoms, tmp_path):
    """From the centre's folder to the page that the batch writes of a notebook."""
    root = tmp_path / "images"
    for center in ("SiteA", "SiteB"):
        shutil.copytree(phantoms["nuclei"].root / center, root / (HOSTILE if center == "SiteA" else center))
    workspace = open_workspace("nuclei", Path("tests/smallest.yaml").resolve(), data=root, runs=tmp_path / "runs")
    assert HOSTILE in workspace.manifest.centers
    counts = workspace.manifest.table.groupby(["center", "split"]).size().unstack().style.format("{:.0f}")
    assert isinstance(counts, EscapingStyler)
    shown = [{"text/html": counts._repr_html_()}, {"text/html": workspace.describe().to_frame().style._repr_html_()}]
    shown.append({"text/html": workspace.manifest.table[["id", "path"]]._repr_html_(), "text/plain": HOSTILE})
    cell = nbformat.v4.new_code_cell("table", outputs=[nbformat.v4.new_output("display_data", data) for data in shown])
    cell.outputs.append(nbformat.v4.new_output("stream", text=HOSTILE))
    cell.outputs.append(nbformat.v4.new_output("error", ename="E", evalue=HOSTILE, traceback=[HOSTILE]))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebook.ipynb")
    write_html(tmp_path / "notebook.ipynb", tmp_path / "notebook.html")
    page = (tmp_path / "notebook.html").read_text()
    assert "<img src=x" not in page and page.count(SHOWN) >= 5


def test_the_card_is_text(monkeypatch):
    for part in ("_training", "_data", "_performance"):
        monkeypatch.setattr(model_card, part, lambda *given: {})
    settings = SimpleNamespace(method="local", data=SimpleNamespace(own_task=None))
    study = SimpleNamespace(settings=settings, manifest=SimpleNamespace(sha256="0", split_unit="patient"))
    about = SimpleNamespace(task="nuclei", study={"model_center": HOSTILE}, data="PHANTOM", teacher="", kind="segmentation", reads=())
    about.__dict__.update(
        classes=["{{ 7 * 7 }}", HOSTILE],
        mask_values=(0, 255),
        series=(),
        unit="image",
        cutoff=None,
        cutoff_from="",
        preprocessing={"resize": "squashed", "volume": "clipped at its 0.99 quantile"},
        reading=SimpleNamespace(max_value=0),
    )
    files, table = pd.DataFrame({"file": [HOSTILE], "bytes": [1], "sha256": ["0"]}), pd.DataFrame({"low": [0.5]})
    text = model_card.model_card(study, about, files, table, table, {"parameters": 1, "macs": 1, "flops": 2}, table)
    assert "\n# nuclei: model of &lt;img src=x onerror=alert(1)>\n" in text and "<" not in text
    assert "Classes: {{ 7 * 7 }}, &lt;img" in text, "what is in a name is no template"
    assert "> **Not for any use on patients.**" in text, "a quotation stays one"
    assert "resize: squashed." in text and "volume" not in text, "it reads images only"
    about.reads = ("image", "volume")
    text = model_card.model_card(study, about, files, table, table, {"parameters": 1, "macs": 1, "flops": 2}, table)
    assert "resize: squashed; volume: clipped at its 0.99 quantile." in text


def test_notebooks_write_no_html_of_their_own(request):
    for path in sorted((request.config.rootpath / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                assert "HTML(" not in cell.source and "to_html(" not in cell.source, path.name
                assert not any("Markdown(f" in line and "obstacle}" in line for line in cell.source.splitlines()), path.name
