"""Which model is measured on which samples after each round, as rows of the study's tables."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from vfmgl_lib.base.files import write_text
from vfmgl_lib.config import StudySettings
from vfmgl_lib.data.loading import ImageDataset, fixed_batches, load_batches
from vfmgl_lib.evaluation.classification import class_names
from vfmgl_lib.evaluation.metric import metrics_of
from vfmgl_lib.evaluation.prediction import chosen_cutoff, mean_embedding, predict
from vfmgl_lib.evaluation.results import ADAPTED, SHARED
from vfmgl_lib.federation.client import Client
from vfmgl_lib.methods.budgets import report_rounds
from vfmgl_lib.models.batch_norm import recalibrate
from vfmgl_lib.models.students import Student


@dataclass
class RoundTables:
    """A round's part of every table of the study."""

    tables: dict[str, list[dict]]
    predictions: list[pd.DataFrame]

    def write(self, folder: Path) -> None:
        """The part of each table as CSV; a table without rows has no file."""
        frames = {name: pd.DataFrame(rows) for name, rows in self.tables.items() if rows}
        if self.predictions:
            frames["predictions"] = pd.concat(self.predictions, ignore_index=True)
        for name, frame in frames.items():
            write_text(folder / f"{name}.csv", frame.to_csv(index=False))


def measured_rounds(settings: StudySettings, last: int) -> set[int]:
    """The rounds from 0 to `last` after which each local model is measured on its own centre's sets."""
    always = {0, 1, *report_rounds(settings).values()}
    return {number for number in range(last + 1) if number in always or number % settings.evaluate_every == 0}


