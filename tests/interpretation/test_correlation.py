"""Adaptive and common features: those that were planted are found again, on training images alone."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.interpretation import correlation
from vfmgl_lib.interpretation.mrmr import mrmr

CENTERS, TOP, SAMPLES = ("A", "B", "C"), 4, 600


def planted(seed=0, shared_noise=0.3):
    """Three models over the same images. Features 0-3: a centre's own factor (adaptive). 4-7: a factor of all centres each (common).
    The others are noise. All carry some of the class, so that mRMR has a reason to take them."""
    rng = np.random.default_rng(seed)
    labels, splits = rng.integers(0, 2, SAMPLES), np.where(np.arange(SAMPLES) % 3 == 0, "test", "train")
    about = {"id": [f"i{i}" for i in range(SAMPLES)], "patient": [f"p{i}" for i in range(SAMPLES)], "center": "x"}
    common = rng.normal(size=(SAMPLES, 4))
    tables = {}
    for center in CENTERS:
        own = rng.normal(size=(SAMPLES, 1)) + 0.3 * rng.normal(size=(SAMPLES, 4))
        columns = np.hstack([own, common + shared_noise * rng.normal(size=(SAMPLES, 4)), rng.normal(size=(SAMPLES, 12))])
        frame = pd.DataFrame(about | {"split": splits, "label": labels})
        tables[center] = frame.join(pd.DataFrame(columns + 0.6 * labels[:, None]).add_prefix("f"))
    return tables


@pytest.mark.parametrize("label", [0, 1])
def test_planted_features_are_recovered(label):
    tables = planted()
    selected = correlation.select_features(tables, 20)
    chosen = correlation.choose(tables, selected, label, TOP)
    for center in CENTERS:
        found = {kind: set(part["feature"]) for kind, part in chosen[chosen["model_center"] == center].groupby("kind")}
        assert found == {"adaptive": {"f0", "f1", "f2", "f3"}, "common": {"f4", "f5", "f6", "f7"}}, center
    summary = correlation.map_summary(correlation.correlation_maps(tables, chosen).assign(stage="I")).set_index("kind")
    assert summary.loc["adaptive", "within_test"] > 0.8 > 0.2 > summary.loc["adaptive", "between_test"]
    assert summary.loc["common", "within_test"] < 0.2
    assert summary["similarity"].between(0.9, 1).all() and (summary["undefined"] == 0).all()


def test_a_common_feature_goes_with_its_twin_in_the_map():
    tables = planted()
    chosen = correlation.choose(tables, correlation.select_features(tables, 20), 1, TOP)
    maps = correlation.correlation_maps(tables, chosen)
    here = maps[(maps["kind"] == "common") & (maps["split"] == "test")]
    assert len(here) == (TOP * 3) ** 2
    twins = here[(here["row_feature"] == here["column_feature"]) & (here["row_center"] != here["column_center"])]
    others = here[here["row_feature"] != here["column_feature"]]
    assert len(twins) == 3 * 2 * TOP and twins["r"].min() > 0.8 and others["r"].abs().max() < 0.45
    rows = (tables["A"]["split"] == "test") & (tables["A"]["label"] == 1)
    one = here.iloc[np.flatnonzero(here["row_center"].eq("A") & here["column_center"].eq("C"))[5]]
    expected = np.corrcoef(tables["A"].loc[rows, one["row_feature"]], tables["C"].loc[rows, one["column_feature"]])[0, 1]
    assert one["r"] == pytest.approx(expected)


def test_test_images_change_neither_selection_nor_choice():
    tables = planted()
    altered = {center: table.copy() for center, table in tables.items()}
    rng = np.random.default_rng(9)
    for table in altered.values():
        test = table["split"] == "test"
        table.loc[test, table.columns[5:]] = rng.normal(size=(test.sum(), len(table.columns) - 5)) * 50
    found = [correlation.select_features(t, 12) for t in (tables, altered)]
    pd.testing.assert_frame_equal(*found)
    pd.testing.assert_frame_equal(*(correlation.choose(t, found[0], 1, TOP) for t in (tables, altered)))


def test_selection_is_mrmr_of_three_levels():
    tables = planted()
    train = tables["B"][tables["B"]["split"] == "train"]
    values = train.filter(regex="^f").to_numpy()
    mean, std = values.mean(0), values.std(0)
    levels = np.select([values < mean - std, values > mean + std], [-1, 1], 0)
    expected = [f"f{column}" for column in mrmr(levels, train["label"].to_numpy(), 6)]
    selected = correlation.select_features(tables, 6)
    assert selected.loc[selected["model_center"] == "B", "feature"].tolist() == expected
    assert correlation.select_features({"B": tables["B"]}, 6, engine="pymrmr")["feature"].tolist() == expected


def test_levels_of_constants_and_of_few_rows():
    values = np.column_stack([np.full(5, 0.1), [0, 0, 0, 0, 9.0]])
    assert correlation.discretised(values, np.ones(5, bool)).tolist() == [[0, 0]] * 4 + [[0, 1]]
    with pytest.raises(ValueError, match="2 training images cannot be cut into 3 levels"):
        correlation.discretised(values, np.array([True, True, False, False, False]))


def test_a_feature_that_fires_in_two_images_is_not_chosen():
    tables = planted()
    for center in ("A", "B"):
        rows = tables[center].index[(tables[center]["label"] == 1) & (tables[center]["split"] == "train")]
        tables[center]["f19"] = 0.0
        tables[center].loc[rows[:2], "f19"] = 5.0
    selected = correlation.select_features(tables, 20)
    assert "f19" in set(selected.loc[selected["model_center"] == "A", "feature"])
    assert "f19" not in set(correlation.choose(tables, selected, 1, TOP)["feature"])


def test_correlation_of_constant_columns_is_undefined():
    rng = np.random.default_rng(2)
    one = np.column_stack([rng.normal(size=30), np.full(30, 0.1)])
    found = correlation.correlation(one, rng.normal(size=(30, 2)))
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()


def test_bad_input():
    tables = planted()
    with pytest.raises(ValueError, match=r"model of center 'A': 21 features asked for, 20 of its 20 have more than one level"):
        correlation.select_features(tables, 21)
    constant = {"A": tables["A"].assign(f3=1.0)}
    with pytest.raises(ValueError, match=r"20 features asked for, 19 of its 20 have more than one level .* ask for at most 19"):
        correlation.select_features(constant, 20)
    assert correlation.usable(constant).to_dict() == {"A": 19}
    with pytest.raises(ValueError, match="all 400 training images are of class 1"):
        correlation.select_features({"A": tables["A"].assign(label=1)}, 4)
    with pytest.raises(ValueError, match="image 'i7': feature f2 is nan"):
        correlation.select_features({"A": tables["A"].assign(f2=tables["A"]["f2"].mask(tables["A"].index == 7))}, 4)
    with pytest.raises(ValueError, match="model of center 'B': its 600 images are not those of the first model"):
        correlation.select_features({"A": tables["A"], "B": tables["B"].iloc[::-1]}, 4)
    selected = correlation.select_features(tables, 8)
    with pytest.raises(ValueError, match="9 adaptive features asked for, 8 of the 8 selected ones vary"):
        correlation.choose(tables, selected, 1, 9)
    with pytest.raises(ValueError, match="at least 2 centers, got A"):
        correlation.choose({"A": tables["A"]}, selected, 1, 2)
    with pytest.raises(ValueError, match="class 5 has 0 train images, a correlation needs at least 3"):
        correlation.choose(tables, selected, 5, 2)
