"""Cross-centre results, external centres, subgroups, divisions of the data and the ablation."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.evaluation import generalization
from vfmgl_lib.evaluation.generalization import (
    ablation,
    ablation_summary,
    cell_tests,
    choices,
    cross_centers,
    external,
    generalization_summary,
    over_seeds,
    robustness,
    subgroups,
)

NAN = float("nan")


def result(model: str, test: str, value: float, **further) -> dict:
    row = {"method": "vfmgl", "seed": 0, "split_id": "own", "budget": "rounds", "model_center": model, "test_center": test}
    row |= {"split": "test", "metric": "auc", "unit": "image", "value": value, "low": value - 0.1, "high": value + 0.1}
    row |= {"interval": "DeLong", "n": 20, "numerator": NAN, "denominator": NAN, "reason": "one class" if np.isnan(value) else ""}
    return row | further


def matrix(values: list[list[float]], tests: str = "ABC", **further) -> list[dict]:
    models = tests[: len(values)]
    return [result(m, t, values[i][j], **further) for i, m in enumerate(models) for j, t in enumerate(tests)]


def limits(rows: list[dict], width: float = 0.0) -> pd.DataFrame:
    """A limit for every pair of models: the difference of their values less `width`, as if from forty patients that are alike."""
    value = {(row["model_center"], row["test_center"]): row["value"] * (-1 if row["metric"] == "assd" else 1) for row in rows}
    pairs = [(m, t, value[m, t] - value[t, t]) for m, t in value if m != t and (t, t) in value]
    table = pd.DataFrame(pairs, columns=["model_center", "test_center", "ahead"])
    return table.assign(limit=table["ahead"] - width, worst=table["ahead"], patients=40, reason="")


def crossed(rows: list[dict], width: float = 0.0, **further) -> pd.DataFrame:
    return cross_centers(pd.DataFrame(rows), limits(rows, width), **({"metric": rows[0]["metric"]} | further))


def cell(table: pd.DataFrame, model: str, test: str) -> pd.Series:
    (row,) = table[(table["model_center"] == model) & (table["test_center"] == test)].to_dict("records")
    return row


# Over seeds


def test_over_seeds_is_mean_sd_and_count():
    rows = [result("A", "A", value, seed=seed, numerator=3.0, denominator=4.0) for seed, value in enumerate((0.6, 0.7, 0.9))]
    row = over_seeds(pd.DataFrame(rows)).iloc[0]
    assert row["value"] == pytest.approx(2.2 / 3)
    assert row["std"] == pytest.approx(np.std([0.6, 0.7, 0.9], ddof=1))
    assert (row["low"], row["high"]) == pytest.approx((2.2 / 3 - 0.1, 2.2 / 3 + 0.1))
    assert row["seeds"] == 3 and np.isnan(row["numerator"])
    one = over_seeds(pd.DataFrame(rows[:1])).iloc[0]
    assert np.isnan(one["std"]) and (one["numerator"], one["denominator"]) == (3, 4)


def test_a_seed_without_a_value_leaves_none():
    rows = [result("A", "A", 0.6), result("A", "A", NAN, seed=1)]
    row = over_seeds(pd.DataFrame(rows)).iloc[0]
    assert np.isnan(row["value"]) and row["reason"] == "one class"


# Cross-centre map


def test_the_limit_and_not_the_value_has_to_be_within_the_margin():
    rows = matrix([[0.80, 0.85, 0.60], [0.75, 0.90, 0.70], [0.749, 0.95, 0.70]])
    table = crossed(rows)
    found = {(row.model_center, row.test_center): row.generalizes for row in table.itertuples()}
    # A's own 0.80: B is behind by exactly 0.05, C by more. B's own 0.90: A is behind by 0.05, C ahead. C's own 0.70: A is behind by 0.1.
    assert found["B", "A"] and not found["C", "A"]
    assert found["A", "B"] and found["C", "B"]
    assert not found["A", "C"] and found["B", "C"]
    assert all(pd.isna(found[center, center]) for center in "ABC")
    assert cell(table, "A", "B")["own"] == 0.90 and set(table["margin"]) == {0.05}
    wide = crossed(rows, 0.06)
    assert cell(wide, "B", "C")["value"] == cell(wide, "B", "C")["own"] and not cell(wide, "B", "C")["generalizes"], (
        "few patients show little"
    )
    assert cell(wide, "C", "B")["generalizes"] and cell(wide, "C", "B")["limit"] == pytest.approx(-0.01)
    assert wide["generalizes"].sum() == 1


def test_margin_is_a_parameter():
    rows = matrix([[0.80, 0.85], [0.70, 0.90]], "AB")
    assert [crossed(rows, margin=m)["generalizes"].sum() for m in (0.0, 0.05, 0.1)] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"margin must be at least 0, got -0\.1"):
        crossed(rows, margin=-0.1)


def test_distances_generalize_downwards():
    table = crossed(matrix([[2.0, 5.0], [1.0, 3.0]], "AB", metric="assd"), margin=0.5)
    assert cell(table, "B", "A")["generalizes"] and not cell(table, "A", "B")["generalizes"]


def test_without_a_limit_there_is_no_verdict_but_a_reason():
    rows = matrix([[0.8, 0.8], [0.8, 0.8]], "AB")
    few = limits(rows).assign(limit=NAN, patients=4, reason="no limit: 4 patients, at least 5 are needed")
    table = cross_centers(pd.DataFrame(rows), few, "auc")
    assert table["generalizes"].isna().all()
    assert cell(table, "A", "B")["reason"] == "no limit: 4 patients, at least 5 are needed" and cell(table, "A", "A")["reason"] == ""
    summary = generalization_summary(table).set_index("model_center")
    assert summary.loc["A", ["generalizes_to", "of", "undefined"]].tolist() == ["", 0, "B"]
    assert "not among the limits" in cell(cross_centers(pd.DataFrame(rows), few[:1], "auc"), "B", "A")["reason"]


def test_undefined_values_have_no_verdict_and_a_reason():
    table = crossed(matrix([[0.8, NAN, 0.7], [0.8, NAN, 0.7], [0.8, NAN, 0.7]]))
    row = cell(table, "A", "B")
    assert pd.isna(row["generalizes"]) and row["reason"] == "one class"
    row = cell(crossed(matrix([[0.8, 0.6], [0.8, NAN]], "AB")), "A", "B")
    assert pd.isna(row["generalizes"]) and row["value"] == 0.6 and row["reason"] == "the centre's own model has no value"


def test_external_centre_has_no_own_model():
    rows = matrix([[0.8, 0.8, 0.7], [0.8, 0.8, 0.7]], "ABE")
    row = cell(crossed(rows), "A", "E")
    assert pd.isna(row["own"]) and pd.isna(row["generalizes"]) and row["reason"] == "an external centre has no model of its own"
    table = cross_centers(pd.DataFrame(rows).assign(low=NAN, high=NAN, reason="no interval"), limits(rows), "auc")
    assert cell(table, "A", "E")["reason"] == "an external centre has no model of its own; no interval"
    assert cell(table, "A", "B")["reason"] == "no interval" and cell(table, "A", "B")["generalizes"]


def test_shared_pooled_and_other_rows_are_left_out():
    own = matrix([[0.8, 0.8], [0.8, 0.8]], "AB")
    rows = [*own, result("shared", "A", 0.1), result("adapted", "A", 0.1), result("all", "all", 0.2), result("A", "A", 0.99, split="train")]
    rows += [result("A", "A", 0.1, split_id="0.6-1"), result("A", "A", 0.1, budget="updates"), result("A", "A", 0.1, method="fedavg")]
    rows += [result("A", "A", 0.1, metric="accuracy")]
    table = cross_centers(pd.DataFrame(rows), limits(own), "auc")
    assert len(table) == 4 and set(table["value"]) == {0.8}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": "dice"}, "no metric 'dice', they have auc"),
        ({"method": "fedavg"}, "no method 'fedavg', they have vfmgl"),
        ({"budget": "updates"}, "no budget 'updates', they have rounds"),
    ],
)
def test_what_is_not_there_is_named(changed, message):
    with pytest.raises(ValueError, match=message):
        crossed(matrix([[0.8, 0.8], [0.8, 0.8]], "AB"), **changed)


def test_summary_says_where_and_whether_mutually():
    table = crossed(matrix([[0.8, 0.9, NAN], [0.8, 0.9, NAN], [0.1, 0.9, NAN]]))
    summary = generalization_summary(table).set_index("model_center")
    assert summary.loc["A", ["generalizes_to", "mutual", "count", "of", "undefined"]].tolist() == ["B", "B", 1, 1, "C"]
    assert summary.loc["C", ["generalizes_to", "mutual", "count", "of", "undefined"]].tolist() == ["B", "", 1, 2, ""]


# External centres

SCORES = pd.DataFrame({"center": list("EEFF"), "model_center": list("ABBA"), "similarity": [0.3, -0.2, 0.5, 0.1]})


def outside() -> list[dict]:
    return [*matrix([[0.9, 0.8, 0.7, 0.6], [0.5, 0.9, 0.8, 0.75]], "ABEF"), result("shared", "E", 0.85), result("shared", "A", 0.72)]


def test_the_chosen_model_is_the_most_similar_whatever_its_value():
    table = external(pd.DataFrame(outside()), SCORES, "auc")
    assert set(table["center"]) == {"E", "F"}
    chosen = table[table["chosen"]].set_index("center")["model_center"].to_dict()
    best = table[table["best"]].set_index("center")["model_center"].to_dict()
    assert chosen == {"E": "A", "F": "B"} and best == {"E": "B", "F": "B"}
    worse = pd.DataFrame(outside())
    worse.loc[worse["test_center"] == "E", "value"] = 1 - worse["value"]
    assert external(worse, SCORES, "auc")["chosen"].tolist() == table["chosen"].tolist()
    shared = table[table["model_center"] == "shared"].iloc[0]
    assert np.isnan(shared["similarity"]) and not shared["chosen"] and not shared["best"]


def test_what_the_choice_was_worth():
    worth = choices(external(pd.DataFrame(outside()), SCORES, "auc")).set_index("center")
    assert worth.loc["E", ["chosen", "value", "mean", "best", "best_value", "shared"]].tolist() == ["A", 0.7, 0.75, "B", 0.8, 0.85]
    assert np.isnan(worth.loc["E", "rank_correlation"]) and "fewer than three" in worth.loc["E", "reason"]
    rows = [result(model, "E", value) for model, value in zip("ABC", (0.5, 0.6, 0.9), strict=True)] + [result("A", "A", 0.9)]
    scores = pd.DataFrame({"center": "E", "model_center": list("ABC"), "similarity": [-0.1, 0.0, 0.4]})
    assert choices(external(pd.DataFrame(rows), scores, "auc"))["rank_correlation"].iloc[0] == pytest.approx(1)


def test_external_with_one_class():
    rows = pd.DataFrame([result("A", "E", NAN), result("B", "E", NAN), result("A", "A", 0.9), result("B", "B", 0.9)])
    table = external(rows, SCORES, "auc")
    assert table["value"].isna().all() and set(table["reason"]) == {"one class"} and not table["best"].any()
    assert choices(table).iloc[0][["reason", "best", "models"]].tolist() == ["one class", "", 0]


def test_external_refuses_several_seeds_and_an_unknown_similarity():
    with pytest.raises(ValueError, match="results have 2 seeds"):
        external(pd.DataFrame(outside() + [row | {"seed": 1} for row in outside()]), SCORES, "auc")
    with pytest.raises(ValueError, match="no similarity of external centre F to A"):
        external(pd.DataFrame(outside()), SCORES[:2].assign(center="E"), "auc")


def test_no_external_centre_gives_an_empty_table():
    table = external(pd.DataFrame(matrix([[0.8, 0.8], [0.8, 0.8]], "AB")), SCORES.iloc[:0], "auc")
    assert table.empty and "chosen" in table and choices(table).empty


# Divisions of the data


def test_robustness_is_mean_and_sample_sd_of_the_divisions_alone():
    values = {"own": 0.1, "0.5-1": 0.7, "0.6-2": 0.8, "0.7-3": 0.9}
    rows = [result(center, center, value, split_id=name) for name, value in values.items() for center in "AB"]
    rows += [result("A", "B", 0.0, split_id="0.5-1"), result("all", "all", 0.0, split_id="0.5-1")]
    table = robustness(pd.DataFrame(rows), "auc")
    assert table["split_id"].tolist() == ["0.5-1", "0.6-2", "0.7-3"] * 2
    assert table["value"].tolist() == [0.7, 0.8, 0.9] * 2
    assert set(table["splits"]) == {3} and set(table["reason"]) == {""}
    np.testing.assert_allclose(table["mean"], 0.8)
    np.testing.assert_allclose(table["std"], 0.1)
    chosen = robustness(pd.DataFrame(rows), "auc", split_ids=["own", "0.5-1"])
    np.testing.assert_allclose(chosen["std"], np.std([0.1, 0.7], ddof=1))


def test_one_division_has_no_spread():
    table = robustness(pd.DataFrame([result("A", "A", 0.7, split_id="0.5-1"), result("A", "A", 0.6)]), "auc")
    assert np.isnan(table["std"].iloc[0]) and table["reason"].iloc[0] == "no spread of one division" and table["mean"].iloc[0] == 0.7
    alone = robustness(pd.DataFrame([result("A", "A", 0.6)]), "auc")
    assert alone["split_id"].tolist() == ["own"] and np.isnan(alone["std"].iloc[0])


def test_an_undefined_division_is_kept_with_its_reason():
    rows = [result("A", "A", value, split_id=name) for name, value in {"0.5-1": 0.7, "0.6-2": NAN, "0.6-3": 0.9}.items()]
    table = robustness(pd.DataFrame(rows), "auc").set_index("split_id")
    assert set(table["splits"]) == {2} and table["mean"].iloc[0] == pytest.approx(0.8)
    assert table.loc["0.6-2", "reason"] == "one class" and table.loc["0.6-3", "reason"] == ""
    with pytest.raises(ValueError, match=r"no division 0\.9-9, they have 0\.5-1"):
        robustness(pd.DataFrame(rows), "auc", split_ids=["0.9-9"])


# Ablation

HGKT = [[0.80, 0.50], [0.40, 0.70]]
KD = [[0.80, 0.60], [0.30, 0.70]]
VFMGL = [[0.82, 0.70], [0.60, NAN]]


def three() -> pd.DataFrame:
    rows = []
    for method, values in (("hgkt", HGKT), ("hgkt_kd", KD), ("vfmgl", VFMGL)):
        rows += [*matrix(values, "AB", method=method), result("shared", "A", 0.0, method=method)]
    return pd.DataFrame(rows)


def test_ablation_has_three_matrices_and_three_differences():
    table = ablation(three(), "auc")
    assert table["step"].unique().tolist() == ["HGKT → HGKT+KD", "HGKT → VFMGL", "HGKT+KD → VFMGL"]
    assert table.groupby("step").size().tolist() == [4, 4, 4]
    row = cell(table[table["after"] == "hgkt_kd"], "B", "A")
    assert (row["value_before"], row["value_after"], row["improved"]) == (0.4, 0.3, False)
    np.testing.assert_allclose(row["difference"], -0.1)
    undefined = cell(table[(table["before"] == "hgkt") & (table["after"] == "vfmgl")], "B", "B")
    assert pd.isna(undefined["improved"]) and undefined["reason"] == "one class"
    wide = ablation(three().assign(reason="no interval"), "auc")
    assert set(wide.loc[wide["difference"].notna(), "reason"]) == {""}


def test_ablation_counts_what_is_improved():
    summary = ablation_summary(ablation(three(), "auc")).set_index("step")
    kd = summary.loc["HGKT → HGKT+KD"]
    assert (kd["improved"], kd["of"], kd["undefined"]) == (1, 4, 0) and kd["share"] == 0.25
    assert kd["mean_change"] == pytest.approx(0) and kd["mean_change_home"] == 0 and kd["mean_change_away"] == pytest.approx(0)
    whole = summary.loc["HGKT → VFMGL"]
    assert (whole["improved"], whole["of"], whole["undefined"]) == (3, 3, 1)
    assert whole["mean_change"] == pytest.approx((0.02 + 0.2 + 0.2) / 3)
    assert whole["mean_change_home"] == pytest.approx(0.02) and whole["mean_change_away"] == pytest.approx(0.2)
    assert pd.isna(whole["significantly_better"])


def test_ablation_of_distances_improves_downwards():
    table = ablation(three().assign(metric="hd95"), "hd95")
    assert cell(table[table["after"] == "hgkt_kd"], "B", "A")["improved"]


def test_ablation_without_a_method():
    table = ablation(three().query("method != 'hgkt_kd'"), "auc")
    assert table["step"].unique().tolist() == ["HGKT → VFMGL"]
    with pytest.raises(ValueError, match="at least two of hgkt, hgkt_kd, vfmgl, the results have vfmgl"):
        ablation(three().query("method == 'vfmgl'"), "auc")


def predictions(seed: int = 0, n: int = 60) -> pd.DataFrame:
    """HGKT knows nothing, HGKT+KD the same nothing, VFMGL nearly everything."""
    draw = np.random.default_rng(seed)
    rows = []
    for test in "AB":
        label = np.arange(n) % 2
        noise = draw.uniform(size=n)
        for model in "AB":
            for method in ("hgkt", "hgkt_kd", "vfmgl"):
                p = noise if method != "vfmgl" else 0.7 * label + 0.3 * noise
                about = {"method": method, "seed": 0, "split_id": "own", "budget": "rounds", "model_center": model, "test_center": test}
                ids = [f"{test}{i}" for i in range(n)]
                rows.append(pd.DataFrame({**about, "split": "test", "id": ids, "patient": ids, "probability": p, "label": label}))
    return pd.concat(rows, ignore_index=True)


def test_every_pair_is_tested_and_corrected_over_all_steps_and_pairs():
    tests = cell_tests(predictions(), "auc", unit="image")
    assert len(tests) == 3 * 4
    same = tests[(tests["before"] == "hgkt") & (tests["after"] == "hgkt_kd")]
    better = tests[(tests["before"] == "hgkt") & (tests["after"] == "vfmgl")]
    assert (better["p_holm"] < 0.001).all() and (better["low"] > 0).all()
    assert not (same["p_holm"] < 0.05).any()
    tested = tests.dropna(subset=["p"])
    assert len(tested) == 8, "HGKT+KD is HGKT here: no p, and no part of the family"
    assert tests["p_holm"].min() == pytest.approx(8 * tests["p"].min()), "one family: all steps and pairs, as `statistics.holm` says"
    assert set(better["test"]) == {"paired DeLong"} and same["test_reason"].ne("").all()  # equal scores: no test, but a reason
    pairs = set(better[["model_center", "test_center"]].itertuples(index=False, name=None))
    assert pairs == {(m, t) for m in "AB" for t in "AB"}


def test_tests_join_the_ablation():
    table = ablation(three(), "auc", tests=cell_tests(predictions(), "auc", unit="image"))
    summary = ablation_summary(table).set_index("step")
    assert summary.loc["HGKT → VFMGL", ["significantly_better", "significantly_worse"]].tolist() == [3, 0]
    assert pd.isna(summary.loc["HGKT → HGKT+KD", "significantly_better"]) and summary["tested"].tolist() == [0, 4, 4], "no p, no count"


def test_fewer_than_five_patients_leave_nothing_significant_to_count():
    few = predictions(n=8)  # four of each class
    tests = cell_tests(few, "auc", unit="image")
    assert tests[["p", "p_holm", "low"]].isna().all(axis=None) and tests["test_reason"].str.contains("4 patients of one class").all()
    table = ablation(three(), "auc", tests=tests)
    assert set(table["significant"]) == {""} and ablation_summary(table)["significantly_better"].isna().all()


def test_a_gain_counts_as_significant_where_the_tested_seed_has_it_too():
    """The mean over the seeds is a gain everywhere, the tested seed's difference a clear loss at A, A and a clear gain at B, B."""
    results = pd.concat([three().query("method != 'hgkt_kd'").fillna({"value": 0.9}).assign(seed=seed) for seed in (0, 1)])
    tests = cell_tests(predictions(), "auc", unit="image").query("before == 'hgkt' and after == 'vfmgl'")
    swapped = tests["model_center"].eq("A") & tests["test_center"].eq("A")
    tests.loc[swapped, "tested_difference"] *= -1
    table = ablation(results, "auc", tests=tests)
    assert (table["improved"] & (table["p_holm"] < 0.05)).all()
    assert cell(table, "A", "A")["significant"] == "" and cell(table, "B", "B")["significant"] == "better"
    summary = ablation_summary(table).iloc[0]
    assert (summary["improved"], summary["significantly_better"], summary["significantly_worse"]) == (4, 3, 0)


