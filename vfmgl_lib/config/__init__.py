"""Settings of a study, section by section, and what a profile says of them; `methods.settings` makes a study's settings of it.

`notebooks/profiles/paper.yaml` holds the paper's settings (method.md §5 of the design; paper "Methods", released demos); every other
profile names only what it changes, so that its deviations from the paper are exactly its lines (`StudySettings.deviations`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import (
    Field,
    SerializeAsAny,
    model_validator,
)

from vfmgl_lib import __version__
from vfmgl_lib.base.places import DELIVERED, profiles_folder
from vfmgl_lib.base.strict_yaml import YamlError, read_yaml
from vfmgl_lib.config.sections import (
    PLAIN_EXCHANGE,
    ComparatorSettings,
    ComparisonSettings,
    ComputeSettings,
    DataSettings,
    DeductionSettings,
    ExchangeSettings,
    FaultSettings,
    FederationSettings,
    FootprintSettings,
    InterpretationSettings,
    OptimizerSettings,
    PhantomSettings,
    Settings,
    StudentSettings,
    TeacherSettings,
    TransferSettings,
)
from vfmgl_lib.models.student_names import SEGMENTER, has_width, segments
from vfmgl_lib.tasks.records import TASKS, TaskRecord

PAPER = DELIVERED / "notebooks" / "profiles" / "paper.yaml"  # never a changed one: what deviates from the paper is told by it


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong kind or out of range; the message names it and what would have been right."""


FIRST_VERSION = "0.1.0"  # what does not name its version was made with this one


def check_version(what: object, found: str, remedy: str) -> None:
    """Raises: ConfigError: `what` was made with another version of the library, so that its numbers and settings are not this one's."""
    if found != __version__:
        raise ConfigError(f"{what}: was made with vfmgl_lib {found}, this is {__version__}; {remedy}")


class StudySettings(Settings):
    """Everything that a study's numbers depend on, but for the data themselves (their manifest's hash) and the library's version."""

    task: str
    method: str = "vfmgl"
    seed: int = Field(default=0, ge=0, lt=2**31, description="from 2^31 on they are the pocket teacher's phantoms'")
    device: Literal["cpu", "cuda"] = "cpu"
    profile: str
    centers: tuple[str, ...] | None = Field(default=None, description="only these centres; none: all")
    loss: Literal["cross_entropy", "dice"]
    batch_norm: Literal["recalibrated", "running", "batch"] = Field(
        description="a model's statistics: re-estimated on its centre's training images (models.batch_norm); running averages of training, "
        "as in 0.1.0; or each batch's own, also in evaluation, as in the released UNet"
    )
    evaluate_every: int = Field(
        default=1, ge=1, description="rounds between measurements of the local models; round 1 and those reported are always measured"
    )
    data: DataSettings
    phantoms: PhantomSettings
    teacher: TeacherSettings
    student: StudentSettings
    optimizer: OptimizerSettings
    transfer: TransferSettings
    deduction: DeductionSettings
    federation: FederationSettings
    exchange: ExchangeSettings
    faults: FaultSettings
    compute: ComputeSettings
    comparators: SerializeAsAny[ComparatorSettings]
    comparison: ComparisonSettings
    interpretation: InterpretationSettings
    footprint: FootprintSettings

    @model_validator(mode="after")
    def _fits_together(self) -> StudySettings:
        record = self.data.record
        if self.data.own_task and self.data.own_task.name != self.data.layout:
            raise ValueError(f"data.own_task is {self.data.own_task.name!r}, expected that of data.layout, {self.data.layout!r}")
        if record.is_segmentation != segments(self.student.name) or record.is_segmentation != (self.loss == "dice"):
            raise ValueError(
                f"layout {self.data.layout} with student {self.student.name} and loss {self.loss}: "
                "a classification has resnet18 or a CNN of timm with cross_entropy, a segmentation unet with dice, or unet:NAME with it"
            )
        # All, whatever the method: a study of another method is made of these settings without checking them again.
        sections = {f"comparators.{name}": getattr(self.comparators, name) for name in type(self.comparators).model_fields}
        for name, section in {"federation": self.federation, **sections}.items():
            if not self.exchange.share_counts and getattr(section, "weights", "uniform") != "uniform":
                raise ValueError(
                    f"exchange.share_counts false: without the numbers of samples {name}.weights must be uniform, got {section.weights}"
                )
        if self.exchange.noise and not self.exchange.clip:
            raise ValueError("exchange.noise: noise protects nothing without exchange.clip, which bounds what one centre can change")
        if self.exchange.noise and self.exchange.share_counts:
            raise ValueError("exchange.noise: counts and losses would leave the centre without noise; set exchange.share_counts to false")
        if self.student.name == SEGMENTER and self.data.image_size % 16:
            raise ValueError(f"data.image_size {self.data.image_size}: the UNet needs a multiple of 16")
        return self

    @property
    def is_segmentation(self) -> bool:
        return self.loss == "dice"

    @property
    def paper_task(self) -> str:
        """The paper's task of these settings; of a task of one's own the one that it starts from."""
        return (self.data.own_task.settings_like if self.data.own_task else "") or self.task

    @property
    def evaluation_batch_size(self) -> int:
        """Images at once in evaluation. Where a batch is normalised by itself its size matters: as in training."""
        return max(32 if self.batch_norm != "batch" else 1, self.optimizer.batch_size)

    def key(self, *data: str) -> str:
        """Hash of the settings, the library's version and `data` (hashes of manifest and teacher): names the study's folder.

        Left out is what those hashes cover (data, phantoms, teacher) and what changes no number of this method (profile's name, loader
        processes, what the comparison runs beside it, what notebook 08 measures, the other methods' settings, a plain exchange, the penalty
        of projections that are not fitted, the quantile under another rule, how often a ratio is logged, the width of a student without
        one). A default that came after 0.1.0 is left out as well, so that studies keep their names.
        """
        aside = ("profile", "phantoms", "teacher", "faults", "comparison", "interpretation", "footprint")
        without: dict[str, Any] = {**dict.fromkeys(aside, True), "data": {"workers"}}
        values = self.model_dump(mode="json", exclude=without)
        if not self.data.classes:
            del values["data"]["classes"]
        if self.data.own_task:
            values["data"]["own_task"] = self.data.own_task.identity
        if self.evaluate_every == 1:
            del values["evaluate_every"]
        if self.exchange == PLAIN_EXCHANGE:
            del values["exchange"]
        if self.transfer.projection != "ridge":
            del values["transfer"]["ridge_penalty"]
        if self.deduction.rule != "quantile":
            del values["deduction"]["quantile"]
        del values["deduction"]["gradient_every"]
        if self.federation.aggregation != "trimmed_mean":
            del values["federation"]["trimmed_share"]
        if self.federation.aggregation == "mean":
            del values["federation"]["aggregation"]
        if self.faults.largest_share < 1:
            values["faults"] = {"largest_share": self.faults.largest_share}
        if not has_width(self.student.name):
            del values["student"]["width"]
        values["comparators"] = self.comparators.of(self.method)
        return hashlib.sha256(json.dumps([__version__, values, data], sort_keys=True).encode()).hexdigest()[:10]

    def deviations(self) -> pd.DataFrame:
        """Every setting that differs from the paper's, for a task of one's own from those of the task it starts from.

        Returns: columns setting, paper, here.
        """
        defaults = type(self.comparators)().model_dump(mode="json")
        paper = flatten({**profile_values(PAPER)[self.paper_task], "comparators": defaults})
        paper |= {"data.layout": self.data.layout} if self.data.own_task else {}
        here = flatten(self.model_dump(mode="json", exclude={"footprint"}))
        rows = [(name, paper[name], here[name]) for name in paper if name in here and here[name] != paper[name]]
        return pd.DataFrame(rows, columns=["setting", "paper", "here"])


