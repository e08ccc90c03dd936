"""A trained model as files for use elsewhere: converted (`formats`), checked (`checks`), with its card and its reporting checklists."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from vfmgl_lib import __version__
from vfmgl_lib.base.files import new_folder, sha256, write_bytes, write_text
from vfmgl_lib.evaluation.complexity import count
from vfmgl_lib.evaluation.metric import ONE_CLASS
from vfmgl_lib.evaluation.prediction import chosen_cutoff, scoring_unit
from vfmgl_lib.evaluation.results import SHARED, results_table
from vfmgl_lib.federation.client import Client
from vfmgl_lib.interpretation.cam import against_others
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.models.batch_norm import batch_norms
from vfmgl_lib.models.students import Student
from vfmgl_lib.study.study import Study
from vfmgl_lib.tasks.prepare import phantoms_of
from vfmgl_lib.tools.export.checklist import checklist
from vfmgl_lib.tools.export.checks import (
    ExportError,
    calibration_images,
    compare_torchscript,
    compare_with_study,
    compare_with_torch,
    int8_cost,
    own_rows,
    refuse,
)
from vfmgl_lib.tools.export.formats import int8_model, onnx_model, torchscript_model
from vfmgl_lib.tools.export.model_card import doubts_of, model_card
from vfmgl_lib.tools.predict import FORMAT, FORMAT_OF_CLASSES, RUNNING, Description, Predictor, preprocessing_of

NO_PREDICTIONS = "no interval: the study kept no predictions of this round"


@dataclass(frozen=True)
class Exported:
    """What was written: the files by what they are ("onnx", "int8", "torchscript", "card", "checklist"), and the two tables."""

    folder: Path
    files: dict[str, Path]
    check: pd.DataFrame
    int8: pd.DataFrame


def export_model(
    study: Study,
    center: str,
    folder: Path | str,
    *,
    stage: str = "",
    round_number: int | None = None,
    int8: bool = False,
    torchscript: bool = False,
    overwrite: bool = False,
) -> Exported:
    """Exports one model of a study, checks it on real images, and writes its card.

    Args:
        center: whose model, or "shared".
        folder: new; it appears whole or not at all.
        stage: "I", "II" or "shared"; "": the model's last one.
        round_number: None: the study's last one.
        int8, torchscript: write these as well.
        overwrite: a folder that is there gives way once the new one is complete.
    Returns: what was written.
    Raises: ExportError: differences above `TOLERANCE`, values that are not finite, no test images, a folder that is not empty, a model
        that normalises each batch by itself.
        ValueError, CheckpointError: a model that the study does not have. ImageError: an image that cannot be read.
    """
    folder = Path(folder)
    if study.settings.batch_norm == "batch":
        raise ExportError(
            f"{study.folder.name}: batch_norm batch, so that a prediction depends on the images beside it in its batch; "
            "export a study with batch_norm recalibrated or running"
        )
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder}: is there already and not empty, expected a new folder")
    round_number = study.last_round if round_number is None else round_number
    stage = stage or _last_stage(study, center, round_number)
    student = study.student(center, stage, round_number)
    about = _describe(study, student, center, stage, round_number)
    name = f"{about.task}-{study.settings.method}-{center}"
    int8_table = pd.DataFrame()
    with new_folder(folder) as part:
        files = {"onnx": part / f"{name}.onnx"}
        write_bytes(files["onnx"], onnx_model(student, about))
        tables = [compare_with_torch(student, Predictor(files["onnx"]), study, center), compare_with_study(Predictor(files["onnx"]), study)]
        if torchscript:
            files["torchscript"] = part / f"{name}.pt"
            write_bytes(files["torchscript"], torchscript_model(student, about))
            tables.append(compare_torchscript(student, files["torchscript"], study, center))
        check = pd.concat(tables, ignore_index=True)
        refuse(check, files)
        if int8:
            files["int8"] = part / f"{name}.int8.onnx"
            write_bytes(files["int8"], int8_model(files["onnx"], calibration_images(study, center), about))
            int8_table = int8_cost(Predictor(files["onnx"]), Predictor(files["int8"]), study, center)
            write_text(part / "int8.csv", int8_table.to_csv(index=False))
        write_text(part / "check.csv", check.to_csv(index=False))
        sizes = [{"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)} for file in files.values()]
        counts = count(student, study.settings.data.image_size)
        files["card"] = part / f"{name}.md"
        results = _card_results(study, about)
        write_text(files["card"], model_card(study, about, pd.DataFrame(sizes), check, int8_table, counts, results))
        files["checklist"] = part / f"{name}.checklist.md"
        write_text(files["checklist"], checklist(name, study, about, results, doubts_of(about)))
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
    return Exported(folder, {kind: folder / file.name for kind, file in files.items()}, check, int8_table)


def _last_stage(study: Study, center: str, round_number: int) -> str:
    if center == "shared":
        return "shared"
    done = study.rounds[(study.rounds["round"] == round_number) & (study.rounds["center"] == center)]
    return str(done["stage"].iloc[-1]) if len(done) else "II"  # `Study.student` says what there is


def _describe(study: Study, student: Student, center: str, stage: str, round_number: int) -> Description:
    settings, manifest = study.settings, study.manifest
    unit = scoring_unit(manifest.table, settings.is_segmentation)
    cutoff, source = _cutoff(study, center, stage, round_number, unit)
    evidence: list[float] = []
    classifier = student.pooled_classifier
    if classifier is not None:
        classes = range(len(manifest.classes))
        evidence = torch.cat([against_others(classifier.weight, k) for k in ((1,) if len(classes) == 2 else classes)]).tolist()
    phantoms = is_phantom(study)
    return Description(
        format=FORMAT if len(manifest.classes) == 2 and not manifest.mask_values else FORMAT_OF_CLASSES,
        library=__version__,
        task=settings.task,
        kind=manifest.task_kind,
        classes=manifest.classes,
        image_size=settings.data.image_size,
        reads=settings.data.record.reads,
        preprocessing=preprocessing_of(manifest.reading, settings.data.record.series),
        unit=unit,
        cutoff=cutoff,
        cutoff_from=source,
        study={
            "key": study.folder.name,
            "method": settings.method,
            "seed": settings.seed,
            "split_id": settings.data.split_id,
            "round": round_number,
            "stage": stage,
            "model_center": center,
            "profile": settings.profile,
            "manifest_sha256": manifest.sha256,
        },
        teacher=study.teacher_description,
        data=f"{'PHANTOM images (synthetic)' if phantoms else 'images'} of the centres {', '.join(manifest.training_centers)}",
        precision="float32",
        evidence=tuple(evidence),
        batch_norm=_statistics(study, center) if batch_norms(student) else "the network has none",
        reading=manifest.reading,
        mask_values=manifest.mask_values,
        series=settings.data.record.series,
    )


def _statistics(study: Study, center: str) -> str:
    """Which statistics of batch normalisation a model carries, in words."""
    method = METHODS[study.settings.method]
    if study.settings.batch_norm == "running":
        if not method.private:
            return f"{RUNNING} on the images of all centres"
        # What overwrites the model at the end of a round brings the server's statistics, but where they stay at home (`Client.adopt`).
        overwritten = method.switches.adopts and method.switches.keeps != "batch_norm" and method.client.adopt is Client.adopt
        return f"mean over the centres of {RUNNING}" if center == SHARED or overwritten else RUNNING
    if center == SHARED and not method.private:
        return "re-estimated in one pass over the training images of all centres, without labels"
    if center == SHARED:
        return "mean over the centres of those that each re-estimated on its own training images, without labels"
    return f"re-estimated on the {len(study.manifest.select(center, 'train'))} training images of {center}, without labels"


def is_phantom(study: Study) -> bool:
    """Whether the study's images are the embedded phantoms, or were prepared from them."""
    return phantoms_of(study.manifest) is not None


