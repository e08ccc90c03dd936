"""Figures of models away from home."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle

from vfmgl_lib.evaluation import generalization as tables
from vfmgl_lib.figures import generalization
from vfmgl_lib.figures.style import center_style

SIX, FOUR, TWO = [f"Site{c}" for c in "ABCDEF"], ["A", "B", "C", "D"], ["University hospital of the north", "Łódź $1"]
ABLATION = ["hgkt", "hgkt_kd", "vfmgl"]
SEGMENTATION = ("dice", "assd")


def words(figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def crossed(results: pd.DataFrame, metric: str, width: float = 0.0, **further) -> pd.DataFrame:
    """`cross_centers` with limits that are `width` under the differences of the values, means of the seeds."""
    rows = results[(results["metric"] == metric) & (results["budget"] == "rounds") & ~results["model_center"].isin(["shared", "all"])]
    value = rows.groupby(["model_center", "test_center"])["value"].mean() * (-1 if metric == "assd" else 1)
    pairs = [(m, t, value[m, t] - value[t, t]) for m, t in value.index if m != t and (t, t) in value]
    limits = pd.DataFrame(pairs, columns=["model_center", "test_center", "ahead"])
    limits = limits.assign(limit=limits["ahead"] - width, worst=limits["ahead"], patients=40, reason="")
    return tables.cross_centers(results, limits, metric, **further)


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def patches(axis, kind: type) -> list:
    return [patch for patch in axis.patches if isinstance(patch, kind)]


@pytest.mark.parametrize(("centers", "external"), [(TWO, []), (FOUR, ["E", "F"]), (SIX, [])])
def test_a_model_that_generalises_has_a_tick_and_an_arrow(centers, external, make_results, collisions):
    table = crossed(make_results(centers, ["vfmgl"], external=external), "auc")
    figure = generalization.generalization_map(table, "auc")
    matrix, circle = panels(figure)
    reaching = table[table["generalizes"].fillna(False).astype(bool)]
    assert 0 < len(reaching) < len(table)
    written = [text.get_text() for text in matrix.texts]
    assert sorted(w.split("\u2009")[0] for w in written if "✓" in w) == sorted(f"{value:.2f}" for value in reaching["value"])
    assert len(written) == len(table) and len(patches(matrix, Rectangle)) == len(centers)
    arrows = patches(circle, FancyArrowPatch)
    styles = center_style(centers)
    assert [to_hex(arrow.get_edgecolor()) for arrow in arrows] == [styles[model]["color"].lower() for model in reaching["model_center"]]
    discs = {tuple(line.get_xydata()[0].round(9)): line.get_color() for line in circle.lines}
    starts, ends = zip(*(arrow._posA_posB for arrow in arrows), strict=True)
    assert [discs[tuple(place.round(9))] for place in starts] == [styles[model]["color"] for model in reaching["model_center"]]
    assert [discs[tuple(place.round(9))] for place in ends] == [styles[test]["color"] for test in reaching["test_center"]]
    assert circle.get_title() == f"{len(reaching)} of {len(centers) * (len(centers) - 1)} pairs generalise"
    assert ("External, without a model of their own: E, F." in words(figure)) == bool(external)
    assert "own model by 0.05 at most, by the one-sided 95 % limit over patients." in words(figure) and "Means of" not in words(figure)
    assert not collisions(figure)


def test_map_of_an_undefined_centre_and_of_none_that_generalises(make_results, collisions):
    results = make_results(FOUR, ["vfmgl"], one_class="B")
    figure = generalization.generalization_map(crossed(results, "auc", margin=0), "auc")
    matrix, circle = panels(figure)
    assert [text.get_text() for text in matrix.texts].count("n/a") == 4
    assert sum(arrow.get_linestyle() != "-" for arrow in patches(circle, FancyArrowPatch)) == 3
    assert "Dotted: no verdict." in words(figure) and "0 positive, 40 negative): B (all models)." in words(figure)
    assert not collisions(figure)
    home = results["model_center"] == results["test_center"]
    figure = generalization.generalization_map(crossed(results.assign(value=np.where(home, 0.9, 0.2)), "auc"), "auc")
    assert "none is shown" in panels(figure)[1].texts[-1].get_text()


def test_map_without_a_limit_says_why_there_is_no_verdict(make_results, collisions):
    results = make_results(FOUR, ["vfmgl"])
    few = crossed(results, "auc")
    away = few["model_center"] != few["test_center"]
    lacking = away & ((few["test_center"] != "D") | (few["model_center"] == "B"))
    few.loc[lacking, "generalizes"], few.loc[lacking, "reason"] = pd.NA, "no limit: 4 patients, at least 5 are needed; no interval"
    few.loc[away & ~lacking, "generalizes"] = False
    figure = generalization.generalization_map(few, "auc")
    assert panels(figure)[1].get_title() == "0 of 2 pairs generalise" and "Dotted: no verdict." in words(figure)
    assert (
        "No verdict (no limit: 4 patients, at least 5 are needed): B (all other models); C (all other models); A (all other models); D (B)."
        in words(figure)
    )
    few["generalizes"] = few["generalizes"].mask(away)
    assert panels(generalization.generalization_map(few, "auc"))[1].texts[-1].get_text() == "no verdict\non any pair"
    assert not [text for text in panels(figure)[0].texts if "✓" in text.get_text()] and not collisions(figure)


def test_map_of_a_distance_names_its_unit_and_seeds(make_results):
    table = crossed(make_results(SIX, ["vfmgl"], metrics=SEGMENTATION, seeds=2), "assd", margin=0.3)
    figure = generalization.generalization_map(table, "assd")
    assert "own model by 0.3 px at most" in words(figure) and "Means of 2 seeds." in words(figure) and "Images in the" in words(figure)
    assert figure.axes[-1].get_ylabel() == "ASSD (px)" and figure.axes[0].collections[0].get_clim()[1] >= table["value"].max()


def similarities(centers: list[str], external: list[str]) -> pd.DataFrame:
    rows = [(outer, model, np.cos(i + 2 * j)) for i, model in enumerate(centers) for j, outer in enumerate(external)]
    return pd.DataFrame(rows, columns=["model_center", "center", "similarity"])[["center", "model_center", "similarity"]]


@pytest.mark.parametrize(("centers", "external"), [(FOUR, ["E", "F"]), (SIX, ["G"])])
def test_similarity_stands_beside_the_result_and_the_chosen_is_ringed(centers, external, make_results, collisions):
    results = make_results(centers, ["vfmgl"], external=external)
    scores = similarities(centers, external).rename(columns={"center": "model_center", "model_center": "center"})
    table = tables.external(results, scores, "auc")
    figure = generalization.external_similarity(table, "auc")
    for axis, center in zip(panels(figure), external, strict=True):
        (ring,) = [line for line in axis.lines if line.get_markersize() == 11]
        chosen = table[(table["center"] == center) & table["chosen"]].iloc[0]
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (chosen["similarity"], chosen["value"])
        marks = [line for line in axis.lines if line.get_markersize() == 5]
        assert len(marks) == len(centers)
    assert [text.get_text() for text in figure.legends[0].texts] == [*centers, "chosen", "shared model"]
    assert not collisions(figure)


def test_without_external_centres_the_figure_says_so(make_results):
    results = make_results(FOUR, ["vfmgl"], external=["E"], one_class="E")
    scores = similarities(FOUR, ["E"]).rename(columns={"center": "model_center", "model_center": "center"})
    table = tables.external(results, scores, "auc")
    assert "only one class" in generalization.external_similarity(table, "auc").axes[0].texts[0].get_text().replace("\n", " ")
    assert "no external centre" in generalization.external_similarity(table.iloc[:0], "auc").axes[0].texts[0].get_text()


@pytest.mark.parametrize("centers", [TWO, SIX])
def test_ablation_has_six_panels_on_two_scales(centers, make_results, collisions):
    table = tables.ablation(make_results(centers, ABLATION, metrics=SEGMENTATION), "dice")
    table["test"], table["significant"] = "paired t over patients", np.where(np.arange(len(table)) % 5 == 0, "better", "")
    figure = generalization.ablation(table, "dice")
    axes = panels(figure)
    assert [axis.get_title(loc="left")[0] for axis in axes] == list("abcdef")
    assert {axis.collections[0].get_clim() for axis in axes[:3]} == {(0, 1)}
    widest = table["difference"].abs().max()
    assert {axis.collections[0].get_clim() for axis in axes[3:]} == {(-widest, widest)}
    for axis, (_, rows) in zip(axes[3:], table.groupby("step", sort=False), strict=True):
        written = {text.get_position(): text.get_text() for text in axis.texts}
        for row in rows.itertuples():
            place = (sorted(centers).index(row.test_center) + 0.5, sorted(centers).index(row.model_center) + 0.5)
            assert written[place].rstrip("*").replace("−", "-") == f"{round(row.difference, 3) + 0.0:+.3f}"
            assert written[place].endswith("*") == (row.significant == "better")
        mean = f"{rows['difference'].mean():+.3f}".replace("-", "−")
        assert axis.get_title(loc="left").endswith(f"mean {mean}, better in {int(rows['improved'].sum())} of {len(rows)}")
    full = table[(table["after"] == "vfmgl") & (table["model_center"] == min(centers)) & (table["test_center"] == min(centers))]
    assert axes[2].texts[0].get_text() == f"{full['value_after'].iloc[0]:.2f}"
    assert "*: p < 0.05 (paired t over patients, Holm over all steps and pairs)." in words(figure)
    assert not collisions(figure)


def test_ablation_without_a_method_and_with_undefined_cells(make_results, collisions):
    table = tables.ablation(make_results(FOUR, ["hgkt", "vfmgl"], one_class="B"), "auc")
    figure = generalization.ablation(table, "auc")
    said = {axis.get_title(loc="left")[0]: axis.texts[0].get_text() for axis in panels(figure) if not axis.collections}
    assert sorted(said) == ["b", "d", "f"] and {text.replace("\n", " ") for text in said.values()} == {"HGKT+KD: not in the results"}
    assert [text.get_text() for text in panels(figure)[4].texts].count("n/a") == 4
    assert "Not tested for significance." in words(figure) and "B (all models)." in words(figure)
    assert not collisions(figure)


def test_a_change_that_rounds_to_nothing_is_no_loss():
    written = {0.0: "0", -0.0004: "+0.000", 0.0004: "+0.000", -0.0006: "−0.001", 0.25: "+0.250"}
    assert {value: generalization._change(value) for value in written} == written


def test_a_step_that_changes_nothing_says_so(make_results):
    results = make_results(TWO, ["hgkt_kd"])
    table = tables.ablation(pd.concat([results, results.assign(method="vfmgl")]), "auc")
    (title,) = [
        axis.get_title(loc="left") for axis in panels(generalization.ablation(table, "auc")) if axis.get_title(loc="left")[0] == "f"
    ]
    assert title.endswith("no change in any of 4")


def test_robustness_draws_every_division_the_mean_and_the_paper(make_results, collisions):
    divisions = ["0.5-1", "0.6-2", "0.6-3"]
    table = tables.robustness(make_results(FOUR, ["vfmgl"], split_ids=["own", *divisions], one_class="B"), "auc")
    paper = pd.DataFrame({"center": ["A", "C"], "value": [0.8, 0.7], "std": [0.05, np.nan]})
    figure = generalization.robustness(table, "auc", paper)
    (axis,) = figure.axes
    here = table[table["center"] == "A"].iloc[0]
    bars = [line.get_ydata() for line in axis.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(bar, [here["mean"] - here["std"], here["mean"] + here["std"]]) for bar in bars)
    assert any(np.allclose(bar, [0.75, 0.85]) for bar in bars) and len(bars) == 4
    assert sorted(axis.lines[0].get_ydata()) == sorted(table[table["center"] == "A"]["value"])
    assert [text.get_text() for text in axis.texts] == ["not\ndefined"]
    assert "Divisions (share of training, seed): 0.5-1, 0.6-2, 0.6-3." in words(figure) and "B (all divisions)." in words(figure)
    assert not collisions(figure)


def test_robustness_of_one_division_has_no_spread(make_results, collisions):
    figure = generalization.robustness(tables.robustness(make_results(TWO, ["vfmgl"]), "auc"), "auc")
    assert not [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [text.get_text() for text in figure.legends[0].texts] == ["one division of the data"]
    assert "One division, so no SD." in words(figure)
    assert not collisions(figure)


def groups(centers: list[str]) -> pd.DataFrame:
    titles = {"younger": "age ≤ 55.6", "older": "age > 55.6", "well_differentiated": "well-differentiated (grade 1 of type I)"}
    rows = []
    for place, (group, title) in enumerate(titles.items()):
        for center in [*centers, "all"]:
            for metric in ("auc", "accuracy") if center != "all" else ("accuracy",):
                lost = group == "older" and center == centers[1] and metric == "auc"
                numbers = (np.nan,) * 3 if lost else (0.5 + 0.1 * place, 0.4, 0.8)
                about = (group, title, 0, center, "external" if center == centers[-1] else "test", metric)
                rows.append((*about, *numbers, "" if lost else "Wilson", 20 + place, "only one class" if lost else ""))
    columns = ["group", "title", "seed", "center", "split", "metric", "value", "low", "high", "interval", "n", "reason"]
    return pd.DataFrame(rows, columns=columns).assign(cutoff_from="val")


@pytest.mark.parametrize("centers", [TWO, FOUR])
def test_subgroups_have_a_dot_each_and_name_what_is_undefined(centers, collisions):
    table = groups(centers)
    figure = generalization.subgroups(table)
    for axis, metric in zip(figure.axes, ("auc", "accuracy"), strict=True):
        drawn = sorted(line.get_xdata()[0] for line in axis.lines if line.get_marker() != "None" and len(line.get_xdata()) == 1)
        assert drawn == sorted(table[table["metric"] == metric]["value"].dropna())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[-1] == "all centres" and sum("(external)" in name for name in names) == 1
    assert "Not defined (only one class): " in words(figure) and "age > 55.6)" in words(figure)
    assert (
        "Cutoffs: of the whole validation sets." in words(figure)
        and "An AUC is not pooled." in words(figure)
        and "age ≤ 55.6: " in words(figure)
    )
    assert not collisions(figure)


def test_subgroups_without_a_value_say_why():
    table = groups(TWO).assign(value=np.nan, low=np.nan, high=np.nan, reason="no patients.csv beside the data")
    (axis,) = generalization.subgroups(table).axes
    assert [text.get_text() for text in axis.texts] == ["No subgroups here: no patients.csv beside the data."]


def test_subgroups_take_one_seed_and_a_metric_that_is_there():
    table = groups(FOUR)
    with pytest.raises(ValueError, match="one seed, got 0, 1"):
        generalization.subgroups(pd.concat([table, table.assign(seed=1)]))
    with pytest.raises(ValueError, match="it has auc, accuracy"):
        generalization.subgroups(table, ["dice"])
