"""Run or load a study: a folder of tables and checkpoints.

A study's folder:

    config.json  environment.json  manifest.csv
    predictions.csv  metrics.csv  rounds.csv  steps.csv  stages.csv  mean_features.csv  faults.csv  traffic.csv
                     tidy tables over all rounds, written when the study is complete
    rounds/NNN/      one folder a round, which appears whole or not at all: its part of each table, predicted masks and checkpoints

A study that was interrupted goes on after its last whole round; a complete one is loaded. The folder's name holds a hash of the settings,
the library's version, the data's manifest and the teacher, so a changed setting never meets an old result.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from vfmgl_lib import __version__
from vfmgl_lib.assembly import center_datasets, feature_cache, new_client, new_student, study_teacher, with_needed_validation
from vfmgl_lib.checkpoint import load_tensors, save_tensors
from vfmgl_lib.comparators.clients import new_server
from vfmgl_lib.comparators.methods import METHODS, report_rounds
from vfmgl_lib.comparators.trivial import trivial_classification, trivial_segmentation
from vfmgl_lib.config import ConfigError, StudySettings, checked_settings
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import Manifest, read_manifest, write_manifest
from vfmgl_lib.evaluation.prediction import scoring_unit, training_cutoff
from vfmgl_lib.evaluation.results import final_predictions
from vfmgl_lib.evaluation.rounds import RoundEvaluation, metric_rows
from vfmgl_lib.federation.client import Client, training_batches
from vfmgl_lib.federation.rounds import run_rounds
from vfmgl_lib.federation.strategies import Server
from vfmgl_lib.files import new_folder, sha256, write_json, write_text
from vfmgl_lib.models.students import STUDENTS, Student
from vfmgl_lib.models.teachers import Teacher

log = logging.getLogger(__name__)
TABLES = ("predictions", "metrics", "rounds", "steps", "stages", "mean_features", "faults", "traffic")
ENGINES = ("process", "flower")
COMPLETE = "complete.json"
NO_TEACHER = "none (the method uses no teacher)"
LOCK_ATTEMPTS = 5
NUMBERS = (
    "value",
    "task_loss",
    "match_loss",
    "outer_loss",
    "hypergradient_norm",
    "divergence",
    "threshold",
    "kept",
    "kept_share",
)
TEXTS = ("center", "model_center", "test_center", "split_id", "patient", "id", "stage", "unit", "reason", "mask_file")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "safetensors", "papermill")


class StudyRunningError(RuntimeError):
    """Another process is running this very study."""


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
        """budget ("rounds", "updates") -> the round at which the method is reported (`comparators.methods.report_rounds`)."""
        return report_rounds(self.settings)

    @property
    def last_round(self) -> int:
        return max(self.report_rounds.values())

    @property
    def complete(self) -> bool:
        return (self.folder / COMPLETE).is_file()

    @property
    def rounds_done(self) -> int:
        """The last whole round on disk; 0 before the first."""
        return _last_round(self.folder) or 0

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
        if (_round_folder(self.folder, number) / "shared.safetensors").is_file():
            known["shared"] = ["shared"]
        if stage not in known.get(model_center, []):
            there = "; ".join(f"{center}: {', '.join(stages)}" for center, stages in known.items()) or "no model"
            raise ValueError(f"{self.folder.name}: model {model_center!r} has no stage {stage!r} in round {number}; there is {there}")
        # A method of one stage is measured after the centre has adopted what the server sent, which `stage_one` precedes.
        last = "shared" if stage == "shared" else f"{model_center}.student"
        name = last if stage == known[model_center][-1] else f"{model_center}.stage_one"
        state = load_tensors(_round_folder(self.folder, number), name)
        student = STUDENTS[self.settings.student.name](len(self.manifest.classes), self.settings.student.width, "none")
        if state.keys() != student.state_dict().keys():
            raise ValueError(f"{self.folder.name}: the model of {self.settings.method} is not a plain {self.settings.student.name}")
        student.load_state_dict(state)
        return student.eval()

    def batch_ids(self, center: str, round_number: int, stage: str) -> list[list[str]]:
        """The manifest ids of every batch of one centre's round and stage, in training order (first local epoch): index = `step`."""
        ids = self.manifest.select(center, "train")["id"]
        return [ids.iloc[rows].tolist() for rows in training_batches(self.settings, center, len(ids), round_number, stage)]

    def _table(self, name: str) -> pd.DataFrame:
        text = dict.fromkeys(TEXTS, str)
        table = pd.read_csv(self.folder / f"{name}.csv", dtype=text, keep_default_na=False, na_values={c: [""] for c in NUMBERS})
        return table


