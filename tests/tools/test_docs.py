"""`vfmgl docs`: links written anew, notebooks of a run, docstrings, the gallery, and the check of what was built."""

import importlib.util
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from vfmgl_lib import cli
from vfmgl_lib.tools.docs import __main__ as docs
from vfmgl_lib.tools.docs import reference
from vfmgl_lib.tools.docs.docstrings import inline, to_rst
from vfmgl_lib.tools.docs.gallery import LARGEST, GalleryError, smaller, write_gallery
from vfmgl_lib.tools.docs.links import problems_of
from vfmgl_lib.tools.docs.notebooks import find_notebooks, page_of, shortened
from vfmgl_lib.tools.docs.pages import page_places, rewritten, stage

ROOT = Path(__file__).resolve().parents[2]
NEEDS_SPHINX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in docs.NEEDED), reason="the site's packages are not installed (extra `docs`)"
)
PLACES = {"docs/index.md": "index.md", "docs/own_task.md": "own_task.md", "deploy/README.md": "federation.md", "docs/sub/a.md": "sub/a.md"}


@pytest.mark.parametrize(
    ("origin", "text", "expected"),
    [
        ("docs/index.md", "[x](../deploy/README.md#steps)", "[x](federation.md#steps)"),
        ("docs/sub/a.md", "[](../../deploy/README.md)", "[](../federation.md)"),
        ("deploy/README.md", "[x](../docs/own_task.md)", "[x](own_task.md)"),
        ("deploy/README.md", "[x](https://example.org) [y](#steps)", "[x](https://example.org) [y](#steps)"),
        ("deploy/README.md", "see `docs/own_task.md`", "see [`docs/own_task.md`](own_task.md)"),
        ("deploy/README.md", "[`docs/own_task.md`](../docs/own_task.md)", "[`docs/own_task.md`](own_task.md)"),
        ("docs/index.md", "```\n[x](../deploy/README.md)\n```", "```\n[x](../deploy/README.md)\n```"),
        ("docs/index.md", "![a picture](figures/outlines.png)", "![a picture](figures/outlines.png)"),
    ],
)
def test_links_fit_the_place_on_the_site(origin: str, text: str, expected: str):
    files: dict[str, bytes] = {}
    assert rewritten(text, origin, PLACES, ROOT, files) == expected and files == {}


def test_a_file_that_is_no_page_becomes_a_download():
    files: dict[str, bytes] = {}
    assert rewritten("[x](../LICENSE)", "docs/index.md", PLACES, ROOT, files) == "[x](LICENSE)"
    assert files == {"LICENSE": (ROOT / "LICENSE").read_bytes()}


def test_every_page_stands_somewhere_and_no_two_at_one_place():
    places = page_places(ROOT, find_notebooks(ROOT, ROOT / "no-run"))
    assert len(set(places.values())) == len(places) and {"index.md", "federation.md", "notebooks/02_hgkt.ipynb"} <= set(places.values())
    assert all((ROOT / origin).is_file() for origin in places)


def executed_run(folder: Path) -> Path:
    """A run's folder with notebook 02 alone, as papermill leaves it."""
    notebook = nbformat.read(ROOT / "notebooks" / "02_hgkt.ipynb", as_version=4)
    notebook.metadata["papermill"] = {"duration": 1.0}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    picture = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "a figure"})
    widget = nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a slider"})
    card = nbformat.v4.new_output("display_data", {"text/markdown": "---\nlicense: x\n---\n\n### Card"})
    progress = nbformat.v4.new_output("stream", name="stderr", text="50 %")
    code[-1].outputs = [progress, widget, card, picture]
    place = folder / "nuclei" / "notebooks" / "02_hgkt.ipynb"
    place.parent.mkdir(parents=True)
    nbformat.write(notebook, place)
    return folder


def test_notebooks_of_a_run_are_shown_and_the_others_as_they_are_stored(tmp_path: Path):
    found = find_notebooks(ROOT, executed_run(tmp_path / "smoke"))
    assert [one.place for one in found.notebooks if one.task] == ["notebooks/nuclei/02_hgkt.ipynb"] and found.tasks == ["nuclei"]
    assert len(found.notebooks) == 10 and "01_data_preparation" in found.notes[0] and "./run_all.sh" in found.notes[0]
    assert page_places(ROOT, found)["notebooks/02_hgkt.ipynb"] == "notebooks/nuclei/02_hgkt.ipynb"


def test_without_a_run_it_is_said_what_to_run(tmp_path: Path):
    found = find_notebooks(ROOT, tmp_path / "none")
    assert found.tasks == [] and len(found.notebooks) == 10
    assert str(tmp_path / "none") in found.notes[0] and "Run `./run_all.sh`" in found.notes[0]


def test_a_notebook_s_page_has_texts_for_pictures_and_no_progress(tmp_path: Path):
    found = find_notebooks(ROOT, executed_run(tmp_path / "smoke"))
    page = json.loads(page_of(found.notebooks[0], str.upper))
    outputs = [output for cell in page["cells"] for output in cell.get("outputs", [])]
    assert [sorted(output["data"]) for output in outputs] == [["text/markdown"], ["image/png", "text/plain"]]
    assert outputs[0]["data"]["text/markdown"].strip() == "### Card"
    (shown,) = [cell for cell in page["cells"] if "mystnb" in cell["metadata"]]
    assert len(shown["metadata"]["mystnb"]["image"]["alt"]) > 10
    assert all("papermill" not in cell["metadata"] for cell in page["cells"])
    assert page["cells"][0]["source"].startswith("# 02") and "(NUCLEI)" in page["cells"][0]["source"].partition("\n")[0]


