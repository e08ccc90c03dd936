"""The log of results that is committed: valid at any time, small, never of two kinds of settings."""

from dataclasses import replace

import pandas as pd
import pytest

from vfmgl_lib import __version__
from vfmgl_lib.config import ConfigError
from vfmgl_lib.tools.sweep import log as module
from vfmgl_lib.tools.sweep import plan, run_sweep
from vfmgl_lib.tools.sweep.log import check_log, dataset_name, read_log, write_log


def read(folder, name):
    return pd.read_csv(folder / "phantoms-nuclei" / name, keep_default_na=False, dtype=str)


def swept(workspace, methods, seeds=(0,)):
    run_sweep(workspace, methods, seeds, progress=False)
    return plan(workspace, methods, seeds)


def test_what_is_done_has_metrics_and_what_is_left_is_named(small, tmp_path):
    workspace, log = small(), tmp_path / "results"
    (done,) = swept(workspace, ["fedavg"])
    write_log(log, plan(workspace, ["fedavg", "vfmgl"], [0]))
    studies, metrics = read(log, "studies.csv"), read(log, "metrics.csv")
    assert studies[["method", "state", "rounds_done"]].to_numpy().tolist() == [["fedavg", "done", "2"], ["vfmgl", "left", "0"]]
    assert studies["study"][0] == done.study.folder.name and studies["threads"][0].isdecimal()
    assert set(metrics["method"]) == {"fedavg"} and set(metrics["budget"]) == {"rounds"}
    known = done.study.metrics.query("round == 2 and split == 'test' and metric == 'dice' and model_center == 'SiteA'")
    wanted = {row.test_center: row.value for row in known.itertuples()}
    found = metrics[(metrics["model_center"] == "SiteA") & (metrics["metric"] == "dice")]
    assert {row.test_center: float(row.value) for row in found.itertuples()} == pytest.approx(wanted, rel=1e-4)
    own = metrics[(metrics["model_center"] == "SiteA") & (metrics["test_center"] == "SiteA")]
    other = metrics[(metrics["model_center"] == "SiteA") & (metrics["test_center"] == "SiteB")]
    assert {"dice", "sensitivity"} <= set(own["metric"]) and set(other["metric"]) == {"dice"}
    assert {"low", "high", "interval", "reason"} <= set(metrics.columns) and {"assd", "hd95"} <= set(own["metric"])
    assert set(metrics[metrics["model_center"] == "all"]["test_center"]) == {"all"}
    assert not {"id", "patient", "mask_file", "probability"} & set(metrics.columns)


def test_a_log_in_which_nothing_is_finished_goes_on(small, tmp_path):
    workspace, log = small(), tmp_path / "results"
    write_log(log, plan(workspace, ["local"], [0]))  # as after a first study that failed
    assert not (log / "phantoms-nuclei" / "metrics.csv").exists()
    write_log(log, swept(workspace, ["local"]))
    assert set(read(log, "metrics.csv")["method"]) == set(read(log, "summary.csv")["method"]) == {"local"}


def test_how_many_batches_ddbl_kept_is_there(small, tmp_path):
    jobs = swept(small(deduction__keep_ratio=1e-4), ["local", "hgkt_kd", "vfmgl"])
    log = tmp_path / "results"
    write_log(log, jobs)
    there = read(log, "studies.csv").set_index("method")["kept_share"]
    shares = next(job.study for job in jobs if job.method == "vfmgl").rounds["kept_share"]
    assert there["local"] == "" and there["hgkt_kd"] == "1" and float(there["vfmgl"]) == pytest.approx(shares.mean(), rel=1e-4)
    assert 0 <= float(there["vfmgl"]) < 1
    before = read(log, "studies.csv").drop(columns="kept_share")
    before.to_csv(log / "phantoms-nuclei" / "studies.csv", index=False)  # a log from before there was this column
    write_log(log, jobs[:1])
    assert read(log, "studies.csv")["kept_share"].tolist() == [""] * 3


