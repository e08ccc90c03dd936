"""The table of the pocket teacher: gains are paired, intervals as computed by hand, and a study whose rows are there is not run again."""

import importlib.util
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from vfmgl_lib.models.teachers import load_teacher

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "pocket_teacher.py"


@pytest.fixture
def module(monkeypatch):
    """The script."""
    specification = importlib.util.spec_from_file_location("pocket_teacher", FILE)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "pocket_teacher", module)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def tool(module, monkeypatch):
    """The script, its studies in threads and made up: the value of seed s and centre c is s + c / 10."""
    module.ran = []

    def made_up(job):
        module.ran.append(job.key)
        budgets = ("rounds", "updates") if job.method == "local" else ("both",)
        about = dict(zip(module.STUDY, job.key, strict=True)) | {"metric": "dice", "seconds": 1.0}
        about |= {"settings": module.settings_key(job), "weights": job.identity}
        return [about | {"center": str(c), "budget": budget, "value": job.seed + c / 10} for c in (0, 1) for budget in budgets]

    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda processes, *_: ThreadPoolExecutor(processes))
    monkeypatch.setattr(module, "prepare", lambda job: None)
    monkeypatch.setattr(module, "study_rows", made_up)
    return module


def words(folder, *more):
    places = ["--out", folder / "out", "--runs", folder / "runs", "--data", folder / "nowhere", "--mobilenet", "no.safetensors"]
    return [str(word) for word in ("--sets", "nuclei_phantoms,prostate", "--teachers", "none,random,mobilenet", *places, *more)]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the committed weights were drawn with MKL, which is for x86 alone")
def test_the_random_teacher_is_the_committed_rows_on_every_kind_of_processor(module, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FILE.parent)  # where the process that draws it finds the script
    identity = load_teacher(str(module.random_pocket(tmp_path)), grid=8).identity
    rows = pd.read_csv(FILE.parents[1] / "results" / "pocket_teacher" / "rows.csv", dtype=str).query("teacher == 'random'")
    assert set(rows["weights"]) == {identity[:10]}


def test_gain_and_interval_by_hand(tool):
    by_seed = {("none", "local", "updates"): (0.5, 0.6, 0.7), ("none", "local", "rounds"): (0.5, 0.5, 0.5)}
    by_seed |= {("random", "hgkt", "both"): (0.6, 0.8, 1.0), ("mobilenet", "hgkt", "both"): (0.8, 0.8, 0.8)}
    tables = {key: [[value - 0.1, value, value + 0.1] for value in values] for key, values in by_seed.items()}
    rows = pd.DataFrame(
        {"set": "nuclei", "images": 20, "metric": "dice", "teacher": teacher, "method": method, "budget": budget}
        | {"seed": seed, "center": "ABC"[place], "value": table[seed][place]}
        for (teacher, method, budget), table in tables.items()
        for seed in range(3)
        for place in range(3)
    )
    found = tool.summary(rows.sample(frac=1, random_state=0)).set_index(["teacher", "quantity"])
    # Differences 0.1, 0.2 and 0.3, alike at the centres: t with two degrees of freedom (4.3027) times the standard error 0.1 / sqrt(3).
    gain = found.loc[("random", "gain, matched updates"), ["value", "low", "high"]].tolist()
    assert gain == pytest.approx([0.2, 0.2 - 0.2484, 0.2 + 0.2484], abs=1e-4)
    assert found.loc[("random", "gain, matched rounds"), "value"] == pytest.approx(0.3)
    # Differences 0.2, 0 and -0.2.
    assert found.loc[("mobilenet", "student less random's"), ["value", "low", "high"]].tolist() == pytest.approx(
        [0, -0.4968, 0.4968], abs=1e-4
    )
    assert found.loc[("none", "student, updates"), "value"] == pytest.approx(0.6)
    assert set(found["seeds"]) == {3} and set(found["centers"]) == {3}


def test_a_second_call_runs_only_what_is_missing_and_says_what_cannot_be_had(tool, tmp_path, capsys):
    assert tool.main(words(tmp_path, "--images", "20", "--seeds", "0")) == 0
    first = list(tool.ran)
    said = capsys.readouterr().err
    assert "LEFT OUT: set prostate" in said and "LEFT OUT: teacher mobilenet" in said
    assert sorted(key[2:4] for key in first) == [("none", "local"), ("random", "frozen_probe"), ("random", "hgkt")]
    assert tool.main(words(tmp_path, "--images", "20", "--seeds", "0,1", "--processes", "2")) == 0
    again = tool.ran[len(first) :]
    assert {key[4] for key in again} == {1} and len(again) == len(first)
    rows = pd.read_csv(tmp_path / "out" / "rows.csv")
    assert not rows.duplicated([*tool.STUDY, "center", "budget"]).any() and len(rows) == 2 * (4 + 2 + 2)
    summary = pd.read_csv(tmp_path / "out" / "summary.csv").set_index(["teacher", "quantity"])
    assert summary.loc[("random", "gain, matched updates"), ["value", "seeds"]].tolist() == [0, 2]


def test_after_the_time_limit_nothing_begins(tool, tmp_path):
    assert tool.main(words(tmp_path, "--time-limit", "0")) == 0
    assert not tool.ran


def test_rows_of_other_settings_are_refused(tool, tmp_path):
    tool.main(words(tmp_path, "--images", "20", "--seeds", "0"))
    file = tmp_path / "out" / "rows.csv"
    rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    file.write_text(rows.assign(settings="0123456789").to_csv(index=False))
    with pytest.raises(SystemExit, match="delete those rows or give another --out"):
        tool.main(words(tmp_path, "--images", "20", "--seeds", "0"))
