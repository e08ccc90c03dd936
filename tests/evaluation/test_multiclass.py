"""More than two classes: metrics are scikit-learn's, the bootstrap counts samples as often as drawn, tests of AUCs are DeLong's."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from vfmgl_lib.evaluation import multiclass, statistics
from vfmgl_lib.evaluation.classification import by_patient, class_names, is_classification
from vfmgl_lib.evaluation.curves import decision_curve, reliability, roc_points
from vfmgl_lib.evaluation.margin import margin_limits
from vfmgl_lib.evaluation.metric import metric_names, metrics_of, units_of
from vfmgl_lib.evaluation.one_vs_rest import for_each_class, of_class, results_for_each_class, with_class
from vfmgl_lib.evaluation.results import compare_methods, paired, results_table

NAMES = ("healthy", "mild", "se[vere]")
COLUMNS = [f"probability[{name}]" for name in NAMES]


def made_up(n=60, seed=0, images=1, informative=1.0, names=NAMES, mixed=False):
    """Predictions of one model on one set of patients, `images` of each."""
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n), images)
    label = random.integers(len(names), size=n * images) if mixed else (np.arange(n) % len(names))[patient]
    logits = random.normal(size=(n * images, len(names))) + informative * np.eye(len(names))[label]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    about = {
        "id": [f"i{row}" for row in range(n * images)],
        "patient": [f"p{one:03d}" for one in patient],
        "test_center": "A",
        "split": "test",
    }
    return pd.DataFrame(about).assign(**{f"probability[{name}]": chances[:, k] for k, name in enumerate(names)}, label=label)


def final(*methods, centers="AB", **named):
    """Final predictions of own models of several methods."""
    parts = []
    for place, method in enumerate(methods):
        for number, center in enumerate(centers):
            for split in ("train", "test"):
                own = made_up(seed=10 * place + number, **named).assign(test_center=center, model_center=center, split=split)
                own["label"] = made_up(seed=number, **named)["label"]
                parts.append(own.assign(id=own["id"] + split, method=method, seed=0, split_id="own", budget="rounds"))
    return pd.concat(parts, ignore_index=True)


def test_the_columns_say_the_classes_in_their_order():
    table = made_up()
    assert class_names(table) == NAMES and is_classification(table)
    assert class_names(pd.DataFrame(columns=["probability", "label"])) == () and is_classification(pd.DataFrame(columns=["probability"]))
    assert not is_classification(pd.DataFrame(columns=["tp", "dice"]))
    assert metric_names(table)[:4] == ("auc", "auc[healthy]", "auc[mild]", "auc[se[vere]]")


@pytest.mark.parametrize("unit", ["image", "patient"])
@pytest.mark.parametrize("ordinal", [False, True])
def test_every_metric_is_scikit_learn_s(unit, ordinal):
    table = made_up(images=3).assign(**({"ordinal": 1} if ordinal else {}))
    units = by_patient(table) if unit == "patient" else table
    truth, chances = units["label"].to_numpy(), units[COLUMNS].to_numpy()
    called = chances.argmax(1)
    kappa, weights = ("kappa_quadratic", "quadratic") if ordinal else ("kappa", None)
    expected = {
        "auc": sk.roc_auc_score(truth, chances, multi_class="ovr"),
        **{f"auc[{name}]": sk.roc_auc_score(truth == k, chances[:, k]) for k, name in enumerate(NAMES)},
        "accuracy": sk.accuracy_score(truth, called),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called),
        "macro_f1": sk.f1_score(truth, called, average="macro"),
        kappa: sk.cohen_kappa_score(truth, called, weights=weights),
        "brier": sk.brier_score_loss(truth, chances, labels=[0, 1, 2]),
    }
    followed = {metric.name: metric.value for metric in metrics_of(table, unit, math.nan)}
    assert list(followed) == [name for name in expected if name != "brier"]
    run = {"method": "vfmgl", "seed": 0, "split_id": "own", "budget": "rounds", "model_center": "A"}
    found = results_table(table.assign(**run), unit=unit)
    own = found[found["test_center"] == "A"].set_index("metric")
    assert own["value"].to_dict() == pytest.approx(expected, abs=1e-9)
    assert followed == pytest.approx({name: value for name, value in expected.items() if name != "brier"}, abs=1e-9)
    assert ((own["low"] < own["value"]) & (own["value"] < own["high"])).all(), "every value has its interval"
    assert "cutoff" not in own.index, "the class of the highest probability is called"
    how = own["interval"].to_dict()
    assert {how[name] for name in ("auc", "balanced_accuracy", "macro_f1", kappa)} == {multiclass.BOOTSTRAP}
    assert how["auc[mild]"] == ("DeLong" if unit == "patient" else "DeLong by patient")
    assert how["accuracy"] == ("Wilson" if unit == "patient" else "t over patients")
    pooled = found[found["test_center"] == "all"]
    assert list(pooled["metric"]) == ["accuracy", "balanced_accuracy", "macro_f1", kappa]


def test_a_class_that_is_not_there_leaves_means_undefined_with_the_reason():
    table = made_up()
    table = table[table["label"] != 1]
    found = {metric.name: metric for metric in metrics_of(table, "image", None)}
    for name in ("auc", "balanced_accuracy", "macro_f1"):
        assert math.isnan(found[name].value) and found[name].reason == "no sample of class 'mild'"
    assert math.isnan(found["auc[mild]"].value) and found["auc[mild]"].reason == "only one class: 0 positive, 40 negative"
    called = table[COLUMNS].to_numpy().argmax(1)
    assert found["kappa"].value == pytest.approx(sk.cohen_kappa_score(table["label"], called), abs=1e-9)
    assert found["auc[healthy]"].value == pytest.approx(sk.roc_auc_score(table["label"] == 0, table[COLUMNS[0]]), abs=1e-9)
    assert math.isfinite(found["accuracy"].value)


def test_an_undefined_prediction_leaves_all_undefined():
    table = made_up()
    table.loc[3, COLUMNS] = math.nan
    assert all(metric.reason.startswith("1 of 60 predictions are undefined") for metric in metrics_of(table, "image", None))
    assert units_of(table, "image", None)["predicted"].iloc[3] == -1


def test_a_draw_counts_samples_as_often_as_it_has_them():
    """The weighted forms, as the bootstrap asks for them, against scikit-learn on samples repeated so often."""
    table = made_up(n=40, seed=3)
    table[COLUMNS] = table[COLUMNS].round(1)  # ties
    units = units_of(table, "image", None)
    times = np.random.default_rng(1).integers(0, 4, size=(5, len(units)))
    for draw in times:
        often = np.repeat(np.arange(len(units)), draw)
        truth, chances, called = (units[name].to_numpy()[often] for name in ("label", COLUMNS, "predicted"))
        expected = {
            "auc": np.mean([sk.roc_auc_score(truth == k, chances[:, k]) for k in range(3)]),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, called),
            "macro_f1": sk.f1_score(truth, called, average="macro"),
            "kappa": sk.cohen_kappa_score(truth, called),
            "kappa_quadratic": sk.cohen_kappa_score(truth, called, weights="quadratic"),
        }
        found = {name: multiclass._statistic(units, name)(draw[None].astype(float))[0] for name in expected}
        assert found == pytest.approx(expected, abs=1e-9)


def test_the_bootstrap_draws_patients_and_is_wider_where_they_have_several_images():
    """Three images of a patient that are the same image tell no more than one."""
    alone = made_up(seed=5)
    thrice = pd.concat([alone.assign(id=alone["id"] + f"-{copy}") for copy in range(3)])
    one, other = (multiclass.bootstrapped(units_of(table, "image", None), "auc") for table in (alone, thrice))
    assert other == pytest.approx(one, abs=1e-12)
    many = multiclass.bootstrapped(units_of(thrice.assign(patient=thrice["id"]), "image", None), "auc")
    assert many.high - many.low < 0.75 * (one.high - one.low)


def test_few_patients_of_a_class_have_no_interval():
    table = made_up(n=12)
    found = multiclass.bootstrapped(units_of(table, "image", None), "kappa")
    assert math.isnan(found.low) and found.reason == "no interval: 4 patients of class 'healthy', at least 5 are needed"
    perfect = made_up(informative=50)
    assert multiclass.bootstrapped(units_of(perfect, "image", None), "auc").reason == "no interval: all draws give the same value"


def test_patients_of_several_classes_are_drawn_from_all():
    found = multiclass.bootstrapped(units_of(made_up(n=40, images=2, mixed=True), "image", None), "macro_f1")
    assert found.low < found.high and not found.reason


def test_the_macro_contrast_of_two_classes_is_delong_s():
    random = np.random.default_rng(0)
    scores, label = random.random((2, 50)), np.arange(50) % 2
    both = np.stack([1 - scores, scores], axis=2)
    for patient in (None, np.arange(50) // 2):
        expected = statistics.auc_contrast(scores, label, (1, -1), patient)
        assert statistics.macro_auc_contrast(both, label, (1, -1), patient) == pytest.approx(expected)


def test_the_error_of_the_macro_contrast_is_that_of_repeated_sets():
    sets = [np.stack([made_up(n=90, seed=2 * s + m, informative=1 + 0.3 * m)[COLUMNS].to_numpy() for m in (0, 1)]) for s in range(300)]
    label = np.arange(90) % 3
    estimates = [statistics.macro_auc_contrast(scores, label, (-1, 1)) for scores in sets]
    assert np.mean([one.error for one in estimates]) == pytest.approx(np.std([one.value for one in estimates]), rel=0.12)
    first = sets[0]
    expected = np.subtract(*(sk.roc_auc_score(label, model, multi_class="ovr") for model in first[::-1]))
    assert estimates[0].value == pytest.approx(expected, abs=1e-12)


def test_methods_are_compared_by_the_mean_and_by_each_class():
    table = final("vfmgl", "fedavg", images=2)
    tests = compare_methods(table, unit="patient", metrics=["auc", "auc[mild]"])
    assert list(tests["test"].unique()) == ["paired DeLong"] and tests["p"].between(0, 1).all()
    results = results_table(table, unit="patient").query("split == 'test'").set_index(["method", "metric", "test_center"])["value"]
    for row in tests.itertuples():
        lead = results[row.reference, row.metric, row.center] - results[row.method, row.metric, row.center]
        assert row.difference == pytest.approx(lead, abs=1e-12)
    sides = (
        table[(table["method"] == method) & (table["test_center"] == "A") & (table["split"] == "test")] for method in ("vfmgl", "fedavg")
    )
    pair = of_class(paired(*sides, "vfmgl", "fedavg", "A"), "mild")
    assert {"probability", "probability_other", "label", "label_other"} <= set(pair) and not class_names(pair)


def test_limits_of_models_at_other_centres():
    table = final("vfmgl")
    away = table[table["split"] == "test"].assign(model_center=lambda rows: rows["test_center"].map({"A": "B", "B": "A"}))
    limits = margin_limits(pd.concat([table, away]), "auc", unit="patient")
    assert limits["limit"].notna().all() and limits["worst"].isna().all()


def test_wrong_predictions_are_named():
    table = final("vfmgl")
    for column, value in ((COLUMNS[0], 1.2), (COLUMNS[1], -0.1), ("label", 3)):
        wrong = table.copy()
        wrong.loc[7, column] = value
        with pytest.raises(
            ValueError, match=r"sample i7train: the probabilities must lie in \[0, 1\] and be 1 together, the label a class from"
        ):
            results_table(wrong, unit="image")


def test_one_class_against_the_others_is_read_by_all_that_is_written_for_two():
    table = final("vfmgl", "fedavg")
    spread, results = for_each_class(table), results_table(table, unit="image")
    points = with_class(roc_points(spread, unit="image"), "AB", NAMES)
    assert set(zip(points["center"], points["class"], strict=True)) == {(center, name) for center in "AB" for name in NAMES}
    assert set(points["model_center"]) == {"A", "B"}
    for curve in (decision_curve(spread, unit="image"), reliability(spread, unit="image")):
        assert set(with_class(curve, "AB", NAMES)["class"]) == set(NAMES)
    of_results = results_for_each_class(results, NAMES)
    own = of_results[(of_results["test_center"] == "B · mild") & (of_results["split"] == "test")]
    assert set(own["model_center"]) == {"B · mild"} and set(own["metric"]) == {"auc"}
    again = results_table(spread, unit="image")
    again = again[(again["metric"] == "auc") & (again["split"] == "test")].set_index(["method", "test_center"])["value"]
    assert own.set_index(["method", "test_center"])["value"].to_dict().items() <= again.to_dict().items()
    with pytest.raises(ValueError, match="class 'none' is none of the predictions', they have healthy, mild"):
        of_class(table, "none")
