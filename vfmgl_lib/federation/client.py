"""A client owns one centre: its loaders, student, projections, meta-networks, optimisers and random numbers.

Only `Update` leaves it: the student's parameters and BN statistics, the number of samples, the declared metrics and aggregates.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.config import StudySettings
from vfmgl_lib.data.feature_cache import FeatureCache, teacher_stacks
from vfmgl_lib.data.loading import ImageDataset, draw_orientations, epoch_batches, fixed_batches, load_batches
from vfmgl_lib.data.manifest import division_units
from vfmgl_lib.federation.exchange import outgoing
from vfmgl_lib.federation.servers import State, Switches, Update
from vfmgl_lib.federation.stage_two import Worth, run_stage_two, worth
from vfmgl_lib.kernels.overlap import soft_dice_loss
from vfmgl_lib.kernels.twice_differentiable import overruns
from vfmgl_lib.method.hgkt import HGKT, StepRecord, TaskLoss, channel_scale, critical_stages
from vfmgl_lib.method.projections import held_out_rows
from vfmgl_lib.models.batch_norm import recalibrate
from vfmgl_lib.models.students import Student, part_names, set_training_mode
from vfmgl_lib.models.teachers import Teacher

R2_IMAGES = 64  # R2 is measured on at most so many images, evenly spaced in their table
TASK_LOSSES: dict[str, TaskLoss] = {"cross_entropy": F.cross_entropy, "dice": soft_dice_loss}


def training_batches(settings: StudySettings, center: str, samples: int, round_number: int, stage: str, epoch: int = 0) -> list[list[int]]:
    """The rows of every batch of one epoch of stage "I" or "II" at a centre; they depend on these arguments alone."""
    order = seed_sequence(settings.seed, center, "order", stage, round_number, epoch)
    return epoch_batches(samples, settings.optimizer.batch_size, order)


@dataclass
class RoundLog:
    """What a round measured at its centre; stays there. Rows of the study's tables (see `vfmgl_lib.study.study`)."""

    rounds: list[dict] = field(default_factory=list)
    steps: list[dict] = field(default_factory=list)
    stages: list[dict] = field(default_factory=list)


