"""What a sweep consists of and how far it is. All of it is read from the studies' folders, so it holds for whatever process runs them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from vfmgl_lib.base.files import write_json
from vfmgl_lib.config import ConfigError
from vfmgl_lib.config.sections import Division, FoldSettings, SplitSettings
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.study.study import Study
from vfmgl_lib.study.training import is_running
from vfmgl_lib.study.workspace import Workspace

Changes = Mapping[str, Any]  # setting -> value, e.g. {"optimizer.lr": 0.01}
Split = Division | tuple[float, int]  # as `Workspace.variant` takes it; the pair is (training share, seed)
STATES = ("done", "running", "left", "failed")


@dataclass(frozen=True, eq=False)
class Job:
    """One study of a sweep.

    Attributes:
        method: of `methods.registry.METHODS`.
        workspace: with the job's seed and split.
        split_id: "own", or the division's name, e.g. "0.6-3" or "fold2of5-0".
        study: where its results are or will be.
        shared: the workspace with what all methods of the sweep have in common.
        changes: what this method has instead, as `tools.sweep.tuning` chose it.
    """

    method: str
    workspace: Workspace
    study: Study
    shared: Workspace
    changes: Changes = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.workspace.settings.seed

    @property
    def split_id(self) -> str:
        return self.workspace.settings.data.split_id

    @property
    def name(self) -> str:
        tuned = "".join(f" {setting.rpartition('.')[2]} {value:g}" for setting, value in self.changes.items())
        return f"{self.method} seed {self.seed}" + f" split {self.split_id}" * (self.split_id != "own") + tuned

    @property
    def tuned(self) -> str:
        return in_words(self.changes)

    @property
    def state(self) -> str:
        """One of `STATES`; "failed" until somebody tries again."""
        if self.study.complete:
            return "done"
        if is_running(self.study.folder):
            return "running"
        return "failed" if self.error else "left"

    @property
    def error(self) -> str:
        """What the last attempt ended with, "" if it did not fail."""
        try:
            return json.loads(self._failure.read_text(encoding="utf-8"))["error"]
        except FileNotFoundError:
            return ""

    def failed(self, error: str, traceback: str) -> None:
        """Notes what a study failed with, for every process that asks how the sweep is doing."""
        write_json(self._failure, {"study": self.study.folder.name, "error": error, "traceback": traceback})

    def tried_again(self) -> None:
        self._failure.unlink(missing_ok=True)

    @cached_property
    def _failure(self) -> Path:
        return self.workspace.folder / "sweep" / "failed" / f"{self.study.folder.name}.json"


def cross_validation(folds: int, seed: int) -> list[Split]:
    """All folds of one cross-validation by patient."""
    return [FoldSettings(folds=folds, fold=number, seed=seed) for number in range(1, folds + 1)]


def split_name(split: Split) -> str:
    """As the tables' column split_id has it, e.g. "0.6-3" or "fold2of5-0"."""
    return (SplitSettings(train=split[0], seed=split[1]) if isinstance(split, tuple) else split).name


def in_words(changes: Changes) -> str:
    """Settings and values in one line, as the tables have them: "optimizer.lr=0.01 comparators.fedprox.mu=0.003"."""
    return " ".join(f"{setting}={value}" for setting, value in changes.items())


def plan(
    workspace: Workspace,
    methods: Iterable[str],
    seeds: Iterable[int],
    splits: Iterable[Split | None] = (None,),
    tuned: Mapping[str, Changes] | None = None,
) -> list[Job]:
    """The jobs of a sweep: for every split and seed all methods, so that what is finished first can be compared.

    Args:
        splits: None for the workspace's own.
        tuned: method -> settings of its own (`tools.sweep.tuning.read_tuned`).
    Raises: ConfigError: an unknown method, nothing to do, a seed or share out of range, the tuning's seed. ManifestError: patients that
        cannot be divided so.
    """
    methods, seeds, splits = list(dict.fromkeys(checked_methods(methods))), list(dict.fromkeys(seeds)), list(dict.fromkeys(splits))
    for name, values in {"methods": methods, "seeds": seeds, "splits": splits}.items():
        if not values:
            raise ConfigError(f"a sweep without {name}: give at least one")
    if workspace.settings.comparison.tuning.seed in seeds:
        seed = workspace.settings.comparison.tuning.seed
        raise ConfigError(f"seed {seed}: is the tuning's (comparison.tuning.seed), settings were chosen on it; it is never reported")
    variants = [workspace.variant(seed=seed, split=split) for split in splits for seed in seeds]
    return [tuned_job(variant, method, (tuned or {}).get(method, {})) for variant in variants for method in methods]


def tuned_job(shared: Workspace, method: str, changes: Changes) -> Job:
    """The job of a method that has some settings of its own."""
    workspace = shared.variant(changes=changes) if changes else shared
    return Job(method, workspace, workspace.study(method), shared, changes)


def checked_methods(methods: Iterable[str]) -> list[str]:
    """Raises: ConfigError: an unknown method."""
    methods = list(methods)
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise ConfigError(f"methods {', '.join(map(str, unknown))}: must be of {', '.join(METHODS)}")
    return methods


def sweep_status(
    workspace: Workspace, methods: Iterable[str], seeds: Iterable[int], splits: Iterable[Split | None] = (None,)
) -> pd.DataFrame:
    """How far a sweep is, whoever runs it: `status_table` of its `plan`."""
    return status_table(plan(workspace, methods, seeds, splits))


def status_table(jobs: Sequence[Job]) -> pd.DataFrame:
    """One row a job.

    Returns: columns job, method, seed, split_id, state (`STATES`), rounds_done, rounds, seconds (wall time of the rounds done; one that
        followed an interruption counts as the median of the others), seconds_left (its rounds left at its own pace, else at that of the
        same method's other jobs, else of all; NaN where none has done a round), error.
    """
    rows = []
    for job in jobs:
        done, state = job.study.rounds_done, job.state
        rows.append(
            {
                "job": job.name,
                "method": job.method,
                "seed": job.seed,
                "split_id": job.split_id,
                "state": state,
                "rounds_done": done,
                "rounds": job.study.last_round,
                "seconds": wall_seconds(job.study),
                "error": job.error if state == "failed" else "",
            }
        )
    table = pd.DataFrame(rows)
    pace = table["seconds"].div(table["rounds_done"].where(table["rounds_done"] > 0))
    expected = pace.fillna(pace.groupby(table["method"]).transform("mean")).fillna(pace.mean())
    left = (table["rounds"] - table["rounds_done"]).where(table["state"] != "done", 0)
    table.insert(8, "seconds_left", (left * expected).where(left > 0, 0.0).round())
    return table.assign(seconds=table["seconds"].round(1))


def wall_seconds(study: Study) -> float:
    """Seconds that the rounds on disk took, training and evaluation, from the times at which they were written."""
    if not study.rounds_done:
        return 0.0
    written = [_written(study.folder / "rounds" / f"{number:03d}") for number in range(study.rounds_done + 1)]
    starts = json.loads((study.folder / "environment.json").read_text(encoding="utf-8"))
    resumed = {start["after_round"] + 1 for start in starts[1:]}
    undisturbed = {number: written[number] - written[number - 1] for number in range(1, len(written)) if number not in resumed}
    typical = statistics.median(undisturbed.values()) if undisturbed else math.nan
    return sum(undisturbed.values()) + typical * (len(written) - 1 - len(undisturbed))


def _written(folder: Path) -> float:
    # Of the tables: pruning a round's checkpoints changes the time of its folder.
    return max(file.stat().st_mtime for file in folder.glob("*.csv"))