def test_it_grows_and_does_not_depend_on_the_order(small, tmp_path):
    workspace = small()
    first = swept(workspace, ["fedavg"])
    write_log(tmp_path / "one", first)
    second = swept(workspace, ["local"], [0, 1])
    write_log(tmp_path / "one", second)
    write_log(tmp_path / "other", second)
    write_log(tmp_path / "other", first)
    for name in ("studies.csv", "metrics.csv", "summary.csv"):
        pd.testing.assert_frame_equal(read(tmp_path / "one", name), read(tmp_path / "other", name))
    assert read(tmp_path / "one", "studies.csv")["method"].tolist() == ["fedavg", "local", "local"]
    before = (tmp_path / "one" / "phantoms-nuclei" / "metrics.csv").read_bytes()
    write_log(tmp_path / "one", second)
    assert (tmp_path / "one" / "phantoms-nuclei" / "metrics.csv").read_bytes() == before


def test_a_study_with_a_changed_setting_of_its_own_replaces_the_old_one(small, tmp_path):
    write_log(tmp_path / "log", swept(small(), ["fedprox", "local"]))
    changed = small(comparators__fedprox__mu=0.5)
    write_log(tmp_path / "log", plan(changed, ["fedprox", "local"], [0]))
    assert read(tmp_path / "log", "studies.csv")["state"].tolist() == ["left", "done"]
    assert set(read(tmp_path / "log", "metrics.csv")["method"]) == {"local"}, "numbers of the old value are gone"
    write_log(tmp_path / "log", swept(changed, ["fedprox", "local"]))
    assert set(read(tmp_path / "log", "metrics.csv")["method"]) == {"fedprox", "local"}
    assert read(tmp_path / "log", "studies.csv")["state"].tolist() == ["done", "done"]


def test_both_budgets_have_rows_of_their_own_where_they_differ(small, tmp_path):
    (job,) = swept(small(federation__match_updates=True), ["fedavg"])
    write_log(tmp_path / "log", [job])
    metrics = read(tmp_path / "log", "metrics.csv")
    shared = metrics[(metrics["model_center"] == "SiteA") & (metrics["test_center"] == "SiteA") & (metrics["metric"] == "specificity")]
    table = job.study.metrics.query("split == 'test' and metric == 'specificity' and model_center == 'SiteA' and test_center == 'SiteA'")
    wanted = {budget: table[table["round"] == number]["value"].item() for budget, number in job.study.report_rounds.items()}
    assert job.study.report_rounds == {"rounds": 2, "updates": 6, "hgkt_updates": 4}
    assert dict(zip(shared["budget"], shared["value"].astype(float), strict=True)) == pytest.approx(wanted, rel=1e-4)


