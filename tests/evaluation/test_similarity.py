"""Similarity of centres and the choice of a model for an external one."""

import inspect

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation.similarity import choose_model, similarity_scores


def features(rows: dict[str, tuple[str, list[float]]]) -> pd.DataFrame:
    table = pd.DataFrame([[center, split, 9, *values] for center, (split, values) in rows.items()])
    table.columns = ["center", "split", "n", *(f"f{i}" for i in range(table.shape[1] - 3))]
    return table.assign(method="vfmgl", round=3, model="shared")


def random_features(seed: int = 0, size: int = 40) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    common = 10 * draw.normal(size=size)
    rows = {name: ("train", (common + draw.normal(size=size)).tolist()) for name in "ABCD"}
    return features(rows | {name: ("test", (common + draw.normal(size=size)).tolist()) for name in "EF"})


def test_by_hand():
    # The mean of A and B is (1, 1, 2); left are A (1, 0, -1), B (-1, 0, 1), E (3, 0, 0).
    table = features({"A": ("train", [2, 1, 1]), "B": ("train", [0, 1, 3]), "E": ("test", [4, 1, 2])})
    scores = similarity_scores(table).set_index("model_center")["similarity"]
    expected = np.corrcoef([1, 0, -1], [3, 0, 0])[0, 1]
    assert scores.index.tolist() == ["A", "B"]
    np.testing.assert_allclose(scores, [expected, -expected], rtol=1e-12)


def test_equals_numpys_correlation():
    table = random_features()
    raw = table.set_index("center")[[f"f{i}" for i in range(40)]]
    middle = raw.loc[list("ABCD")].mean()
    for row in similarity_scores(table).itertuples():
        expected = np.corrcoef(raw.loc[row.center] - middle, raw.loc[row.model_center] - middle)[0, 1]
        assert row.similarity == pytest.approx(expected, abs=1e-12)


def test_what_all_centres_share_does_not_count():
    table = random_features()
    shifted = table.copy()
    columns = [f"f{i}" for i in range(40)]
    shifted[columns] += np.random.default_rng(9).normal(size=40) * 3
    pd.testing.assert_frame_equal(similarity_scores(table), similarity_scores(shifted), rtol=1e-9)


def test_a_copy_of_a_centre_is_given_its_model():
    table = random_features()
    twin = table[table["center"] == "C"].assign(center="E", split="test")
    scores = similarity_scores(pd.concat([table[table["center"] != "E"], twin]))
    assert choose_model(scores)["E"] == "C"
    assert scores[scores["center"] == "E"].iloc[0]["similarity"] == pytest.approx(1)


def test_rows_are_sorted_and_complete():
    scores = similarity_scores(random_features())
    assert list(scores.columns) == ["center", "model_center", "similarity"]
    assert scores.groupby("center")["model_center"].apply(sorted).to_dict() == {"E": list("ABCD"), "F": list("ABCD")}
    assert scores.groupby("center")["similarity"].apply(lambda s: s.is_monotonic_decreasing).all()
    assert scores["similarity"].between(-1, 1).all()


def test_the_choice_reads_nothing_but_scores():
    assert list(inspect.signature(choose_model).parameters) == ["scores"]
    assert list(inspect.signature(similarity_scores).parameters) == ["mean_features"]
    table = random_features()
    labelled = table.assign(label=np.arange(len(table)), probability=0.9, auc=[0, 0, 0, 1, 0, 0])
    pd.testing.assert_frame_equal(similarity_scores(table), similarity_scores(labelled))


def test_of_equals_the_first_by_name():
    scores = pd.DataFrame({"center": "E", "model_center": ["D", "B", "C"], "similarity": [0.2, 0.2, 0.1]})
    assert choose_model(scores) == {"E": "B"}


def test_no_external_centre_is_no_error():
    table = random_features()
    scores = similarity_scores(table[table["split"] == "train"])
    assert scores.empty and choose_model(scores) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(f3=np.where(t["center"] == "B", np.nan, t["f3"])), "finite: B has nan in f3 and 1 such"),
        (lambda t: t.assign(f3=np.where(t["center"] == "E", np.inf, t["f3"])), "finite: E has inf in f3"),
        (lambda t: t.assign(**{f"f{i}": np.where(t["center"] == "C", 0.5, t[f"f{i}"]) for i in range(40)}), "all 40 of C are 0.5"),
        (lambda t: t[t["center"].isin(["A", "E"])], "at least two training centres .* got 1"),
        (lambda t: pd.concat([t, t]), "one row a centre.*A has several"),
        (lambda t: t.drop(columns="split"), "it lacks split"),
        (lambda t: t[["center", "split", "f0"]], "it has 1 of the columns"),
        (lambda t: t[t["center"].isin(["A", "B", "E"])].pipe(_all_alike), "differ from the mean of the training centres' means"),
    ],
)
def test_bad_features_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        similarity_scores(change(random_features()))


def _all_alike(table: pd.DataFrame) -> pd.DataFrame:
    columns = [f"f{i}" for i in range(40)]
    table = table.copy()
    table.loc[:, columns] = table[columns].to_numpy()[0]
    return table


def test_no_choice_from_nan():
    with pytest.raises(ValueError, match="similarity of E to A is NaN"):
        choose_model(pd.DataFrame({"center": ["E"], "model_center": ["A"], "similarity": [np.nan]}))
