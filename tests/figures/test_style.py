"""Colours, names and saving."""

import pandas as pd
import pytest
from matplotlib import rcParams
from PIL import Image

from vfmgl_lib import __version__
from vfmgl_lib.figures.style import (
    DOUBLE,
    FILE_DPI,
    NAME_LENGTH,
    center_style,
    columns_for,
    footnote,
    names,
    new_figure,
    nothing,
    save_figure,
    save_table,
)


def test_a_centre_keeps_its_colour_when_drawn_alone():
    everyone = ["A", "B", "C", "D"]
    assert center_style(["C"], everyone)["C"] == center_style(everyone)["C"]
    assert center_style(["C"])["C"] != center_style(everyone)["C"]


def test_eight_centres_differ_in_colour_and_marker():
    styles = center_style([f"c{i}" for i in range(8)])
    assert len({style["color"] for style in styles.values()}) == 8
    assert len({style["marker"] for style in styles.values()}) == 8


def test_unknown_centre_is_refused():
    with pytest.raises(ValueError, match=r"\['X'\] are not among all centers \['A'\]"):
        center_style(["X"], ["A"])


def test_names_are_short_distinct_and_no_mathematics():
    long = [f"University Hospital of Somewhere {i}, Department" for i in range(3)]
    printed = names([*long, "Zürich Łódź", "$x$"])
    assert len(set(printed.values())) == 5
    assert all(len(printed[name]) <= NAME_LENGTH + 4 for name in long)
    assert printed["Zürich Łódź"] == "Zürich Łódź"
    assert printed["$x$"] == r"\$x\$"


def test_save_writes_three_whole_files_and_the_table_comes_back(tmp_path):
    table = pd.DataFrame({"center": ["Zürich", "B, C"], "value": [0.1 + 0.2, float("nan")], "n": [3, 4]})
    figure = new_figure(DOUBLE, 2)
    figure.subplots().plot([0, 1], [0, 1])
    before = dict(rcParams)
    returned = save_figure(figure, table, tmp_path / "new" / "folder", "name", note="Teacher: RANDOM weights")
    assert returned is figure
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["name.csv", "name.pdf", "name.png"]
    written = pd.read_csv(tmp_path / "new" / "folder" / "name.csv")
    assert written.columns[-1] == "source" and set(written["source"]) == {f"Teacher: RANDOM weights vfmgl_lib {__version__}"}
    pd.testing.assert_frame_equal(written.drop(columns="source"), table, check_exact=True)
    with Image.open(tmp_path / "new" / "folder" / "name.png") as image:
        assert abs(image.width - DOUBLE * FILE_DPI) <= 2
    assert (tmp_path / "new" / "folder" / "name.pdf").read_bytes().startswith(b"%PDF")
    assert "RANDOM weights" in figure.get_supxlabel()
    assert dict(rcParams) == before


def test_save_table_adds_its_source_to_the_file_only(tmp_path):
    table = pd.DataFrame({"x": [1, 2]})
    note = 'Teacher: "one", two. Data: Zürich'
    assert save_table(table, tmp_path, "with", note) is table and list(table) == ["x"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "with.csv"), table.assign(source=f"{note} vfmgl_lib {__version__}"))
    save_table(table, tmp_path, "without")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "without.csv"), table)
    with pytest.raises(ValueError, match="source"):
        save_table(table.assign(source=1), tmp_path, "twice", note)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        figure = new_figure(3, 2)
        figure.subplots().plot([0, 1], [0, 1])
        save_figure(figure, pd.DataFrame({"x": [1]}), tmp_path, name)
    for suffix in ("png", "pdf", "csv"):
        assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes(), suffix


def test_a_failed_save_leaves_the_old_file(tmp_path):
    (tmp_path / "name.png").write_bytes(b"old")
    figure = new_figure(3, 2)
    figure.subplots().set_title("$\\unknowncommand$")
    with pytest.raises(ValueError):
        save_figure(figure, pd.DataFrame({"x": [1]}), tmp_path, "name")
    assert [path.name for path in tmp_path.iterdir()] == ["name.png"]
    assert (tmp_path / "name.png").read_bytes() == b"old"


def test_footnotes_add_up():
    figure = new_figure(3, 2)
    footnote(figure, "first")
    footnote(figure, "")
    footnote(figure, "costs 5 $")
    assert figure.get_supxlabel() == "first\ncosts 5 \\$"
    footnote(figure, names(["$1"])["$1"])
    assert figure.get_supxlabel().endswith("\n\\$1")


def test_panels_fill_their_rows():
    assert [columns_for(count) for count in range(1, 10)] == [1, 2, 3, 4, 3, 3, 4, 4, 4]


def test_a_figure_with_nothing_to_show_says_why():
    figure = nothing("No external centre costs 5 dollars.")
    assert [text.get_text() for text in figure.axes[0].texts] == ["No external centre costs 5 dollars."] and not figure.axes[0].axison
