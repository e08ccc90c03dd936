"""What an honest but curious server could see: images reconstructed from a centre's update by gradient inversion.

The server has the model before and the update after it. It optimises dummy images until training on them would change the model in the same
direction (Geiping et al. 2020, "Inverting gradients: how easy is it to break privacy in federated learning?", NeurIPS)

    1 - cos( simulated change, seen change ) + a D( statistics ) + b TV( images )

where D is the relative squared distance of batch normalisation's batch statistics, which the seen statistics give away (Yin et al. 2021,
"See through gradients", CVPR): running ones as the last steps' share in them, re-estimated ones as they are, those of all the centre's
images; without statistics in the update it is left out. TV is the mean total variation, whose weight falls to a thirtieth on the way. An
image is a sum of maps at four resolutions behind a sigmoid, so that large structures are found first. The server is granted more than it
has: labels (masks of a segmentation), learning rate, batch size and order of the batches, and a method without HGKT, whose projections it
would not know.

An attack that fails shows that this one failed, with so many steps on this student: it is no proof of privacy. One that succeeds is one.
Nothing that trains imports this file.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import skimage
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.config import StudySettings
from vfmgl_lib.config.sections import PLAIN_EXCHANGE, ExchangeSettings, OptimizerSettings
from vfmgl_lib.data.loading import ImageDataset
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.federation.client import TASK_LOSSES, Client, training_batches
from vfmgl_lib.federation.exchange import COUNTER, epsilon, incoming, outgoing
from vfmgl_lib.federation.servers import DECLARED_METRICS, State, Update
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.models.batch_norm import batch_norms, recalibrate
from vfmgl_lib.models.students import Student, build_student

# Pixels: at half of it ResNet18 ends in a single one, and cannot be trained on one image.
SIDE = 64
# At most: width of the student, images of the centre and of a batch. Fewer images are easier for the server.
WIDTH, IMAGES, BATCH = 16, 16, 4
KEPT = 0.9  # of the running statistics of batch normalisation in a step: 1 - the students' momentum
LAST_SMOOTHNESS = 1 / 30  # share of the smoothness at the end
LEVELS = 4  # resolutions of a dummy image: side, side / 2, ...
TRUE, MEAN, MASK = "true images", "centre's mean image", "mask in the centre's colours"


@dataclass(frozen=True)
class Attack:
    """How hard the server tries.

    Attributes:
        iterations: steps of Adam on the dummy images.
        statistics: a, weight of the distance of batch statistics.
        smoothness: b, weight of the total variation at the start.
        simulated: at most so many local steps are simulated; a longer epoch is taken for that many.
    """

    iterations: int = 150
    lr: float = 0.02
    statistics: float = 3.0
    smoothness: float = 3.0
    simulated: int = 1
    seed: int = 0


@dataclass(frozen=True)
class View:
    """One update that the server sees.

    Attributes:
        label: in tables and figures.
        images: so many of the centre's images are in the one step; 0: its local epoch, trained as the study trains.
        number_format: as in `config.sections.ExchangeSettings`.
        noise: as there; the change is clipped to its own length, as a centre would that has chosen clip well.
    """

    label: str
    images: int = 1
    number_format: str = "float32"
    noise: float = 0.0


def reconstruct(
    student: Student, before: State, after: State, targets: Sequence[Tensor], side: int, task: StudySettings, attack: Attack, steps: int
) -> Tensor:
    """Images that would have changed the model in the seen direction.

    Args:
        student: the architecture; its weights do not matter.
        before, after: the model that the centre started from, and what the server goes on with.
        targets: labels of the batch of every simulated step, (B,) or (B, S, S).
        side: S, pixels.
        task: its loss and optimiser; Adam is simulated as gradient descent, since its first steps are signs, which have no slope.
        steps: how many local steps the centre made.
    Returns: (N, 3, S, S) in [0, 1], N the number of all labels.
    """
    model = copy.deepcopy(student).train()
    inputs: list[Tensor] = []  # of every batch normalisation in a pass
    layers = [name for name in batch_norms(model) if f"{name}.running_mean" in after]
    for name in layers:
        model.get_submodule(name).register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    parameters = {name: before[name].clone().requires_grad_() for name, _ in model.named_parameters()}
    seen = torch.cat([(after[name] - before[name]).flatten() for name in parameters])
    keep = KEPT**steps if task.batch_norm == "running" else 0.0
    statistics = [
        [(after[f"{name}.{kind}"] - keep * before[f"{name}.{kind}"]) / (1 - keep) for kind in ("running_mean", "running_var")]
        for name in layers
    ]
    generator = torch.Generator().manual_seed(attack.seed)
    total = sum(len(target) for target in targets)
    maps = [(0.05 * torch.randn(total, 3, side >> k, side >> k, generator=generator)).requires_grad_() for k in range(LEVELS)]
    optimizer = torch.optim.Adam(maps, lr=attack.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, attack.iterations, attack.lr / 20)
    for iteration in range(attack.iterations):
        images = _images(maps)
        change, batches = _simulated(model, parameters, inputs, images.split([len(t) for t in targets]), targets, task)
        loss = 1 - F.cosine_similarity(change, seen, dim=0)
        smoothness = attack.smoothness * LAST_SMOOTHNESS ** (iteration / attack.iterations)
        loss = loss + attack.statistics * _statistics_distance(batches, statistics) + smoothness * _total_variation(images)
        for level, gradient in zip(maps, torch.autograd.grad(loss, maps), strict=True):
            level.grad = gradient
        optimizer.step()
        schedule.step()
    return _images(maps).detach()


def _images(maps: list[Tensor]) -> Tensor:
    side = maps[0].shape[-1]
    coarse = (F.interpolate(level, size=(side, side), mode="bilinear", align_corners=False) for level in maps[1:])
    return torch.sigmoid(4 * sum(coarse, start=maps[0]))


def _simulated(
    model: Student, parameters: State, inputs: list[Tensor], batches: Sequence[Tensor], targets: Sequence[Tensor], task: StudySettings
) -> tuple[Tensor, list[list[Tensor]]]:
    """The parameters' change by these steps, flat, and the inputs of every batch normalisation in each of them."""
    chosen: OptimizerSettings = task.optimizer
    momentum = chosen.momentum
    current, seen = dict(parameters), []
    velocity: dict[str, Tensor | float] = dict.fromkeys(parameters, 0.0)
    for images, target in zip(batches, targets, strict=True):
        inputs.clear()
        loss = TASK_LOSSES[task.loss](functional_call(model, current, (images,)), target)
        gradients = torch.autograd.grad(loss, list(current.values()), create_graph=True)
        for (name, value), gradient in zip(list(current.items()), gradients, strict=True):
            velocity[name] = momentum * velocity[name] + gradient + chosen.weight_decay * value
            current[name] = value - chosen.lr * velocity[name]
        seen.append(list(inputs))
    return torch.cat([(current[name] - parameters[name]).flatten() for name in parameters]), seen


