"""A plan of evidence: which questions, on which sets, by which studies, written down before they are run.

`results/PLAN.md` says it in words, `results/PLAN.yaml` is what `vfmgl sweep --plan` reads, runs, resumes and reports. An arm
is a method, "hgkt", or a method under a variant of the settings, "hgkt@pocket_vit". A contrast is the lead of one arm over another, of
the same seed, division of the patients and test set. `tools.sweep.effects` makes the answers from the CSVs of `tools.sweep.log` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationError, model_validator

from vfmgl_lib.base.strict_yaml import YamlError, problems, read_yaml
from vfmgl_lib.config import ConfigError
from vfmgl_lib.config.sections import Settings
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.study.workspace import Workspace, open_workspace
from vfmgl_lib.tools.batch.settings import resolve_task
from vfmgl_lib.tools.sweep.jobs import Job, cross_validation, plan, status_table
from vfmgl_lib.tools.sweep.log import logged

MAIN_VARIANT = "main"


class SetPlan(Settings):
    """A set of images. With folds every seed has a division of its own, whose folds test every patient once."""

    task: str = Field(description="a name, or the YAML file of one's own, seen from the plan's folder")
    data: str = Field(description="folder below the folder of all sets; empty: the embedded phantoms")
    folds: int = Field(default=0, description="of the cross-validation by patient; 0: the data's own division")
    seeds: tuple[int, ...] = Field(min_length=1)
    primary: bool = Field(default=False, description="its primary contrasts are the family that Holm's correction is for")

    @property
    def runs(self) -> int:
        """Of every arm."""
        return len(self.seeds) * max(1, self.folds)


class Variant(Settings):
    """Settings that differ from the profile's for the arms "METHOD@NAME"."""

    teacher: str = Field(default="", description="empty: the teacher of the call")
    changes: dict[str, Any] = Field(default={}, description="by name, e.g. optimizer.lr: 0.01")


class Contrast(Settings):
    """How far `of` is ahead of `less`, at a budget of the comparison."""

    of: str
    less: str
    budget: Literal["rounds", "updates", "hgkt_updates", "epochs", "compute"] = "rounds"
    place: Literal["home", "away"] = "home"
    primary: bool = False


class Question(Settings):
    asks: str
    contrasts: tuple[Contrast, ...] = Field(min_length=1)


class Step(Settings):
    """What is run together: the arms of one or several questions on some sets. Steps are run in their order."""

    sets: tuple[str, ...] = Field(min_length=1)
    arms: tuple[str, ...] = Field(min_length=1)


class Plan(Settings):
    """A whole plan, checked: every name that it uses is there.

    Attributes:
        profile: of all studies.
        margins: main metric -> the difference below which an effect is called small.
    """

    profile: str
    margins: dict[Literal["auc", "dice"], float]
    sets: dict[str, SetPlan]
    variants: dict[str, Variant] = Field(default={})
    questions: dict[str, Question]
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Plan:
        arms = [arm for step in self.steps for arm in step.arms]
        for question in self.questions.values():
            arms += [arm for contrast in question.contrasts for arm in (contrast.of, contrast.less)]
        for arm in arms:
            method, variant = split_arm(arm)
            if method not in METHODS:
                raise ValueError(f"arm {arm}: {method} is no method, expected one of {', '.join(METHODS)}")
            if variant != MAIN_VARIANT and variant not in self.variants:
                raise ValueError(f"arm {arm}: {variant} is no variant, expected {', '.join(self.variants) or 'none'}")
        for name in (name for step in self.steps for name in step.sets):
            if name not in self.sets:
                raise ValueError(f"set {name}: is not described, expected one of {', '.join(self.sets)}")
        return self


def read_plan(file: Path) -> Plan:
    """Raises: ConfigError: no such file, not YAML, an unknown or missing entry, an arm, variant or set that is not described."""
    try:
        read = Plan(**read_yaml(file))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    except (YamlError, TypeError) as error:
        raise ConfigError(f"{file}: is not YAML with a plan ({error})") from error
    except ValidationError as error:
        raise ConfigError(f"{file}: " + "; ".join(problems(error, "plan"))) from error
    sets = {name: one.model_copy(update={"task": resolve_task(one.task, file.parent)}) for name, one in read.sets.items()}
    return read.model_copy(update={"sets": sets})