class RoundEvaluation:
    """Which model is measured on which samples after each round; the test sets only report, nothing is chosen on them.

    After every round (or every so many, `settings.evaluate_every`) each local model on its own centre's sets; before the first the
    untrained student; after a round at which the method is reported also every local model (stage I and II) on every centre's test set,
    those of external centres included, the shared model where there is one, and its mean features. Rows of predictions are kept for rounds
    0, 1 and those reported.

    Statistics of batch normalisation, where they are re-estimated (`settings.batch_norm`): a centre's own model carries its own centre's
    wherever it is tested, the untrained student those of the centre where it is. The shared model is measured twice: "shared" with averaged
    statistics, all that an external centre can get, and "adapted" with those of the training centre on whose test set it is.

    Args:
        settings: the study's.
        datasets: centre -> split -> data set.
        unit: "image" or "patient" (`prediction.scoring_unit`).
    """

    def __init__(self, settings: StudySettings, datasets: dict[str, dict[str, ImageDataset]], unit: str, device: torch.device):
        self.settings, self.datasets, self.unit, self.device = settings, datasets, unit, device
        self.reported = set(report_rounds(settings).values())
        self.split_id = settings.data.split_id

    def untrained(self, student: Student) -> RoundTables:
        """Round 0: the common initial student at every centre."""
        tables = RoundTables({"metrics": []}, [])
        for center, sets in self.datasets.items():
            if "train" in sets:
                self._own(tables, self._adapted(student, center), center, 0, "untrained", None)
        return tables

    def round(self, number: int, clients: list[Client], shared: Student | None, folder: Path) -> RoundTables:
        """Everything measured after a round; predicted masks go to `folder`/masks."""
        tables = RoundTables({"metrics": [], "rounds": [], "steps": [], "stages": [], "mean_features": []}, [])
        masks = folder / "masks" if self.settings.is_segmentation and number in (1, *self.reported) else None
        for client in sorted(clients, key=lambda client: client.center):
            for name in ("rounds", "steps", "stages"):
                tables.tables[name] += getattr(client.log, name)
            if number not in measured_rounds(self.settings, number):
                continue
            stage = client.last_stage
            cutoff = self._own(tables, client.student, client.center, number, stage, masks)
            if number not in self.reported:
                continue
            self._others(tables, client.student, client.center, number, stage, cutoff)
            if stage == "II":
                before = copy.deepcopy(client.student)
                before.load_state_dict(client.stage_one_state)
                cutoff = self._own(tables, before, client.center, number, "I", None)
                self._others(tables, before, client.center, number, "I", cutoff)
        if shared is not None and number in self.reported:
            self._others(tables, shared, SHARED, number, SHARED, None)
            if self.settings.batch_norm == "recalibrated":
                for center in (center for center, sets in self.datasets.items() if "train" in sets):
                    predictions = self._predict(self._adapted(shared, center), self.datasets[center]["test"], None)
                    self._add(tables, predictions, None, ADAPTED, number, ADAPTED)
            self._mean_features(tables, shared, number)
        return tables

    def _adapted(self, student: Student, center: str) -> Student:
        """The model with a training centre's statistics of batch normalisation; itself where they are not re-estimated."""
        if self.settings.batch_norm != "recalibrated":
            return student
        model, data = copy.deepcopy(student), self.datasets[center]["train"]
        recalibrate(model, (batch["image"].to(self.device) for batch in load_batches(data, fixed_batches(len(data)))))
        return model

    def _own(self, tables: RoundTables, student: Student, center: str, number: int, stage: str, masks: Path | None) -> float:
        """A model on its own centre's train, validation and test sets; returns its cutoff (`prediction.chosen_cutoff`)."""
        own = {split: self._predict(student, data, masks if split == "test" else None) for split, data in self.datasets[center].items()}
        cutoff = chosen_cutoff(own, self.unit).value
        for predictions in own.values():
            self._add(tables, predictions, cutoff, center, number, stage)
        return cutoff

    def _others(self, tables: RoundTables, student: Student, model_center: str, number: int, stage: str, cutoff: float | None) -> None:
        for center, sets in self.datasets.items():
            if center != model_center:
                self._add(tables, self._predict(student, sets["test"], None), cutoff, model_center, number, stage)

    def _mean_features(self, tables: RoundTables, shared: Student, number: int) -> None:
        """Of every training centre's training set and every external centre's test set, for the similarity score; no label is read."""
        for center, sets in self.datasets.items():
            split = "train" if "train" in sets else "test"
            mean = mean_embedding(shared, sets[split], batch_size=self._batch_size, device=self.device)
            about = {"round": number, "model": "shared", "center": center, "split": split, "n": len(sets[split])}
            tables.tables["mean_features"].append(about | {f"f{index}": value for index, value in enumerate(mean.tolist())})

    @property
    def _batch_size(self) -> int:
        return self.settings.evaluation_batch_size

    def _predict(self, student: Student, data: ImageDataset, masks: Path | None) -> pd.DataFrame:
        return with_order(predict(student, data, batch_size=self._batch_size, device=self.device, masks=masks), self.settings)

    def _add(
        self, tables: RoundTables, predictions: pd.DataFrame, cutoff: float | None, model_center: str, number: int, stage: str
    ) -> None:
        tables.tables["metrics"] += metric_rows(predictions, self.unit, cutoff, model_center=model_center, round=number, stage=stage)
        if number in (0, 1, *self.reported):
            about = {"method": self.settings.method, "seed": self.settings.seed, "split_id": self.split_id}
            about |= {"round": number, "stage": stage, "model_center": model_center}
            tables.predictions.append(pd.DataFrame([about] * len(predictions)).join(predictions))


def with_order(predictions: pd.DataFrame, settings: StudySettings) -> pd.DataFrame:
    """Predictions of more than two classes that have an order (`TaskRecord.ordinal`) with a column `ordinal` of 1; others as they came."""
    ordinal = class_names(predictions) and settings.data.record.ordinal
    return predictions.assign(ordinal=1) if ordinal else predictions


def metric_rows(predictions: pd.DataFrame, unit: str, cutoff: float | None, *, model_center: str, round: int, stage: str) -> list[dict]:
    place = predictions.iloc[0][["test_center", "split"]].to_dict()
    about = {"round": round, "stage": stage, "model_center": model_center, **place, "unit": unit}
    metrics = metrics_of(predictions, unit, cutoff)
    return [{**about, "metric": m.name, "value": m.value, "n": m.n, "reason": m.reason} for m in metrics]
