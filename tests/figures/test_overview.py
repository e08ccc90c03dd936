"""What applies to a task is drawn; what does not is said, and leaves no file where none is wanted."""

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.figures import overview

CENTERS = ("A", "B")
MASKS = pd.DataFrame({"method": ["vfmgl"], "tp": [1], "dice": [0.5]})  # a segmentation's predictions have no probability


def said(figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for axis in figure.axes for text in axis.texts)


def test_a_classification_has_curves_and_a_segmentation_says_that_it_has_none(make_predictions, make_results):
    final, results = make_predictions(CENTERS, external=["E"]), make_results(CENTERS, external=["E"])
    external = ({"E": "A"}, CENTERS)
    charts = {
        "ROC curves": lambda table: overview.roc_chart(table, results, "image", "rounds"),
        "ROC  curves": lambda table: overview.external_roc_chart(table, results, "image", *external),
        "decision curves": lambda table: overview.decision_chart(table, "image", "rounds"),
        "reliability diagrams": lambda table: overview.reliability_chart(table, "image", "rounds"),
    }
    for words, chart in charts.items():
        figure, numbers = chart(final)
        assert len(numbers) and any(axis.lines for axis in figure.axes), words
        figure, numbers = chart(MASKS)
        assert numbers.empty and said(figure) == f"A segmentation has no {' '.join(words.split())}."


def test_a_classification_has_no_outlines(make_predictions):
    figure, numbers = overview.outline_chart(make_predictions(CENTERS), None, None, "rounds")
    assert numbers.empty and said(figure) == "A classification has no outlines."


def test_every_budget_that_is_there_has_its_table(make_results, make_tests, tmp_path):
    results, tests = make_results(CENTERS), make_tests(CENTERS)
    written = overview.write_budgets(results, tests, tmp_path, "note")
    assert list(written) == ["statistics_at_matched_rounds", "statistics_at_matched_updates"]
    assert {path.stem for path in tmp_path.iterdir()} == set(written)
    only = overview.write_budgets(results[results["budget"] == "rounds"], tests, tmp_path / "rounds", "note")
    assert list(only) == ["statistics_at_matched_rounds"]


def test_what_is_not_measurable_is_shown_and_not_saved(tmp_path):
    empty = pd.DataFrame()
    charts = {
        "Nobody has outlined": overview.localisation_chart(empty),
        "Not measurable here: at least 2, got A\\$": overview.predictability_chart(empty, "at least 2, got A$"),
        "A segmentation scores pixels": overview.score_chart(empty, empty, ("0", "1"), 0),
        "A segmentation has no classes": overview.correlation_chart(empty, 1, ("0", "1")),
    }
    for start, drawn in charts.items():
        assert said(overview.save_drawn(drawn, tmp_path, "none")).startswith(start)
    assert overview.save_rows(empty, tmp_path, "none").empty
    assert not list(tmp_path.iterdir())


def test_what_applies_is_saved_with_its_numbers(tmp_path):
    told = {"model": ["A", "shared"], "stage": ["II", "shared"], "balanced_accuracy": [0.6, 0.5], "low": [0.4, 0.3], "high": [0.8, 0.7]}
    told = pd.DataFrame(told | {"chance": [0.5, 0.5], "patients": [20, 20]})
    overview.save_drawn(overview.predictability_chart(told, ""), tmp_path, "told", "note")
    overview.save_rows(told, tmp_path, "rows", "note")
    assert {path.name for path in tmp_path.iterdir()} == {"told.png", "told.pdf", "told.csv", "rows.csv"}


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [(pd.DataFrame({"probability": [0.1]}), (("no", "yes"), "score")), (MASKS, (("no foreground", "foreground"), "Dice"))],
)
def test_cases_are_called_what_they_are(predictions, expected):
    assert overview.case_words(predictions, ("no", "yes")) == expected


def test_a_sheet_has_each_case_with_the_nearest_training_images(monkeypatch):
    def read(manifest, ids, data):
        return pd.DataFrame({"id": list(ids), "image": [np.full((8, 8, 3), 0.5)] * len(ids)})

    monkeypatch.setattr(overview, "read_samples", read)
    names = ["t0", "t1", "a", "b"]
    about = {"id": names, "patient": names, "center": "A", "split": ["train", "train", "test", "test"], "label": [0, 1, 0, 1]}
    features = pd.DataFrame(about | {"f0": [0.0, 1.0, 0.1, 0.9]})
    cases = pd.DataFrame({"center": "A", "label": [0, 1], "id": ["a", "b"], "score": [0.2, 0.8]})
    maps = pd.DataFrame({"id": ["a", "b"], "map": [np.eye(4, dtype=np.float32)] * 2})
    size = type("Data", (), {"image_size": 8})()
    manifest = type("Manifest", (), {"classes": ("no", "yes")})()
    draw = overview.case_drawer(cases, (("no", "yes"), "score"), manifest, size, maps, {}, {"A": features})
    both, one = draw(["a", "b"]), draw(["b"])
    assert len(both.axes) - len(one.axes) == 4  # image, map and the two training images
    titles = [axis.get_title(loc="left") for axis in one.axes]
    assert "score 0.80" in titles and titles[2].startswith("yes") and titles[3].startswith("no")
