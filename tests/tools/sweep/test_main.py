"""The command line: exit status, what is said where, and what is refused as a wrong call."""

import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest

from vfmgl_lib import cli
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.study import training as training_module
from vfmgl_lib.tools.sweep.__main__ import main

SMALLEST = Path(__file__).parents[2] / "smallest.yaml"


@pytest.fixture
def call(capsys, tmp_path):
    """Arguments -> exit status, standard output, standard error."""

    def run(*arguments, common=("--task", "nuclei", "--profile", SMALLEST, "--runs", tmp_path / "runs")):
        try:
            status = main([str(argument) for argument in (*common, *arguments)])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def test_runs_logs_and_shows_the_table(call, tmp_path):
    some = ("--methods", "local,fedavg", "--seeds", "0", "--splits", "own,0.5-2")
    status, said, _ = call(*some, "--status")
    assert status == 0 and said.splitlines()[-1] == "4 studies: 4 left"
    assert not list(tmp_path.glob("runs/smallest/nuclei/studies/*/rounds")), "status runs nothing"
    status, said, complained = call(*some, "--results", tmp_path / "results")
    assert status == 0 and "4 done" in complained
    lines = said.splitlines()
    assert lines[0].split() == ["job", "state", "done", "of", "seconds", "seconds_left", "error"]
    assert lines[3].split()[:8] == ["local", "seed", "0", "split", "0.5-2", "done", "6", "6"]
    assert lines[-1] == "4 studies: 4 done"
    studies = pd.read_csv(tmp_path / "results" / "phantoms-nuclei" / "studies.csv", dtype=str)
    assert studies["split_id"].tolist() == ["0.5-2", "own"] * 2 and set(studies["state"]) == {"done"}


def test_the_defaults_are_the_profile_s(call):
    _, said, _ = call("--methods", "local", "--splits", "comparison", "--status")
    assert [line.split()[1:5] for line in said.splitlines()[1:-1]] == [["seed", "0", "split", "0.6-3"], ["seed", "0", "split", "0.7-4"]]
    _, said, _ = call("--status")
    assert said.splitlines()[-1] == f"{len(METHODS)} studies: {len(METHODS)} left"
    _, said, _ = call("--methods", "local", "--seeds", "0", "--splits", "2fold-3,fold1of2-4", "--status")
    assert [line.split()[4] for line in said.splitlines()[1:-1]] == ["fold1of2-3", "fold2of2-3", "fold1of2-4"]


def test_a_failed_study_is_status_1_and_logged(call, tmp_path, monkeypatch):
    train = training_module._train

    def fails_for_local(study, *arguments):
        if study.settings.method == "local":
            raise ValueError("no luck")
        train(study, *arguments)

    monkeypatch.setattr(training_module, "_train", fails_for_local)
    status, said, complained = call("--methods", "local,fedavg", "--seeds", "0", "--results", tmp_path / "results")
    assert status == 1 and "\n  local seed 0: ValueError: no luck\n" in complained
    assert said.splitlines()[-1] == "2 studies: 1 failed, 1 done"
    studies = pd.read_csv(tmp_path / "results" / "phantoms-nuclei" / "studies.csv", dtype=str, keep_default_na=False)
    assert studies[["method", "state", "error"]].to_numpy().tolist() == [["fedavg", "done", ""], ["local", "failed", "ValueError: no luck"]]