def _statistics_distance(batches: list[list[Tensor]], seen: list[list[Tensor]]) -> Tensor:
    """Relative squared distance, mean over layers, of the batches' statistics from the seen ones: later batches count more, as in BN."""
    weights = torch.tensor([KEPT ** (len(batches) - 1 - step) for step in range(len(batches))])
    weights = weights / weights.sum()
    parts = []
    for layer, (mean, variance) in enumerate(seen):
        means = sum(w * step[layer].mean((0, 2, 3)) for w, step in zip(weights, batches, strict=True))
        variances = sum(w * step[layer].var((0, 2, 3)) for w, step in zip(weights, batches, strict=True))
        parts += [(means - mean).square().sum() / (mean.square().sum() + 1e-12)]
        parts += [(variances - variance).square().sum() / (variance.square().sum() + 1e-12)]
    return torch.stack(parts).mean() if parts else torch.zeros(())


def _total_variation(images: Tensor) -> Tensor:
    return images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()


def small_task(settings: StudySettings) -> StudySettings:
    """The task of a study on a student and images small enough to be attacked: FedAvg by SGD, which is simulated, nothing protected."""
    values = {
        "method": "fedavg",
        "exchange": PLAIN_EXCHANGE,
        "student": settings.student.model_copy(update={"width": min(settings.student.width, WIDTH), "weights": "none"}),
        "data": settings.data.model_copy(update={"image_size": SIDE, "augmentation": "none", "workers": 0}),
        "optimizer": settings.optimizer.model_copy(update={"name": "sgd", "batch_size": min(settings.optimizer.batch_size, BATCH)}),
        "federation": settings.federation.model_copy(update={"local_epochs": 1, "epoch_factor": 1}),
    }
    return settings.model_copy(update=values)