def run_study(
    settings: StudySettings,
    manifest: Manifest,
    folder: Path,
    progress: bool = True,
    teacher_cache: Path | None = None,
    engine: str = "process",
) -> Study:
    """Runs a study, goes on with an interrupted one, or loads a complete one.

    Args:
        settings: which method, seed, sizes.
        manifest: the samples; with `settings.centers` only those centres take part.
        folder: where studies lie; this one's folder is made in it.
        progress: show a bar over all batches, with the time left.
        teacher_cache: folder of teacher features that all studies share, up to `teacher.cache_gib`; None: no cache. It changes no number.
        engine: "process": all centres in this one; "flower": every centre in a process of its own, which reaches its own images alone
            (`federation.local`). It changes no number either.
    Returns: the complete study.
    Raises: CheckpointError: a truncated checkpoint. ConfigError: an unknown method or centre.
        StudyRunningError: another process is running this very study.
    """
    study, teacher = find_study(settings, manifest, folder)
    study.folder.mkdir(parents=True, exist_ok=True)
    with _only_process(study.folder):
        if study.complete:
            log.info("loaded the complete study %s", study.folder.name)
        else:
            _train(study, teacher, progress, teacher_cache, engine)
    return study


def is_running(folder: Path) -> bool:
    """Whether some process, also on another machine that shares the file system, is running the study of this folder now."""
    try:
        file = open(folder / ".lock")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def find_study(settings: StudySettings, manifest: Manifest, folder: Path) -> tuple[Study, Teacher | None]:
    """The study of these settings and data below `folder`, whatever is there of it, and its teacher."""
    if settings.method not in METHODS:
        raise ConfigError(f"method {settings.method!r}: must be one of {', '.join(METHODS)}")
    if settings.centers is not None:
        unknown = sorted(set(settings.centers) - set(manifest.centers))
        if unknown or not settings.centers:
            raise ConfigError(f"centers {unknown or '()'}: the data have {', '.join(manifest.centers)}")
        manifest = replace(manifest, table=manifest.table[manifest.table["center"].isin(settings.centers)])
    manifest = with_needed_validation(manifest, settings)
    teacher = study_teacher(settings)
    description = teacher.description if teacher else NO_TEACHER
    key = settings.key(_data_identity(manifest), teacher.identity if teacher else "none")
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
    if not (folder / COMPLETE).is_file():
        raise ConfigError(f"{folder}: the study is not complete; run it to its end first")
    start = json.loads((folder / "environment.json").read_text(encoding="utf-8"))[-1]
    root = data or Path(start.get("data", ""))
    if not root.is_dir() or not (data or "data" in start):
        raise ConfigError(f"{folder}: its images are not in {root} any more; say where they are")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
    return Study(folder, checked_settings(values), read_manifest(folder / "manifest.csv", root), start["teacher"])


def trivial_baseline(settings: StudySettings, manifest: Manifest) -> pd.DataFrame:
    """The trivial baseline of every centre on its own test set: rows as in `metrics.csv`, stage "trivial"."""
    rows = []
    unit = scoring_unit(manifest.table, settings.is_segmentation)
    baseline = trivial_segmentation if settings.is_segmentation else trivial_classification
    for center in manifest.training_centers:
        train, test = (ImageDataset(manifest, manifest.select(center, split), settings.data.image_size) for split in ("train", "test"))
        on_train, on_test = baseline(train, [train, test])
        rows += metric_rows(on_test, unit, training_cutoff(on_train, unit), model_center=center, round=0, stage="trivial")
    return pd.DataFrame(rows)


def _train(study: Study, teacher: Teacher | None, progress: bool, teacher_cache: Path | None, engine: str) -> None:
    """All rounds that are missing, then the study's tables."""
    settings, folder = study.settings, study.folder
    device = torch.device(settings.device)
    if engine not in ENGINES:
        raise ConfigError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    _describe(study, teacher, engine)
    datasets = {center: center_datasets(settings, study.manifest, center, teacher) for center in study.manifest.centers}
    centers, cache = study.manifest.training_centers, feature_cache(settings, teacher, teacher_cache)
    clients = [new_client(settings, center, datasets[center], teacher, cache) for center in centers]
    server = new_server(settings, list(centers), new_student(settings))
    unit = scoring_unit(study.manifest.table, settings.is_segmentation)
    evaluation = RoundEvaluation(settings, datasets, unit, device)

    start = _last_round(folder)
    if start is None:
        with new_folder(_round_folder(folder, 0)) as part:
            evaluation.untrained(clients[0].student).write(part)
        start = 0
    elif start:
        _restore(clients, server, _round_folder(folder, start))
        log.info("resumed %s after round %d", folder.name, start)
    total = sum(client.batch_count(number) for client in clients for number in range(start + 1, study.last_round + 1))
    title = f"{settings.task} {settings.method} seed {settings.seed}"
    with tqdm(total=total, desc=title, unit="batch", disable=not progress, mininterval=1.0) as bar:
        if engine == "flower":
            from vfmgl_lib.federation.local import run_rounds_apart  # here: flwr takes seconds to import

            rounds = run_rounds_apart(study, clients, server, start=start, progress=bar.update, teacher_cache=teacher_cache)
        else:
            rounds = run_rounds(clients, server, study.last_round, start=start, quorum=settings.faults.quorum, progress=bar.update)
        for done in rounds:
            bar.set_postfix_str(f"round {done.number}/{study.last_round}")
            with new_folder(_round_folder(folder, done.number)) as part:
                _checkpoint(clients, server, part)
                shared = clients[0].frozen_copy(done.shared) if done.shared is not None else None
                tables = evaluation.round(done.number, clients, shared, part)
                tables.tables |= {"faults": [vars(fault) for fault in done.faults], "traffic": done.traffic}
                tables.write(part)
            _prune(study, done.number)
    _join_tables(study)
    write_json(folder / COMPLETE, {"rounds": study.last_round})


