"""vfmgl sweep: many studies of one task, for a terminal; what was interrupted goes on when the same call is made again."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from vfmgl_lib.base.surroundings import print_anything
from vfmgl_lib.config import ConfigError
from vfmgl_lib.config.sections import TEACHER_HELP, FoldSettings, SplitSettings
from vfmgl_lib.data.manifest import ManifestError
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import load_settings
from vfmgl_lib.models.teacher_names import TeacherError, resolve_teacher
from vfmgl_lib.study.workspace import open_workspace
from vfmgl_lib.tasks.records import TASKS
from vfmgl_lib.tools.batch.settings import BatchError, check_cuda, check_phantoms, resolve_data, resolve_task
from vfmgl_lib.tools.sweep.effects import report
from vfmgl_lib.tools.sweep.evidence import left_to_run, parts, plan_status, read_plan
from vfmgl_lib.tools.sweep.jobs import Job, Split, cross_validation, plan, status_table
from vfmgl_lib.tools.sweep.log import check_log, logged, write_log
from vfmgl_lib.tools.sweep.run import SweepError, run_jobs
from vfmgl_lib.tools.sweep.tuning import check_tuning, read_tuned, tuning_plan, write_tuning

EXAMPLES = """
examples:
  vfmgl sweep --task nuclei --data DIR --teacher FILE --profile quick --seeds 0,1,2 --processes 2
  vfmgl sweep ... --status                     how far it is, also while another terminal or a cluster runs it
  vfmgl sweep ... --splits comparison          the profile's divisions of the patients (comparison.splits)
  vfmgl sweep ... --tune --results DIR         every method's rate, chosen on validation sets: DIR/SET/tuning.csv
  vfmgl sweep ... --tuned DIR/SET/tuning.csv   with what was chosen
  vfmgl sweep --plan results/PLAN.yaml --data DIR --teacher FILE --processes 2    a whole plan; --status: hours left
  vfmgl sweep --plan results/PLAN.yaml --report                                   its tables and figures, from the CSVs
  vfmgl sweep ... --executor slurm --cluster slurm_partition=gpu --cluster gpus_per_node=1 --cluster timeout_min=240