class Client:
    """One centre of a study; a method that does something else inside a centre overrides one of the parts below.

    Args:
        center: its name.
        settings: the study's.
        switches: what the study's method does (`methods.record.Method`).
        student: its local model, moved in place; all centres start from equal weights.
        teacher: the frozen teacher, or None for a method without one.
        data: the centre's training set.
        device: where it trains.
        cache: of the teacher's features; changes no number.
        validation: the centre's validation set, for a method that takes decisions on it.
    """

    def __init__(
        self,
        center: str,
        settings: StudySettings,
        switches: Switches,
        student: Student,
        teacher: Teacher | None,
        data: ImageDataset,
        device: torch.device,
        cache: FeatureCache | None = None,
        validation: ImageDataset | None = None,
    ):
        self.center, self.settings, self.data, self.device, self.cache = center, settings, data, device, cache
        self.validation = validation
        self.switches = switches
        if self.switches.teacher and teacher is None:
            raise ValueError(f"method {settings.method} learns from a frozen teacher; none was given")
        self.teacher = teacher
        self.student = self.local_model(student).to(device)
        self.memory_format = _memory_format(settings.compute.channels_last, self.student, device)
        self.student = self.student.to(memory_format=self.memory_format)
        self.kept = part_names(self.student, self.switches.keeps)  # of its state: never sent, never overwritten
        self.task_loss = TASK_LOSSES[settings.loss]
        self.hgkt: HGKT | None = None
        if self.switches.transfer and teacher is not None:
            with torch_seed(seed_sequence(settings.seed, center, "transfer")):
                self.hgkt = HGKT(self.student, teacher.stack_shapes, settings.transfer, settings.optimizer.lr, self.task_loss)
        self.optimizer = self._task_optimizer()
        own = self.student.state_dict()
        needed = settings.exchange.clip or self.switches.distillation
        self.initial_state: State = {name: tensor.detach().cpu().clone() for name, tensor in own.items()} if needed else {}
        self._untrained: Worth | None = None
        self.stage_one_state: State = {}
        self.last_stage = "I"
        self.log = RoundLog()

    def batches(self, round_number: int, stage: str, epoch: int = 0) -> list[list[int]]:
        """The rows of every batch of one epoch of stage "I" or "II", the same whenever it is asked for."""
        return training_batches(self.settings, self.center, len(self.data), round_number, stage, epoch)

    def run_round(self, round_number: int, received: State | None, progress: Callable[[int], object] = lambda batches: None) -> Update:
        """Stage I and, from the second round on and where the method has it, stage II; returns what leaves the centre.

        Args:
            round_number: from 1.
            received: the server's message: the shared model of the round before (a ring: another centre's model), or nothing.
            progress: told the number of batches done.
        Raises: FloatingPointError: if the task loss is not finite; names centre, round, step and what to lower.
        """
        self.log, self.last_stage = RoundLog(), "I"
        self.begin_round(round_number, received)
        task_loss, frozen = self._stage_one(round_number, progress)
        self.recalibrate(self.student)
        self.stage_one_state = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        kept_share = float("nan")
        if self.switches.distillation and received is not None and round_number > 1:
            kept_share = run_stage_two(self, round_number, received, task_loss, frozen, progress)
            self.recalibrate(self.student)
            self.last_stage = "II"
        self.end_round(round_number)
        state, aggregates = self.sent_state()
        update = Update(self.center, state, len(self.data), {"task_loss": task_loss, "kept_share": kept_share}, aggregates)
        return outgoing(update, self.initial_state if received is None else received, received, self.settings.exchange)

    def local_model(self, student: Student) -> Student:
        """The model that this method trains, made of the student that all methods start from."""
        return student

    def begin_round(self, round_number: int, received: State | None) -> None:
        """What a method does with the server's message before it trains: the shared model is adopted, or only teaches later.

        With `federation.local_start` stage I of a method with stage II starts from the shared model, or from the mean of it and the own one
        (BN statistics like the parameters); the optimisers' momenta stay as they are.
        """
        if received is None:
            return
        start = self.settings.federation.local_start if self.switches.distillation else "own"
        # Training normalises by the batch and reads no BN statistics. Those received stand where the running averages of this round start
        # (`batch_norm: running`); re-estimated ones replace them after stage I.
        if self.switches.adopts or start == "shared":
            self.overwrite(received)
        elif start == "mix":
            own = self.student.state_dict()
            mean = {name: (own[name].double() + tensor.to(self.device).double()) / 2 for name, tensor in received.items()}
            self.overwrite(mean)

    def training_loss(self, images: Tensor, target: Tensor, batch: dict) -> tuple[Tensor, Tensor]:
        """The task loss, which is logged, and the loss whose gradient is followed."""
        task = self.task_loss(self.student(images), target)
        return task, task

    def task_step(self, images: Tensor, target: Tensor, batch: dict) -> Tensor:
        """One update of the task optimiser on a batch; returns the task loss before it, detached."""
        self.optimizer.zero_grad(set_to_none=True)
        task, loss = self.training_loss(images, target, batch)
        loss.backward()
        self.optimizer.step()
        return task.detach()

    def end_round(self, round_number: int) -> None:
        """What a method decides after it has trained."""

    def sent_state(self) -> tuple[State, State]:
        """Copies of the model that leaves the centre and of the declared aggregates beside it, on the CPU."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.student.state_dict().items() if name not in self.kept}
        return (state if self.switches.sends else {}), {}

    def adopt(self, state: State) -> None:
        """The shared model overwrites the local one and becomes the centre's own, with the centre's statistics of batch normalisation.

        The task optimiser keeps its momenta, as in HarmoFL's official code. One that starts anew every round holds the averaging methods
        back where a round has few batches; VFMGL's students, which nothing overwrites, keep theirs.
        """
        self.overwrite(state)
        self.recalibrate(self.student)

    def overwrite(self, state: State) -> None:
        """Puts what the server sent in its place: here into the local model."""
        self.student.load_state_dict(self.completed(state))

    def completed(self, state: State) -> State:
        """A received state with what stays at the centre, where the method keeps a part of the model at home."""
        return state | {name: tensor for name, tensor in self.student.state_dict().items() if name in self.kept}

    def recalibrate(self, model: Student) -> None:
        """Re-estimates a model's statistics of batch normalisation on this centre's training images (`models.batch_norm`), in place.

        Only where the setting `batch_norm` says so. A model of this centre carries its own centre's statistics wherever it is tested.
        """
        if self.settings.batch_norm == "recalibrated":
            recalibrate(model, (images for images, _, _ in self.unaugmented()))

    def unaugmented(self, data: ImageDataset | None = None, rows: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor, dict]]:
        """Images (B, 3, S, S) and target on the device, and the batch as loaded, of the training set in its own order, as it is.

        Args:
            data: another set of the centre.  rows: these alone; None: all.
        """
        data = data or self.data
        chosen = range(len(data)) if rows is None else rows
        members = [[chosen[place] for place in batch] for batch in fixed_batches(len(chosen))]
        yield from self._on_device(members, None, data)

    def batch_count(self, round_number: int) -> int:
        """Batches that `run_round` will go through, for progress bars."""
        epochs = self.settings.federation.epochs * (1 + (self.switches.distillation and round_number > 1))
        return epochs * len(self.batches(round_number, "I"))

    def state_dict(self) -> State:
        """Everything the next round depends on but the student itself: HGKT's parts and the task optimiser's state, flat."""
        state = {f"hgkt.{name}": tensor for name, tensor in self.hgkt.state_dict().items()} if self.hgkt else {}
        return state | optimizer_state(self.optimizer, "optimizer")

    def load_state_dict(self, state: State, student: State, stage_one: State) -> None:
        """Takes back what `state_dict` gave, with the student after the round and after its stage I."""
        self.student.load_state_dict(student)
        self.stage_one_state = dict(stage_one)
        if self.hgkt:
            self.hgkt.load_state_dict({name.removeprefix("hgkt."): t for name, t in state.items() if name.startswith("hgkt.")})
        self.optimizer = self._task_optimizer()
        load_optimizer_state(self.optimizer, state, "optimizer")

    def teacher_features(self, batch: dict, data: ImageDataset | None = None) -> list[Tensor]:
        """The frozen teacher's stacks of a batch as loaded, of the training set or another of the centre's."""
        hashes = (data or self.data).table["sha256"].iloc[batch["row"].tolist()].tolist()
        seen = batch["teacher_image"].to(self.device, non_blocking=True)
        assert self.teacher is not None
        return teacher_stacks(self.teacher, seen, hashes, self.cache, batch["orientation"].tolist())

    def frozen_copy(self, state: State) -> Student:
        """A received model as a frozen network in eval mode, with the statistics of batch normalisation that it came with."""
        model = copy.deepcopy(self.student)
        model.load_state_dict(self.completed(state))
        return model.eval().requires_grad_(False)

    def teaching_copy(self, state: State) -> Student:
        """A received model as the frozen network that teaches at this centre: with this centre's statistics."""
        model = self.frozen_copy(state)
        self.recalibrate(model)
        return model

    def untrained_worth(self) -> Worth:
        """What the common initial student is worth on the centre's training images; measured once."""
        if self._untrained is None:
            self._untrained = worth(self.teaching_copy(self.initial_state), self)
        return self._untrained

    def _task_optimizer(self, model: Student | None = None) -> torch.optim.Optimizer:
        """The task optimiser, new, of a model; None: of the student."""
        task = self.settings.optimizer
        arguments: dict[str, Any] = {"lr": task.lr, "weight_decay": task.weight_decay}
        parameters = list((model or self.student).parameters())
        if task.name == "sgd":
            return torch.optim.SGD(parameters, momentum=task.momentum, **arguments)
        return torch.optim.Adam(parameters, betas=(task.momentum, 0.999), **arguments)

    def _stage_one(self, round_number: int, progress: Callable[[int], object]) -> tuple[float, tuple[str, ...]]:
        """HGKT and local training; returns l_task and the critical stages."""
        started, task_losses, records = time.perf_counter(), [], []
        weight_sum: Tensor | float = 0.0
        set_training_mode(self.student)
        if self.hgkt:
            self._prepare_transfer(self.hgkt, round_number)
        for step, (images, target, batch, held_out) in enumerate(self._stage_one_batches(round_number)):
            if self.hgkt:
                meta_step = step % self.settings.transfer.hypergradient_every == 0
                record = self.hgkt.step(images, target, self.teacher_features(batch), held_out, meta_step)
                weight_sum = weight_sum + record.pair_weights.sum(0)
                records.append(record)
            task_losses.append(self.task_step(images, target, batch))
            progress(1)
        losses = torch.stack(task_losses).tolist()
        mean_loss = sum(losses) / len(losses)
        if not math.isfinite(mean_loss):
            step = next(index for index, loss in enumerate(losses) if not math.isfinite(loss))
            raise FloatingPointError(
                f"centre {self.center}, round {round_number}: the task loss is {losses[step]} at step {step}; "
                f"training diverged, lower optimizer.lr (now {self.settings.optimizer.lr}) or transfer.beta"
            )
        fit = self._measured_fit(self.hgkt) if self.hgkt else (None, "")
        self._log_stage_one(round_number, losses, records, time.perf_counter() - started)
        if self.hgkt is None or isinstance(weight_sum, float):
            return mean_loss, ()
        mean_weights = weight_sum / (len(self.data) * self.settings.federation.epochs)
        return mean_loss, self._log_pair_weights(round_number, mean_weights, *fit)

    def _prepare_transfer(self, hgkt: HGKT, round_number: int) -> None:
        """What HGKT takes from the centre's training images before a round: the teacher's scale, once, and fitted projections."""
        transfer = self.settings.transfer
        hgkt.set_meta_rate(round_number, self.settings.federation.rounds)
        if transfer.teacher_scale == "channel" and not hgkt.scale:
            hgkt.scale = channel_scale(self.teacher_features(batch) for _, _, batch in self.unaugmented())
        if transfer.projection == "ridge":
            spared = set() if self.validation else set(held_out_rows(division_units(self.data.table)))
            hgkt.fit_projections(self._with_features(self.data, [row for row in range(len(self.data)) if row not in spared]))

    def _measured_fit(self, hgkt: HGKT) -> tuple[Tensor | None, str]:
        """R2 of every pair (M, N) after stage I, and the images it was measured on: "validation", else "held-out training" images where
        projections are fitted, else "training" images, which projections by SGD have seen. None with fewer than two of them.
        """
        data, rows, name = self.data, list(range(len(self.data))), "training"
        if self.validation:
            data, rows, name = self.validation, list(range(len(self.validation))), "validation"
        elif self.settings.transfer.projection == "ridge":
            rows, name = held_out_rows(division_units(self.data.table)), "held-out training"
        if len(rows) < 2:
            return None, ""
        return hgkt.r_squared(self._with_features(data, rows[:: math.ceil(len(rows) / R2_IMAGES)])), name

    def _with_features(self, data: ImageDataset, rows: list[int]) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Images and the teacher's features of these rows, unaugmented, in batches that are always the same."""
        return ((images, self.teacher_features(batch, data)) for images, _, batch in self.unaugmented(data, rows))

    def stage_two_batches(self, round_number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and target of every batch of stage II, the same in the same order whenever they are asked for."""
        for epoch in range(self.settings.federation.epochs):
            yield from ((images, target) for images, target, _ in self._load(round_number, "II", epoch))

    def _stage_one_batches(self, round_number: int) -> Iterator[tuple[Tensor, Tensor, dict, tuple[Tensor, Tensor] | None]]:
        """Images, target, batch and, with `outer_batch: next`, images and target of the batch after it (after the last: the first)."""
        for epoch in range(self.settings.federation.epochs):
            current = self._load(round_number, "I", epoch)
            if self.hgkt and self.settings.transfer.outer_batch == "next":
                following = self._load(round_number, "I", epoch, shift=1)
                yield from ((*one, held_out[:2]) for one, held_out in zip(current, following, strict=True))
            else:
                yield from ((*one, None) for one in current)

    def _load(self, round_number: int, stage: str, epoch: int, shift: int = 0) -> Iterator[tuple[Tensor, Tensor, dict]]:
        """images (B, 3, S, S) and target on the device, and the batch as loaded, of one epoch, beginning with batch `shift`."""
        members, orientations = self.batches(round_number, stage, epoch), None
        members = members[shift:] + members[:shift]
        if self.settings.data.augmentation == "turns_and_flips":
            seed = seed_sequence(self.settings.seed, self.center, "orientation", stage, round_number, epoch)
            orientations = draw_orientations(len(self.data), seed)
        yield from self._on_device(members, orientations, self.data)

    def _on_device(
        self, members: list[list[int]], orientations: list[int] | None, data: ImageDataset
    ) -> Iterator[tuple[Tensor, Tensor, dict]]:
        pinned, workers = self.device.type == "cuda", self.settings.data.workers
        for batch in load_batches(data, members, workers, pinned, orientations):
            images, target = (batch[name].to(self.device, non_blocking=True) for name in ("image", "target"))
            yield images.contiguous(memory_format=self.memory_format), target, batch

    def _log_stage_one(self, round_number: int, losses: list[float], records: list[StepRecord], seconds: float) -> None:
        common = {"round": round_number, "center": self.center, "stage": "I"}
        names = ("match_loss", "outer_loss", "hypergradient_norm")
        columns = {name: torch.stack([getattr(r, name) for r in records]).tolist() for name in names} if records else {}
        for step, loss in enumerate(losses):
            self.log.steps.append({**common, "step": step, "task_loss": loss, **{name: values[step] for name, values in columns.items()}})
        every = {"match_loss": 1, "outer_loss": self.settings.transfer.hypergradient_every}
        measured = {name: columns[name][::n] for name, n in every.items() if columns}
        means = {name: sum(values) / len(values) for name, values in measured.items()}
        counts = {"samples": len(self.data), "batches": len(losses)}
        self.log.rounds.append({**common, **counts, "task_loss": sum(losses) / len(losses), **means, "seconds": seconds})

    def _log_pair_weights(self, round_number: int, mean_weights: Tensor, fit: Tensor | None, fit_images: str) -> tuple[str, ...]:
        """Logs the mean lambda and R2 per pair, (M, N), and each stage's score; returns the critical stages."""
        if self.teacher is None:
            return ()
        stages = list(self.student.stage_channels)
        scores = dict(zip(stages, mean_weights.mean(0).tolist(), strict=True))
        frozen = critical_stages(scores, self.settings.transfer.critical_stages)
        fits = torch.full_like(mean_weights, torch.nan) if fit is None else fit
        for block, row, fit_row in zip(self.teacher.block_names, mean_weights.tolist(), fits.tolist(), strict=True):
            for stage, weight, r2 in zip(stages, row, fit_row, strict=True):
                self.log.stages.append(
                    {
                        "round": round_number,
                        "center": self.center,
                        "teacher_block": block,
                        "student_stage": stage,
                        "pair_weight": weight,
                        "stage_score": scores[stage],
                        "critical": int(stage in frozen),
                        "r2": r2,
                        "r2_images": fit_images,
                    }
                )
        return frozen


def _memory_format(channels_last: str, student: Student, device: torch.device) -> torch.memory_format:
    """That of a student's convolutions, as `compute.channels_last` says and the device can."""
    if device.type == "cuda":
        return torch.contiguous_format if channels_last == "never" else torch.channels_last
    kernels = [module for module in student.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    safe = not any(overruns(module.weight, module.stride) for module in kernels)
    return torch.channels_last if channels_last == "always" and safe else torch.contiguous_format


def optimizer_state(optimizer: torch.optim.Optimizer, name: str) -> State:
    """An optimiser's state, flat: "name.index.entry" -> tensor."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}.{i}.{key}": torch.as_tensor(value) for i, entries in state.items() for key, value in entries.items() if value is not None
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State, name: str) -> None:
    """Puts what `optimizer_state` gave under this name, among others, into a new optimiser."""
    content = optimizer.state_dict()
    for key, tensor in state.items():
        if key.startswith(f"{name}."):
            index, entry = key.removeprefix(f"{name}.").split(".", 1)
            content["state"].setdefault(int(index), {})[entry] = tensor.clone()
    optimizer.load_state_dict(content)
