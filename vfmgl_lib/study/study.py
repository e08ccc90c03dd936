"""A study: a folder of tables and checkpoints, found by its settings and read.

A study's folder:

    config.json  environment.json  manifest.csv
    predictions.csv  metrics.csv  rounds.csv  steps.csv  stages.csv  mean_features.csv  faults.csv  traffic.csv
                     tidy tables over all rounds, written when the study is complete
    rounds/NNN/      one folder a round, which appears whole or not at all: its part of each table, predicted masks and checkpoints

A study that was interrupted goes on after its last whole round; a complete one is loaded. The folder's name holds a hash of the settings,
the library's version, the data's manifest and the teacher, so a changed setting never meets an old result.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from vfmgl_lib.base.checkpoint import load_tensors
from vfmgl_lib.base.files import sha256
from vfmgl_lib.config import FIRST_VERSION, ConfigError, StudySettings, check_version
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.data.manifest_files import read_manifest
from vfmgl_lib.evaluation.home_means import TRIVIAL
from vfmgl_lib.evaluation.prediction import chosen_cutoff, scoring_unit
from vfmgl_lib.evaluation.results import NO_COMPARISON, final_predictions
from vfmgl_lib.evaluation.rounds import metric_rows, with_order
from vfmgl_lib.evaluation.segmentation import metric_and_class
from vfmgl_lib.evaluation.trivial import trivial_classification, trivial_segmentation
from vfmgl_lib.federation.client import training_batches
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import checked_settings, with_overrides
from vfmgl_lib.models.students import Student, build_student
from vfmgl_lib.models.teachers import Teacher
from vfmgl_lib.study.assembly import study_teacher, with_needed_validation
from vfmgl_lib.tasks.records import earlier_reading

TABLES = ("predictions", "metrics", "rounds", "steps", "stages", "mean_features", "faults", "traffic")
COMPLETE = "complete.json"
NO_TEACHER = "none (the method uses no teacher)"
NUMBERS = (
    "value",
    "probability",
    "tp",
    "fp",
    "fn",
    "tn",
    "dice",
    "task_loss",
    "match_loss",
    "outer_loss",
    "hypergradient_norm",
    "divergence",
    "threshold",
    "kept",
    "kept_share",
    "divergence_before",
    "r2",
    "gradient_ratio",
    "permuted",
    "shared_task_loss",
    "shared_score",
    "untrained_task_loss",
    "untrained_score",
)
TEXTS = ("center", "model_center", "test_center", "split_id", "patient", "id", "stage", "unit", "reason", "mask_file")


@dataclass(frozen=True)
class Study:
    """A study, complete unless it comes from `Workspace.study`; its tables are read from the folder when first asked for."""

    folder: Path
    settings: StudySettings
    manifest: Manifest
    teacher_description: str

    @cached_property
    def predictions(self) -> pd.DataFrame:
        return self._table("predictions")

    @cached_property
    def metrics(self) -> pd.DataFrame:
        return self._table("metrics")

    @cached_property
    def rounds(self) -> pd.DataFrame:
        return self._table("rounds")

    @cached_property
    def steps(self) -> pd.DataFrame:
        return self._table("steps")

    @cached_property
    def stages(self) -> pd.DataFrame:
        return self._table("stages")

    @cached_property
    def mean_features(self) -> pd.DataFrame:
        """Mean features under the shared model at the report rounds; without rows for a method that has no shared model."""
        return self._table("mean_features")

    @cached_property
    def faults(self) -> pd.DataFrame:
        """Who did not take part in which round, and why; without rows where all did."""
        return self._table("faults")

    @cached_property
    def traffic(self) -> pd.DataFrame:
        """Bytes of tensors to and from each centre in each round; without rows where nothing travelled."""
        return self._table("traffic")

    def final_predictions(self) -> pd.DataFrame:
        """The rows of the reported models, with `budget` and, for a segmentation, `mask_path`, the mask files' absolute places."""
        final = final_predictions(self.predictions, self.report_rounds)
        if "mask_file" in final:
            place = self.folder.resolve()
            final = final.assign(mask_path=[str(place / name) if name else "" for name in final["mask_file"]])
        return final

    @property
    def report_rounds(self) -> dict[str, int]:
        """budget ("rounds", "updates") -> the round at which the method is reported (`methods.budgets.report_rounds`)."""
        return report_rounds(self.settings)

    @property
    def split_id(self) -> str:
        return self.settings.data.split_id

    @property
    def last_round(self) -> int:
        return max(self.report_rounds.values())

    @property
    def complete(self) -> bool:
        return (self.folder / COMPLETE).is_file()

    @property
    def rounds_done(self) -> int:
        """The last whole round on disk; 0 before the first."""
        return last_whole_round(self.folder) or 0

    def student(self, model_center: str, stage: str = "II", round_number: int | None = None) -> Student:
        """A trained student from its checkpoint, on the CPU in eval mode.

        Args:
            model_center: a training centre, or "shared".
            stage: "I" (after HGKT and local training) or "II" (after DDBL); of the shared model "shared".
            round_number: None: the last one.
        Raises: ValueError: a centre or stage that the study does not have, or a method whose model is not the plain student.
            CheckpointError: a checkpoint that is not kept (models stay for round 1, those reported and the last two), or is truncated.
        """
        number = self.last_round if round_number is None else round_number
        done = self.rounds[self.rounds["round"] == number]
        known = {center: list(part["stage"]) for center, part in done.groupby("center")}
        if (round_folder(self.folder, number) / "shared.safetensors").is_file() and not METHODS[self.settings.method].switches.keeps:
            known["shared"] = ["shared"]
        if known and model_center not in known:
            raise ValueError(f"{self.folder.name}: {self._no_model(model_center, number, list(known))}")
        if stage not in known.get(model_center, []):
            there = "; ".join(f"{center}: {', '.join(stages)}" for center, stages in known.items()) or "no model"
            raise ValueError(f"{self.folder.name}: model {model_center!r} has no stage {stage!r} in round {number}; there is {there}")
        # A method of one stage is measured after the centre has adopted what the server sent, which `stage_one` precedes.
        last = "shared" if stage == "shared" else f"{model_center}.student"
        name = last if stage == known[model_center][-1] else f"{model_center}.stage_one"
        state = load_tensors(round_folder(self.folder, number), name)
        chosen, batch_statistics = self.settings.student, self.settings.batch_norm == "batch"
        student = build_student(chosen.name, len(self.manifest.classes), chosen.width, batch_statistics=batch_statistics)
        if state.keys() != student.state_dict().keys():
            raise ValueError(f"{self.folder.name}: the model of {self.settings.method} is not a plain {self.settings.student.name}")
        student.load_state_dict(state)
        return student.eval()

    def _no_model(self, model_center: str, number: int, known: list[str]) -> str:
        """Why there is no model of this centre in a round that has models of others."""
        there = f"in round {number} there are models of {', '.join(known)}"
        if model_center == "shared":
            return f"{METHODS[self.settings.method].title} has no shared model; {there}"
        if model_center in self.manifest.centers:
            external = model_center not in self.manifest.training_centers
            return f"centre {model_center!r} trained no model{', it is external' if external else ''}; {there}"
        plain = {name.casefold(): name for name in known}
        alike = difflib.get_close_matches(model_center.casefold(), plain, 1)
        return f"there is no such centre: {model_center!r}; {there}" + (f"; did you mean {plain[alike[0]]!r}?" if alike else "")

    def batch_ids(self, center: str, round_number: int, stage: str) -> list[list[str]]:
        """The manifest ids of every batch of one centre's round and stage, in training order, local epoch by epoch: index = `step`."""
        ids = self.manifest.select(center, "train")["id"]
        epochs = range(self.settings.federation.epochs)
        rows = (rows for epoch in epochs for rows in training_batches(self.settings, center, len(ids), round_number, stage, epoch))
        return [ids.iloc[batch].tolist() for batch in rows]

    def _table(self, name: str) -> pd.DataFrame:
        file, text = self.folder / f"{name}.csv", dict.fromkeys(TEXTS, str)
        header = pd.read_csv(file, nrows=0).columns
        numbers = [column for column in header if metric_and_class(column)[0] in NUMBERS]  # "tp[kidney]" as "tp"
        return pd.read_csv(file, dtype=text, keep_default_na=False, na_values={column: [""] for column in numbers})


