"""vfmgl run --check: disk, memory and hours of a run on this machine, from a few real steps, before anybody waits for it.

Counted is what trains: the studies of the chosen notebooks, each once, as far as they are not there yet, and the teacher's features. A
method's seconds a batch are those measured of VFMGL's stages and of a plain update, others by passes of the student (`methods.passes`).
Not counted are the notebooks' own figures and intervals: minutes, and some MB a notebook.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil

from vfmgl_lib.data.feature_cache import GIB
from vfmgl_lib.data.loading import CACHE_BYTES
from vfmgl_lib.evaluation.generalization import ABLATION
from vfmgl_lib.evaluation.rounds import measured_rounds
from vfmgl_lib.methods.passes import UPDATE, encoder_share, hgkt_passes
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.study.study import Study, find_study
from vfmgl_lib.study.workspace import Workspace, open_workspace
from vfmgl_lib.tools.batch.real_steps import RealSteps, measure_apart
from vfmgl_lib.tools.batch.settings import BatchError, BatchSettings

ORIENTATIONS = 8
SEEDS_OF_02 = 3  # notebook 02's parameter `seeds`
LIBRARIES = 2**29  # bytes that a notebook's kernel takes beside a study: of the smoke run 1.4 GiB at most, where the steps take 0.96


@dataclass
class Costs:
    """Of the studies of one task.

    Attributes:
        rows: notebook, studies, done, hours, disk (GiB).
        hours: all of it, one after another.  disk: bytes still to be written.  memory: bytes a notebook.
    """

    rows: list[dict]
    hours: float
    disk: int
    memory: int


@dataclass
class _Features:
    """What the teachers see: (teacher, image, its version) once, and how often in all."""

    distinct: set[tuple[str, str]] = field(default_factory=set)
    versions: Counter[tuple[str, str]] = field(default_factory=Counter)
    visits: int = 0


def planned(workspace: Workspace, stem: str, engine: str = "process") -> Iterator[Study]:
    """The studies that a notebook trains or loads; of one that is not of this project none.

    Args:
        stem: of the notebook's file, e.g. "02_hgkt".
    """
    comparison, seed = workspace.settings.comparison, workspace.settings.seed
    seeds = [workspace.variant(seed=seed + more) for more in range(comparison.seeds)]
    if stem == "02_hgkt":
        first = (workspace.manifest.training_centers[0],)
        for one in (workspace.variant(seed=seed + more) for more in range(SEEDS_OF_02)):
            settings = one.settings.model_copy(update={"method": "hgkt", "centers": first})
            yield find_study(settings, one.manifest, one.folder / "studies")[0]
    elif stem == "05_comparison":
        yield from (one.study(method) for one in seeds for method in comparison.methods or METHODS)
    elif stem == "06_generalization":
        yield from (one.study(method) for one in seeds for method in ABLATION)
        yield from (workspace.variant(split=split).study("vfmgl") for split in comparison.splits)
    elif stem == "04_federated_rounds" and engine != "process":
        settings = workspace.settings.model_copy(update={"method": "vfmgl", "centers": None})
        yield find_study(settings, workspace.manifest, workspace.folder / "studies_network")[0]
    elif stem in ("03_ddbl", "04_federated_rounds", "07_interpretability", "08_lightweight"):
        yield workspace.study("vfmgl")


def costs(workspace: Workspace, stems: Iterable[str], steps: RealSteps, engine: str = "process") -> Costs:
    """What the studies of these notebooks still cost.

    Args:
        stems: the notebooks in the order in which they run; a study counts where it comes first.
        steps: of this task.
    """
    rows, seen, features, studies = [], set[Path](), _Features(), []
    for stem in stems:
        own = [study for study in planned(workspace, stem, engine) if study.folder not in seen]
        seen |= {study.folder for study in own}
        left = [study for study in own if not study.complete]
        seconds = sum((training_seconds(study, steps) for study in left), 0.0)
        disk = sum((study_bytes(study, steps) for study in left), 0.0)
        rows.append(_row(stem, len(own), len(own) - len(left), seconds, disk))
        studies += left
    for study in studies:
        _add_features(features, study)
    seconds, disk = _teacher_costs(features, workspace, steps)
    rows.append(_row("teacher's features", 0, 0, seconds, disk))
    total = pd.DataFrame(rows)
    return Costs(rows, float(total["hours"].sum()), int(total["disk (GiB)"].sum() * GIB), _memory(workspace, steps))


def _row(name: str, studies: int, done: int, seconds: float, disk: float) -> dict:
    return {"notebook": name, "studies": studies, "done": done, "hours": seconds / 3600, "disk (GiB)": disk / GIB}


def training_seconds(study: Study, steps: RealSteps) -> float:
    """Of the rounds that are left: training, re-estimated statistics, measuring the models."""
    settings, method, left = study.settings, METHODS[study.settings.method], study.last_round - study.rounds_done
    if method.switches.embeds:
        return 0.0  # the teacher's features are counted apart, and a linear classifier costs next to nothing
    images = _images(study)
    batches = sum(math.ceil(count / settings.optimizer.batch_size) for count in images["train"].values()) * settings.federation.epochs
    rounds = range(study.rounds_done + 1, study.last_round + 1)
    every = {split: sum(counts.values()) for split, counts in images.items()}
    measured = len(measured_rounds(settings, study.last_round) & set(rounds))
    looked_at = measured * sum(sum(counts.get(center, 0) for center in images["train"]) for counts in images.values())
    reported = len(set(study.report_rounds.values()) & set(rounds))
    looked_at += reported * every["test"] * (len(images["train"]) * (1 + method.switches.distillation) + 2)
    if settings.batch_norm == "recalibrated":
        looked_at += left * every["train"] * (1 + 2 * method.switches.distillation)
    return left * batches * batch_seconds(study, steps) + looked_at * steps.predict


def batch_seconds(study: Study, steps: RealSteps) -> float:
    """Of one batch of the study's method: the stages as measured, what else it does by passes of the student."""
    settings, switches = study.settings, METHODS[study.settings.method].switches
    seconds = steps.update
    if switches.transfer:
        encoder = encoder_share(settings.student.name, settings.student.width, settings.data.image_size)
        here, measured = (
            UPDATE + hgkt_passes(settings.transfer.inner_steps, encoder, every) for every in (settings.transfer.hypergradient_every, 1)
        )
        seconds = steps.stage_one * here / measured
    if switches.distillation:
        seconds += steps.stage_two * (study.last_round - 1) / study.last_round
    return seconds + METHODS[settings.method].extra_passes(settings) / UPDATE * steps.update