def _cutoff(study: Study, center: str, stage: str, round_number: int, unit: str) -> tuple[float | None, str]:
    if study.settings.is_segmentation:
        several = len(study.manifest.classes) > 2
        return None, f"none: a pixel is {'of the most probable class' if several else 'foreground where its probability is above 0.5'}"
    if len(study.manifest.classes) > 2:
        return None, f"none: the class with the highest probability is named, per {unit}"
    own = {split: own_rows(study, center, stage, round_number, split) for split in ("val", "train")}
    if own["train"].empty:
        return None, f"none: the study has no predictions of this model ({center}, stage {stage}, round {round_number}) on its training set"
    cutoff = chosen_cutoff(own, unit)
    if np.isnan(cutoff.value):
        return None, f"none: {ONE_CLASS}"
    named = {"val": "validation", "train": "training"}[cutoff.split]
    people = own[cutoff.split]["patient"].nunique()
    return cutoff.value, f"Youden's index on the {len(own[cutoff.split])} {named} images of {center} ({people} patients), per {unit}"


def _card_results(study: Study, about: Description) -> pd.DataFrame:
    """This very model's rows on test sets: test_center, metric, value, low, high, interval, n, reason.

    With intervals, from the predictions that the study kept of this stage and round; of another round, its metrics without intervals.
    """
    made, table = about.study, study.predictions
    columns = ["test_center", "metric", "value", "low", "high", "interval", "n", "reason"]
    of_model = (table["model_center"] == made["model_center"]) & (table["stage"] == made["stage"]) & (table["round"] == made["round"])
    kept = table[of_model].assign(budget="rounds")
    if len(kept):
        results = results_table(kept, unit=about.unit)
        return results[(results["split"] == "test") & (results["test_center"] != "all") & (results["metric"] != "cutoff")][columns]
    rows = study.metrics[(study.metrics["model_center"] == made["model_center"]) & (study.metrics["split"] == "test")]
    rows = rows[(rows["round"] == made["round"]) & (rows["stage"] == made["stage"])]
    why = rows["reason"].where(rows["value"].isna(), NO_PREDICTIONS)  # of an interval, where there is a value
    return rows.assign(low=np.nan, high=np.nan, interval="", reason=why)[columns]
