"""Means of a log: at home and away, paired differences, and that the committed tables are made from the committed metrics."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.tools.sweep.log import METRICS, SUMMARY
from vfmgl_lib.tools.sweep.summary import COLUMNS, MAIN, MEANS, each_budget, summary

RESULTS = Path(__file__).parents[3] / "results"
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
            ("vfmgl", "rounds+updates", 0): [[0.8, 0.4], [0.3, 0.9]],
            ("vfmgl", "rounds+updates", 1): [[0.8, 0.4], [0.3, 0.9]],
            ("vfmgl", "rounds+updates", 2): [[0.0, 0.0], [0.0, nothing]],
        }
    )
    found = summary(table.sample(frac=1, random_state=0)).set_index(["method", "budget", "place"])
    assert found.loc[("fedavg", "updates", "home"), ["value", "sd"]].tolist() == pytest.approx([0.65, 0.2 / 2**0.5])
    for budget in ("rounds", "updates"):
        assert found.loc[("vfmgl", budget, "home"), ["value", "seeds"]].tolist() == pytest.approx([0.85, 2]), "the seed without a value"
        assert found.loc[("vfmgl", budget, "away"), ["value", "seeds", "centers"]].tolist() == pytest.approx([0.7 / 3, 3, 2])
    # VFMGL ahead at home: 0.3, 0.3 of seed 0 and 0.1, 0.1 of seed 1. Away, A's test set has B's model and B's A's: -0.2, -0.2; -0.4, -0.4.
    assert found.loc["fedavg", "updates"]["ahead"].to_dict() == pytest.approx({"home": 0.2, "away": -0.3})
    assert found.loc["fedavg", "updates"][["low", "high"]].isna().all(axis=None), "two seeds at two centres have no interval"
    one = found.loc[("fedavg", "rounds", "home")]
    assert one["ahead"] == pytest.approx(0.7) and one[["sd", "low", "high"]].isna().all(), "one seed: no spread"
    assert one["reference"] == "vfmgl" and one["reason"] == "no interval: fewer than three seeds or centres"
    own = found.loc[("vfmgl", "rounds", "home")]
    assert own[["ahead", "low", "high"]].isna().all() and own["reference"] == own["reason"] == ""


def test_the_reference_is_the_parent_of_a_control_and_hgkt_at_its_own_updates():
    table = metrics(
        {
            ("vfmgl", "rounds+updates+compute", 0): [[0.9, 0.9], [0.9, 0.9]],
            ("hgkt", "rounds+hgkt_updates", 0): [[0.8, 0.8], [0.8, 0.8]],
            ("hgkt_beta0", "rounds+hgkt_updates", 0): [[0.7, 0.7], [0.7, 0.7]],
            ("fedavg", "hgkt_updates", 0): [[0.5, 0.5], [0.5, 0.5]],
            ("fedavg", "compute", 0): [[0.6, 0.6], [0.6, 0.6]],
        }
    )
    found = summary(table).query("place == 'home'").set_index(["method", "budget"])[["reference", "ahead"]]
    wanted = {
        ("hgkt", "rounds"): ("vfmgl", 0.1),
        ("hgkt_beta0", "rounds"): ("hgkt", 0.1),
        ("hgkt_beta0", "hgkt_updates"): ("hgkt", 0.1),
        ("fedavg", "hgkt_updates"): ("hgkt", 0.3),
        ("fedavg", "compute"): ("vfmgl", 0.3),
    }
    for key, (reference, ahead) in wanted.items():
        assert found.loc[key, "reference"] == reference and found.loc[key, "ahead"] == pytest.approx(ahead), key


def test_a_control_that_is_none_has_no_lead_in_that_seed():
    square = {("vfmgl", s): [[0.9] * 3] * 3 for s in range(4)}
    square |= {("vfmgl_random", s): [[v] * 3] * 3 for s, v in enumerate((0.9, 0.7, 0.8, 0.75))}
    table = metrics({(method, "rounds", seed): values for (method, seed), values in square.items()})
    why, control = "nothing was dropped: no comparison", table["method"] == "vfmgl_random"
    one = summary(table.assign(no_comparison=np.where(control & (table["seed"] == 0), why, ""))).query("place == 'home'")
    row = one[one["method"] == "vfmgl_random"].iloc[0]
    assert row["ahead"] == pytest.approx(0.15) and row["reason"] == f"{why} (seed 0)" and row["low"] < 0.15 < row["high"]
    assert row["value"] == pytest.approx(0.7875) and row["seeds"] == 4
    every = summary(table.assign(no_comparison=np.where(control, why, ""))).query("place == 'home'")
    row = every[every["method"] == "vfmgl_random"].iloc[0]
    assert row[["ahead", "low", "high"]].isna().all() and row["reason"] == f"{why} (seed 0, 1, 2, 3)"


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
    found = summary(table)
    assert found["ahead"].isna().all() and set(found["reason"]) == {"the reference is not there at this budget"}
    assert set(found["budget"]) == {"rounds", "updates"}, "0.1.0's word for the two"
    assert summary(table.iloc[:0]).columns.tolist() == COLUMNS


def committed(folder):
    """Data sets of a folder of logs."""
    return sorted(file.parent.name for file in folder.glob(f"*/{METRICS}"))


def compare_with_readme(readme, folder, name):
    """Every cell of the README's table of the set: value (SD), at matched rounds and updates, at home and away."""
    rows = each_budget(pd.read_csv(folder / name / SUMMARY)).set_index(["method", "place", "budget"])
    methods = [method for method in METHODS if method in rows.index.get_level_values("method")]
    lines = readme.read_text(encoding="utf-8").split(f"### `{name}`")[1].split("###")[0].splitlines()
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [line[0] for line in shown] == [METHODS[method].title for method in methods]
    for method, (_, *cells) in zip(methods, shown, strict=True):
        for cell, (place, budget) in zip(cells, [(p, b) for p in ("home", "away") for b in ("rounds", "updates")], strict=True):
            row = rows.loc[(method, place, budget)]
            if not cell:
                assert budget == "updates" and row["value"] == rows.loc[(method, place, "rounds"), "value"]
                continue
            value, deviation = re.fullmatch(r"(\d\.\d{3}) \((\d\.\d{2})\)", cell).groups()
            assert float(value) == pytest.approx(row["value"], abs=5.1e-4), "three decimals"
            assert float(deviation) == pytest.approx(row["sd"], abs=5.1e-3), "two decimals"


