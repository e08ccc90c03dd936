"""Trains a study, goes on with an interrupted one or loads a complete one: rounds, checkpoints, a lock against a second process."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from vfmgl_lib import __version__
from vfmgl_lib.base.checkpoint import load_tensors, save_tensors
from vfmgl_lib.base.files import is_locked, locked, new_folder, write_json, write_text
from vfmgl_lib.base.places import IS_CLONE, LIBRARY
from vfmgl_lib.base.surroundings import keep_freed_memory
from vfmgl_lib.config import ConfigError, StudySettings, setting_value
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.data.manifest_files import write_manifest
from vfmgl_lib.evaluation.prediction import scoring_unit
from vfmgl_lib.evaluation.rounds import RoundEvaluation
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.rounds import Round, run_rounds
from vfmgl_lib.federation.servers import Server
from vfmgl_lib.methods.pooled import pool_data
from vfmgl_lib.methods.registry import METHODS, new_server
from vfmgl_lib.models.teachers import Teacher
from vfmgl_lib.study.assembly import center_datasets, feature_cache, new_client, new_student
from vfmgl_lib.study.study import COMPLETE, TABLES, Study, find_study, last_whole_round, round_folder

log = logging.getLogger(__name__)
# (study, clients, server, start=, progress=, teacher_cache=) -> the rounds, as `federation.rounds.run_rounds` gives them
RoundsApart = Callable[..., Iterator[Round]]
LOCK_WAIT_S = 0.5  # for a process that only asks whether the study is running
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "safetensors", "papermill")


class StudyRunningError(RuntimeError):
    """Another process is running this very study."""


def run_study(
    settings: StudySettings,
    manifest: Manifest,
    folder: Path,
    progress: bool = True,
    teacher_cache: Path | None = None,
    network: RoundsApart | None = None,
) -> Study:
    """Runs a study, goes on with an interrupted one, or loads a complete one.

    Args:
        settings: which method, seed, sizes; without the method's overrides, which are laid over them here.
        manifest: the samples; with `settings.centers` only those centres take part.
        folder: where studies lie; this one's folder is made in it.
        progress: show a bar over all batches, with the time left.
        teacher_cache: folder of teacher features that all studies share, up to `teacher.cache_gib`; None: no cache. It changes no number.
        network: runs the rounds with every centre in a process of its own, which reaches its own images alone
            (`tools.flower.one_machine.run_rounds_apart`); None: all centres in this one. It changes no number either.
    Returns: the complete study.
    Raises: CheckpointError: a truncated checkpoint. ConfigError: an unknown method or centre.
        StudyRunningError: another process is running this very study.
    """
    study, teacher = find_study(settings, manifest, folder)
    error = StudyRunningError(f"study {study.folder}: another process is running it; wait for it or stop it")
    with locked(study.folder / ".lock", error, LOCK_WAIT_S):
        if study.complete:
            log.info("loaded the complete study %s", study.folder.name)
        else:
            _warn_of_an_idle_control(settings, study.settings)
            keep_freed_memory()
            _train(study, teacher, progress, teacher_cache, network)
    return study


def _warn_of_an_idle_control(given: StudySettings, made: StudySettings) -> None:
    """Where a control's overrides are the settings already, as a random teacher may be."""
    method = METHODS[made.method]
    if method.parent and method.overrides and made == given:
        values = ", ".join(f"{name} is {setting_value(given, name)}" for name in method.overrides)
        log.warning("%s: %s already, so that this control is %s itself under another title", made.method, values, method.parent)


def is_running(folder: Path) -> bool:
    """Whether some process, also on another machine that shares the file system, is running the study of this folder now."""
    return is_locked(folder / ".lock")


