"""Figures and tables that compare the methods."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from vfmgl_lib import __version__
from vfmgl_lib.evaluation.classification import by_patient
from vfmgl_lib.evaluation.comparison import in_order, statistics_table
from vfmgl_lib.evaluation.curves import decision_curve, reliability, roc_points
from vfmgl_lib.figures import comparison, roc, statistics_tables
from vfmgl_lib.figures.calibration import reliability_diagrams
from vfmgl_lib.figures.style import REFERENCE, method_style
from vfmgl_lib.methods.registry import METHODS

FOUR, TWO = ["A", "B", "C", "D"], ["University hospital of the north", "Łódź $1"]
THREE = ["fedavg", "hgkt", "vfmgl"]
SEGMENTATION = ("dice", "iou", "ppv", "sensitivity", "specificity", "assd", "hd95")
# Machado et al. 2009, deuteranopia, of linear RGB.
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


def words(figure) -> str:
    """The small print, in one line."""
    return figure.get_supxlabel().replace("\n", " ")


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.axison]


def seen_without_green(color: str) -> np.ndarray:
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.clip(linear @ np.transpose(DEUTERANOPIA), 0, 1) ** (1 / 2.4)


def test_every_method_has_a_style_in_the_order_of_the_methods():
    assert list(METHODS) == list(method_style(reversed(METHODS)))
    assert method_style(["vfmgl"])["vfmgl"] == method_style(METHODS)["vfmgl"]
    with pytest.raises(ValueError, match=r"\['fedsgd'\] have no style, known are local, "):
        method_style(["fedavg", "fedsgd"])


def test_styles_are_told_apart_without_green_and_the_reference_lies_on_top():
    styles = method_style(METHODS)
    assert len({style["color"] for style in styles.values()}) == len({style["marker"] for style in styles.values()}) == len(METHODS)
    for one, other in combinations(styles.values(), 2):
        distance = np.abs(seen_without_green(one["color"]) - seen_without_green(other["color"])).max()
        assert distance > 0.14 or one["linestyle"] != other["linestyle"]
    rivals = [style for name, style in styles.items() if name != REFERENCE]
    assert all(style["zorder"] < styles[REFERENCE]["zorder"] for style in rivals)
    assert all(style["linewidth"] < styles[REFERENCE]["linewidth"] for style in rivals)


def test_methods_are_ordered_and_missing_ones_named():
    drawn, absent = in_order({"vfmgl", "fedavg", "treat"}, ["vfmgl", "fedavg", "harmofl"])
    assert (drawn, absent) == (["fedavg", "vfmgl"], "Not in the results, so not drawn: HarmoFL.")
    assert in_order(METHODS) == (list(METHODS), "")
    with pytest.raises(ValueError, match=r"\['fedsgd'\] are unknown"):
        in_order(METHODS, ["fedsgd"])
    with pytest.raises(ValueError, match="none of the methods local, it has vfmgl"):
        in_order(["vfmgl"], ["local"])


def test_roc_points_are_those_of_the_patients(make_predictions):
    final = make_predictions(FOUR, THREE)
    points = roc_points(final, unit="patient")
    rows = final[(final["method"] == "hgkt") & (final["model_center"] == "B")]
    scores = by_patient(rows)
    expected = roc_curve(scores["label"], scores["probability"])
    curve = points[(points["method"] == "hgkt") & (points["center"] == "B")]
    assert np.array_equal(curve["false_positive_rate"], expected[0]) and np.array_equal(curve["true_positive_rate"], expected[1])
    assert set(curve["n"]) == {20} and set(curve["positives"]) == {7} and set(curve["seeds"]) == {1}
    by_image = roc_points(final, unit="image")
    assert set(by_image["n"]) == {40} and set(by_image["positives"]) == {14}
    assert roc_points(final.assign(budget="updates"), unit="image").empty


def test_the_area_under_the_mean_curve_is_the_mean_area(make_predictions):
    final = make_predictions(["A"], ["fedavg"], seeds=3)
    points = roc_points(final, unit="image")
    areas = [roc_auc_score(rows["label"], rows["probability"]) for _, rows in final.groupby("seed")]
    assert len(set(areas)) == 3 and set(points["seeds"]) == {3}
    assert np.trapezoid(points["true_positive_rate"], points["false_positive_rate"]) == pytest.approx(np.mean(areas), abs=1e-12)
    assert points[["false_positive_rate", "true_positive_rate"]].iloc[[0, -1]].to_numpy().tolist() == [[0, 0], [1, 1]]


def test_roc_curves_show_every_method_with_its_area(make_predictions, make_results, collisions):
    points, results = roc_points(make_predictions(FOUR), unit="patient"), make_results(FOUR)
    figure = roc.roc_curves(points, results)
    axes, tables = panels(figure), [axis for axis in figure.axes if not axis.axison]
    assert [axis.get_title(loc="left") for axis in axes] == [f"centre {center}" for center in FOUR]
    assert [len(axis.lines) for axis in axes] == [11] * 4 and [len(axis.lines) for axis in tables] == [10] * 4
    top = max(axes[0].lines, key=lambda line: line.get_zorder())
    vfmgl = points[(points["method"] == "vfmgl") & (points["center"] == "A")]
    assert np.array_equal(top.get_ydata(), vfmgl["true_positive_rate"])
    row = results.query("method == 'fedavg' and budget == 'rounds' and model_center == test_center == 'B' and metric == 'auc'").iloc[0]
    assert f"{row.value:.2f} ({row.low:.2f}–{row.high:.2f})" in [text.get_text() for text in tables[1].texts]
    assert "Not in the results" not in words(figure) and "several seeds" not in words(figure)
    assert not collisions(figure)


def test_roc_curve_of_one_class_says_why_there_is_none(make_predictions, make_results, collisions):
    points = roc_points(make_predictions(TWO, THREE, one_class=TWO[1]), unit="patient")
    missing = points[points["center"] == TWO[1]]
    assert len(missing) == 3 and missing["true_positive_rate"].isna().all()
    assert set(missing["reason"]) == {"only one class: 0 positive, 20 negative"}
    figure = roc.roc_curves(points, make_results(TWO, THREE, one_class=TWO[1]), [*THREE, "harmofl"])
    first, second = panels(figure)
    assert len(first.lines) == 4 and not second.lines
    assert second.texts[0].get_text().replace("\n", " ") == "no curve: only one class: 0 positive, 20 negative"
    assert "not drawn: HarmoFL." in words(figure)
    assert not collisions(figure)


def test_external_curves_have_a_line_a_model_and_mark_the_chosen_one(make_predictions, make_results, collisions):
    final, results = make_predictions(FOUR, THREE, external=["E", "F"]), make_results(FOUR, THREE, external=["E", "F"])
    points = roc_points(final, unit="patient", external=True)
    assert set(points["center"]) == {"E", "F"}
    figure = roc.external_roc_curves(points, results, chosen={"E": "B", "F": "C"})
    for axis, table, chosen in zip(panels(figure), [axis for axis in figure.axes if not axis.axison], "BC", strict=True):
        assert len(axis.lines) == 5
        heavy = [text.get_text() for text in table.texts if text.get_weight() == "bold"]
        assert heavy[0] == f"★ {chosen}" and len(heavy) == 2
    assert not collisions(figure)
    none = roc_points(make_predictions(FOUR, THREE), unit="patient", external=True)
    assert "no external centre" in roc.external_roc_curves(none, results).axes[0].texts[0].get_text()


@pytest.mark.parametrize("centers", [TWO, FOUR, [f"Site{c}" for c in "ABCDEF"]])
def test_decision_curves_cut_off_what_harms(centers, make_decisions, collisions):
    dca = make_decisions(centers)
    figure = comparison.decision_curves(dca)
    for axis, center in zip(panels(figure), centers, strict=True):
        here = dca[dca["center"] == center]
        assert len(axis.lines) == 12
        bottom, top = axis.get_ylim()
        assert here["net_benefit"].min() < bottom < 0 < here["net_benefit"].max() < top
        assert axis.texts[0].get_text() == "14 of 40\npositive"
    assert [text.get_text() for text in figure.legends[0].texts][:3] == ["treat all", "treat none", "Local only"]
    assert not collisions(figure)


def test_decision_curves_of_seeds_are_means_and_one_class_says_so(make_decisions):
    dca = make_decisions(["A", "B"], THREE, one_class="A")
    two = pd.concat([dca, dca.assign(seed=1, net_benefit=dca["net_benefit"] + 0.2)])
    figure = comparison.decision_curves(two, ["vfmgl", "local"])
    first, second = panels(figure)
    assert "0 of 40 positive" in first.texts[0].get_text().replace("\n", " ") and not first.lines
    (line,) = [line for line in second.lines if line.get_label() == "VFMGL"]
    expected = dca[(dca["method"] == "vfmgl") & (dca["center"] == "B")]["net_benefit"] + 0.1
    assert np.allclose(line.get_ydata(), expected)
    assert "Means over 2 seeds." in words(figure) and "not drawn: Local only." in words(figure)


def test_radar_polygons_are_closed_and_leave_gaps(make_results, collisions):
    results = make_results(TWO, one_class=TWO[1])
    figure = comparison.radar(results)
    whole, gaps = figure.axes
    assert len(whole.lines) == 6
    for line in whole.lines:
        assert line.get_ydata()[0] == line.get_ydata()[-1] and len(line.get_ydata()) == 7 and np.isfinite(line.get_ydata()).all()
    for line in gaps.lines:  # of AUC, accuracy, sensitivity, specificity, PPV and NPV
        assert np.isnan(line.get_ydata()).tolist() == [True, False, True, False, True, True, True]
    assert [text.get_text() for text in gaps.texts].count("n/a") == 4
    low = whole.get_ylim()[0]
    assert 0 < low < results.query("model_center == test_center")["value"].min()
    assert f"The middle of the charts is {low:g}, not 0." in words(figure)
    assert r"Not defined (only one class: 0 positive, 40 negative): Łódź \$1 (AUC, sensitivity, PPV, NPV: all methods)." in words(figure)
    assert not collisions(figure)


@pytest.mark.parametrize("count", [4, 6])
def test_radar_of_a_segmentation_has_no_distances(count, make_results, collisions):
    centers = [f"Site{c}" for c in "ABCDEF"[:count]]
    results = make_results(centers, THREE, metrics=SEGMENTATION, level=0.9)
    figure = comparison.radar(results, low=0)
    assert [text.get_text() for text in figure.axes[0].texts][:5] == ["Dice", "IoU", "PPV", "sensitivity", "specificity"]
    assert figure.axes[0].get_ylim() == (0, 1) and "The middle of the charts is 0." in words(figure)
    assert "ASSD and HD95, of which less is better" in words(figure)
    assert not collisions(figure)
    with pytest.raises(ValueError, match="of which more is better, got dice, iou, assd"):
        comparison.radar(results, ["dice", "iou", "assd"])
    with pytest.raises(ValueError, match="have no metric npv, they have dice"):
        comparison.radar(results, ["dice", "iou", "npv"])


def dots(axis) -> list:
    return [line for line in axis.lines if line.get_marker() not in ("None", "|")]


def test_both_budgets_draw_one_point_where_the_model_is_the_same(make_results, collisions):
    results = make_results(FOUR)
    figure = comparison.both_budgets(results, "auc")
    for axis in panels(figure):
        assert len(dots(axis)) == 6 * 2 + 4
        assert [dot.get_markerfacecolor() for dot in dots(axis)].count("white") == 6
    row = results.query("method == 'fedavg' and budget == 'updates' and model_center == test_center == 'C' and metric == 'auc'").iloc[0]
    (open_dot,) = [dot for dot in dots(panels(figure)[2]) if dot.get_xdata()[0] == row.value]
    assert open_dot.get_markerfacecolor() == "white" and open_dot.get_ydata()[0] == pytest.approx(1.19)
    assert not any(line.get_marker() == "|" for axis in panels(figure) for line in axis.lines if len(line.get_xdata()))
    assert "one seed, so no spread" in words(figure)
    assert not collisions(figure)


def test_one_point_of_a_method_with_one_budget_is_named_and_so_are_the_budgets_not_drawn(make_results, collisions):
    """HGKT is at as many rounds alone; by more epochs FedAvg is not. What a row has no room for is in the tables."""
    results = make_results(["A", "B"], THREE)
    results = results[(results["method"] != "hgkt") | (results["budget"] == "rounds")]
    halfway = results[results["budget"] == "rounds"].assign(budget="hgkt_updates")
    figure = comparison.both_budgets(pd.concat([results, halfway]), "auc")
    assert "one model serves both budgets; but HGKT after as many rounds as VFMGL alone." in words(figure)
    assert "In the tables alone: as many updates of the student as HGKT." in words(figure) and not collisions(figure)
    epochs = pd.concat([results[results["budget"] == "rounds"], results[results["budget"] == "updates"].assign(budget="epochs")])
    figure = comparison.both_budgets(epochs[(epochs["method"] != "fedavg") | (epochs["budget"] == "epochs")], "auc")
    faces = [dot.get_markerfacecolor() for dot in dots(panels(figure)[0])]
    assert faces[0] == "white" and "FedAvg after as many rounds and, by local epochs, as many updates as VFMGL alone" in words(figure)
    assert "In the tables alone" not in words(figure) and not collisions(figure)


def test_a_control_that_is_none_is_named_under_the_table(make_results, make_tests):
    methods = [*THREE, "vfmgl_random"]
    tests = make_tests(["A", "B"], methods)
    none = tests["method"] == "vfmgl_random"
    tests.loc[none, ["difference", "low", "high", "p", "p_holm"]] = np.nan
    tests.loc[none, ["test", "reason"]] = ["", "nothing was dropped: no comparison"]
    table = statistics_table(make_results(["A", "B"], methods), tests)
    assert "VFMGL, random drops: nothing was dropped: no comparison." in statistics_tables.table_note(table)
    rows = table[(table["method"] == "vfmgl_random") & (table["metric"] == "auc")]
    assert set(rows["test_reason"]) == {"nothing was dropped: no comparison"} and rows["p_holm"].isna().all()


def test_every_method_is_a_dot_in_its_own_row(make_results, collisions):
    """Markers of some methods are tuples, which matplotlib takes for data where they stand in the place of a format."""
    results = make_results(["A"], list(METHODS))
    results = results[results["budget"] == "rounds"]
    figure = comparison.both_budgets(results, "auc")
    for axis in figure.axes:
        dots = [line for line in axis.lines if line.get_linestyle() == "None" and line.get_marker() not in ("", "None", "|")]
        heights = [height for line in dots for height in np.atleast_1d(line.get_ydata())]
        assert len(heights) == len(METHODS) == len(set(heights))


def test_both_budgets_show_seeds_and_the_pooled_row(make_results, collisions):
    results = make_results(FOUR, THREE, seeds=3)
    figure = comparison.both_budgets(results, "accuracy")
    assert panels(figure)[-1].get_title(loc="left") == "all centres"
    home = results[(results["metric"] == "accuracy") & (results["model_center"] == "A") & (results["test_center"] == "A")]
    rows = home[(home["method"] == "fedavg") & (home["budget"] == "rounds")]
    strokes = [line for line in panels(figure)[0].lines if line.get_marker() == "|"]
    assert sorted(strokes[0].get_xdata()) == sorted(rows["value"]) and len(strokes) == 4
    assert dots(panels(figure)[0])[0].get_xdata()[0] == pytest.approx(rows["value"].mean())
    assert "mean of 3 seeds" in words(figure)
    assert not collisions(figure)


def test_both_budgets_of_an_undefined_value_and_a_missing_interval(make_results, collisions):
    results = make_results(TWO, THREE, one_class=TWO[1])
    bare = (results["method"] == "hgkt") & (results["test_center"] == TWO[0])
    results.loc[bare, ["low", "high"]] = np.nan
    results.loc[bare, "reason"] = "too few patients"
    figure = comparison.both_budgets(results, "auc", [*THREE, "local"])
    first, second = panels(figure)
    assert "only one class" in second.texts[0].get_text().replace("\n", " ") and not second.lines
    assert len(dots(first)) == 4
    assert "No interval (too few patients): University… (HGKT)." in words(figure)
    assert "not drawn: Local only." in words(figure)
    assert not collisions(figure)


def test_the_best_of_a_centre_is_the_highest_or_of_a_distance_the_lowest(make_results):
    table = statistics_table(make_results(["A", "B"], metrics=SEGMENTATION))
    assert table["metric"].tolist()[:7] == list(SEGMENTATION) and table["method"].iloc[0] == "local"
    for (_, metric), rows in table.groupby(["center", "metric"]):
        best = rows["value"].min() if metric in ("assd", "hd95") else rows["value"].max()
        assert rows.loc[rows["best"], "value"].tolist() == [best]
    equal = make_results(["A", "B"], THREE).assign(value=0.5)
    assert not statistics_table(equal)["best"].any()
    tied = equal.assign(value=np.where(equal["method"] == "hgkt", 0.4, 0.5))
    assert statistics_table(tied).query("metric == 'auc'")["best"].tolist() == [True, False, True] * 2


def test_none_is_the_best_where_the_test_says_the_opposite(make_results):
    results = make_results(["A", "B"], ["fedavg", "vfmgl"])
    results.loc[results["metric"] == "auc", "value"] = results["method"].map({"fedavg": 0.7, "vfmgl": 0.8})
    about = {"seed": 0, "split_id": "own", "budget": "rounds", "metric": "auc", "method": "fedavg", "reference": "vfmgl"}
    tests = pd.DataFrame(
        [about | {"center": c, "difference": d, "p": 0.5, "p_holm": 0.5, "test": "t", "reason": ""} for c, d in (("A", -0.1), ("B", 0.1))]
    )
    best = statistics_table(results, tests).query("metric == 'auc' and best")
    assert best[["center", "method"]].to_numpy().tolist() == [["B", "vfmgl"]]


def test_a_distance_over_fewer_images_is_never_the_best_and_says_so(make_results, collisions):
    results = make_results(["A", "B"], THREE, metrics=SEGMENTATION)
    flattered = (results["method"] == "fedavg") & results["metric"].isin(["assd", "ppv"]) & (results["test_center"] == "A")
    results.loc[flattered, ["value", "n"]] = [0.01, 5]
    results.loc[flattered & (results["metric"] == "ppv"), "value"] = 0.999
    table = statistics_table(results)
    rows = table[(table["center"] == "A") & table["metric"].isin(["assd", "ppv"])].set_index(["metric", "method"])
    assert rows["over_fewer"][rows["over_fewer"]].index.tolist() == [("ppv", "fedavg"), ("assd", "fedavg")]
    assert not rows.loc[("assd", "fedavg"), "best"] and rows["best"].groupby("metric").sum().tolist() == [1, 1]
    cells = statistics_tables.styled_table(table).data.loc[("A", METHODS["fedavg"].title)]
    assert cells["ASSD (px)"].endswith("[5 of 40]") and "[" not in cells["Dice"] and cells["n"] == "40"
    assert "[n of N]: over fewer images" in statistics_tables.table_note(table)
    figure = comparison.both_budgets(results, "assd")
    assert "Over fewer images, those with a predicted pixel, and so not comparable: A, FedAvg: 5 of 40." in words(figure)
    assert "fewer images" not in words(comparison.both_budgets(results, "dice")) and not collisions(figure)


def test_called_positives_of_a_classification_are_no_smaller_test_set(make_results):
    results = make_results(["A", "B"], THREE)
    results.loc[(results["method"] == "vfmgl") & (results["metric"] == "ppv"), ["value", "n"]] = [1.0, 7]
    table = statistics_table(results)
    assert table.query("metric == 'ppv' and method == 'vfmgl'")["best"].all() and not table["over_fewer"].any()


def test_methods_with_fewer_seeds_are_named(make_results, make_predictions):
    results = make_results(["A", "B"], THREE, seeds=3)
    results = results[(results["method"] != THREE[0]) | (results["seed"] == 0)]
    title = METHODS[THREE[0]].title
    assert f"mean of 3 seeds (of {title} 1)" in words(comparison.both_budgets(results, "auc"))
    note = statistics_tables.table_note(statistics_table(results))
    assert f"Means over 3 seeds (of {title} 1), also of the limits." in note
    predictions = make_predictions(["A", "B"], THREE, seeds=3)
    predictions = predictions[(predictions["method"] != THREE[0]) | (predictions["seed"] == 0)]
    assert f"Curves of 3 seeds (of {title} 1)" in words(roc.roc_curves(roc_points(predictions, unit="image"), results))
    curves = comparison.decision_curves(decision_curve(predictions, unit="image"))
    assert f"Means over 3 seeds (of {title} 1)." in words(curves)


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_curves_of_an_undefined_prediction_are_not_drawn_and_say_why(unit, make_predictions, make_results, collisions):
    predictions = make_predictions(["A", "B"], THREE)
    home = (predictions["model_center"] == predictions["test_center"]) & (predictions["split"] == "test")
    at = predictions[home & (predictions["method"] == "fedavg") & (predictions["model_center"] == "A")].index
    predictions.loc[at[0], "probability"] = np.nan
    points, curves, bins = (curve(predictions, unit=unit) for curve in (roc_points, decision_curve, reliability))
    why = f"1 of {len(at)} predictions are undefined: the model gives NaN or infinity"
    for table, value in ((points, "false_positive_rate"), (curves, "net_benefit"), (bins, "bin")):
        lost = table[table[value].isna()]
        assert set(zip(lost["method"], lost["center"], lost["reason"], strict=True)) == {("fedavg", "A", why)}
    figures = (roc.roc_curves(points, make_results(["A", "B"], THREE)), comparison.decision_curves(curves), reliability_diagrams(bins))
    for figure, lead in zip(figures, ("No curve", "No curve", "Not drawn"), strict=True):
        assert f"{lead} ({why}): A (FedAvg)." in words(figure) and not collisions(figure)
    for curve in (roc_points, decision_curve):
        with pytest.raises(ValueError, match=r"the probability must lie in \[0, 1\], got 1\.5"):
            curve(predictions.assign(probability=1.5), unit=unit)


def test_statistics_have_the_tests_of_one_seed(make_results, make_tests):
    results, tests = make_results(["A", "B"], THREE, seeds=2), make_tests(["A", "B"], THREE)
    table = statistics_table(results, tests)
    auc = table[(table["metric"] == "auc") & (table["center"] == "A")].set_index("method")
    assert auc["p_holm"].tolist()[:2] == pytest.approx([0.9, 0.09]) and np.isnan(auc.loc["vfmgl", "p_holm"])
    assert table["p_holm"].notna().sum() == 4
    assert "p: paired DeLong against VFMGL, corrected by Holm, of seed 0 alone." in statistics_tables.table_note(table)
    with pytest.raises(ValueError, match=r"several seeds cannot be put into one, got seeds 0, 1: give"):
        statistics_table(results, pd.concat([tests, tests.assign(seed=1)]))


def test_statistics_say_on_which_set_a_cutoff_was_chosen(make_results):
    results = make_results(["A", "B"], THREE)
    own = results[(results["model_center"] == results["test_center"]) & (results["metric"] == "auc")]
    cutoffs = own.assign(metric="cutoff", value=0.4, split=np.where(own["model_center"] == "A", "val", "train"))
    table = statistics_table(pd.concat([results, cutoffs]))
    found = table[table["metric"] == "accuracy"].groupby("center")["cutoff_from"].unique()
    assert [list(found[center]) for center in ("A", "B", "all")] == [["val"], ["train"], ["train, val"]]
    assert set(table.loc[table["metric"] == "auc", "cutoff_from"]) == {""}
    note = statistics_tables.table_note(table)
    assert "Cutoffs are Youden's on the validation and training sets, whichever a centre has." in note
    only = statistics_table(pd.concat([results, cutoffs.assign(split="train")]))
    assert "Cutoffs are Youden's on the training sets." in statistics_tables.table_note(only)
    assert "Cutoffs" not in statistics_tables.table_note(statistics_table(results))


def test_statistics_are_written_escaped(make_results, make_tests, tmp_path):
    centers = ["A & B_50%", "Łódź $1 <b>x</b>"]
    results = make_results(centers, THREE, one_class=centers[1])
    table = statistics_table(results, make_tests(centers, THREE, one_class=centers[1]))
    statistics_tables.write_statistics(table, tmp_path, "statistics", "Teacher: <pocket> & 50 %")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.csv", "statistics.html", "statistics.tex"]
    page, tex = ((tmp_path / f"statistics.{kind}").read_text(encoding="utf-8") for kind in ("html", "tex"))
    assert (
        "<b>x" not in page
        and "Łódź $1 &lt;b&gt;x&lt;/b&gt;" in page
        and "A &amp; B_50%" in page
        and "Teacher: &lt;pocket&gt; &amp;" in page
    )
    assert r"A \& B\_50\%" in tex and r"Łódź \$1" in tex and r"Teacher: <pocket> \& 50 \%." in tex
    assert not re.search(r"(?<!\\)[%$_](?!.*usepackage)", "\n".join(tex.splitlines()[1:]))
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1
    best = table[table["best"]].iloc[0]
    assert f"\\bfseries {best['value']:.3f} ({best['low']:.3f}–{best['high']:.3f})" in tex
    assert tex.count(r"\bfseries") == table["best"].sum()
    assert "Not defined (only one class: 0 positive, 40 negative)" in tex
    read = pd.read_csv(tmp_path / "statistics.csv")
    assert len(read) == len(table) and set(read["source"]) == {f"Teacher: <pocket> & 50 % vfmgl_lib {__version__}"}
    first = page
    statistics_tables.write_statistics(table, tmp_path, "statistics", "Teacher: <pocket> & 50 %")
    assert (tmp_path / "statistics.html").read_text(encoding="utf-8") == first