def test_a_long_text_ends_at_a_sentence():
    assert shortened('a "b"\n c') == "a 'b' c"
    assert shortened("One sentence. " + "word " * 100) == "One sentence."
    assert len(shortened("word " * 100)) <= 301


DOCSTRING = """Sums `x_` and *y*.

The formula

    a_b = |c|

and more.

- one
  goes on
  - two

Args:
    x: (B, C), in mm;
        goes on.
    **more: anything.
Returns: a `Tensor`
    of one.
Raises: ValueError: x is negative.
"""


def test_a_docstring_becomes_rst_in_which_only_code_means_anything():
    text = "\n".join(to_rst(DOCSTRING.split("\n")))
    assert r"Sums ``x_`` and \*y\*." in text and "::\n\n       a_b = |c|\n" in text
    assert "- one goes on\n\n  - two" in text
    assert "**Args**\n\n* ``x``: (B, C), in mm; goes on.\n* ``**more``: anything." in text
    assert "**Returns:** a ``Tensor`` of one." in text and "**Raises:** ValueError: x is negative." in text
    assert inline("``a`` and `b`") == "``a`` and ``b``"


def test_pictures_of_the_gallery_are_small(tmp_path: Path):
    Image.effect_noise((1600, 400), 90).convert("RGB").save(tmp_path / "noise.png")
    data = smaller(tmp_path / "noise.png")
    assert len(data) <= LARGEST
    (tmp_path / "small.png").write_bytes(data)
    with Image.open(tmp_path / "small.png") as image:
        assert image.width / image.height == pytest.approx(4, rel=0.01)


def test_the_gallery_says_what_is_missing_and_writes_nothing(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "gallery.yaml", tmp_path / "docs")
    with pytest.raises(GalleryError, match=r"pair_weights\.png.*run \./run_all\.sh"):
        write_gallery(tmp_path, tmp_path / "run")
    assert not (tmp_path / "docs" / "figures").exists()


SOUND = '<html><body id="top"><h1 id="a b">x</h1><a href="two.html#c">y</a><a href="#a%20b">z</a><img src="p.png" alt="a p"></body></html>'


def test_a_sound_site_has_no_problems(tmp_path: Path):
    (tmp_path / "one.html").write_text(SOUND)
    (tmp_path / "two.html").write_text('<p id="c"></p><a href="https://example.org/none">w</a><a href="mailto:x@example.org">m</a>')
    (tmp_path / "p.png").write_bytes(b"")
    assert problems_of(tmp_path) == []


@pytest.mark.parametrize(
    ("html", "said"),
    [
        ('<a href="none.html">x</a>', "none.html: no such file"),
        ('<a href="#none">x</a>', "no place 'none'"),
        ('<img src="p.png">', "without alternative text"),
        ('<img src="q.png" alt="a q">', "q.png: no such file"),
        ('<script src="https://example.org/a.js"></script>', "from elsewhere"),
        ('<script src="//example.org/a.js"></script>', "from elsewhere"),
        ('<link rel="stylesheet" href="https://example.org/a.css">', "from elsewhere"),
    ],
)
def test_a_fault_of_a_site_is_found(html: str, said: str, tmp_path: Path):
    (tmp_path / "one.html").write_text(html)
    (tmp_path / "p.png").write_bytes(b"")
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("one.html: ") and said in problem


def test_a_style_that_loads_from_elsewhere_is_found(tmp_path: Path):
    (tmp_path / "a.css").write_text("@font-face { src: url('https://example.org/f.woff') }")
    assert problems_of(tmp_path) == ["a.css: loads from elsewhere"]


def test_what_cannot_be_is_refused(tmp_path: Path, capsys):
    assert docs.main(["--run", str(tmp_path / "none")]) == 2 and "./run_all.sh" in capsys.readouterr().err
    assert docs.main([], root=tmp_path) == 2 and "clone of the repository" in capsys.readouterr().err
    assert docs.main(["--gallery", "--run", str(tmp_path)]) == 2 and "pair_weights.png" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(docs, "NEEDED", ("sphinx_that_is_not_there",))
    assert docs.main([]) == 2
    said = capsys.readouterr().err
    assert "sphinx_that_is_not_there" in said and docs.INSTALL in said


def test_every_command_and_part_has_its_help_on_the_page():
    page = reference.commands_of(cli.main, {name: about for name, (_, about) in cli.COMMANDS.items()})
    assert all(f"## vfmgl {name}\n" in page for name in cli.COMMANDS)
    assert page.count("usage: ") == len(cli.COMMANDS) - len(reference.NO_HELP) + sum(map(len, reference.PARTS.values()))


def test_every_floor_of_the_library_is_in_the_reference():
    rooms = {file.parent.name for file in (ROOT / "vfmgl_lib").glob("*/__init__.py")}
    assert rooms == set(reference.FLOORS)


@NEEDS_SPHINX
@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path, monkeypatch, capsys):
    """All pages, one executed notebook, and one floor of the reference; `vfmgl docs` builds all of it."""
    monkeypatch.setattr(reference, "FLOORS", ("kernels",))
    run = executed_run(tmp_path / "smoke")
    assert docs.main(["--run", str(run), "--out", str(tmp_path / "site")]) == 0, capsys.readouterr().err
    html = tmp_path / "site" / "html"
    assert "pair_matching" in (html / "api" / "kernels.html").read_text("utf-8")
    assert "<math" in (html / "hgkt.html").read_text("utf-8")
    shown = (html / "notebooks" / "nuclei" / "02_hgkt.html").read_text("utf-8")
    assert "<img" in shown and "federation.html" in (html / "index.html").read_text("utf-8")
    stage(ROOT, tmp_path / "none", tmp_path / "site" / "source")  # what belongs to that run goes
    assert not (tmp_path / "site" / "source" / "notebooks" / "nuclei" / "02_hgkt.ipynb").exists()