def test_a_round_that_serves_several_budgets_is_there_once_and_counts_in_each(small, tmp_path):
    """VFMGL's own rounds at matched compute, HGKT's at as many updates as HGKT; DDBL that dropped nothing is no control of itself."""
    workspace = small(federation__match_updates=True, federation__match_compute=True, federation__rounds=2, deduction__keep_ratio=1e6)
    methods = ["local", "hgkt", "hgkt_random", "vfmgl_random", "vfmgl"]
    jobs = swept(workspace, methods)
    write_log(tmp_path / "log", jobs)
    metrics = read(tmp_path / "log", "metrics.csv")
    assert set(metrics.loc[metrics["method"] == "vfmgl", "budget"]) == {"rounds+updates+compute"}
    assert set(metrics.loc[metrics["method"] == "hgkt", "budget"]) == {"rounds+hgkt_updates+compute"}
    said = metrics.groupby("method")["no_comparison"].unique().map(list).to_dict()
    itself = "HGKT has these settings itself: no comparison"  # the smallest profile's teacher is random
    nothing = "nothing was dropped: no comparison"
    assert said == {"local": [""], "hgkt": [""], "hgkt_random": [itself], "vfmgl_random": [nothing], "vfmgl": [""]}
    rows = read(tmp_path / "log", "summary.csv").query("place == 'home'").set_index(["method", "budget"])
    assert rows["reference"].to_dict() == {
        **{("local", "rounds"): "vfmgl", ("local", "updates"): "vfmgl", ("local", "hgkt_updates"): "hgkt", ("local", "compute"): "vfmgl"},
        **{("hgkt", "rounds"): "vfmgl", ("hgkt", "hgkt_updates"): "", ("hgkt", "compute"): "vfmgl"},
        **{("hgkt_random", budget): "hgkt" for budget in ("rounds", "hgkt_updates", "compute")},
        **{("vfmgl_random", budget): "vfmgl" for budget in ("rounds", "updates", "compute")},
        **{("vfmgl", budget): "" for budget in ("rounds", "updates", "compute")},
    }
    value = rows["value"].astype(float)
    for budget, reference in {"compute": "vfmgl", "hgkt_updates": "hgkt"}.items():
        wanted = value[reference, "rounds"] - value["local", budget]
        assert float(rows.loc[("local", budget), "ahead"]) == pytest.approx(wanted, abs=1e-4)
    for method, reason in {"hgkt_random": itself, "vfmgl_random": nothing}.items():
        assert set(rows.loc[method, "ahead"]) == set(rows.loc[method, "low"]) == {""}
        assert set(rows.loc[method, "reason"]) == {f"{reason} (seed 0)"}


def test_other_settings_are_not_mixed_in(small, tmp_path):
    write_log(tmp_path / "log", plan(small(), ["local", "hgkt"], [0]))
    with pytest.raises(ConfigError, match=r"studies.csv: holds studies of other settings or data \(.* instead of .*\); choose another"):
        check_log(tmp_path / "log", plan(small(optimizer__lr=0.5), ["local"], [0]))
    check_log(tmp_path / "log", plan(small().variant(seed=5, split=(0.6, 1)), ["local"], [5]))


def test_seeds_of_a_method_with_other_settings_of_its_own_are_not_mixed(small, tmp_path, monkeypatch):
    log, methods = tmp_path / "log", ["local", "fedavg", "fedprox", "logit_kd", "fedper", "hgkt_beta0"]
    write_log(log, plan(small(), methods, [0]))
    assert read(log, "studies.csv").set_index("method")["own"].to_dict() == {
        "local": "",
        "fedavg": "revision=2",
        "fedprox": "comparators.fedprox.mu=0.01 revision=2",
        "logit_kd": "comparators.frozen_probe.inverse_regularization=1.0 comparators.logit_kd.distillation_share=0.5 "
        "comparators.logit_kd.temperature=5.0 revision=2",
        "fedper": "comparators.fedrep.head_epochs=0",
        "hgkt_beta0": "transfer.beta=0.0",
    }
    other = small(comparators__fedprox__mu=1.0)
    message = r"holds fedprox with comparators.fedprox.mu=0.01 revision=2, this one has comparators.fedprox.mu=1.0 revision=2; run all"
    with pytest.raises(ConfigError, match=message):
        check_log(log, plan(other, ["fedprox"], [1]))
    check_log(log, plan(other, ["fedprox"], [0, 1])), check_log(log, plan(other, ["local", "fedper"], [1]))
    with pytest.raises(ConfigError, match=r"holds logit_kd with .*inverse_regularization=1.0 .*, this one has .*=2.0 "):
        check_log(log, plan(small(comparators__frozen_probe__inverse_regularization=2.0), ["logit_kd"], [1]))
    with monkeypatch.context() as patched:
        patched.setitem(module.METHODS, "local", replace(module.METHODS["local"], revision=2))
        with pytest.raises(ConfigError, match="holds local with nothing own, this one has revision=2"):
            check_log(log, plan(small(), ["local"], [1]))
    read(log, "studies.csv").drop(columns="own").to_csv(log / "phantoms-nuclei" / "studies.csv", index=False)
    with pytest.raises(ConfigError, match=r"holds fedprox with nothing own, this one has comparators.fedprox.mu=0.01"):
        check_log(log, plan(small(), ["fedprox"], [1]))


