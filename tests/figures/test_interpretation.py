"""Figures of interpretation: everything in the tables is drawn, and what is missing is said."""

import io

import ipywidgets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vfmgl_lib.figures import interpretation as drawn
from vfmgl_lib.figures.case_browser import case_browser, has_front_end
from vfmgl_lib.figures.style import save_figure
from vfmgl_lib.interpretation import cam

CLASSES = ("0_NMI", "1_MI")
RNG = np.random.default_rng(0)


def texts(figure) -> str:
    found = [text.get_text() for axis in figure.axes for text in [*axis.texts, axis.title, axis._left_title, axis.xaxis.label]]
    found += [label.get_text() for axis in figure.axes for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return "\n".join([*found, figure.get_supxlabel(), figure.get_suptitle()])


def cases(centers=("A", "B"), without=()):
    rows = [(c, label, f"{c}{label}", 0.2 + 0.5 * label) for c in centers for label in (1, 0) if (c, label) not in without]
    chosen = pd.DataFrame(rows, columns=["center", "label", "id", "score"])
    images = chosen[["id"]].assign(image=[RNG.random((16, 16, 3)) for _ in rows])
    maps = chosen[["id"]].assign(map=[RNG.normal(size=(4, 4)).astype(np.float32) for _ in rows])
    lesions = {name: np.pad(np.ones((4, 4), bool), 6) for name in chosen["id"]}
    return cam.case_table(chosen, images, maps, 16, lesions)


def near(table):
    rows = [(name, f"n{i}", i % 2, 0.5 + i, RNG.random((16, 16, 3))) for name in table["id"] for i in range(3)]
    return pd.DataFrame(rows, columns=["case", "id", "label", "distance", "image"])


def test_overlays_name_class_and_score_and_a_missing_case():
    figure = drawn.overlays(cases(without=[("B", 0)]), CLASSES)
    said = texts(figure)
    assert "1_MI" in said and "score 0.70" in said and "no such case" in said
    assert len([image for axis in figure.axes for image in axis.images]) == 3 * 3  # per case the image, and the image under its map


def test_a_map_is_transparent_where_it_says_nothing():
    axis = drawn.new_figure(1, 1).subplots()
    found = np.zeros((8, 8))
    found[0, 0], found[7, 7] = 2.0, -1.0
    drawn.draw_map(axis, np.full((8, 8, 3), 0.5), found, 2.0)
    shown = axis.images[1].get_array()
    assert shown[4, 4, 3] == 0 and shown[0, 0, 3] == pytest.approx(drawn.OPACITY) and 0 < shown[7, 7, 3] < shown[0, 0, 3]
    assert shown[0, 0, 2] > shown[0, 0, 0] and shown[7, 7, 0] > shown[7, 7, 2]  # purple for, orange against


def test_case_table_misses_a_map():
    table = cases()
    with pytest.raises(KeyError, match="no image or map of the chosen case 'A1'"):
        cam.case_table(table[["center", "label", "id", "score"]], table[["id", "image"]], table[["id", "map"]].iloc[1:], 16)


def localised():
    rows = []
    for model, shift in (("trained", 0.05), ("random weights", -0.01)):
        for center in ("A", "B", "all"):
            rows.append(
                (model, center, 9, 4, 2, 0.1 + shift, 0.1, shift, shift - 0.02, shift + 0.02, shift, shift - 0.03, shift + 0.03, "")
            )
    columns = ["model", "center", "images", "patients", "undefined", "inside", "area", "gain", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "gain_over_place", "place_low", "place_high", "verdict"])


def test_localisation_draws_both_kinds_of_chance(tmp_path):
    figure = drawn.localisation(localised())
    said = texts(figure)
    assert "against an even map" in said and "all centres 10.0 %" in said and "trained 2, random weights 2" in said
    points = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_label() == "trained"]
    assert points == [pytest.approx(5.0)]
    save_figure(figure, localised(), tmp_path, "localisation", "note")
    assert (tmp_path / "localisation.pdf").stat().st_size > 1000


def test_cascade_names_every_step():
    rows = [(s, n, 0, f"i{i}", f"p{i}", c, r) for s, n, r in ((1, "head", 0.5), (2, "layer4", 0.0)) for c in "AB" for i in range(4)]
    table = pd.DataFrame(rows, columns=["step", "randomised", "draw", "id", "patient", "center", "correlation"])
    said = texts(drawn.cascade(table, ["A", "B", "C"]))
    assert "+ head" in said and "+ layer4" in said and "trained" in said


@pytest.mark.parametrize("labels", [(0, 1), (-1,)])
def test_principal_components_have_a_panel_each(labels):
    rows = [
        (s, c, split, label, RNG.normal(), RNG.normal())
        for s in ("I", "II")
        for c in "AB"
        for split in ("train", "test")
        for label in labels
    ]
    points = pd.DataFrame(rows, columns=["stage", "center", "split", "label", "pc1", "pc2"])
    shares = [(s, c, f"pc{i}", 0.6 / i, 0.5) for s in ("I", "II") for c in "AB" for i in (1, 2)]
    explained = pd.DataFrame(shares, columns=["stage", "center", "component", "explained", "explained_test"])
    figure = drawn.principal_components(points, explained, CLASSES)
    assert len(figure.axes) == 4 and "PC 1 (60%)" in texts(figure) and "B, stage II" in texts(figure)
    assert ("1_MI, test" in texts(figure)) == (labels != (-1,))


