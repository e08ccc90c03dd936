"""Stage II of a round at a centre: what the shared model is worth there, which batches it teaches on, and the distillation.

Which batches are kept is decided by the method and `deduction.rule`:

    kappa       batch by batch, as DDBL has it (`vfmgl_lib.method.ddbl`)
    quantile    before the stage, from the KL of all its batches at the student that stage I left
    all         a method that only distils keeps every batch
    permuted    a control: the stage is run as DDBL, taken back, and run again with DDBL's own decisions in a random order; where that order
                changes nothing, as where no batch or every batch was dropped, the stage is DDBL's own and the log has `permuted` 0.
                `seconds` are without the run that was taken back
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import torch

from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.federation.servers import State
from vfmgl_lib.kernels.overlap import foreground_dice
from vfmgl_lib.method.ddbl import DeductionRecord, deduction_step, lowest_share, untouched_divergence
from vfmgl_lib.models.students import Student, set_training_mode

if TYPE_CHECKING:
    from vfmgl_lib.federation.client import Client

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worth:
    """What a model is worth on a centre's unaugmented training images.

    Attributes:
        task_loss: mean over the samples, in the batches of `Client.unaugmented`.
        score: mean foreground Dice of the images, or the AUC (of more than two classes the mean of those of each against the others), in
            [0, 1]; NaN where the centre lacks a class or a probability is not finite.
    """

    task_loss: float
    score: float

    def better_than(self, other: Worth) -> bool:
        """By the score; where it is not defined, by the task loss."""
        if math.isnan(self.score) or math.isnan(other.score):
            return self.task_loss < other.task_loss
        return self.score > other.score


@torch.no_grad()
def worth(model: Student, client: Client) -> Worth:
    """Measures a model at a centre; the model is put into eval mode."""
    model.eval()
    losses, scores, targets = [], [], []
    for images, target, _ in client.unaugmented():
        logits = model(images)
        losses.append(client.task_loss(logits, target) * len(target))
        scores.append(foreground_dice(logits.argmax(1), target, logits.shape[1]) if logits.dim() == 4 else _chances(logits))
        targets.append(target)
    score, truth = torch.cat(scores).double().cpu().numpy(), torch.cat(targets).cpu().numpy()
    if truth.ndim == 1:
        value = _auc(truth, score)
    else:
        value = score.mean()
    return Worth(float(sum(losses)) / len(client.data), float(value))


def _chances(logits: torch.Tensor) -> torch.Tensor:
    """(B,) of class 1, or (B, K) of K > 2 classes."""
    chances = logits.softmax(1)
    return chances[:, 1] if chances.shape[1] == 2 else chances


def _auc(truth: np.ndarray, score: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    classes = 2 if score.ndim == 1 else score.shape[1]
    if len(np.unique(truth)) < classes or not np.isfinite(score).all():
        return math.nan
    return float(roc_auc_score(truth, score if classes == 2 else score / score.sum(1, keepdims=True), multi_class="ovr"))


def run_stage_two(
    client: Client,
    round_number: int,
    received: State,
    local_task_loss: float,
    frozen: tuple[str, ...],
    progress: Callable[[int], object],
) -> float:
    """Distillation from the shared model on the batches that the method keeps; logs the stage and returns their share.

    Args:
        received: the shared model.
        local_task_loss: l_task, mean task loss of the round's stage I.
        frozen: the critical stages.
        progress: told the number of batches done.
    """
    started, settings, deduction = time.perf_counter(), client.settings.deduction, client.switches.deduction
    shared = client.teaching_copy(received)
    about = _teacher_worth(client, shared, round_number)
    threshold, before = settings.keep_ratio * local_task_loss, list[float]()
    decisions: Iterable[bool | None] = repeat(None if deduction else True)
    set_training_mode(client.student, frozen)
    if deduction and settings.rule == "quantile":
        before = list(_divergences(client, shared, round_number))
        threshold, decisions = lowest_share(before, settings.quantile)
    snapshot = copy.deepcopy((client.student.state_dict(), client.optimizer.state_dict())) if client.switches.permuted else None
    began, taken_back = time.perf_counter(), 0.0
    records = _distil(client, shared, round_number, threshold, decisions, progress)
    if snapshot:
        own = [record.kept for record in records]
        drawn = _permuted(own, client, round_number)
        about["permuted"] = int(drawn != own)
        if drawn != own:
            client.student.load_state_dict(snapshot[0])
            client.optimizer.load_state_dict(snapshot[1])
            taken_back = time.perf_counter() - began
            records = _distil(client, shared, round_number, threshold, drawn, lambda batches: None)
    set_training_mode(client.student)
    return _log(client, round_number, records, before, about | {"seconds": time.perf_counter() - started - taken_back})


def _teacher_worth(client: Client, shared: Student, round_number: int) -> dict[str, float]:
    """Columns of `rounds`: what the shared model and the untrained student are worth; warns where the former is no better."""
    untrained, taught = client.untrained_worth(), worth(shared, client)
    if not taught.better_than(untrained):
        log.warning(
            "round %d, centre %s: the shared model that teaches is no better than the untrained student: "
            "score %.3g against %.3g, task loss %.3g against %.3g",
            *(round_number, client.center, taught.score, untrained.score, taught.task_loss, untrained.task_loss),
        )
    return {
        "shared_task_loss": taught.task_loss,
        "shared_score": taught.score,
        "untrained_task_loss": untrained.task_loss,
        "untrained_score": untrained.score,
    }


def _distil(
    client: Client,
    shared: Student,
    round_number: int,
    threshold: float,
    decisions: Iterable[bool | None],
    progress: Callable[[int], object],
) -> list[DeductionRecord]:
    """All batches of the stage, in their order."""
    every, records = client.settings.deduction.gradient_every, []
    for step, ((images, target), decision) in enumerate(zip(client.stage_two_batches(round_number), decisions, strict=False)):
        records.append(
            deduction_step(
                client.student,
                shared,
                images,
                target,
                optimizer=client.optimizer,
                task_loss=client.task_loss,
                threshold=threshold,
                settings=client.settings.deduction,
                decision=decision,
                task_only=client.switches.task_only,
                with_ratio=every > 0 and step % every == 0,
                autocast=client.settings.compute.autocast,
            )
        )
        _check_finite(records[-1].divergence, client, round_number, step)
        progress(1)
    return records


def _divergences(client: Client, shared: Student, round_number: int) -> Iterator[float]:
    """The KL of every batch of the stage at the student as it is."""
    for step, (images, _) in enumerate(client.stage_two_batches(round_number)):
        found = untouched_divergence(client.student, shared, images, client.settings.deduction, client.settings.compute.autocast)
        _check_finite(found, client, round_number, step)
        yield found


def _check_finite(divergence: float, client: Client, round_number: int, step: int) -> None:
    """A KL that is not a number is under no threshold: its batch would be dropped without a word.

    Raises: FloatingPointError: naming centre, round and step.
    """
    if not math.isfinite(divergence):
        raise FloatingPointError(
            f"centre {client.center}, round {round_number}: the KL from the shared model is {divergence} at step {step} of stage II; "
            f"training diverged, lower optimizer.lr (now {client.settings.optimizer.lr})"
        )


def _permuted(kept: list[bool], client: Client, round_number: int) -> list[bool]:
    """The decisions in a random order, drawn from centre and round alone."""
    generator = np.random.default_rng(seed_sequence(client.settings.seed, client.center, "permutation", round_number))
    return [kept[place] for place in generator.permutation(len(kept))]


def _log(client: Client, round_number: int, records: list[DeductionRecord], before: list[float], about: dict) -> float:
    """Writes the stage's rows of `steps` and `rounds`; returns the share of batches kept."""
    common = {"round": round_number, "center": client.center, "stage": "II"}
    for step, record in enumerate(records):
        row = {**common, "step": step, **vars(record), "kept": int(record.kept)}
        client.log.steps.append(row | ({"divergence_before": before[step]} if before else {}))
    means = {name: sum(getattr(r, name) for r in records) / len(records) for name in ("task_loss", "divergence", "kept")}
    counts = {"samples": len(client.data), "batches": len(records)}
    means["kept_share"] = means.pop("kept")
    client.log.rounds.append(common | counts | means | about)
    return means["kept_share"]
