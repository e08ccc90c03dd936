"""Rates chosen on validation sets: by hand from the studies' tables, resumed, kept apart from what is reported."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from vfmgl_lib.config import ConfigError, setting_value
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.study import training as training_module
from vfmgl_lib.study.study import NO_TEACHER
from vfmgl_lib.tools.sweep import SweepError, plan
from vfmgl_lib.tools.sweep.log import check_log, write_log
from vfmgl_lib.tools.sweep.run import run_jobs
from vfmgl_lib.tools.sweep.tuning import grid, read_tuned, tuning_plan, validation_metric, write_tuning


@pytest.fixture
def workspace(small):
    return small(comparison__tuning={"factors": (3, 1), "seed": 7}, federation__rounds=1)


def tuned(workspace, methods, folder):
    jobs = tuning_plan(workspace, methods)
    run_jobs(jobs, progress=False, threads=1, finished=lambda job: write_tuning(folder, jobs))
    return jobs


def read(folder):
    return pd.read_csv(folder / "phantoms-nuclei" / "tuning.csv", dtype=str, keep_default_na=False)


def test_the_grid_is_every_combination_the_profile_s_own_first(workspace):
    rate, mu = workspace.settings.optimizer.lr, workspace.settings.comparators.fedprox.mu
    assert [dict(changes) for changes in grid("local", workspace.settings)] == [{"optimizer.lr": rate}, {"optimizer.lr": 0.03}]
    both = [tuple(changes.values()) for changes in grid("fedprox", workspace.settings)]
    assert both == [(rate, mu), (rate, 0.03), (0.03, mu), (0.03, 0.03)]
    assert grid("frozen_probe", workspace.settings) == [], "no rate, nothing to tune"
    without = [name for name in METHODS if not grid(name, workspace.settings)]
    assert without == ["frozen_probe", "hgkt_beta0", "hgkt_random", "vfmgl_task", "vfmgl_random"], "controls have their parents' values"
    assert [job.changes for job in tuning_plan(workspace, ["fedper"])] == [{"optimizer.lr": rate}, {"optimizer.lr": 0.03}]
    for name, method in METHODS.items():
        assert all(setting_value(workspace.settings, setting) > 0 for setting in method.tunes), name


def test_the_best_on_the_validation_sets_is_chosen_and_no_test_set_is_read(workspace, tmp_path, monkeypatch):
    jobs = tuned(workspace, ["local", "fedprox"], tmp_path)
    table = read(tmp_path)
    assert table[["method", "tuned"]].to_numpy().tolist() == [[job.method, job.tuned] for job in jobs] and len(jobs) == 2 + 4
    assert set(table["seed"]) == {"7"} and set(table["state"]) == {"done"} and set(table["metric"]) == {"dice"}
    for job, row in zip(jobs, table.to_dict("records"), strict=True):
        known = job.study.metrics.query("metric == 'dice' and split == 'val' and model_center == test_center and round == 1")
        by_hand = known.groupby("model_center")["value"].mean()
        assert [float(row[f"value at {center}"]) for center in ("SiteA", "SiteB")] == pytest.approx(by_hand.tolist(), rel=1e-4)
        assert float(row["value"]) == pytest.approx(by_hand.mean(), rel=1e-4)
    for _, part in table.groupby("method"):
        assert part["chosen"].tolist().count("1") == 1
        assert part.loc[part["chosen"] == "1", "value"].astype(float).item() == part["value"].astype(float).max()
    for job in jobs:  # whatever a test set says changes nothing
        metrics = pd.read_csv(job.study.folder / "metrics.csv", keep_default_na=False)
        metrics.assign(value=metrics["value"].where(metrics["split"] != "test", 0)).to_csv(job.study.folder / "metrics.csv", index=False)
    monkeypatch.setattr(training_module, "_train", lambda *arguments: pytest.fail("trained again"))
    tuned(workspace, ["local", "fedprox"], tmp_path)
    pd.testing.assert_frame_equal(read(tmp_path).drop(columns="seconds"), table.drop(columns="seconds"))


def test_it_goes_on_and_nothing_is_chosen_before_all_have_ended(workspace, tmp_path):
    write_tuning(tmp_path, tuning_plan(workspace, ["local", "fedavg"]))
    assert set(read(tmp_path)["state"]) == {"left"} and set(read(tmp_path)["chosen"]) == {"0"}
    with pytest.raises(ConfigError, match=r"tuning.csv: has no chosen value for local .*; tune it, or leave local out"):
        read_tuned(tmp_path / "phantoms-nuclei" / "tuning.csv", workspace, ["local"], [0], [None])
    tuned(workspace, ["fedavg"], tmp_path)
    table = read(tmp_path)
    assert table[["method", "state"]].to_numpy().tolist() == [["local", "left"]] * 2 + [["fedavg", "done"]] * 2
    assert table.groupby("method")["chosen"].apply(lambda chosen: list(chosen).count("1")).to_dict() == {"fedavg": 1, "local": 0}


def test_a_combination_that_fails_is_not_chosen(workspace, tmp_path, monkeypatch):
    train = training_module._train

    def diverges(study, *arguments):
        if study.settings.optimizer.lr == workspace.settings.optimizer.lr:
            raise FloatingPointError("diverged")
        train(study, *arguments)

    monkeypatch.setattr(training_module, "_train", diverges)
    with pytest.raises(SweepError, match=r"local seed 7 lr 0.01: FloatingPointError: diverged"):
        tuned(workspace, ["local"], tmp_path)
    write_tuning(tmp_path, tuning_plan(workspace, ["local"]))
    table = read(tmp_path)
    assert table[["state", "chosen", "error"]].to_numpy().tolist() == [["failed", "0", "FloatingPointError: diverged"], ["done", "1", ""]]
    monkeypatch.setitem(METHODS, "control", replace(METHODS["local"], parent="local"))
    monkeypatch.setattr(type(workspace), "study", lambda self, method: SimpleNamespace(teacher_description=NO_TEACHER))
    chosen = read_tuned(tmp_path / "phantoms-nuclei" / "tuning.csv", workspace, ["local", "control", "frozen_probe"], [0], [None])
    assert chosen == {"local": {"optimizer.lr": 0.03}, "control": {"optimizer.lr": 0.03}, "frozen_probe": {}}


def test_what_was_chosen_becomes_settings_of_the_sweep_s_studies(workspace, tmp_path):
    chosen = {"local": {"optimizer.lr": 0.03}, "fedprox": {"optimizer.lr": 0.01, "comparators.fedprox.mu": 0.5}}
    jobs = plan(workspace, ["local", "fedprox", "fedavg"], [0], tuned=chosen)
    plain = plan(workspace, ["local", "fedprox", "fedavg"], [0])
    assert [job.study.settings.optimizer.lr for job in jobs] == [0.03, 0.01, 0.01]
    assert [job.study.settings.comparators.fedprox.mu for job in jobs] == [0.01, 0.5, 0.01]
    assert [one.study.folder == other.study.folder for one, other in zip(jobs, plain, strict=True)] == [False, False, True]
    run_jobs(jobs[:1], progress=False, threads=1)
    config = json.loads((jobs[0].study.folder / "config.json").read_text())
    assert {row["setting"]: row["here"] for row in config["deviations_from_paper"]}["optimizer.lr"] == 0.03
    write_log(tmp_path, jobs)
    log = pd.read_csv(tmp_path / "phantoms-nuclei" / "studies.csv", keep_default_na=False).set_index("method")
    assert log["tuned"].to_dict() == {
        "fedavg": "",
        "fedprox": "optimizer.lr=0.01 comparators.fedprox.mu=0.5",
        "local": "optimizer.lr=0.03",
    }
    with pytest.raises(ConfigError, match="holds studies of other settings or data"):
        check_log(tmp_path, plain)
    other = plan(workspace, ["local"], [1], tuned={"local": {"optimizer.lr": 0.1}})
    with pytest.raises(ConfigError, match=r"holds local with optimizer.lr=0.03, this one has optimizer.lr=0.1; run all of its seeds"):
        check_log(tmp_path, other)
    check_log(tmp_path, plan(workspace, ["local"], [0, 1], tuned={"local": {"optimizer.lr": 0.1}}))


def test_the_tuning_s_seed_is_never_reported(workspace):
    with pytest.raises(ConfigError, match=r"seed 7: is the tuning's \(comparison.tuning.seed\)"):
        plan(workspace, ["local"], [0, 7])
    assert {job.seed for job in tuning_plan(workspace, ["local"])} == {7}


def test_a_workspace_with_the_tuning_s_seed_says_so(workspace, small, caplog):
    assert not caplog.records and "seed" not in workspace.describe()
    said = small(comparison__tuning={"factors": (1,), "seed": 7}, seed=7).describe()["seed"]
    assert said.startswith("7 is the tuning's") and "its results are not to be reported" in said
    assert [record.getMessage() for record in caplog.records] == [f"seed {said}"]


@pytest.fixture
def chosen(tmp_path):
    """Workspace, methods -> a table in which the first combination of each was chosen, without any training."""

    def write(workspace, methods):
        write_tuning(tmp_path, tuning_plan(workspace, methods))
        file, table = tmp_path / "phantoms-nuclei" / "tuning.csv", read(tmp_path)
        table.assign(chosen=(~table["method"].duplicated()).astype(int)).to_csv(file, index=False)
        return file

    return write


def test_what_was_chosen_is_not_reported_where_it_was_chosen(workspace, small, chosen):
    """Not on the table's seed, whatever the profile's is by now; not on a division that may test the patients of its validation sets."""
    file = chosen(workspace, ["local"])
    assert read_tuned(file, workspace, ["local"], [0, 1], [None]) == {"local": {"optimizer.lr": workspace.settings.optimizer.lr}}
    later = small(comparison__tuning={"factors": (3, 1), "seed": 1000}, federation__rounds=1)
    assert plan(later, ["local"], [7]), "its profile allows the seed"
    with pytest.raises(ConfigError, match=r"tuning.csv: its settings were chosen on seed 7, which is never reported; give other seeds"):
        read_tuned(file, later, ["local"], [0, 7], [None])
    with pytest.raises(ConfigError, match=r"chosen on validation patients of the division own, whom 0.7-4 may test; run 0.7-4 without"):
        read_tuned(file, workspace, ["local"], [0], [None, (0.7, 4)])
    divided = workspace.variant(split=(0.7, 4))
    with pytest.raises(ConfigError, match=r"of the division own, whom 0.7-4 may test"):
        read_tuned(file, divided, ["local"], [0], [None])
    assert set(pd.read_csv(chosen(divided, ["local"]))["split_id"]) == {"0.7-4"}
    assert read_tuned(file, divided, ["local"], [0], [(0.7, 4)]), "where it was chosen on the very division"


def test_a_table_of_another_grid_or_other_settings_of_a_method_is_refused(workspace, small, chosen):
    file, same = chosen(workspace, ["fedprox", "fedrep"]), {"comparison__tuning": {"factors": (3, 1), "seed": 7}, "federation__rounds": 1}
    methods = ["fedprox", "fedrep"]
    assert set(read_tuned(file, workspace, methods, [0], [None])) == set(methods)
    assert read_tuned(file, small(comparators__harmofl__perturbation=0.5, **same), methods, [0], [None]), "that is not theirs"
    with pytest.raises(ConfigError, match="fedrep was tuned on another grid or with other settings of its own; tune it anew"):
        read_tuned(file, small(comparators__fedrep__head_epochs=2, **same), methods, [0], [None])
    with pytest.raises(ConfigError, match="fedprox was tuned on another grid"):  # the chosen mu is on the new grid, too
        read_tuned(file, small(comparators__fedprox__mu=0.01 / 3, **same), methods, [0], [None])
    for column in ("own", "split_id"):
        pd.read_csv(file, dtype=str, keep_default_na=False).drop(columns=column).to_csv(file.with_name("old.csv"), index=False)
        with pytest.raises(ConfigError, match=f"old.csv: has no column {column}; make it anew with --tune"):
            read_tuned(file.with_name("old.csv"), workspace, methods, [0], [None])


@pytest.mark.parametrize("factors", [(3.0,), (1.0, 0.0), (1.0, 1.0, 3.0)])
def test_a_grid_without_the_profile_s_own_value_is_refused(small, factors):
    with pytest.raises(ConfigError, match="factors must be above 0, each one once, and 1 among them"):
        small(comparison__tuning__factors=factors)


def test_a_table_of_other_settings_and_sets_without_validation_are_refused(workspace, small, tmp_path):
    write_tuning(tmp_path, tuning_plan(workspace, ["local"]))
    file, other = tmp_path / "phantoms-nuclei" / "tuning.csv", small(optimizer__lr=0.5)
    with pytest.raises(ConfigError, match=r"tuning.csv: holds studies of other settings or data"):
        write_tuning(tmp_path, tuning_plan(other, ["local"]))
    with pytest.raises(ConfigError, match=r"tuning.csv: holds studies of other settings or data"):
        read_tuned(file, other, ["local"], [0], [None])
    with pytest.raises(ConfigError, match=r"elsewhere.csv: is not there; .* --tune --results DIR` makes it"):
        read_tuned(tmp_path / "elsewhere.csv", workspace, ["local"], [0], [None])
    with pytest.raises(ConfigError, match="frozen_probe have nothing to tune"):
        tuning_plan(workspace, ["frozen_probe"])


def test_the_last_stage_and_all_report_rounds_count(workspace):
    """VFMGL's own model after stage II, not I; a method of one update a batch at both of its rounds."""
    rows = [(1, "I", 0.1), (2, "I", 0.2), (2, "II", 0.4), (6, "I", 0.8)]
    columns = {"model_center": "A", "test_center": "A", "split": "val", "metric": "dice"}
    metrics = pd.DataFrame(rows, columns=["round", "stage", "value"]).assign(**columns)
    metrics = pd.concat([metrics, metrics.assign(split="test", value=9), metrics.assign(test_center="B", value=9)])
    metric, values = validation_metric(SimpleNamespace(metrics=metrics, report_rounds={"rounds": 2, "updates": 6}))
    assert metric == "dice" and values.to_dict() == pytest.approx({"A": 0.6})
