"""Means of a log: at home and away, paired differences, and that the committed tables are made from the committed metrics."""

import re
from pathlib import Path

import pandas as pd
import pytest

from vfmgl_lib.comparators.methods import METHODS
from vfmgl_lib.sweep.log import METRICS, SUMMARY
from vfmgl_lib.sweep.summary import COLUMNS, summary

RESULTS = Path(__file__).parents[2] / "results"
OLD = RESULTS / "v0.1.0"
SETS = ("nuclei", "prostate", "idc_patches")


def metrics(values):
    """(method, budget, seed) -> values of the models A, B on A, B; with rows that are not to count."""
    rows = [
        {"method": method, "seed": seed, "budget": budget, "model_center": model, "test_center": test, "metric": "dice", "value": value}
        for (method, budget, seed), square in values.items()
        for model, line in zip("ABC"[: len(square)], square, strict=True)
        for test, value in zip("ABC"[: len(line)], line, strict=True)
    ]
    noise = [rows[0] | {"model_center": "shared"}, rows[0] | {"model_center": "all", "test_center": "all"}, rows[0] | {"metric": "hd95"}]
    return pd.DataFrame(rows + [row | {"value": 99.0} for row in noise]).assign(split_id="own")


def test_home_away_and_difference_by_hand():
    nothing = float("nan")
    table = metrics(
        {
            ("fedavg", "rounds", 0): [[0.1, 0.2], [0.1, 0.2]],
            ("fedavg", "updates", 0): [[0.5, 0.6], [0.5, 0.6]],
            ("fedavg", "updates", 1): [[0.7, 0.8], [0.7, 0.8]],
            ("vfmgl", "both", 0): [[0.8, 0.4], [0.3, 0.9]],
            ("vfmgl", "both", 1): [[0.8, 0.4], [0.3, 0.9]],
            ("vfmgl", "both", 2): [[0.0, 0.0], [0.0, nothing]],
        }
    )
    found = summary(table.sample(frac=1, random_state=0)).set_index(["method", "budget", "place"])
    assert found.loc[("fedavg", "updates", "home"), ["value", "sd"]].tolist() == pytest.approx([0.65, 0.2 / 2**0.5])
    assert found.loc[("vfmgl", "both", "home"), ["value", "seeds"]].tolist() == pytest.approx([0.85, 2]), "the seed without a value"
    assert found.loc[("vfmgl", "both", "away"), ["value", "seeds", "centers"]].tolist() == pytest.approx([0.7 / 3, 3, 2])
    # VFMGL ahead at home: 0.3, 0.3 of seed 0 and 0.1, 0.1 of seed 1. Away, A's test set has B's model and B's A's: -0.2, -0.2; -0.4, -0.4.
    assert found.loc["fedavg", "updates"]["ahead"].to_dict() == pytest.approx({"home": 0.2, "away": -0.3})
    assert found.loc["fedavg", "updates"][["low", "high"]].isna().all(axis=None), "two seeds at two centres have no interval"
    one = found.loc[("fedavg", "rounds", "home")]
    assert one["ahead"] == pytest.approx(0.7) and one[["sd", "low", "high"]].isna().all(), "one seed: no spread"
    assert found.loc[("vfmgl", "both", "home"), ["ahead", "low", "high"]].isna().all()


def test_the_interval_of_a_difference_by_hand():
    """Ahead by 0.1, 0.2 and 0.3 in three seeds, alike at three centres: t with two degrees of freedom (4.3027) times 0.1 / sqrt(3)."""
    values = {("vfmgl", "both", seed): [[0.6 + 0.1 * seed] * 3] * 3 for seed in range(3)}
    values |= {("fedavg", "updates", seed): [[0.5] * 3] * 3 for seed in range(3)}
    found = summary(metrics(values)).set_index(["method", "budget", "place"])
    for place in ("home", "away"):
        row = found.loc[("fedavg", "updates", place), ["ahead", "low", "high"]]
        assert row.tolist() == pytest.approx([0.2, -0.0484, 0.4484], abs=1e-4)


def test_without_vfmgl_there_is_no_difference_and_without_rows_no_row():
    table = metrics({("local", "both", 0): [[0.5, 0.5], [0.5, 0.5]]})
    assert summary(table)["ahead"].isna().all()
    assert summary(table.iloc[:0]).columns.tolist() == COLUMNS


def committed(folder):
    """Data sets of a folder of logs."""
    return sorted(file.parent.name for file in folder.glob(f"*/{METRICS}"))


def compare_with_readme(readme, folder, name):
    """Every cell of the README's table of the set: value (SD), at matched rounds and updates, at home and away."""
    rows = pd.read_csv(folder / name / SUMMARY).set_index(["method", "place", "budget"])
    methods = [method for method in METHODS if method in rows.index.get_level_values("method")]
    lines = readme.read_text(encoding="utf-8").split(f"### `{name}`")[1].split("###")[0].splitlines()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [line[0] for line in shown] == [METHODS[method].title for method in methods]
    for method, (_, *cells) in zip(methods, shown, strict=True):
        for cell, (place, budget) in zip(cells, [(p, b) for p in ("home", "away") for b in ("rounds", "updates")], strict=True):
            if not cell:
                assert budget == "updates" and (method, place, "both") in rows.index
                continue
            row = rows.loc[(method, place, "both" if (method, place, "both") in rows.index else budget)]
            value, deviation = re.fullmatch(r"(\d\.\d{3}) \((\d\.\d{2})\)", cell).groups()
            assert float(value) == pytest.approx(row["value"], abs=5.1e-4), "three decimals"
            assert float(deviation) == pytest.approx(row["sd"], abs=5.1e-3), "two decimals"


def test_every_committed_summary_is_that_of_its_metrics():
    for name in committed(RESULTS):
        there = pd.read_csv(RESULTS / name / SUMMARY)
        pd.testing.assert_frame_equal(there, summary(pd.read_csv(RESULTS / name / METRICS)), check_dtype=False, rtol=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_what_0_1_0_measured_is_its_metrics_and_what_is_read(name):
    """Means and deviations; its limits are of a bootstrap that is not used any more."""
    there, keys = pd.read_csv(OLD / name / SUMMARY), ["split_id", "method", "budget", "place", "metric"]
    again = summary(pd.read_csv(OLD / name / METRICS))
    columns = [*keys, "value", "sd", "seeds", "centers"]
    pd.testing.assert_frame_equal(there[columns], again[columns], check_dtype=False, rtol=1e-4)
    compare_with_readme(OLD / "README.md", OLD, name)