Studies that are complete are loaded, interrupted ones go on after their last whole round: after Ctrl-C make the same call again.
Exit status: 0 all studies are complete, 1 a study failed (all failures are listed), 2 the call itself is wrong, 130 interrupted.
"""


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfmgl sweep",
        description="Runs every method with every seed on every division of the patients.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--task", metavar="NAME|FILE", help=f"{', '.join(TASKS)}, or the YAML file of your own; needed without --plan")
    what.add_argument("--plan", type=Path, metavar="FILE", help="a whole plan instead (results/PLAN.yaml), with its own tasks and methods")
    what.add_argument(
        "--data",
        metavar="DIR",
        help="a prepared set or a folder of images; default: the embedded phantoms. With --plan the folder that holds the plan's sets; "
        "default: VFMGL_DATA",
    )
    what.add_argument("--profile", default="quick", metavar="NAME|FILE", help="quick (default), smoke, paper, results or YAML")
    what.add_argument("--teacher", default="", help=TEACHER_HELP)
    what.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    what.add_argument("--methods", default="all", metavar="A,B", help="all (default), or of " + ", ".join(METHODS))
    what.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="default: as many as the profile's comparison.seeds, from 0")
    what.add_argument(
        "--splits",
        default="own",
        metavar="A,B",
        help="own (default: the data's own), comparison (the profile's comparison.splits), TRAIN-SEED such as 0.6-3, a cross-validation "
        "by patient such as 5fold-0 (folds, seed), or one fold of it such as fold2of5-0",
    )
    what.add_argument("--tune", action="store_true", help="choose each method's rate on validation sets instead (comparison.tuning)")
    what.add_argument("--tuned", type=Path, metavar="FILE", help="what --tune chose, for the division it had; default: the profile's")
    how = parser.add_argument_group("how to run it")
    how.add_argument("--processes", type=_count, default=1, metavar="N", help="studies at a time, default: 1; with cuda a GPU each")
    how.add_argument("--threads", type=_count, metavar="N", help="of each process; default: the cores divided by --processes")
    how.add_argument(
        "--executor", default="local", choices=("local", "slurm"), help="default: local; slurm: all at once, its queue decides"
    )
    how.add_argument(
        "--cluster", action="append", default=[], type=_parameter, metavar="KEY=VALUE", help="submitit's parameter, may be repeated"
    )
    where = parser.add_argument_group("where it goes")
    where.add_argument("--runs", default="runs", metavar="DIR", help="studies, teacher features; default: runs")
    where.add_argument(
        "--results",
        metavar="DIR",
        help="small CSVs of what is finished, brought up to date after every study; with --plan: evidence/ beside the plan",
    )
    where.add_argument("--status", action="store_true", help="show how far the sweep is, with --plan the hours left, and run nothing")
    where.add_argument("--report", action="store_true", help="of a --plan: its tables and figures of what is finished; runs nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the arguments ask for, or says how far it is.

    Returns: 0, 1 if a study failed, 2 if what was asked for is not possible, 130 if interrupted.
    """
    print_anything()
    parser = command_line()
    given = parser.parse_args(arguments)
    if given.cluster and given.executor == "local":
        parser.error("--cluster belongs to --executor slurm")
    if given.tune and (given.seeds or given.splits != "own" or given.tuned or not given.results):
        parser.error(
            "--tune needs --results, where its table is kept, and has a seed and a division of its own: no --seeds, --splits, --tuned"
        )
    _check_kind(parser, given)
    here = Path.cwd()
    try:
        if given.plan:
            return _planned(given, here)
        given.task = resolve_task(given.task, here)
        settings = load_settings(given.task, given.profile, device=given.device)
        check_phantoms([given.task], given.data)
        methods = _methods(given.methods)
        splits = _splits(given.splits, settings.comparison.splits)
        data = str(resolve_data(given.data, [given.task], here)) if given.data is not None else ""
        teacher = resolve_teacher(given.teacher, here) if given.teacher else ""
        if given.device == "cuda":
            check_cuda()
        seeds = given.seeds if given.seeds is not None else range(settings.comparison.seeds)
        return _sweep(given, data, teacher, methods, list(seeds), splits)
    except (ConfigError, BatchError, ManifestError, TeacherError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{parser.prog}: interrupted; the same call goes on, finished studies are loaded\n")
        return 130


def _check_kind(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    own = {"--methods": given.methods != "all", "--seeds": given.seeds, "--splits": given.splits != "own", "--tuned": given.tuned}
    own |= {"--task": given.task, "--tune": given.tune, "--profile": given.profile != "quick"}
    if given.plan and (extra := [name for name, there in own.items() if there]):
        parser.error(f"{', '.join(extra)}: the plan says it")
    if not given.plan and not given.task:
        parser.error("give --task, or --plan")
    if given.report and not given.plan:
        parser.error("--report belongs to --plan")


def _planned(given: argparse.Namespace, here: Path) -> int:
    """Runs a plan part by part, or says how far it is; its tables and figures are brought up to date after every part."""
    plan_, results = read_plan(given.plan), Path(given.results or given.plan.parent / "evidence")
    if given.report:
        report(results, plan_)
        return 0
    data = given.data or os.environ.get("VFMGL_DATA", "")
    if not data and any(one.data for one in plan_.sets.values()):
        raise ConfigError("give the folder that holds the plan's sets with --data or in VFMGL_DATA")
    teacher = resolve_teacher(given.teacher, here) if given.teacher else ""
    if given.device == "cuda":
        check_cuda()
    all_parts = list(parts(plan_, Path(data), teacher, device=given.device, runs=given.runs))
    if given.status:
        sys.stdout.write(f"{plan_status(all_parts, results).round(1).to_string(index=False)}\n")
        return 0
    failed = 0
    for part in all_parts:
        log = results / part.variant
        check_log(log, part.jobs)
        jobs = left_to_run(part, logged(log, part.jobs))
        if jobs:
            failed |= _run(given, jobs, partial(write_log, log, jobs, brief=True))
            report(results, plan_)
    return failed


def _sweep(given: argparse.Namespace, data: str, teacher: str, methods: list[str], seeds: list[int], splits: list[Split | None]) -> int:
    workspace = open_workspace(given.task, given.profile, data=data, teacher=teacher, device=given.device, runs=given.runs)
    if given.tune:
        jobs, check, write = tuning_plan(workspace, methods), check_tuning, write_tuning
    else:
        tuned = read_tuned(given.tuned, workspace, methods, seeds, splits) if given.tuned else None
        jobs, check, write = plan(workspace, methods, seeds, splits, tuned), check_log, write_log
    if given.status:
        _say(status_table(jobs))
        return 0
    results = Path(given.results) if given.results else None
    if results:
        check(results, jobs)
    failed = _run(given, jobs, lambda: write(results, jobs) if results else None)
    _say(status_table(jobs))
    return failed


def _run(given: argparse.Namespace, jobs: Sequence[Job], write: Callable[[], object]) -> int:
    failed, before = "", signal.signal(signal.SIGTERM, _interrupt)  # a batch system's way to say Ctrl-C
    try:
        run_jobs(
            jobs,
            given.processes,
            given.executor,
            threads=given.threads,
            cluster=dict(given.cluster),
            finished=lambda job: write(),
        )
    except SweepError as error:
        failed = str(error)
        write()  # which of them failed
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.stderr.write(failed + "\n" * bool(failed))
    return int(bool(failed))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(table: pd.DataFrame) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in table["state"].value_counts().items())
    shown = table.drop(columns=["method", "seed", "split_id"]).rename(columns={"rounds_done": "done", "rounds": "of"})
    for column in ("seconds", "seconds_left"):
        shown[column] = shown[column].map(lambda value: "?" if value != value else f"{value:.0f}")
    sys.stdout.write(f"{shown.to_string(index=False)}\n{len(table)} studies: {counts}\n")


def _methods(text: str) -> list[str]:
    methods = list(METHODS) if text == "all" else _words(text)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise ConfigError(f"--methods {text}: {', '.join(unknown) or 'nothing'} is no method; give all, or of {', '.join(METHODS)}")
    return methods


def _splits(text: str, comparison: Sequence[Split]) -> list[Split | None]:
    splits: list[Split | None] = []
    for word in _words(text):
        if word == "own":
            splits.append(None)
        elif word == "comparison":
            splits += comparison
        else:
            splits += _divisions(word)
    if not splits:
        raise ConfigError(f"--splits {text!r}: names none; give own, comparison, or such as 0.6-3")
    return splits


def _divisions(word: str) -> list[Split]:
    """Those that a word such as 0.6-3, fold2of5-0 or 5fold-0 (all five of them) names."""
    try:
        if found := re.fullmatch(r"fold(\d+)of(\d+)-(\d+)", word):
            number, folds, seed = map(int, found.groups())
            return [FoldSettings(folds=folds, fold=number, seed=seed)]
        if found := re.fullmatch(r"(\d+)fold-(\d+)", word):
            return cross_validation(*map(int, found.groups()))
        share, _, split_seed = word.partition("-")
        return [SplitSettings(train=float(share), seed=int(split_seed))]
    except ValueError as error:
        raise ConfigError(
            f"--splits {word}: must be own, comparison, training share and seed such as 0.6-3 (above 0 and below 1, from 0), a "
            "cross-validation and its seed such as 5fold-0 (from 2 folds), or one fold of it such as fold2of5-0"
        ) from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _seeds(text: str) -> list[int]:
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r}: must be whole numbers from 0, separated by commas")
    return [int(word) for word in words]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _parameter(text: str) -> tuple[str, int | str]:
    key, found, value = text.partition("=")
    if not key or not found:
        raise argparse.ArgumentTypeError(f"{text!r}: must be KEY=VALUE, e.g. slurm_partition=gpu")
    return key, int(value) if value.isdecimal() else value


if __name__ == "__main__":
    sys.exit(main())
