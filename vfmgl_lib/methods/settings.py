"""A study's settings: made here because only here the sections of all methods are known."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, create_model

from vfmgl_lib.base.strict_yaml import key_line, place_of, problems, read_yaml
from vfmgl_lib.config import ConfigError, StudySettings, merge, nested, profile_file, profile_values
from vfmgl_lib.config.sections import ComparatorSettings
from vfmgl_lib.methods.budgets import epoch_factor
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.tasks.records import TaskRecord, find_task, is_task_file


def load_settings(task: str | Path, profile: str | Path = "smoke", **overrides: Any) -> StudySettings:
    """The settings of one task under a profile.

    Args:
        task: a task of the profile, e.g. "nuclei", or the YAML file of one's own (`tasks.records.read_task`).
        profile: "smoke", "quick", "paper" or a YAML file.
        overrides: top-level settings (method, seed, device, centers) or nested ones with "__", e.g. federation__rounds=3.
    Raises: ConfigError: naming every setting that is unknown or out of range. TaskError: a record that is wrong.
    """
    own = find_task(task) if is_task_file(task) else None
    tasks, name = profile_values(profile, own), own.name if own else str(task)
    if name not in tasks:
        raise ConfigError(
            f"task {name!r} is not in profile {profile}; it has {', '.join(sorted(tasks))}; a task of your own is named by its YAML file"
        )
    given: dict[str, Any] = {}
    for setting, value in overrides.items():
        merge(given, nested(setting.split("__"), value))
    values = {"task": name, "profile": Path(profile).stem, **tasks[name]}
    merge(values, given)
    try:
        return _settings_class(tuple(METHODS))(**values)
    except ValidationError as error:
        raise ConfigError(_with_places(error, values, [(None, (), given), *_layers(profile, own or find_task(name), task)])) from error


# A file's table of settings: the file (None: what a call gave), the keys that lead to the table, and what it holds.
_Layer = tuple[Path | None, tuple[str, ...], Any]


def _layers(profile: str | Path, record: TaskRecord, task: str | Path) -> list[_Layer]:
    """The files that a task's settings are from, but for the paper's: what comes first is laid over what comes later."""
    file = profile_file(profile)
    content, tasks = read_yaml(file), read_yaml(file).get("tasks") or {}
    layers: list[_Layer] = [(file, ("tasks", record.name), tasks.get(record.name)), (file, ("all",), content.get("all"))]
    source, like = Path(task) if is_task_file(task) else record.file, record.settings_like
    if source and like:
        layers[1:1] = [(source, ("settings",), record.settings), (file, ("tasks", like), tasks.get(like))]
    return layers


def _with_places(error: ValidationError, values: Mapping[str, Any], layers: Sequence[_Layer]) -> str:
    """What is wrong with settings, each finding with the file and the line that it is from; else with task and profile."""
    texts, head = [], f"task {values['task']}, profile {values['profile']}: "
    for text, found in zip(problems(error, values["task"], _settings_class(tuple(METHODS))), error.errors(), strict=True):
        place = place_of(found)
        file, keys = next(((file, keys) for file, keys, table in layers if _holds(table, place, found)), (None, ()))
        if file:
            texts.append(f"{file}: line {key_line(file, [*keys, *place])}: {text}")
        else:
            texts.append(head + text)
            head = ""
    return "; ".join(texts)


def _holds(table: Any, place: Sequence[str], found: Mapping[str, Any]) -> bool:
    """Whether a finding about one value, and not about how a section fits together, is about one that this table gives."""
    for part in place:
        if not isinstance(table, dict) or part not in table:
            return False
        table = table[part]
    return bool(place) and (found["type"] == "extra_forbidden" or not isinstance(found["input"], dict))


def checked_settings(values: dict[str, Any]) -> StudySettings:
    """The settings of these values, nested as in `StudySettings`.

    Raises: ConfigError: naming every setting that is unknown or out of range.
    """
    try:
        return _settings_class(tuple(METHODS))(**values)
    except ValidationError as error:
        raise ConfigError(_with_places(error, values, ())) from error


def changed_settings(settings: StudySettings, changes: Mapping[str, Any]) -> StudySettings:
    """The settings with some of them changed, named as in "optimizer.lr".

    Raises: ConfigError: a setting that does not exist, a value out of range.
    """
    values = settings.model_dump()
    for name, value in changes.items():
        merge(values, nested(name.split("."), value))
    return checked_settings(values)


def with_overrides(settings: StudySettings) -> StudySettings:
    """The settings with those that the study's method has of its own; applying it again changes nothing.

    They are `Method.overrides` and, where updates are matched by epochs, how many times the local epochs it has.

    Raises: ConfigError: a value out of range.
    """
    overrides, factor = dict(METHODS[settings.method].overrides), epoch_factor(settings)
    if factor != settings.federation.epoch_factor:
        overrides["federation.epoch_factor"] = factor
    if not overrides:
        return settings
    values = settings.model_dump()
    for name, value in overrides.items():
        *sections, last = name.split(".")
        part = values
        for section in sections:
            part = part[section]
        part[last] = value(part[last]) if callable(value) else value
    return checked_settings(values)


class _Comparators(ComparatorSettings):
    def of(self, method: str) -> dict[str, dict[str, Any]]:
        sections = METHODS[method].sections if method in METHODS else ()
        return {name: values for name, values in self.model_dump(mode="json").items() if name in sections}


class _Settings(StudySettings):
    def __reduce__(self) -> tuple:
        """Its class is made anew in another process."""
        return checked_settings, (self.model_dump(),)


@functools.cache
def _settings_class(methods: tuple[str, ...]) -> type[StudySettings]:
    """`StudySettings` with the sections of these methods."""
    own = ((name, METHODS[name].settings) for name in methods)
    sections: dict[str, Any] = {name: (section, Field(default_factory=section)) for name, section in own if section}
    comparators = create_model("ComparatorSettings", __base__=_Comparators, **sections)
    return create_model("StudySettings", __base__=_Settings, comparators=(comparators, Field(default_factory=comparators)))