def setting_value(settings: StudySettings, name: str) -> Any:
    """The value of a setting named as in "optimizer.lr"."""
    return functools.reduce(getattr, name.split("."), settings)


def task_names(profile: str | Path = "smoke") -> list[str]:
    """The tasks that a profile has settings for."""
    return sorted(profile_values(profile))


def profile_values(profile: str | Path, own: TaskRecord | None = None) -> dict[str, dict]:
    """task -> nested settings: what the task's record says, the paper's table, then the profile's lines, each laid over those before.

    A task that the paper does not have starts from the settings of the one that its record names (`settings_like`).

    Args:
        own: a task of one's own, to be there beside the known ones.
    Raises: ConfigError: no such profile, not YAML, unknown keys or tasks.
    """
    path = profile_file(profile)
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in profiles_folder().glob("*.yaml")))
        raise ConfigError(f"profile {profile}: {path} does not exist; give one of {names} or a YAML file")
    try:
        content, paper = (read_yaml(p) for p in (path, PAPER))
    except YamlError as error:
        raise ConfigError(f"profile {path}: {error}") from error
    if not isinstance(content, dict) or set(content) - {"all", "tasks"}:
        raise ConfigError(f"profile {path}: top-level keys must be 'all' and 'tasks', got {list(content or [])}")
    records = TASKS | ({own.name: own} if own else {})
    if unknown := sorted(set(content.get("tasks") or {}) - set(records)):
        raise ConfigError(f"profile {path}: unknown tasks {unknown}; there are {sorted(records)}")
    return {name: _task_values(record, paper, content) for name, record in records.items()}


def profile_file(profile: str | Path) -> Path:
    """The YAML file of a profile, whether it is there or not."""
    return Path(profile) if str(profile).endswith((".yaml", ".yml")) else profiles_folder() / f"{profile}.yaml"


def _task_values(record: TaskRecord, paper: dict, profile: dict) -> dict:
    """The nested settings of one task; `paper` and `profile`: what the two files hold."""
    like = record.settings_like or record.name
    if like not in paper["tasks"]:
        raise ConfigError(
            f"task {record.name}: settings_like must name a task of the paper, one of {', '.join(paper['tasks'])}, got {like!r}"
        )
    layers = [part for layer in (paper, profile) for part in (layer.get("all"), (layer.get("tasks") or {}).get(like))]
    if like != record.name:
        layers += [record.settings, (profile.get("tasks") or {}).get(record.name)]
    values: dict = {"loss": record.loss, "student": {"name": record.student}, "data": {"layout": record.name}}
    if len(record.classes or ()) > 2:
        values["data"]["classes"] = list(record.classes or ())
    for part in layers:
        merge(values, part or {})
    if not record.is_built_in:  # the task that it starts from may stand for another in a profile
        values["data"] |= {"layout": record.name, "own_task": record.model_dump(mode="json")}
    return values


# Tables that are replaced as a whole: their keys are data, not settings.
WHOLE = ("per_center", "samples", "split", "own_task")


def merge(base: dict, over: Mapping) -> None:
    """Lays settings over others, section by section."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict) and key not in WHOLE:
            base[key] = dict(base[key])
            merge(base[key], value)
        else:
            base[key] = value


def nested(path: list[str], value: Any) -> dict:
    """["a", "b"], 1 -> {"a": {"b": 1}}."""
    return {path[0]: nested(path[1:], value) if len(path) > 1 else value}


def flatten(values: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and key not in WHOLE:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
