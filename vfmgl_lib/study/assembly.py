"""What a study is assembled of: the samples that take part, data sets, the teacher and its cache, students, clients.

One place for a study in one process (`study.study`) and for a site that knows its own centre alone (`tools.flower.deployment`).
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import torch

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.config import ConfigError, StudySettings
from vfmgl_lib.config.sections import ComputeSettings, Division, FoldSettings, TeacherSettings
from vfmgl_lib.data.divisions import fold, resplit, subset, with_validation
from vfmgl_lib.data.feature_cache import GIB, FeatureCache
from vfmgl_lib.data.images import PLAIN, Reading
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.federation.client import Client
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.models.hub_files import CONFIG
from vfmgl_lib.models.student_checks import check_batch, check_student
from vfmgl_lib.models.students import Student, build_student
from vfmgl_lib.models.teacher_names import TeacherSource
from vfmgl_lib.models.teachers import Teacher, first_available, load_teacher

VALIDATION_SHARE = 0.2  # of the training patients, for a method that needs a validation set where the data have none
TEST_SEED = 0  # of the choice of test images: seeds that are compared are tested on the same ones


def taking_part(prepared: Manifest, settings: StudySettings) -> Manifest:
    """The samples of a prepared set that the settings choose, in the splits that they ask for.

    Training and validation images are drawn with the study's seed; the test images of one division are the same for every seed.
    """
    manifest, data = prepared, settings.data
    if data.split:
        manifest = _divided(manifest, data.split)
    if data.validation_share:
        manifest = with_validation(manifest, data.validation_share, settings.seed)
    manifest = as_studied(manifest, settings)
    if data.per_center:
        tested: dict[str, int] = {split: count for split, count in data.per_center.items() if split == "test"}
        learnt: dict[str, int] = {split: count for split, count in data.per_center.items() if split != "test"}
        manifest = subset(subset(manifest, learnt, settings.seed), tested, TEST_SEED)
    return manifest


def as_studied(manifest: Manifest, settings: StudySettings) -> Manifest:
    """The same read as the task's record says: how images become squares is the study's, not the prepared set's."""
    resize = settings.data.record.image_resize
    return manifest if manifest.reading.resize == resize else replace(manifest, reading=replace(manifest.reading, resize=resize))


def _divided(manifest: Manifest, division: Division) -> Manifest:
    if isinstance(division, FoldSettings):
        return fold(manifest, division.folds, division.fold, division.seed)
    return resplit(manifest, division.train, division.seed)


def with_needed_validation(manifest: Manifest, settings: StudySettings) -> Manifest:
    """The same with a validation set at every centre, for a method that cannot do without."""
    needed = METHODS[settings.method].needs_validation
    return with_validation(manifest, VALIDATION_SHARE, settings.seed) if needed else manifest


def center_datasets(settings: StudySettings, manifest: Manifest, center: str, teacher: Teacher | None) -> dict[str, ImageDataset]:
    """split -> data set of one centre; what the teacher sees also carries the teacher's own resize.

    It sees the training images, with HGKT the validation images too (R2 of the projections), and with a classifier on it every split.
    """
    sets, strategy = {}, METHODS[settings.method].switches
    seen = ("train", "val", "test") if strategy.embeds else ("train", "val") if strategy.transfer else ("train",)
    for split in ("train", "val", "test"):
        table = manifest.select(center, split)
        if len(table):
            teacher_size = teacher.image_size if teacher and split in seen else None
            sets[split] = ImageDataset(manifest, table, settings.data.image_size, teacher_size)
    return sets


def new_client(
    settings: StudySettings, center: str, sets: dict[str, ImageDataset], teacher: Teacher | None, cache: FeatureCache | None
) -> Client:
    """A centre's client in its initial state, on the sets of `center_datasets`.

    Raises: StudentError: a student that cannot be trained on these images by this method.
    """
    method, student = METHODS[settings.method], new_student(settings)
    _check_student(settings, student, center, sets)
    return method.client(
        center,
        settings,
        method.switches,
        student,
        teacher,
        sets["train"],
        torch.device(settings.device),
        cache,
        sets.get("val"),
    )


