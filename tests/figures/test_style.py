"""Colours, names and saving."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context, rcParams
from PIL import Image

from vfmgl_lib import __version__
from vfmgl_lib.figures.style import (
    DOUBLE,
    FILE_DPI,
    MUTED,
    NAME_LENGTH,
    center_style,
    columns_for,
    empty_figure,
    footnote,
    heatmap,
    journal,
    names,
    new_figure,
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


def test_a_long_name_ends_with_a_word_unless_another_begins_alike():
    clinics = ["St. Marien Hospital (2019)", "Uniklinik Nord Station 1", "Uniklinik Nord Station 2", "Universitätsklinikum", "Süd"]
    shown = ["St. Marien…", "Uniklinik …ion 1", "Uniklinik …ion 2", "Universitätskli…", "Süd"]
    assert names(clinics) == dict(zip(clinics, shown, strict=True))
    assert names([f"{clinics[0]} · MI"])[f"{clinics[0]} · MI"] == "St. Marien… · MI"


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
    figure = empty_figure("No external centre costs 5 dollars.")
    assert [text.get_text() for text in figure.axes[0].texts] == ["No external centre costs 5 dollars."] and not figure.axes[0].axison


@journal
def _drawn():
    figure = new_figure(5, 2)
    axes = figure.subplots(1, 2)
    axes[0].imshow([[0.0, 1.0], [2.0, 3.0]])
    axes[1].plot([-1.5, 2], [0, 1000], label="a_b")
    axes[1].legend()
    axes[1].set_title("50 % of $x$")
    return figure


def _pixels(figure, file):
    figure.savefig(file, format="png")
    return Image.open(file).tobytes()


HOSTILE = {
    "text.usetex": True,
    "image.origin": "lower",
    "image.cmap": "jet",
    "savefig.transparent": True,
    "savefig.bbox": "tight",
    "savefig.format": "svg",
    "savefig.dpi": 30,
    "figure.autolayout": True,
    "figure.facecolor": "black",
    "figure.dpi": 40,
    "axes.facecolor": "black",
    "axes.grid": True,
    "axes.unicode_minus": False,
    "axes.formatter.use_locale": True,
    "axes.formatter.use_mathtext": True,
    "lines.linestyle": "--",
    "path.sketch": (1, 100, 2),
    "text.color": "white",
    "font.family": ["cursive"],
    "xtick.bottom": False,
    "ytick.direction": "in",
    "legend.loc": "center",
}


@pytest.mark.parametrize("part", ["text.usetex", "savefig", "others"])
def test_no_setting_of_the_user_changes_a_figure(part, tmp_path):
    """Neither as a file, nor as a notebook shows it, which draws it without this library."""
    table = pd.DataFrame({"a": [1]})
    save_figure(_drawn(), table, tmp_path, "plain", note="Teacher: pocket_vit")
    named = {name: value for name, value in HOSTILE.items() if name.startswith(part)}
    settings = named or {name: value for name, value in HOSTILE.items() if not name.startswith(("text.usetex", "savefig"))}
    with rc_context(settings):
        figure = save_figure(_drawn(), table, tmp_path, "theirs", note="Teacher: pocket_vit")
        figure.draw_without_rendering()
        theirs = dict(rcParams)
    assert all(theirs[name] == value for name, value in settings.items()), "the user's settings stay"
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()


def test_a_figure_that_is_only_shown_is_in_the_same_style(tmp_path):
    figure = _drawn()
    plain = _pixels(figure, tmp_path / "plain.png")
    looks = {name: value for name, value in HOSTILE.items() if not name.startswith("savefig") and name != "figure.dpi"}
    with rc_context(looks):
        assert _pixels(_drawn(), tmp_path / "theirs.png") == plain


def test_a_saved_figure_is_shown_as_its_file_and_a_changed_one_drawn_anew(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **options: shown.append((bundle, options["metadata"])))
    figure = _drawn()
    with pytest.raises(NotImplementedError):  # not saved yet: IPython draws it
        figure._ipython_display_()
    save_figure(figure, pd.DataFrame({"a": [1]}), tmp_path, "drawn", "a note")
    figure._ipython_display_()
    ((bundle, metadata),) = shown
    assert bundle["image/png"] == (tmp_path / "drawn.png").read_bytes() and bundle["text/plain"] == repr(figure)
    assert metadata["image/png"]["width"] == round(figure.get_figwidth() * 150)
    figure.axes[0].set_title("changed")
    with pytest.raises(NotImplementedError):
        figure._ipython_display_()


def test_a_heat_map_prints_every_value_where_it_can_be_read():
    axis = new_figure(2, 2).subplots()
    values = pd.DataFrame([[0.0, 1.0, 2.0], [np.nan, 0.5, 1.6]], index=["a", "b"], columns=["c", "d", "a long name"])
    mesh = heatmap(axis, values, "viridis", (0, 2), room=5)
    written = {text.get_position(): (text.get_text(), text.get_color()) for text in axis.texts}
    assert written == {
        (0.5, 0.5): ("0.00", "white"),
        (1.5, 0.5): ("1.00", "white"),
        (2.5, 0.5): ("2.00", "black"),
        (0.5, 1.5): ("n/a", MUTED),
        (1.5, 1.5): ("0.50", "white"),
        (2.5, 1.5): ("1.60", "black"),
    }
    assert mesh.get_clim() == (0, 2) and mesh.get_array().mask.tolist() == [[False] * 3, [True, False, False]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"] and axis.get_ylim() == (2, 0)
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {35}
    level = new_figure(2, 2).subplots()
    heatmap(level, values, "viridis", (0, 2), values.map("{:+.1f}".format), room=20, missing="")
    assert (
        {label.get_rotation() for label in level.get_xticklabels()} == {0} and level.texts[0].get_text() == "+0.0" and len(level.texts) == 5
    )