def inversion(settings: StudySettings, manifest: Manifest, center: str, views: Sequence[View], shown: int, attack: Attack) -> pd.DataFrame:
    """Attacks a centre's updates from an untrained student, and compares what comes out with the first images of its local epoch.

    Args:
        settings: the study's; what is attacked is its `small_task`.
        shown: so many images are compared; a step on fewer images is attacked once for each part of them.
    Returns: a row for each view and shown image, those of `TRUE`, `MEAN` and, for a segmentation, `MASK` included: view, epsilon (of this
        one update, delta 1e-5), id, image (S, S, 3) float32 in [0, 1] (of one attack's reconstructions the one with the highest PSNR),
        psnr (dB), ssim (mean over channels, 7 px windows), cpu_seconds (of the view's attacks).
    """
    task = small_task(settings)
    table = manifest.select(center, "train").head(IMAGES)
    data = ImageDataset(manifest, table, task.data.image_size)
    order = training_batches(task, center, len(data), 1, "I")
    items: list[dict[str, Any]] = [data[row] for batch in order for row in batch]
    identifiers = [table["id"].iloc[row] for batch in order for row in batch]
    images, targets = (torch.stack([item[part] for item in items]) for part in ("image", "target"))
    shown = min(shown, len(images))
    rows: list[dict] = []

    def add(label: str, candidates: Iterable[Tensor], seconds: float = 0.0, eps: float = math.nan) -> None:
        for place, found in enumerate(candidates):
            psnr = [_psnr(one, images[place]) for one in found]
            best = int(np.argmax(psnr))
            about = {"view": label, "epsilon": eps, "id": identifiers[place], "image": _picture(found[best], settings)}
            rows.append(about | {"psnr": psnr[best], "ssim": _ssim(found[best], images[place]), "cpu_seconds": seconds})

    add(TRUE, images[:shown, None])
    add(MEAN, [images.mean(0, keepdim=True)] * shown)
    if settings.is_segmentation:
        add(MASK, _in_mean_colors(images, targets)[:shown, None])
    for view in views:
        started = time.process_time()
        count = view.images or len(images)
        parts = [slice(start, start + count) for start in range(0, shown, count)]
        found = [_attacked(task, center, data, images[part], targets[part], view, attack) for part in parts]
        candidates = [found[place // count] for place in range(shown)]
        add(view.label, candidates, time.process_time() - started, epsilon(view.noise, 1))
    return pd.DataFrame(rows)


def _attacked(task: StudySettings, center: str, data: ImageDataset, images: Tensor, targets: Tensor, view: View, attack: Attack) -> Tensor:
    with torch_seed(seed_sequence(task.seed, "student")):
        chosen, batch_statistics = task.student, task.batch_norm == "batch"
        student = build_student(chosen.name, task.data.class_count, chosen.width, batch_statistics=batch_statistics)
    before: State = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    if view.images:
        task = task.model_copy(
            update={"optimizer": task.optimizer.model_copy(update={"name": "sgd", "momentum": 0.0, "weight_decay": 0.0})}
        )
        model, batches, steps = copy.deepcopy(student).train(), [targets], 1
        optimizer = torch.optim.SGD(model.parameters(), lr=task.optimizer.lr)
        TASK_LOSSES[task.loss](model(images), targets).backward()
        optimizer.step()
        if task.batch_norm == "recalibrated":
            recalibrate(model, [images])
        update = Update(center, dict(model.state_dict()), len(images), {})
    else:
        client = Client(center, task, METHODS[task.method].switches, copy.deepcopy(student), None, data, torch.device("cpu"))
        sizes = [len(rows) for rows in client.batches(1, "I")]
        update, steps = client.run_round(1, before), len(sizes)
        batches = list(targets.split(sizes)[: attack.simulated])
    squares = (float((t.double() - before[name].double()).square().sum()) for name, t in update.state.items() if t.is_floating_point())
    protection = {"number_format": view.number_format, "noise": view.noise, "clip": math.sqrt(sum(squares)) if view.noise else 0.0}
    exchange = PLAIN_EXCHANGE.model_copy(update=protection)
    arrived = incoming(outgoing(update, before, before, exchange), before, exchange).state
    return reconstruct(student, before, arrived, batches, images.shape[-1], task, attack, steps)


def _in_mean_colors(images: Tensor, masks: Tensor) -> Tensor:
    """What the labels of a segmentation alone tell: each mask in the mean colours that the centre's classes have."""
    told = torch.zeros_like(images)
    for place in masks.unique():
        inside = (masks == place)[:, None]
        color = (images * inside).sum((0, 2, 3)) / inside.sum().clamp(min=1)
        told = torch.where(inside, color[:, None, None], told)
    return told


def _psnr(found: Tensor, true: Tensor) -> float:
    error = float((found - true).square().mean())
    return -10 * math.log10(error) if error else math.inf


def _ssim(found: Tensor, true: Tensor) -> float:
    pair = (image.permute(1, 2, 0).numpy() for image in (found, true))
    return float(skimage.metrics.structural_similarity(*pair, channel_axis=2, data_range=1.0))


def _picture(image: Tensor, settings: StudySettings) -> np.ndarray:
    """(S, S, 3); of a slice between its neighbours that slice, in grey."""
    channel = settings.data.record.shown_channel
    shown = image if channel is None else image[channel : channel + 1].expand(3, -1, -1)
    return shown.permute(1, 2, 0).numpy()


def update_contents(state: State, exchange: ExchangeSettings) -> pd.DataFrame:
    """What one update of a model holds on its way.

    Args:
        state: a student's, of the study's shape.
    Returns: kind, tensors, values, bytes (of the tensors alone); a row without tensors counts numbers sent beside them.
    """
    sent = outgoing(Update("", state, 0, dict.fromkeys(DECLARED_METRICS, 0.0)), state, state, exchange)
    norms = {name.removesuffix("running_mean") for name in state if name.endswith("running_mean")}
    rows = {kind: [0, 0, 0] for kind in ("weights and biases", "batch norm: scale and shift", "batch norm: mean and variance")}
    rows["batch norm: counters"] = [0, 0, 0]
    weights, affine, statistics, counters = rows
    for name, tensor in sent.state.items():
        layer, _, part = name.rpartition(".")
        kind = weights if f"{layer}." not in norms else counters if part == COUNTER else statistics if "running" in part else affine
        rows[kind] = [a + b for a, b in zip(rows[kind], (1, tensor.numel(), tensor.numel() * tensor.element_size()), strict=True)]
    rows["number of samples"] = [0, int(exchange.share_counts), 0]
    rows["metrics: " + ", ".join(DECLARED_METRICS)] = [0, len(sent.metrics), 0]
    return pd.DataFrame([(kind, *numbers) for kind, numbers in rows.items()], columns=["kind", "tensors", "values", "bytes"])
