"""A plan: what it refuses, what it runs, and the answers that are made of the logs alone."""

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from vfmgl_lib.config import ConfigError
from vfmgl_lib.evaluation.statistics import crossed_test
from vfmgl_lib.tools.sweep.__main__ import main
from vfmgl_lib.tools.sweep.effects import effects
from vfmgl_lib.tools.sweep.evidence import Plan, left_to_run, parts, plan_status, read_plan, split_arm

SMALLEST = Path(__file__).parents[2] / "smallest.yaml"
PLAN = {
    "profile": str(SMALLEST),
    "margins": {"dice": 0.02, "auc": 0.01},
    "sets": {"folds": {"task": "nuclei", "data": "", "folds": 2, "seeds": [0, 1], "primary": True}},
    "variants": {"slow": {"changes": {"optimizer.lr": 0.001}}},
    "questions": {
        "a": {"asks": "Does averaging help?", "contrasts": [{"of": "fedavg", "less": "local", "primary": True}]},
        "b": {"asks": "At a lower rate?", "contrasts": [{"of": "local@slow", "less": "local"}]},
    },
    "steps": [{"sets": ["folds"], "arms": ["local", "fedavg"]}, {"sets": ["folds"], "arms": ["local@slow"]}],
}


def changed(**changes):
    return Plan(**{**PLAN, **changes})


def written(tmp_path, plan=PLAN):
    file = tmp_path / "PLAN.yaml"
    file.write_text(yaml.safe_dump(plan))
    return file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": [{"sets": ["folds"], "arms": ["fedsgd"]}]}, "arm fedsgd: fedsgd is no method"),
        ({"steps": [{"sets": ["folds"], "arms": ["local@fast"]}]}, "arm local@fast: fast is no variant, expected slow"),
        ({"steps": [{"sets": ["idc"], "arms": ["local"]}]}, "set idc: is not described, expected one of folds"),
        ({"margins": {"f1": 0.1}}, "margins.f1"),
        ({"colour": "red"}, "colour: Extra inputs"),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_plan(written(tmp_path, PLAN | changes))
    assert str(tmp_path / "PLAN.yaml") in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2", "just words", ""])
def test_what_is_no_plan_is_refused_in_words(tmp_path, text):
    (tmp_path / "PLAN.yaml").write_text(text)
    with pytest.raises(ConfigError, match="is not YAML with a plan"):
        read_plan(tmp_path / "PLAN.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plan(tmp_path / "nothing.yaml")


def test_every_seed_has_a_division_of_its_own(tmp_path):
    found = list(parts(changed(), tmp_path, "", device="cpu", runs=tmp_path / "runs"))
    assert [(part.step, part.name, part.variant, len(part.jobs)) for part in found] == [(1, "folds", "main", 8), (2, "folds", "slow", 4)]
    first = [(job.method, job.seed, job.split_id) for job in found[0].jobs[:4]]
    assert first == [("local", 0, "fold1of2-0"), ("fedavg", 0, "fold1of2-0"), ("local", 0, "fold2of2-0"), ("fedavg", 0, "fold2of2-0")]
    assert {(job.seed, job.split_id[-1]) for job in found[0].jobs} == {(0, "0"), (1, "1")}
    assert {job.study.settings.optimizer.lr for job in found[1].jobs} == {0.001} != {found[0].jobs[0].study.settings.optimizer.lr}
    tested = [set(job.workspace.manifest.select("SiteA", "test")["patient"]) for job in found[0].jobs[::2]]
    assert not tested[0] & tested[1] and tested[0] | tested[1] == tested[2] | tested[3]
    status = plan_status(found, tmp_path / "evidence")
    assert status["studies"].tolist() == [8, 4] and status["done"].sum() == 0 and status["hours_left"].isna().all()


def test_a_plan_runs_reports_and_is_loaded_again(tmp_path, capsys):
    small = {
        **PLAN,
        "sets": {"folds": PLAN["sets"]["folds"] | {"seeds": [0]}},
        "questions": PLAN["questions"] | {"a": {"asks": "?", "contrasts": [{"of": "frozen_probe", "less": "local"}]}},
        "steps": [{"sets": ["folds"], "arms": ["local", "frozen_probe"]}],
    }
    call = ("--plan", str(written(tmp_path, small)), "--runs", str(tmp_path / "runs"))
    assert main(call) == 0
    found = pd.read_csv(tmp_path / "evidence" / "effects.csv")
    assert found["question"].tolist() == ["a"], "question b is not planned on this set"
    row = found.iloc[0]
    assert (row["runs"], row["planned"], row["verdict"]) == (2, 2, "undecided") and "fewer than three" in row["reason"]
    metrics = pd.read_csv(tmp_path / "evidence" / "main" / "phantoms-nuclei" / "metrics.csv")
    own = metrics["model_center"].eq(metrics["test_center"]) & metrics["metric"].eq("dice") & metrics["test_center"].str.startswith("Site")
    means = metrics[own & metrics["budget"].str.contains("rounds")].groupby("method")["value"].mean()
    assert row["value_of"] == pytest.approx(means["frozen_probe"], abs=1e-4) and row["value_less"] == pytest.approx(
        means["local"], abs=1e-4
    )
    assert row["lead"] == pytest.approx(means["frozen_probe"] - means["local"], abs=1e-4) and row["lead"] != 0
    assert (tmp_path / "evidence" / "forest_a.png").read_bytes()[:4] == b"\x89PNG"
    before = (tmp_path / "evidence" / "effects.csv").read_bytes()
    (tmp_path / "evidence" / "effects.csv").unlink()
    capsys.readouterr()
    assert main((*call, "--status")) == 0 and capsys.readouterr().out.splitlines()[1].split()[4:6] == ["4", "4"]
    shutil.rmtree(tmp_path / "runs" / "smallest" / "nuclei" / "studies")  # as on another machine, to which the log alone has come
    assert main((*call, "--status")) == 0 and capsys.readouterr().out.splitlines()[1].split()[4:6] == ["4", "4"]
    assert main(call) == 0 and not list((tmp_path / "runs").rglob("complete.json")), "what the log has is not run again"
    assert not (tmp_path / "evidence" / "main" / "phantoms-nuclei" / "summary.csv").exists()
    assert set(metrics["metric"]) == {"dice", "dice_mean_of_classes"}
    assert main((*call, "--report")) == 0 and (tmp_path / "evidence" / "effects.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plan", "x.yaml", "--task", "nuclei", "--seeds", "0"), "--seeds, --task: the plan says it"),
        ((), "give --task, or --plan"),
        (("--task", "nuclei", "--report"), "--report belongs to --plan"),
    ],
)
def test_calls_that_contradict_themselves(arguments, words, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert words in capsys.readouterr().err


def logs(shift, runs=10, centers=4, noise=0.01, method="fedavg", rest="local"):
    """Of one set: `method` is ahead of `rest` by `shift`, in every run and centre alike but for the noise."""
    generator, rows = np.random.default_rng(0), []
    for run in range(runs):
        for center in range(centers):
            for name, value in ((method, 0.6 + shift + noise * generator.normal()), (rest, 0.6)):
                rows.append((name, "rounds", "home", "dice", run // 5, f"fold{run % 5 + 1}of5-{run // 5}", f"S{center}", value, ""))
    columns = ["method", "budget", "place", "metric", "seed", "split_id", "test_center", "value", "no_comparison"]
    return {("folds", "main"): pd.DataFrame(rows, columns=columns)}


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.05, "ahead"), (-0.05, "behind"), (0.0, "no effect above the margin"), (0.005, "no effect above the margin")]
)
def test_verdicts(shift, verdict):
    row = effects(logs(shift), changed()).set_index("question").loc["a"]
    assert (row["verdict"], row["runs"], row["centers"]) == (verdict, 10, 4) and row["lead"] == pytest.approx(shift, abs=0.01)