def _check_student(settings: StudySettings, student: Student, center: str, sets: dict[str, ImageDataset]) -> None:
    """What can be known before training: nothing is drawn, and of the paper's students nothing is computed but of a set of one image."""
    chosen, size, switches = settings.student, settings.data.image_size, METHODS[settings.method].switches
    if switches.embeds:
        return  # the student's place is taken by the teacher and a classifier on it
    check_student(chosen.name, chosen.width, size, twice=switches.transfer)
    batched = sets if settings.batch_norm == "batch" else ("train",)
    for split in batched:
        if len(sets[split]) == 1 and METHODS[settings.method].private:  # else all centres' images are batched together
            check_batch(student, chosen.name, 1, size, f"the {split} set of {center} has one image")


def new_student(settings: StudySettings) -> Student:
    """A student with the study's initial weights: the same for every centre and method of a seed."""
    with torch_seed(seed_sequence(settings.seed, "student")):
        return build_student(
            settings.student.name,
            settings.data.class_count,
            settings.student.width,
            settings.student.weights,
            batch_statistics=settings.batch_norm == "batch",
        )


def with_classes(settings: StudySettings, manifest: Manifest, where: str) -> StudySettings:
    """The settings with the data's classes where these are more than two (`data.classes`).

    Raises: ConfigError: the settings name other classes, or more than the two that the data have.
    """
    named, there = settings.data.classes, manifest.classes
    if named and named != there:
        raise ConfigError(
            f"{where}: has the classes {', '.join(there)}; task {settings.task} has {', '.join(named)} (data.classes), in this order"
        )
    if len(there) == settings.data.class_count:
        return settings
    return settings.model_copy(update={"data": settings.data.model_copy(update={"classes": there})})


def with_available_teacher(settings: StudySettings) -> StudySettings:
    """The settings with one teacher: where they name a second choice, the first that can be had (`models.teachers.first_available`)."""
    teacher = settings.teacher.model_copy(update={"source": first_available(settings.teacher.source)})
    return settings.model_copy(update={"teacher": teacher})


def study_teacher(settings: StudySettings) -> Teacher | None:
    """The frozen teacher on its device; None for a method without one. All studies of a process share one that they have in common."""
    if not METHODS[settings.method].switches.teacher:
        return None
    weights = Path(TeacherSource.parse(settings.teacher.source).weights)
    files = [file.stat() for file in (weights, weights.with_name(CONFIG)) if file.is_file()]
    return _loaded_teacher(settings.teacher, settings.compute, settings.device, tuple((file.st_mtime_ns, file.st_size) for file in files))


@functools.lru_cache(maxsize=2)  # with the random one of a control; loaded anew for every study they take a quarter of a second each
def _loaded_teacher(chosen: TeacherSettings, compute: ComputeSettings, device: str, written: tuple[tuple[int, int], ...]) -> Teacher:
    """Args: written: when the files were, and how large they are: others are read."""
    teacher = load_teacher(
        chosen.source, grid=chosen.grid, image_size=chosen.image_size, blocks=chosen.blocks, mean=chosen.mean, std=chosen.std
    )
    teacher.autocast = compute.autocast
    teacher = teacher.to(torch.device(device))
    return teacher.compiled() if compute.compile_teacher else teacher


def feature_cache(settings: StudySettings, teacher: Teacher | None, folder: Path | None, reading: Reading = PLAIN) -> FeatureCache | None:
    """The teacher's features on disk, below `folder`; None where there is no teacher or no cache is wanted. reading: of the images' set."""
    if teacher is None or folder is None or not settings.teacher.cache_gib:
        return None
    limit = int(settings.teacher.cache_gib * GIB)
    arithmetic = settings.compute.model_dump_json(include={"autocast", "compile_teacher"}) + (f" {reading}" if reading != PLAIN else "")
    return FeatureCache(folder, teacher.identity, teacher.stack_shapes, limit, torch.device(settings.device), arithmetic)
