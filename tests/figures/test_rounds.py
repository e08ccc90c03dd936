"""Figures of the federated rounds."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation import progress
from vfmgl_lib.figures import rounds
from vfmgl_lib.figures.style import save_figure

ONE_CLASS = "AUC needs both classes"


def metrics(centers: int, last: int, undefined: str = "") -> pd.DataFrame:
    """A study's table; the value says where it is from: round / 10, 0.05 less after stage I, 0.01 by the model's place."""
    names = [f"c{i}" for i in range(centers)]
    rows = []

    def add(number: int, stage: str, model: str, test: str, split: str) -> None:
        value = number / 10 - 0.05 * (stage == "I" and number > 1) + 0.01 * int(model[1:]) if model != "shared" else 0.9
        missing = test == undefined
        reason = ONE_CLASS if missing else ""
        rows.append((number, stage, model, test, split, "image", "auc", np.nan if missing else value, 8, reason))
        rows.append((number, stage, model, test, split, "image", "accuracy", 1.0, 8, ""))

    for number in range(last + 1):
        for stage in ("untrained",) if number == 0 else ("I",) if number == 1 else ("II",) if number < last else ("I", "II"):
            for center in names:
                for split in ("train", "val", "test"):
                    add(number, stage, center, center, split)
                for other in names if number == last else ():
                    if other != center:
                        add(number, stage, center, other, "test")
    for center in names:
        add(last, "shared", "shared", center, "test")
    columns = ["round", "stage", "model_center", "test_center", "split", "unit", "metric", "value", "n", "reason"]
    return pd.DataFrame(rows, columns=columns)


def baseline(centers: int) -> pd.DataFrame:
    return pd.DataFrame({"test_center": [f"c{i}" for i in range(centers)]}).assign(
        metric="auc", split="test", unit="image", value=0.6, n=8, reason=""
    )


def test_own_models_takes_the_last_stage_of_each_round():
    own = progress.own_models(metrics(2, 3), "auc")
    chosen = own.query("center == 'c1' and split == 'test'").set_index("round")
    assert chosen["stage"].to_dict() == {0: "untrained", 1: "I", 2: "II", 3: "II"}
    assert chosen["value"].round(6).to_dict() == {0: 0.01, 1: 0.11, 2: 0.21, 3: 0.31}
    assert len(own) == 2 * 3 * 4


@pytest.mark.parametrize(("centers", "last"), [(2, 1), (3, 3), (8, 2)])
def test_metric_over_rounds(centers: int, last: int, tmp_path):
    own = progress.own_models(metrics(centers, last), "auc")
    figure = rounds.metric_over_rounds(own, "auc")
    assert [axis.get_title(loc="left").split()[0] for axis in figure.axes] == ["training", "validation", "test"]
    for axis in figure.axes:
        curves = [line for line in axis.lines if not line.get_label().startswith("_")]
        assert len(curves) == centers
        assert list(curves[0].get_xdata()) == list(range(last + 1))
        assert axis.get_xlabel() == "round (0: untrained)"
    assert figure.axes[0].get_ylabel() == "AUC per image"
    assert "Images in the test sets: c0 8, c1 8" in figure.get_supxlabel()
    save_figure(figure, own, tmp_path, "curves")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_missing_split_has_no_panel():
    own = progress.own_models(metrics(2, 2), "auc").query("split != 'val'")
    axes = rounds.metric_over_rounds(own, "auc").axes
    assert [axis.get_title(loc="left").split()[0] for axis in axes] == ["training", "test"]
    assert len(rounds.metric_over_rounds(own.query("split == 'test'"), "auc").axes) == 1


def test_undefined_values_are_missing_and_explained(tmp_path):
    table = metrics(3, 2, undefined="c1")
    own = progress.own_models(table, "auc")
    curves = rounds.metric_over_rounds(own, "auc")
    assert np.isnan(curves.axes[0].lines[1].get_ydata()).all()
    final = progress.comparison(table, baseline(3), "auc")
    dots = rounds.final_comparison(final, "auc")
    assert "undefined: untrained, first round, last round" in [text.get_text() for text in dots.axes[0].texts]
    matrix = rounds.cross_center_matrix(progress.last_models(table, "auc"), "auc")
    assert [text.get_text() for text in matrix.axes[0].texts].count("n/a") == 4  # three models and the shared one
    for figure in (curves, dots, matrix):
        assert ONE_CLASS in figure.get_supxlabel() and "c1" in figure.get_supxlabel()
        save_figure(figure, final, tmp_path, "undefined", "Teacher: RANDOM weights")
        assert "RANDOM weights" in figure.get_supxlabel()


def test_all_values_undefined_still_draws():
    table = metrics(2, 1).assign(value=np.nan, reason=ONE_CLASS)
    rounds.metric_over_rounds(progress.own_models(table, "auc"), "auc")
    rounds.final_comparison(progress.comparison(table, baseline(2).assign(value=np.nan), "auc"), "auc")
    figure = rounds.cross_center_matrix(progress.last_models(table, "auc"), "auc")
    assert {text.get_text() for text in figure.axes[0].texts} == {"n/a"}


def test_comparison_names_the_right_rounds():
    wide = progress.side_by_side(progress.comparison(metrics(2, 3), baseline(2), "auc"))
    assert wide.loc["c1"].round(6).tolist() == [8, 0.6, 0.01, 0.11, 0.31, -0.29, 0.3]
    assert np.isnan(wide.loc["mean", "n"])
    assert wide.loc["mean", "last round"] == pytest.approx(0.305)
    assert wide.columns.tolist() == ["n", *progress.MODELS, "gain over trivial", "gain over untrained"]


def test_verdict_counts_victories_and_leaves_out_what_is_undefined():
    # Untrained 0, 0.01, 0.02; last round 0.3, 0.31, 0.32: the baseline wins once, ties once, loses once.
    trivial = baseline(3).assign(value=[0.31, 0.31, 0.1])
    known = progress.comparison(metrics(3, 3), trivial, "auc")
    assert (
        progress.verdict(known)
        == "The last round beats the trivial baseline at 1 of 3 centres and the untrained student at 3 of 3 centres."
    )
    missing = progress.comparison(metrics(3, 3), trivial.assign(value=[0.1, 0.1, np.nan]), "auc")
    assert "trivial baseline at 2 of 3 centres (undefined at 1) and" in progress.verdict(missing)
    one_class = progress.comparison(metrics(3, 3, undefined="c0"), trivial, "auc")
    assert "untrained student at 2 of 3 centres (undefined at 1)." in progress.verdict(one_class)


@pytest.mark.parametrize("centers", [2, 8])
def test_final_comparison_draws_every_model(centers: int):
    figure = rounds.final_comparison(progress.comparison(metrics(centers, 2), baseline(centers), "auc"), "auc")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(legend) == sorted(progress.MODELS)
    axis = figure.axes[0]
    assert len(axis.get_yticklabels()) == centers
    assert axis.get_xlabel() == "AUC per image on the centre's test set"


@pytest.mark.parametrize("last", [1, 3])
def test_cross_centre_matrix_is_of_the_last_stage_and_frames_home(last: int):
    table = progress.last_models(metrics(3, last), "auc")
    assert table["model_center"].unique().tolist() == ["c0", "c1", "c2", "shared"] and len(table) == 12
    assert table.query("model_center == 'c1'")["value"].round(6).unique().tolist() == [round(last / 10 + 0.01, 6)]
    axis = rounds.cross_center_matrix(table, "auc").axes[0]
    assert axis.collections[0].get_array().shape == (4, 3)
    assert axis.collections[0].get_clim() == (0, 1)
    assert len(axis.patches) == 3
    assert axis.get_yticklabels()[-1].get_text() == "shared model"


def test_the_matrix_parts_its_colours_at_chance_for_an_auc_only():
    table = progress.last_models(metrics(2, 1), "auc")
    maps = {metric: rounds.cross_center_matrix(table, metric).axes[0].collections[0].get_cmap().name for metric in ("auc", "dice")}
    assert maps == {"auc": "PuOr", "dice": "viridis"}