def study_bytes(study: Study, steps: RealSteps) -> int:
    """What a study writes: models of round 1, of those reported and of the last two, the state of the last two, tables, masks."""
    images, centers = _images(study), len(study.manifest.training_centers)
    reported = {1, *study.report_rounds.values()}
    kept = {*reported, study.last_round, max(study.last_round - 1, 1)}
    state = steps.state_bytes if METHODS[study.settings.method].switches.transfer else steps.plain_state_bytes
    models = len(kept) * (centers * steps.model_bytes + steps.shared_bytes) + centers * min(2, study.last_round) * state
    every, tested = sum(sum(counts.values()) for counts in images.values()), sum(images["test"].values())
    rows = (len(reported) + 1) * every + len(reported) * tested * (2 * centers + 2)
    batches = sum(math.ceil(count / study.settings.optimizer.batch_size) for count in images["train"].values())
    step_rows = batches * study.settings.federation.epochs * study.last_round * (1 + METHODS[study.settings.method].switches.distillation)
    tables = 2 * (rows * steps.row_bytes + step_rows * steps.step_bytes)  # a round's part and the whole
    return round(models + tables + len(reported) * tested * steps.mask_bytes)


def _images(study: Study) -> Mapping[str, Mapping[str, int]]:
    """split -> centre -> images; train, val and test are all there."""
    counts = study.manifest.table.groupby(["split", "center"]).size()
    return {split: counts[split].to_dict() if split in counts.index.get_level_values(0) else {} for split in ("train", "val", "test")}


def _add_features(features: _Features, study: Study) -> None:
    switches, settings = METHODS[study.settings.method].switches, study.settings
    if not switches.teacher:
        return
    visits = 1 if switches.embeds else (study.last_round - study.rounds_done) * settings.federation.epochs
    turned = settings.data.augmentation == "turns_and_flips" and not switches.embeds
    splits = ("train", "val", "test") if switches.embeds else ("train", "val")
    for split in splits:
        images = study.manifest.select(split=split)["sha256"]
        for image in images:
            key = (settings.teacher.source, image)
            features.distinct.add(key)
            features.versions[key] = max(features.versions[key], min(ORIENTATIONS, visits) if turned and split == "train" else 1)
        features.visits += visits * len(images)


