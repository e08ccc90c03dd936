"""A task's settings and data, from which its studies are run: what a notebook opens first."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vfmgl_lib import __version__
from vfmgl_lib.base.files import real_path, write_json
from vfmgl_lib.config import ConfigError, StudySettings, flatten, setting_value
from vfmgl_lib.config.sections import Division
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.federation.exchange import in_words
from vfmgl_lib.figures.escaping import escape_tables
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.settings import changed_settings, checked_settings, load_settings
from vfmgl_lib.models.teachers import doubts_about
from vfmgl_lib.study.assembly import taking_part, with_available_teacher, with_classes
from vfmgl_lib.study.study import Study, find_study
from vfmgl_lib.study.training import RoundsApart, run_study
from vfmgl_lib.tasks.phantoms import write_phantoms
from vfmgl_lib.tasks.prepare import Prepared, is_prepared, prepare, read_prepared
from vfmgl_lib.tasks.records import TaskRecord

log = logging.getLogger(__name__)
RECORD = "task.json"


@dataclass(frozen=True)
class Workspace:
    """One task's settings and data, and the folder its studies and figures go to: `runs/<profile>/<task>[-<data folder>]`.

    Attributes:
        manifest: the samples that take part: `prepared` after what the settings say of split, validation set and subset.
        prepared: the whole set as it was prepared.
    """

    settings: StudySettings
    manifest: Manifest
    folder: Path
    warnings: tuple[str, ...]
    on_phantoms: bool
    prepared: Manifest

    def describe(self) -> pd.Series:
        """What a run is made of, in words: for the top of a notebook."""
        settings = self.settings
        doubts = ["PHANTOM images"] * self.on_phantoms + doubts_about(settings.teacher.source)
        proves = "this run shows that the code works, nothing about the paper's claims"
        lines = {"read this first": f"{' and '.join(doubts)}: {proves}"} if doubts else {}
        lines |= {"seed": reserved_seed(settings)} if reserved_seed(settings) else {}
        lines |= {
            "task": f"{settings.task}, layout {settings.data.layout}, centres {', '.join(self.manifest.centers)}",
            "profile": f"{settings.profile}: {settings.federation.rounds} rounds, input {settings.data.image_size} px",
            "student": f"{settings.student.network}, weights {settings.student.weights}",
            "teacher": f"{settings.teacher.source}, {settings.teacher.grid} tokens a side",
            "updates": in_words(settings.exchange, max(report_rounds(settings).values())),
            "software": f"vfmgl_lib {__version__}, torch {torch.__version__}",
            "device": f"{settings.device}, {torch.get_num_threads()} threads",
            "results": str(self.folder),
        }
        return pd.Series(lines, name="this run")

    def run(
        self, method: str = "vfmgl", centers: Iterable[str] | None = None, progress: bool = True, network: RoundsApart | None = None
    ) -> Study:
        """Runs or loads the study of one method, on all centres or on some; `network` as in `study.training.run_study`."""
        chosen = tuple(centers) if centers is not None else None
        return run_study(
            self.settings.model_copy(update={"method": method, "centers": chosen}),
            self.manifest,
            self.folder / ("studies_network" if network else "studies"),  # apart, so that the two can be compared
            progress,
            teacher_cache=self.folder.parents[1] / "teacher_cache",
            network=network,
        )

    def study(self, method: str) -> Study:
        """What `run` of a method on all centres would go on with; it may be complete, begun or not there at all."""
        return find_study(self.settings.model_copy(update={"method": method, "centers": None}), self.manifest, self.folder / "studies")[0]

    def variant(
        self, *, seed: int | None = None, split: Division | tuple[float, int] | None = None, changes: Mapping[str, Any] | None = None
    ) -> Workspace:
        """The same images with another study seed, another division of the patients, other settings, or all of it.

        Args:
            seed: of students, batches, and the choice of training and validation images where the settings ask for one; None: as here.
            split: a new division: (training share, seed) or the settings of one (`data.divisions`); None: as here.
            changes: settings by name, e.g. {"optimizer.lr": 0.01}; None: as here.
        Raises: ConfigError: a value out of range. ManifestError: a centre with too few patients to divide.
        """
        values = self.settings.model_dump()
        values |= {} if seed is None else {"seed": seed}
        if split is not None:
            values["data"]["split"] = {"train": split[0], "seed": split[1]} if isinstance(split, tuple) else split.model_dump()
        settings = changed_settings(checked_settings(values), changes or {})
        return replace(self, settings=settings, manifest=taking_part(self.prepared, settings))


def open_workspace(
    task: str | Path,
    profile: str | Path = "smoke",
    *,
    data: str | Path = "",
    teacher: str = "",
    device: str = "cpu",
    seed: int = 0,
    runs: str | Path = "runs",
    **overrides: object,
) -> Workspace:
    """Settings and data of a task. From then on, tables shown by `DataFrame.style` escape what they hold (`figures.escaping`).

    Args:
        task, profile: see `methods.settings.load_settings`; `overrides` too. A task of one's own is its YAML file; its record is kept in
            the workspace's folder, and another of the same name is not let in there.
        data: a prepared set, or images in one of the forms that `tasks.prepare` reads, which are then prepared below `runs` once; "": the
            embedded phantoms, written below `runs` once.
        teacher: as `models.teachers` names it, instead of the profile's; "": the profile's. Of a first and a second choice ("A else B")
            the settings hold the one that can be had.
        device: "cpu" or "cuda".
        runs: the folder of all results; a relative one is meant from where the process stands now.
    Raises: ConfigError, ManifestError: naming setting or file, the value, and what would have been right.
    """
    escape_tables()
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch sees no GPU here; use cpu")
    if teacher:
        overrides["teacher__source"] = teacher
    settings = with_available_teacher(load_settings(task, profile, device=device, seed=seed, **overrides))
    runs = Path(runs).absolute()  # processes that start in another folder are given places below it
    name, record = settings.task, settings.data.record
    folder = runs / settings.profile / (f"{name}-{real_path(data).name}" if data else name)
    if not data and not record.phantom:
        raise ConfigError(f"{record.name} has no phantoms: give --data DIR, the folder of its images (open_workspace(..., data=DIR))")
    root = Path(data) if data else _phantoms(settings, runs / "phantoms")
    prepared = _prepared(record, root, runs / "prepared")
    manifest = taking_part(prepared.manifest, settings)
    settings = with_classes(settings, manifest, str(root))
    folder.mkdir(parents=True, exist_ok=True)
    _keep_record(settings, folder)
    if reserved_seed(settings):
        log.warning("seed %s", reserved_seed(settings))
    return Workspace(settings, manifest, folder, prepared.warnings, on_phantoms=not data, prepared=prepared.manifest)


def reserved_seed(settings: StudySettings) -> str:
    """What is wrong with reporting this seed; "" if nothing is."""
    if settings.seed != settings.comparison.tuning.seed:
        return ""
    return f"{settings.seed} is the tuning's (comparison.tuning.seed): settings were chosen on it, its results are not to be reported"


def _keep_record(settings: StudySettings, folder: Path) -> None:
    """Keeps the record of a task of one's own beside its results, for those who read them later.

    Its settings may change: they are in the name of every study, so that a changed one is run anew. What the rest of a record says
    (classes, how images are read) tables and figures do not repeat, and they have no more than the folder's name.

    Raises: ConfigError: the folder's results are of another record of this name.
    """
    record, file = settings.data.record, folder / RECORD
    if record.is_built_in:
        return
    if file.is_file():
        earlier = TaskRecord(**json.loads(file.read_text(encoding="utf-8")))
        here, there = record.identity, earlier.identity
        if differing := [f"{key} {there[key]!r} before, {here[key]!r} now" for key in here if here[key] != there.get(key)]:
            raise ConfigError(
                f"task {record.name}: {folder} holds results of another record of this name: {'; '.join(differing)}; "
                "give the new record another name, or move that folder away"
            )
        if changed := _changed_in_record(settings, record, earlier):
            log.warning(
                "task %s: %s: %s; its studies are run anew under other names, but figures and tables in %s stay those of the earlier "
                "settings until their notebook is run again",
                record.name,
                "a setting has changed" if len(changed) == 1 else "settings have changed",
                "; ".join(changed),
                folder,
            )
    write_json(file, record.model_dump(mode="json"))


def _changed_in_record(settings: StudySettings, record: TaskRecord, earlier: TaskRecord) -> list[str]:
    """The settings that two records of a task say differently, in words; 1e-3, which YAML takes for a text, and 0.001 are the same."""
    now, then = flatten(record.settings), flatten(earlier.settings)
    differing = [name for name in sorted(now | then) if now.get(name) != then.get(name)]
    try:
        before = changed_settings(settings, {name: then[name] for name in differing if name in then})
    except ConfigError:  # the earlier ones do not fit the others of now: then they are no equal ones in another form
        before = None
    alike = {name for name in differing if before and name in then and setting_value(before, name) == setting_value(settings, name)}
    return [f"{name} {then.get(name, 'not set')} before, {now.get(name, 'not set')} now" for name in differing if name not in alike]


def _prepared(record: TaskRecord, root: Path, folder: Path) -> Prepared:
    """The set itself if it is one, otherwise what is prepared of it once, in a folder that its place names, and its record."""
    if is_prepared(root):
        return read_prepared(root, record)
    place = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    if not record.is_built_in:
        place += "-" + hashlib.sha256(json.dumps(record.prepared_as, sort_keys=True).encode()).hexdigest()[:8]
    return prepare(record, root, folder / f"{record.name}-{root.resolve().name}-{place}")


def _phantoms(settings: StudySettings, folder: Path) -> Path:
    phantoms = settings.phantoms
    sizes = "-".join(f"{split}{count}" for split, count in phantoms.samples.items())
    drawn = f"{phantoms.image_size}px-h{phantoms.heterogeneity:g}-a{phantoms.artefacts:g}-seed{settings.seed}"
    name = f"{settings.data.layout}-{phantoms.centers}x-{sizes}-{drawn}"
    return write_phantoms(
        folder / name,
        settings.data.layout,
        centers=phantoms.centers,
        samples=dict(phantoms.samples.items()),
        image_size=phantoms.image_size,
        heterogeneity=phantoms.heterogeneity,
        artefacts=phantoms.artefacts,
        seed=settings.seed,
    )