def test_seeds_of_a_control_with_another_teacher_of_its_own_are_not_mixed(small, tmp_path):
    write_log(tmp_path / "log", plan(small(), ["hgkt_random"], [0]))
    other = small(teacher__source="random:test_vit2")
    with pytest.raises(ConfigError, match=r"holds hgkt_random with test_vit, .*, this one has test_vit2, "):
        check_log(tmp_path / "log", plan(other, ["hgkt_random"], [1]))


def test_settings_that_nothing_reads_do_not_part_a_log(small, tmp_path):
    write_log(tmp_path / "log", plan(small(), ["hgkt", "vfmgl"], [0]))
    unread = {"transfer__ridge_penalty": 7.0, "deduction__quantile": 0.1, "deduction__gradient_every": 0}
    check_log(tmp_path / "log", plan(small(**unread), ["hgkt", "vfmgl"], [1]))
    for read_one in ({"transfer__projection": "ridge"}, {"deduction__rule": "quantile"}):
        with pytest.raises(ConfigError, match="holds studies of other settings"):
            check_log(tmp_path / "log", plan(small(**read_one), ["vfmgl"], [1]))


def test_another_version_is_not_mixed_in(small, tmp_path):
    jobs, log = plan(small(), ["local", "hgkt"], [0]), tmp_path / "log" / "phantoms-nuclei" / "studies.csv"
    write_log(tmp_path / "log", jobs)
    there = read(tmp_path / "log", "studies.csv")
    assert set(there["version"]) == {__version__}
    for old, version in ((there.drop(columns="version"), "0.1.0"), (there.assign(version="0.3.0"), "0.3.0")):
        old.to_csv(log, index=False)  # 0.1.0 wrote no version, whatever its settings
        with pytest.raises(
            ConfigError, match=rf"studies.csv: was made with vfmgl_lib {version}, this is {__version__}; give another folder"
        ):
            check_log(tmp_path / "log", jobs)


def test_another_teacher_is_not_mixed_in(small, tmp_path):
    write_log(tmp_path / "log", plan(small(), ["local", "hgkt"], [0]))
    other = plan(small(teacher__source="random:test_vit2"), ["local", "hgkt"], [0])
    with pytest.raises(ConfigError, match=r"holds studies with the teacher test_vit, .*, these have test_vit2, "):
        check_log(tmp_path / "log", other)


def test_nothing_is_written_beyond_the_limit(small, tmp_path, monkeypatch):
    jobs = swept(small(), ["local"])
    monkeypatch.setattr(module, "LIMIT", 500)
    with pytest.raises(ConfigError, match=r"the log would have \d+ bytes, at most 500 are meant to be committed"):
        write_log(tmp_path / "log", jobs)
    assert not list((tmp_path / "log").rglob("*.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method;seed\nhgkt;0\n", "has no column method; was it saved by a spreadsheet program"),
        ("method,seed\nMü,0\n".encode("cp1252"), "cannot be read as CSV in UTF-8 .*restore it"),
        ("", "cannot be read as CSV in UTF-8 .*restore it"),
        ("method,seed\nhgkt,0\nhgkt,0,1,2,3\n", "cannot be read as CSV in UTF-8 .*restore it"),
    ],
)
def test_a_table_that_a_spreadsheet_has_saved_is_one_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        read_log(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes("\ufeffmethod,seed\r\nhgkt,0\r\n".encode())
    assert read_log(tmp_path / "t.csv").to_dict("records") == [{"method": "hgkt", "seed": "0"}]


def test_the_folder_is_named_after_the_data(small):
    workspace = small()
    assert dataset_name(workspace) == "phantoms-nuclei"
    assert dataset_name(small("again", data=workspace.manifest.root)) == workspace.manifest.root.name
