"""What a study costs, measured: a few real steps on images of one centre, at the profile's own sizes, in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vfmgl_lib.data.feature_cache import HEADER
from vfmgl_lib.data.loading import joined
from vfmgl_lib.evaluation.prediction import predict
from vfmgl_lib.evaluation.process_footprint import status_bytes
from vfmgl_lib.study.assembly import center_datasets, study_teacher
from vfmgl_lib.study.study import Study, round_folder
from vfmgl_lib.study.workspace import Workspace, open_workspace

ROUNDS = 3  # the first warms up; stage II comes with the second
IMAGES = 4  # at least, of each split


@dataclass(frozen=True)
class RealSteps:
    """One task's measurements.

    Attributes:
        images: training images they were made with.
        update, stage_one, stage_two: seconds a batch: an update on the task loss; HGKT with its task update, the teacher's features read
            from the cache; distillation from the shared model.
        teacher: seconds an image, computed.  predict: seconds an image, read from its file.
        model_bytes, shared_bytes: of a round's checkpoint: one centre's models, the shared one.
        state_bytes, plain_state_bytes: what only resuming needs, of one centre: with HGKT, and of a plain update's optimiser.
        feature_bytes: of an image's features in the teacher's cache.
        row_bytes, mask_bytes, step_bytes: of a row of predictions, a predicted mask, a row of steps, on disk.
        peak_bytes: the process at its highest.  gpu_bytes: 0 on a CPU.
    """

    images: int
    update: float
    stage_one: float
    stage_two: float
    teacher: float
    predict: float
    model_bytes: int
    shared_bytes: int
    state_bytes: int
    plain_state_bytes: int
    feature_bytes: int
    row_bytes: float
    mask_bytes: float
    step_bytes: float
    peak_bytes: int
    gpu_bytes: int


def measure_apart(given: Mapping[str, object]) -> RealSteps:
    """`measure` in a fresh process, whose peak memory is its own.

    Args:
        given: what `study.workspace.open_workspace` takes.
    Raises: RuntimeError: the process was killed, mostly because memory ran out. What `measure` raises.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the notebooks' kernels have it
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), logging.disable, (logging.WARNING,)) as pool:  # of so few steps
            return pool.submit(measure, dict(given)).result()
    except BrokenProcessPool as error:
        raise RuntimeError(f"task {given['task']}: the steps were killed, mostly since memory ran out; give a machine with more") from error


def measure(given: Mapping[str, object]) -> RealSteps:
    """Runs VFMGL for three rounds and local training for two on a batch of one centre, in a temporary folder, and reads their tables.

    Raises: ConfigError, ManifestError, TeacherError, StudentError and the like: what would stop the real run too.
    """
    workspace = open_workspace(**given)  # type: ignore[arg-type]
    center, device = str(workspace.manifest.select(split="train")["center"].value_counts().idxmax()), torch.device(str(given["device"]))
    with tempfile.TemporaryDirectory(prefix="vfmgl-check-") as folder:
        vfmgl = _small(workspace, Path(folder)).run("vfmgl", [center], progress=False)
        local = _small(workspace, Path(folder), 2).run("local", [center], progress=False)
        last, first = round_folder(vfmgl.folder, ROUNDS), round_folder(vfmgl.folder, 1)
        teacher = study_teacher(vfmgl.settings)
        assert teacher is not None, "VFMGL has one"
        data = center_datasets(vfmgl.settings, vfmgl.manifest, center, teacher)["train"]
        seen = torch.rand(min(len(data), 8), 3, teacher.image_size, teacher.image_size, device=device)
        student = vfmgl.student(center, "II", ROUNDS)
        size = vfmgl.settings.evaluation_batch_size
        masks = [file.stat().st_size for file in (last / "masks").rglob("*.png")]
        return RealSteps(
            images=len(data),
            update=_seconds(local, "I"),
            stage_one=_seconds(vfmgl, "I"),
            stage_two=_seconds(vfmgl, "II"),
            teacher=_second_time(lambda: teacher(seen)) / len(seen),
            predict=_second_time(lambda: predict(student, joined([data]), batch_size=size, device=device)) / len(data),  # read anew
            model_bytes=sum((last / f"{center}.{name}.safetensors").stat().st_size for name in ("student", "stage_one")),
            shared_bytes=(last / "shared.safetensors").stat().st_size,
            state_bytes=(last / f"{center}.state.safetensors").stat().st_size,
            plain_state_bytes=(round_folder(local.folder, 2) / f"{center}.state.safetensors").stat().st_size,
            feature_bytes=HEADER + 2 * sum(int(np.prod((blocks, channels, side, side))) for blocks, channels, side in teacher.stack_shapes),
            row_bytes=_bytes_a_row(last / "predictions.csv"),
            mask_bytes=float(np.mean(masks)) if masks else 0.0,
            step_bytes=_bytes_a_row(first / "steps.csv"),
            peak_bytes=status_bytes("VmHWM"),
            gpu_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        )


def _small(workspace: Workspace, folder: Path, rounds: int = ROUNDS) -> Workspace:
    """The same with a batch of training images and few others, in another folder."""
    changes = {
        "data.per_center": {"train": max(IMAGES, workspace.settings.optimizer.batch_size), "val": IMAGES, "test": IMAGES},
        "data.augmentation": "none",  # so that the second round reads the features that the first computed
        "data.workers": 0,  # starting them would take longer than so short an epoch
        "federation.rounds": rounds,
        "federation.match_updates": False,
        "federation.match_compute": False,
        "transfer.hypergradient_every": 1,
    }
    return replace(workspace.variant(changes=changes), folder=folder / "profile" / "task")


def _seconds(study: Study, stage: str) -> float:
    """Of a batch, in the last round."""
    rows = study.rounds[(study.rounds["stage"] == stage) & (study.rounds["round"] == study.rounds["round"].max())]
    return float((rows["seconds"] / rows["batches"]).iloc[0])


def _second_time(run: Callable[[], object]) -> float:
    """Seconds of the second of two calls."""
    for _ in range(2):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - began


def _bytes_a_row(file: Path) -> float:
    return file.stat().st_size / max(len(pd.read_csv(file)), 1)