def find_study(settings: StudySettings, manifest: Manifest, folder: Path) -> tuple[Study, Teacher | None]:
    """The study of these settings and data below `folder`, whatever is there of it, and its teacher."""
    if settings.method not in METHODS:
        raise ConfigError(f"method {settings.method!r}: must be one of {', '.join(METHODS)}")
    settings = with_overrides(settings)
    if settings.centers is not None:
        unknown = sorted(set(settings.centers) - set(manifest.centers))
        if unknown or not settings.centers:
            raise ConfigError(f"centers {unknown or '()'}: the data have {', '.join(manifest.centers)}")
        manifest = replace(manifest, table=manifest.table[manifest.table["center"].isin(settings.centers)])
    manifest = with_needed_validation(manifest, settings)
    teacher = study_teacher(settings)
    description = teacher.description if teacher else NO_TEACHER
    revision = METHODS[settings.method].revision
    revised = [f"revision {revision}"] if revision > 1 else []
    key = settings.key(_data_identity(manifest), teacher.identity if teacher else "none", *revised)
    return Study(folder / f"{settings.method}-seed{settings.seed}-{key}", settings, manifest, description), teacher


def load_study(folder: Path, data: Path | None = None) -> Study:
    """A complete study from its folder alone.

    Args:
        data: the folder of the manifest's images, where it has moved since; None: where they were when the study was last started.
    Raises: ConfigError: no study, an incomplete one, one of another version of the library, images that are no longer there.
        ManifestError: a manifest that was altered.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: not a study's folder, it has no config.json; expected e.g. runs/smoke/nuclei/studies/vfmgl-seed0-...")
    if not (folder / "environment.json").is_file():
        raise ConfigError(f"{folder}: not a whole study's folder, it has no environment.json; copy the folder whole, or run the study anew")
    start = json.loads((folder / "environment.json").read_text(encoding="utf-8"))[-1]
    check_version(folder, start.get("vfmgl_lib", FIRST_VERSION), "run the study anew, or read it with the version that made it")
    if not (folder / COMPLETE).is_file():
        raise ConfigError(f"{folder}: the study is not complete; run it to its end first")
    root = data or Path(start.get("data", ""))
    if not root.is_dir() or not (data or "data" in start):
        raise ConfigError(f"{folder}: its images are not in {root} any more; say where they are")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
    settings = checked_settings(values)
    manifest = read_manifest(folder / "manifest.csv", root, earlier_reading(settings.data.layout))
    return Study(folder, settings, manifest, start["teacher"])


def no_comparison(control: Study, parent: Study) -> str:
    """Why a control is none here, because the one thing in which it differs from its parent made no difference; "" where it did.

    A control that permutes DDBL's decisions differs where a batch was dropped; one of stage II where there was one; one of the settings
    where the parent has others (HGKT with a random teacher may have been asked for).

    Args:
        control: complete, of a method that is a control.
        parent: the study that it is held against; it may be without rounds.
    """
    method, strategy = METHODS[control.settings.method], METHODS[control.settings.method].switches
    if method.overrides:
        equal = parent.settings.model_copy(update={"method": control.settings.method}) == control.settings
        same = equal and parent.teacher_description == control.teacher_description
        return f"{METHODS[method.parent].title} has these settings itself: {NO_COMPARISON}" if same else ""
    stage_two = control.rounds[control.rounds["stage"] == "II"]
    if stage_two.empty:
        return f"there was no stage II: {NO_COMPARISON}"
    if not strategy.permuted or stage_two["permuted"].any():
        return ""
    dropped = (stage_two["kept_share"] < 1).any()
    return f"{'another order changed no decision' if dropped else 'nothing was dropped'}: {NO_COMPARISON}"


def mark_controls(table: pd.DataFrame, studies: Iterable[Study]) -> pd.DataFrame:
    """The table with a column `no_comparison`: of rows of a control what `no_comparison` says, "" elsewhere.

    Args:
        table: method, seed, split_id: predictions or results.
        studies: those of the table; a control whose parent's study is not among them is not looked at.
    """
    there = {(study.settings.method, study.settings.seed, study.split_id): study for study in studies}
    reasons = {
        key: no_comparison(study, parent)
        for key, study in there.items()
        if (parent := there.get((METHODS[key[0]].parent, *key[1:]))) is not None
    }
    keys = table[["method", "seed", "split_id"]].itertuples(index=False, name=None)
    return table.assign(no_comparison=[reasons.get(key, "") for key in keys])


def trivial_baseline(settings: StudySettings, manifest: Manifest) -> pd.DataFrame:
    """The trivial baseline of every centre on its own test set: rows as in `metrics.csv`, stage "trivial"."""
    rows = []
    unit = scoring_unit(manifest.table, settings.is_segmentation)
    for center, own in trivial_predictions(settings, manifest).groupby("model_center", sort=False):
        found = {split: table.reset_index(drop=True) for split, table in own.groupby("split", sort=False)}
        cutoff = chosen_cutoff(found, unit).value
        rows += metric_rows(found["test"], unit, cutoff, model_center=center, round=0, stage=TRIVIAL)
    return pd.DataFrame(rows)


def trivial_predictions(settings: StudySettings, manifest: Manifest) -> pd.DataFrame:
    """The trivial baseline of every centre on its own images: rows as `Study.final_predictions`, method "trivial", budget "rounds"."""
    baseline = trivial_segmentation if settings.is_segmentation else trivial_classification
    tables = []
    for center in manifest.training_centers:
        selected = {split: manifest.select(center, split) for split in ("train", "val", "test")}
        sets = [ImageDataset(manifest, table, settings.data.image_size) for table in selected.values() if len(table)]
        tables += [with_order(table, settings).assign(model_center=center) for table in baseline(sets[0], sets)]
    about = {"method": TRIVIAL, "seed": settings.seed, "split_id": settings.data.split_id, "budget": "rounds"}
    return pd.concat(tables, ignore_index=True).assign(**about)


def _data_identity(manifest: Manifest) -> str:
    """Hash of the manifest and, for a segmentation, of the masks' content, which the manifest does not hash."""
    if manifest.task_kind == "classification":
        return manifest.sha256
    digest = hashlib.sha256(manifest.sha256.encode())
    for label in manifest.table["label"]:
        digest.update(sha256(manifest.root / label).encode())
    return digest.hexdigest()


def round_folder(folder: Path, number: int) -> Path:
    return folder / "rounds" / f"{number:03d}"


def last_whole_round(folder: Path) -> int | None:
    """The last round of the unbroken sequence 0, 1, 2, ... of whole round folders; None: there is none."""
    number = 0
    while round_folder(folder, number).is_dir():
        number += 1
    return number - 1 if number else None