def test_center_predictability_has_every_model():
    rows = [("A", "I", 0.9), ("A", "II", 0.8), ("B", "I", 0.7), ("B", "II", 0.6), ("shared", "shared", 0.5)]
    table = pd.DataFrame(rows, columns=["model", "stage", "balanced_accuracy"]).assign(chance=0.5)
    figure = drawn.center_predictability(table.assign(low=table["balanced_accuracy"] - 0.1, high=table["balanced_accuracy"] + 0.1))
    shared = next(line for line in figure.axes[0].lines if line.get_label() == "shared")
    assert shared.get_ydata().tolist() == [2] and "stage II" in texts(figure)


def test_score_charts_print_p_and_the_reason_for_none():
    scores = pd.DataFrame(
        [("II", c, "test", label, 0.5 + 0.1 * label) for c in "AB" for label in ((0, 1, 1) if c == "A" else (1,))],
        columns=["stage", "center", "split", "label", "score"],
    )
    tests = pd.DataFrame(
        {
            "center": ["A", "B"],
            "split": "test",
            "test": ["independent t", ""],
            "p": [3e-5, np.nan],
            "reason": ["", "only one class: 1 positive, 0 negative"],
        }
    )
    said = texts(drawn.score_charts(scores, tests, CLASSES))
    assert "p = 3.0e-05" in said and "no test" in said and "No test (only one class: 1 positive, 0 negative): B test." in said
    assert "1_MI\nn = 2" in said and "0_NMI\nn = 0" in said


def test_heatmaps_are_eight_panels_on_one_scale():
    features = [(c, f"f{i}") for c in "AB" for i in range(2)]
    values = {split: np.clip(RNG.normal(size=(4, 4)), -1, 1) for split in ("train", "test")}
    values["test"][1] = np.nan
    rows = [
        (stage, kind, split, *features[i], *features[j], values[split][i, j])
        for stage in ("I", "II")
        for kind in ("adaptive", "common")
        for split in ("train", "test")
        for i in range(4)
        for j in range(4)
    ]
    columns = ["stage", "kind", "split", "row_center", "row_feature", "column_center", "column_feature", "r"]
    figure = drawn.correlation_heatmaps(pd.DataFrame(rows, columns=columns), "Class 1_MI")
    panels = figure.axes[:8]
    assert [axis._left_title.get_text()[0] for axis in panels] == list("abcdefgh")
    assert (
        panels[0]._left_title.get_text() == "a  adaptive, stage I, test"
        and panels[7]._left_title.get_text() == "h  common, stage II, training"
    )
    for axis in panels:
        assert axis.collections[0].get_clim() == (-1, 1) and axis.collections[0].get_cmap().name == drawn.DIVERGING
    shown = panels[2].collections[0].get_array().reshape(4, 4)
    assert np.allclose(shown, values["train"])
    assert panels[0].collections[0].get_array().reshape(4, 4).mask[1].all()


def test_case_sheet_shows_the_neighbours():
    table = cases(("A",))
    said = texts(drawn.case_sheet(table, near(table), CLASSES))
    assert "1_MI · 1.50" in said and "score 0.70" in said
    plain = table.assign(label=-1, lesion=None)
    assert "1_MI" not in texts(drawn.case_sheet(plain, near(table).assign(label=-1), CLASSES))


def browser(**options):
    table, drawn_ids = cases(), []

    def draw(ids):
        drawn_ids.append(list(ids))
        part = table[table["id"].isin(ids)]
        return drawn.case_sheet(part, near(part), CLASSES)

    return case_browser(table, draw, CLASSES, ["B1", "A0"], **options), drawn_ids


def test_without_a_front_end_the_chosen_cases_are_drawn():
    assert not has_front_end()
    figure, ids = browser()
    assert ids == [["B1", "A0"]] and "score 0.70" in texts(figure)


def test_the_menus_change_the_picture_once_each():
    box, ids = browser(interactive=True)
    center, label, case = box.children[0].children
    picture = box.children[-1]
    assert isinstance(picture, ipywidgets.Image) and (center.value, label.value, case.value) == ("B", 1, "B1") and ids == [["B1"]]
    first = picture.value
    center.value = "A"
    assert (label.value, case.value, ids[1:]) == (1, "A1", [["A1"]]) and picture.value != first
    label.value = 0
    assert (case.value, ids[2:]) == ("A0", [["A0"]]) and [text for text, _ in label.options] == ["1_MI", "0_NMI"]
    assert Image.open(io.BytesIO(picture.value)).size[0] > 400


def test_a_browser_of_nothing():
    with pytest.raises(ValueError, match=r"got 4 cases, chosen but unknown: \['C1'\]"):
        case_browser(cases(), lambda ids: None, CLASSES, ["C1"])
    with pytest.raises(ValueError, match="got 0 cases"):
        case_browser(cases().iloc[:0], lambda ids: None, CLASSES, [])