def _teacher_costs(features: _Features, workspace: Workspace, steps: RealSteps) -> tuple[float, float]:
    """Seconds and bytes: each version of an image once, as far as the cache reaches, else whenever it is seen."""
    images = sum(features.versions.values())
    needed, limit = images * steps.feature_bytes, workspace.settings.teacher.cache_gib * GIB
    reach = min(1.0, limit / needed) if needed else 1.0
    return steps.teacher * (images * reach + max(features.visits, images) * (1 - reach)), needed * reach


def _memory(workspace: Workspace, steps: RealSteps) -> int:
    """Of one notebook: the steps' process, what a kernel has beside it, and the images that data sets keep in memory."""
    settings = workspace.settings
    image = 3 * settings.data.image_size**2 + (settings.data.image_size**2 if settings.is_segmentation else 0)
    sizes = workspace.manifest.table.groupby(["center", "split"]).size()
    return steps.peak_bytes + LIBRARIES + int(sum(min(CACHE_BYTES, count * image) for count in sizes))


def check(settings: BatchSettings, stems: list[str]) -> tuple[str, bool]:
    """The whole run's costs in words, and whether disk and memory suffice.

    Raises: BatchError: what would stop the run: data, weights that cannot be had, a student that does not fit.
    """
    texts, hours, disk, memory = [], 0.0, 0, 0
    for task in settings.tasks:
        given = settings.parameters(task)
        sys.stderr.write(f"{task}: a few real steps at the profile's sizes; on a CPU the paper's take minutes\n")
        try:
            workspace, steps = open_workspace(**given), measure_apart(given)  # type: ignore[arg-type]
            found = costs(workspace, stems, steps, settings.engine)
        except (ValueError, RuntimeError) as error:  # every error of the library's about what it was given
            raise BatchError(str(error)) from error
        texts.append(_task_text(workspace, steps, found))
        hours, disk, memory = hours + found.hours, disk + found.disk, max(memory, found.memory)
    free, there = _free(settings.runs), psutil.virtual_memory().available
    enough_disk, enough_memory = disk < free, memory * settings.jobs < there
    jobs = settings.jobs
    texts.append(
        f"All of it: {hours:.3g} hours one after another; with {jobs} notebooks at a time not less than {hours / jobs:.3g}.\n"
        f"Disk: {disk / GIB:.1f} GiB to be written, {free / GIB:.1f} GiB free at {settings.runs}: {_verdict(enough_disk)}\n"
        f"Memory: up to {memory / GIB:.1f} GiB a notebook, {jobs} at a time, {there / GIB:.1f} GiB free: {_verdict(enough_memory)}\n"
    )
    if not enough_memory and memory < there:
        texts.append(f"--jobs {max(1, int(there / memory))} fits.\n")
    return "\n".join(texts), enough_disk and enough_memory


def _task_text(workspace: Workspace, steps: RealSteps, found: Costs) -> str:
    settings = workspace.settings
    table = pd.DataFrame(found.rows).to_string(index=False, formatters={"hours": "{:.2f}".format, "disk (GiB)": "{:.2f}".format})
    gpu = f"; {steps.gpu_bytes / GIB:.1f} GiB of the GPU's memory" if steps.gpu_bytes else ""
    images, centers = len(workspace.manifest.table), len(workspace.manifest.centers)
    return (
        f"{settings.task}, profile {settings.profile}: {images} images of {centers} centres at {settings.data.image_size} px, "
        f"{settings.federation.rounds} rounds, {settings.student.network}, teacher {settings.teacher.source}, {settings.device}\n"
        f"measured now on {steps.images} images: a batch of stage I {steps.stage_one:.3g} s, of stage II {steps.stage_two:.3g} s, a plain "
        f"update {steps.update:.3g} s; an image by the teacher {steps.teacher:.3g} s, a prediction {steps.predict:.3g} s{gpu}\n{table}\n"
    )


def _verdict(enough: bool) -> str:
    return "enough" if enough else "NOT enough"


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