def _train(study: Study, teacher: Teacher | None, progress: bool, teacher_cache: Path | None, network: RoundsApart | None) -> None:
    """All rounds that are missing, then the study's tables."""
    settings, folder = study.settings, study.folder
    device = torch.device(settings.device)
    if network and not METHODS[settings.method].private:
        raise ConfigError(f"method {settings.method}: it pools the centres' images and does not run over a network")
    _describe(study, teacher, network.__name__ if network else "process")
    datasets = {center: center_datasets(settings, study.manifest, center, teacher) for center in study.manifest.centers}
    centers, cache = study.manifest.training_centers, feature_cache(settings, teacher, teacher_cache, study.manifest.reading)
    clients = [new_client(settings, center, datasets[center], teacher, cache) for center in centers]
    pool_data(clients)
    server = new_server(settings, list(centers), new_student(settings))
    unit = scoring_unit(study.manifest.table, settings.is_segmentation)
    evaluation = RoundEvaluation(settings, datasets, unit, device)

    start = last_whole_round(folder)
    if start is None:
        with new_folder(round_folder(folder, 0)) as part:
            evaluation.untrained(clients[0].student).write(part)
        start = 0
    elif start:
        _restore(clients, server, round_folder(folder, start))
        log.info("resumed %s after round %d", folder.name, start)
    total = sum(client.batch_count(number) for client in clients for number in range(start + 1, study.last_round + 1))
    title = f"{settings.task} {settings.method} seed {settings.seed}"
    with tqdm(total=total, desc=title, unit="batch", disable=not progress, mininterval=1.0) as bar:
        if network:
            rounds = network(study, clients, server, start=start, progress=bar.update, teacher_cache=teacher_cache)
        else:
            rounds = run_rounds(clients, server, study.last_round, start=start, quorum=settings.faults.quorum, progress=bar.update)
        for done in rounds:
            bar.set_postfix_str(f"round {done.number}/{study.last_round}")
            with new_folder(round_folder(folder, done.number)) as part:
                _checkpoint(clients, server, part)
                shared = clients[0].frozen_copy(done.shared) if done.shared is not None and not clients[0].switches.keeps else None
                tables = evaluation.round(done.number, clients, shared, part)
                tables.tables |= {"faults": [vars(fault) for fault in done.faults], "traffic": done.traffic}
                tables.write(part)
            _prune(study, done.number)
    _join_tables(study)
    write_json(folder / COMPLETE, {"rounds": study.last_round})


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
            "packages": {name: _version(name) for name in PACKAGES},
            "engine": engine,
            "device": f"{settings.device}: {device}",
            "threads": torch.get_num_threads(),
            "manifest_sha256": study.manifest.sha256,
            "data": str(study.manifest.root.resolve()),
            "teacher": study.teacher_description,
            "teacher_identity": teacher.identity if teacher else "",
            "after_round": last_whole_round(folder) or 0,
        }
    )
    write_json(file, starts)


def _version(package: str) -> str:
    """ "" where it is not installed: papermill runs the notebooks, and a study needs none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    """The checkout's commit, with "+" if files other than the log of results differ from it; "" outside a checkout."""
    if not IS_CLONE:
        return ""  # an environment may lie in the checkout of something else
    git = ["git", "-C", str(LIBRARY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", ":/", ":(top,exclude)results"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + "+" * bool(changed)


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
    for file in round_folder(study.folder, old).glob("*.safetensors"):
        if not keep or file.name.endswith(".state.safetensors"):
            file.unlink()


def _join_tables(study: Study) -> None:
    """The study's tables from the rounds' parts, each row with the teacher it was made with."""
    for name in TABLES:
        parts = [round_folder(study.folder, number) / f"{name}.csv" for number in range(study.last_round + 1)]
        frames = [pd.read_csv(part, dtype=str, keep_default_na=False) for part in parts if part.is_file()]
        joined = pd.concat(frames, ignore_index=True).fillna("") if frames else pd.DataFrame(columns=["round"])
        if name == "predictions" and "mask_file" in joined:
            written = joined["mask_file"] != ""
            joined.loc[written, "mask_file"] = [
                f"rounds/{int(r):03d}/masks/{file}" for r, file in zip(joined["round"][written], joined["mask_file"][written], strict=True)
            ]
        write_text(study.folder / f"{name}.csv", joined.assign(teacher=study.teacher_description).to_csv(index=False))