def test_every_committed_summary_is_that_of_its_metrics():
    for name in committed(RESULTS):
        there = pd.read_csv(RESULTS / name / SUMMARY)
        there = there.fillna({"reference": "", "reason": ""})
        pd.testing.assert_frame_equal(there, summary(pd.read_csv(RESULTS / name / METRICS)), check_dtype=False, rtol=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_what_0_1_0_measured_is_its_metrics_and_what_is_read(name):
    """Means and deviations; its limits are of a bootstrap that is not used any more."""
    tables = [each_budget(pd.read_csv(OLD / name / SUMMARY)), summary(pd.read_csv(OLD / name / METRICS))]
    there, again = (table[MEANS].sort_values(MEANS[:5], ignore_index=True) for table in tables)
    pd.testing.assert_frame_equal(there, again, check_dtype=False, rtol=1e-4)
    compare_with_readme(OLD / "README.md", OLD, name)


def _rounded(value):
    return "" if pd.isna(value) else f"{value:.3f}"


@pytest.mark.parametrize("name", committed(RESULTS))
def test_the_first_table_is_what_was_measured(name):
    """Every cell: running statistics from 0.1.0's rows of seed 0, re-estimated ones from the summary."""
    text = (RESULTS / "README.md").read_text(encoding="utf-8").split(f"### `{name}`")[1].split("\n- ")[0]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")][1:]
    now = pd.read_csv(RESULTS / name / SUMMARY).set_index(["method", "place", "budget"])["value"]
    rows = pd.read_csv(RESULTS / "v0.1.0" / name / METRICS)
    main = rows[rows["metric"].isin(MAIN) & (rows["seed"] == 0) & (rows["model_center"] == rows["test_center"])]
    was = main[main["model_center"] != "all"].groupby(["method", "budget"])["value"].mean()

    def running(method, budget):
        return _rounded(was.get((method, budget), was.get((method, "both"), np.nan)))

    assert len(shown) == now.index.get_level_values("method").nunique()
    for title, *cells in shown:
        (method,) = (key for key, known in METHODS.items() if known.title == title)
        expected = []
        for budget in ("rounds", "updates"):
            there = (method, "home", budget) in now
            expected += [running(method, budget) if there else "", _rounded(now.get((method, "home", budget), np.nan))]
        expected += [_rounded(now.get((method, "away", budget), np.nan)) for budget in ("rounds", "updates")]
        assert cells == expected, title