def split_arm(arm: str) -> tuple[str, str]:
    """ "hgkt@pocket_vit" -> ("hgkt", "pocket_vit"); without a variant it is `MAIN_VARIANT`."""
    method, _, variant = arm.partition("@")
    return method, variant or MAIN_VARIANT


@dataclass(frozen=True)
class Part:
    """The studies of a step that share a set and a variant, and so a log.

    Attributes:
        step: from 1.
        jobs: in the order in which they are run: all methods of a fold before the next fold. Their log is in the folder of the variant.
    """

    step: int
    name: str
    variant: str
    jobs: tuple[Job, ...]


def parts(plan_: Plan, data: Path, teacher: str, *, device: str, runs: str | Path) -> Iterator[Part]:
    """All parts of a plan, in its order.

    Args:
        data: the folder that holds the sets' folders.
        teacher: of the arms without a variant.
    Raises: ConfigError, ManifestError: a set that is not there, patients that cannot be divided so.
    """
    opened: dict[tuple[str, str], Workspace] = {}
    for number, step in enumerate(plan_.steps, 1):
        for name in step.sets:
            by_variant: dict[str, list[str]] = {}
            for method, variant in map(split_arm, step.arms):
                by_variant.setdefault(variant, []).append(method)
            for variant, methods in by_variant.items():
                if (name, variant) not in opened:
                    opened[name, variant] = _opened(plan_, name, variant, data, teacher, device, runs)
                yield Part(number, name, variant, tuple(_jobs(opened[name, variant], plan_.sets[name], methods)))


def _opened(plan_: Plan, name: str, variant: str, data: Path, teacher: str, device: str, runs: str | Path) -> Workspace:
    one, changes = plan_.sets[name], plan_.variants.get(variant, Variant())
    folder = data / one.data
    if one.data and not folder.is_dir():
        raise ConfigError(f"set {name}: there is no folder {folder}; give the folder of all sets with --data")
    source = str(folder) if one.data else ""
    workspace = open_workspace(one.task, plan_.profile, data=source, teacher=changes.teacher or teacher, device=device, runs=runs)
    return workspace.variant(changes=changes.changes) if changes.changes else workspace


def _jobs(workspace: Workspace, one: SetPlan, methods: Sequence[str]) -> list[Job]:
    found: list[Job] = []
    for seed in one.seeds:
        found += plan(workspace, methods, [seed], cross_validation(one.folds, seed) if one.folds else [None])
    return found


def left_to_run(part: Part, known: set[str]) -> list[Job]:
    """The part's jobs whose studies are not in its log yet, with the parents of controls among them: a control is looked at beside its
    parent (`study.study.no_comparison`).
    """
    left = {(job.method, job.seed, job.split_id) for job in part.jobs if job.study.folder.name not in known}
    left |= {(METHODS[method].parent, seed, split) for method, seed, split in left}
    return [job for job in part.jobs if (job.method, job.seed, job.split_id) in left]


def plan_status(all_parts: Sequence[Part], results: Path) -> pd.DataFrame:
    """How far a plan is, whoever runs it: a row a part.

    Args:
        results: folder of the logs; a study that is done there counts, also where its own folder is not on this machine.

    Returns: columns step, set, variant, methods, studies, done, running, failed, hours (of the rounds done), hours_left (at the pace of the
        same method's other studies of that set, else of all that have done a round there; NaN where none has).
    """
    rows = []
    for name in dict.fromkeys(part.name for part in all_parts):
        mine = [part for part in all_parts if part.name == name]
        table = status_table([job for part in mine for job in part.jobs])
        owner = [number for number, part in enumerate(mine) for _ in part.jobs]
        names = [job.study.folder.name for part in mine for job in part.jobs]
        known = set().union(*(logged(results / part.variant, part.jobs) for part in mine))
        elsewhere = [name in known for name in names]
        table.loc[elsewhere, "state"], table.loc[elsewhere, "seconds_left"] = "done", 0.0
        for number, group in table.groupby(pd.Series(owner)):
            part, states = mine[number], group["state"].value_counts()
            left = group["seconds_left"].sum() / 3600 if group["seconds_left"].notna().all() else float("nan")
            row = {"step": part.step, "set": name, "variant": part.variant, "methods": ",".join(dict.fromkeys(group["method"]))}
            row |= {"studies": len(group)} | {state: int(states.get(state, 0)) for state in ("done", "running", "failed")}
            rows.append(row | {"hours": group["seconds"].sum() / 3600, "hours_left": left})
    return pd.DataFrame(rows).sort_values("step", kind="stable").reset_index(drop=True)