def _data_identity(manifest: Manifest) -> str:
    """Hash of the manifest and, for a segmentation, of the masks' content, which the manifest does not hash."""
    if manifest.task_kind == "classification":
        return manifest.sha256
    digest = hashlib.sha256(manifest.sha256.encode())
    for label in manifest.table["label"]:
        digest.update(sha256(manifest.root / label).encode())
    return digest.hexdigest()


@contextmanager
def _only_process(folder: Path) -> Iterator[None]:
    """Holds the study's lock; the operating system releases it however the process ends.

    A process that only asks (`is_running`) holds the lock for an instant, which is waited for.
    """
    with open(folder / ".lock", "w") as file:
        for attempt in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if attempt == LOCK_ATTEMPTS - 1:
                    raise StudyRunningError(f"study {folder}: another process is running it; wait for it or stop it") from error
                time.sleep(0.1)
        yield


def _describe(study: Study, teacher: Teacher | None, engine: str) -> None:
    """config.json, manifest.csv and environment.json (one entry per start of the study)."""
    folder, settings = study.folder, study.settings
    deviations = settings.deviations().to_dict("records")
    write_json(folder / "config.json", {"settings": settings.model_dump(mode="json"), "deviations_from_paper": deviations})
    write_manifest(study.manifest, folder / "manifest.csv")
    file = folder / "environment.json"
    starts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    device = torch.cuda.get_device_name() if settings.device == "cuda" else platform.processor() or platform.machine()
    starts.append(
        {
            "vfmgl_lib": __version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "engine": engine,
            "device": f"{settings.device}: {device}",
            "threads": torch.get_num_threads(),
            "manifest_sha256": study.manifest.sha256,
            "data": str(study.manifest.root.resolve()),
            "teacher": study.teacher_description,
            "teacher_identity": teacher.identity if teacher else "",
            "after_round": _last_round(folder) or 0,
        }
    )
    write_json(file, starts)


def _commit() -> str:
    """The checkout's commit, with "+" if files other than the log of results differ from it; "" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ":/", ":(top,exclude)results"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + "+" * bool(changed)


def _round_folder(folder: Path, number: int) -> Path:
    return folder / "rounds" / f"{number:03d}"


def _last_round(folder: Path) -> int | None:
    """The last round of the unbroken sequence 0, 1, 2, ... of whole round folders; None: there is none."""
    number = 0
    while _round_folder(folder, number).is_dir():
        number += 1
    return number - 1 if number else None


def _checkpoint(clients: list[Client], server: Server, folder: Path) -> None:
    """After stage I, after the round and everything that the next round depends on, per centre; and the server's part."""
    tensors = {server.checkpoint: server.state_dict()} if server.checkpoint else {}
    for client in clients:
        tensors[f"{client.center}.student"] = client.student.state_dict()
        tensors[f"{client.center}.stage_one"] = client.stage_one_state
        tensors[f"{client.center}.state"] = client.state_dict()
    save_tensors(folder, tensors)


def _restore(clients: list[Client], server: Server, folder: Path) -> None:
    if server.checkpoint:
        server.load_state_dict(load_tensors(folder, server.checkpoint))
    for client in clients:
        state, student, stage_one = (load_tensors(folder, f"{client.center}.{part}") for part in ("state", "student", "stage_one"))
        client.load_state_dict(state, student, stage_one)


def _prune(study: Study, number: int) -> None:
    """Resuming needs the last round only, the one before stays as a reserve; models stay for round 1, those reported and the last two."""
    old = number - 2
    if old < 1:
        return
    keep = old in (1, *study.report_rounds.values())
    for file in _round_folder(study.folder, old).glob("*.safetensors"):
        if not keep or file.name.endswith(".state.safetensors"):
            file.unlink()


def _join_tables(study: Study) -> None:
    """The study's tables from the rounds' parts, each row with the teacher it was made with."""
    for name in TABLES:
        parts = [_round_folder(study.folder, number) / f"{name}.csv" for number in range(study.last_round + 1)]
        frames = [pd.read_csv(part, dtype=str, keep_default_na=False) for part in parts if part.is_file()]
        joined = pd.concat(frames, ignore_index=True).fillna("") if frames else pd.DataFrame(columns=["round"])
        if name == "predictions" and "mask_file" in joined:
            written = joined["mask_file"] != ""
            joined.loc[written, "mask_file"] = [
                f"rounds/{int(r):03d}/masks/{file}" for r, file in zip(joined["round"][written], joined["mask_file"][written], strict=True)
            ]
        write_text(study.folder / f"{name}.csv", joined.assign(teacher=study.teacher_description).to_csv(index=False))