@pytest.mark.parametrize("change", [{"method": "vfmgl"}, {"seed": 1}])
def test_test_sets_of_different_size_are_refused(change):
    results = matrix(HGKT, "AB", method="hgkt")
    smaller = [row | change | {"n": 7} for row in results]
    with pytest.raises(ValueError, match=r"centre A: .* of hgkt, seed 0 and 7 of .*: auc of different test sets cannot be compared"):
        over_seeds(pd.DataFrame(results + smaller))


def test_cell_tests_refuse_several_seeds():
    two = pd.concat([predictions(), predictions().assign(seed=1)])
    with pytest.raises(ValueError, match=r"one seed, got \[.*0.*1.*\]"):
        cell_tests(two, "auc", unit="image")


# Subgroups


def clinic() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two training centres and E. Test patients 0-3 are young (two of each class), 4-5 old and all positive; the model knows the truth."""
    label = np.array([0, 1, 0, 1, 1, 1])
    rows, people = [], []
    for model, test in (("A", "A"), ("B", "B"), ("A", "B"), ("B", "A"), ("A", "E"), ("B", "E")):
        for split in ("train", "test") if model == test else ("test",):
            names = [f"{test}-{split}-{i}" for i in range(6)]
            good = 0.3 + 0.4 * label + 0.01 * np.arange(6)
            # B's model is wrong about E throughout, A's is right.
            score = 1 - good if (model, test) == ("B", "E") else good
            about = {"method": "vfmgl", "seed": 0, "split_id": "own", "budget": "rounds", "model_center": model, "test_center": test}
            rows.append(pd.DataFrame({**about, "split": split, "id": names, "patient": names, "probability": score, "label": label}))
            people += [(name, 40.0 + 10 * (i > 3), "I" if i != 3 else "II", "1" if i in (1, 3, 5) else "2") for i, name in enumerate(names)]
    patients = pd.DataFrame(people, columns=["patient", "age", "histology", "grade"]).drop_duplicates("patient", ignore_index=True)
    return pd.concat(rows, ignore_index=True), patients.assign(figo="I")


def rows_of(table: pd.DataFrame, group: str, center: str, metric: str) -> pd.Series:
    (row,) = table[(table["group"] == group) & (table["center"] == center) & (table["metric"] == metric)].to_dict("records")
    return row


def test_age_groups_by_the_mean_of_all_patients():
    final, patients = clinic()
    table = subgroups(final, patients, unit="image")
    mean = patients["age"].mean()
    assert set(table["title"]) >= {f"age ≤ {mean:.1f}", f"age > {mean:.1f}"}
    young, old = rows_of(table, "younger", "A", "auc"), rows_of(table, "older", "A", "auc")
    assert (young["n"], young["value"]) == (4, 1)
    assert old["n"] == 2 and np.isnan(old["value"]) and "one class" in old["reason"]
    accuracy = rows_of(table, "older", "A", "accuracy")
    assert (accuracy["numerator"], accuracy["denominator"], accuracy["value"]) == (2, 2, 1)
    other = subgroups(final, patients, unit="image", age=39)
    assert rows_of(other, "older", "A", "auc")["n"] == 6 and "no test patient" in rows_of(other, "younger", "A", "accuracy")["reason"]


def test_cutoff_is_that_of_the_whole_validation_set_where_there_is_one():
    final, patients = clinic()
    train = final[final["split"] == "train"]
    val = train.assign(split="val", probability=train["probability"] * 1.3, id=train["id"] + "v", patient=train["patient"] + "v")
    row = rows_of(subgroups(pd.concat([final, val]), patients, unit="image"), "younger", "A", "accuracy")
    assert row["cutoff"] == pytest.approx(0.71 * 1.3) and row["cutoff_from"] == "val" and row["n"] == 4


def test_cutoff_is_that_of_the_whole_training_set():
    final, patients = clinic()
    train = final["split"] == "train"
    high = final.assign(probability=np.where(train, final["probability"] * 1.3, final["probability"]))
    row = rows_of(subgroups(high, patients, unit="image"), "younger", "A", "accuracy")
    assert row["cutoff"] == pytest.approx(0.71 * 1.3)  # the lowest positive score of the training set, which no test score reaches
    assert row["cutoff_from"] == "train"
    assert row["value"] == 0.5 and rows_of(subgroups(high, patients, unit="image"), "younger", "A", "sensitivity")["value"] == 0


def test_well_differentiated_is_grade_1_of_type_I_over_all_centres():
    final, patients = clinic()
    table = subgroups(final, patients, unit="image", chosen={"E": "A"})
    alone = rows_of(table, "well_differentiated", "A", "accuracy")
    assert alone["n"] == 2  # patients 1 and 5: 3 is grade 1 of type II
    outside_ = rows_of(table, "well_differentiated", "E", "accuracy")
    assert (outside_["split"], outside_["model_center"], outside_["value"]) == ("external", "A", 1)
    pooled = rows_of(table, "well_differentiated", "all", "accuracy")
    assert (pooled["numerator"], pooled["denominator"]) == (6, 6)
    wrong = subgroups(final, patients, unit="image", chosen={"E": "B"})
    assert rows_of(wrong, "well_differentiated", "all", "accuracy")["numerator"] == 4
    without = subgroups(final, patients, unit="image")
    assert "E" not in set(without["center"]) and rows_of(without, "well_differentiated", "all", "accuracy")["denominator"] == 4


def test_no_patient_table_no_grade_and_unlisted_patients_say_so():
    final, patients = clinic()
    none = subgroups(final, None, unit="image")
    assert none["value"].isna().all() and set(none["reason"]) == {"no patients.csv beside the data"}
    assert set(none["group"]) == set(generalization.GROUPS) and set(none["center"]) == {"A", "B"}
    ungraded = subgroups(final, patients.drop(columns="grade"), unit="image")
    assert "has no grade" in rows_of(ungraded, "well_differentiated", "A", "accuracy")["reason"]
    fewer = subgroups(final, patients[patients["patient"] != "A-test-0"], unit="image", age=45)
    row = rows_of(fewer, "younger", "A", "accuracy")
    assert (row["n"], row["unknown"]) == (3, 1)
    nobody = subgroups(final, patients[~patients["patient"].str.startswith("B-test")], unit="image", age=45)
    row = rows_of(nobody, "younger", "B", "accuracy")
    assert (row["unknown"], row["reason"]) == (6, "of no test patient is it known")
    assert rows_of(nobody, "younger", "all", "accuracy")["unknown"] == 6


def test_subgroups_refuse_several_seeds():
    final, patients = clinic()
    with pytest.raises(ValueError, match=r"of one seed, got \[.*0.*1.*\]"):
        subgroups(pd.concat([final, final.assign(seed=1)]), patients, unit="image")


def test_names_are_matched_in_one_unicode_form():
    final, patients = clinic()
    apart, whole = "u\u0308-", "\u00fc-"
    final["patient"] = final["patient"].str.replace("A-", apart).str.replace("B-", whole + "B")
    patients["patient"] = patients["patient"].str.replace("A-", whole).str.replace("B-", apart + "B")
    table = subgroups(final, patients, unit="image", age=45)
    assert [rows_of(table, "younger", center, "accuracy")["n"] for center in "AB"] == [4, 4]


def test_a_segmentation_has_no_subgroups():
    final, patients = clinic()
    table = subgroups(final.drop(columns=["probability", "label"]).assign(dice=0.5), patients, unit="image")
    assert table["value"].isna().all() and table["reason"].str.contains("a segmentation has no subgroups").all()