def test_a_wide_interval_is_undecided():
    assert effects(logs(0.01, noise=0.3), changed()).iloc[0]["verdict"] == "undecided"


def test_limits_are_those_of_runs_and_centres_both_drawn():
    table = logs(0.03)[("folds", "main")]
    wide = table.pivot(index=["seed", "split_id"], columns=["method", "test_center"], values="value")
    expected = crossed_test((wide["fedavg"] - wide["local"]).to_numpy())
    row = effects({("folds", "main"): table}, changed()).iloc[0]
    assert (row["low"], row["high"], row["p"]) == pytest.approx((expected.low, expected.high, expected.p))
    assert row["p_holm"] == row["p"], "one primary contrast is a family of its own"


def test_only_primary_contrasts_are_corrected_and_each_by_all_of_them():
    questions = PLAN["questions"] | {"c": {"asks": "?", "contrasts": [{"of": "ditto", "less": "local", "primary": True}]}}
    plan = changed(questions=questions, steps=[{"sets": ["folds"], "arms": ["local", "fedavg", "ditto", "local@slow"]}])
    both = {
        ("folds", "main"): pd.concat([logs(0.004)[("folds", "main")], logs(0.05, method="ditto")[("folds", "main")]]).drop_duplicates(
            ["method", "seed", "split_id", "test_center"]
        )
    }
    table = effects(both, plan).set_index("question")
    assert table.loc["a", "p_holm"] == table.loc["a", "p"] and table.loc["c", "p_holm"] == pytest.approx(2 * table.loc["c", "p"])
    assert math.isnan(table.loc["b", "p_holm"]) and table.loc["b", "verdict"] == "not run" and "local@slow" in table.loc["b", "reason"]


def test_a_control_that_is_none_is_no_comparison():
    table = logs(0.05)[("folds", "main")]
    table.loc[(table["method"] == "local") & (table["seed"] == 0), "no_comparison"] = "no batch was dropped"
    row = effects({("folds", "main"): table}, changed()).iloc[0]
    assert row["runs"] == 5 and "no batch was dropped (5 runs)" in row["reason"]
    table.loc[table["method"] == "local", "no_comparison"] = "no batch was dropped"
    row = effects({("folds", "main"): table}, changed()).iloc[0]
    assert (row["runs"], row["verdict"]) == (0, "no comparison") and math.isnan(row["lead"])


def test_a_control_is_run_beside_its_parent(tmp_path):
    plan = changed(steps=[{"sets": ["folds"], "arms": ["vfmgl", "local", "vfmgl_random"]}])
    (part,) = parts(plan, tmp_path, "", device="cpu", runs=tmp_path / "runs")
    known = {job.study.folder.name for job in part.jobs if job.method != "vfmgl_random" or job.seed == 1}
    left = left_to_run(part, known)
    assert {(job.method, job.seed) for job in left} == {("vfmgl", 0), ("vfmgl_random", 0)} and len(left) == 4
    assert left_to_run(part, {job.study.folder.name for job in part.jobs}) == []


def test_an_arm_is_a_method_and_perhaps_a_variant():
    assert split_arm("hgkt") == ("hgkt", "main") and split_arm("hgkt@pocket_vit") == ("hgkt", "pocket_vit")