@pytest.mark.parametrize("by", ["Ctrl-C", "SIGTERM"])
def test_an_interrupt_is_status_130(call, monkeypatch, by):
    def interrupted(*_):
        if by == "Ctrl-C":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(training_module, "_train", interrupted)
    status, _, complained = call("--methods", "local", "--seeds", "0")
    assert status == 130 and "interrupted; the same call goes on, finished studies are loaded" in complained
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "fedsgd,local"), "--methods fedsgd,local: fedsgd is no method; give all, or of local, fedavg"),
        (("--methods", ","), "--methods ,: nothing is no method"),
        (("--data", "no/such/folder"), r"no/such/folder does not exist"),
        (("--teacher", "no/such/file.safetensors"), r"teacher .*no/such/file.safetensors"),
        (("--task", "liver"), "task 'liver' is not in profile"),
        (("--profile", "tiny"), "profile tiny: .* does not exist; give one of"),
        (("--seeds", "0,-1"), "--seeds: '0,-1': must be whole numbers from 0"),
        (("--splits", "0.6"), "--splits 0.6: must be own, comparison, training share and seed such as 0.6-3"),
        (("--splits", "1.6-3"), "--splits 1.6-3: must be own, comparison, training share"),
        (("--splits", "1fold-0"), "--splits 1fold-0: must be own, comparison, training share"),
        (("--splits", "fold6of5-0"), "or one fold of it such as fold2of5-0"),
        (("--splits", ","), "names none"),
        (("--processes", "0"), "--processes: '0' is no whole number from 1"),
        (("--executor", "pbs"), "invalid choice: 'pbs'"),
        (("--executor", "slurm"), "executor slurm: Could not detect"),
        (("--tune",), "--tune needs --results"),
        (("--tune", "--results", "results", "--seeds", "0"), "has a seed and a division of its own"),
        (("--tuned", "no/such/tuning.csv"), "no/such/tuning.csv: is not there"),
        (("--cluster", "slurm_partition=gpu"), "--cluster belongs to --executor slurm"),
        (("--executor", "slurm", "--cluster", "gpu"), "--cluster: 'gpu': must be KEY=VALUE"),
    ],
)
def test_a_wrong_call_is_status_2(call, arguments, message):
    status, said, complained = call(*arguments)
    assert status == 2 and said == ""
    assert re.search(message, complained)


def test_results_of_other_settings_are_refused_before_anything_runs(call, tmp_path):
    assert call("--methods", "local", "--seeds", "0", "--results", tmp_path / "results")[0] == 0
    other = tmp_path / "other.yaml"
    other.write_text(SMALLEST.read_text().replace("rounds: 2", "rounds: 1"))
    common = ("--task", "nuclei", "--profile", other, "--runs", tmp_path / "runs")
    status, _, complained = call("--methods", "local", "--seeds", "0", "--results", tmp_path / "results", common=common)
    assert status == 2 and "holds studies of other settings or data" in complained
    assert not list(tmp_path.glob("runs/other/nuclei/studies/*/rounds"))


def test_help_names_everything(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("--methods", "vfmgl", "--splits", "comparison", "--executor", "slurm", "--status", "--results", "Ctrl-C", "130"):
        assert word in said


def test_tunes_and_uses_what_was_chosen(call, tmp_path):
    tune = ("--methods", "local", "--tune", "--results", tmp_path / "results")
    status, said, _ = call(*tune, "--status")
    assert status == 0 and said.splitlines()[-1] == "3 studies: 3 left" and "local seed 1000 lr 0.0033" in said
    assert call(*tune)[0] == 0
    table = pd.read_csv(tmp_path / "results" / "phantoms-nuclei" / "tuning.csv", dtype=str)
    assert table["state"].tolist() == ["done"] * 3 and table["chosen"].tolist().count("1") == 1
    chosen = table.loc[table["chosen"] == "1", "tuned"].item().removeprefix("optimizer.lr=")
    file = tmp_path / "results" / "phantoms-nuclei" / "tuning.csv"
    _, said, _ = call("--methods", "local", "--seeds", "0", "--tuned", file, "--status")
    assert f"local seed 0 lr {float(chosen):g} " in said
    status, _, complained = call("--methods", "local", "--seeds", "0,1000", "--status")
    assert status == 2 and "seed 1000: is the tuning's" in complained
    status, _, complained = call("--methods", "local", "--seeds", "0", "--splits", "own,0.7-4", "--tuned", file, "--status")
    assert status == 2 and "whom 0.7-4 may test; run 0.7-4 without --tuned" in complained
