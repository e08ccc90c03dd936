"""DDBL: data deduction at batch level with distillation from the shared model (paper: "DDBL"; stage II of a round).

For each batch, with the shared model frozen and in eval mode and tau the temperature,

    p = softmax(z_s / tau),  z_s = shared(x)           q = softmax(head_s(stages_local(x)) / tau), the shared head on the local features
    KL = sum p (log p - log q), mean over the batch (segmentation: summed over pixels); with `tau_squared` times tau^2
    kept iff KL <= kappa * l_task, l_task the mean task loss of the round's stage I; else the batch is skipped: high heterogeneity
    loss = alpha L_task + (1 - alpha) KL

A skipped batch leaves no trace: the BN statistics that its forward pass moved are put back (the released code lets them move).

When a batch can be dropped at all. With two classes and d the difference between the logit margins z_1 - z_0 of the two predictions,
KL <= d^2 / (8 tau^2) for a sample or pixel, because the second derivative of log(1 + exp) is at most 1/4. So a batch can be dropped only
if the root mean square of d over its samples (and pixels) exceeds sqrt(8 kappa l_task) tau; with the sum over pixels
sqrt(8 kappa l_task) tau / 256 at any side, because there the effective tau grows with the side (`margin_to_drop`). At the paper's settings
that is 17 (tau = 5, l_task = 0.35) or 7 (tau = 500, l_task = 0.45).

With more classes d is the range over the classes of the difference between the logits of the two predictions, its largest value less its
smallest: the KL is half the variance of that difference, over tau, under a softmax between the two, and no variance exceeds a quarter of
the squared range (Popoviciu). Of two classes the range is the difference of the margins.

`rule: quantile` keeps a share of the batches instead, those whose KL before stage II is lowest. It drops the others by construction, at
equal centres too: that batches were dropped is then no evidence of heterogeneity.

What the KL reaches. It depends on the local model through its stage maps alone. On the UNet these are the encoder's: bottleneck, decoder
and head never feel it, which with two stages frozen leaves 12 of 52 free tensors. On the ResNet18 all but the classifier feel it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from vfmgl_lib.config.sections import DeductionSettings
from vfmgl_lib.kernels.distillation import temperature_kl
from vfmgl_lib.models.students import Student

RELEASED_SIDE = 256  # the side at which the released temperature of the pixel sum was set


@dataclass(frozen=True)
class DeductionRecord:
    """One batch of stage II.

    Attributes:
        divergence: mean KL over the batch.
        threshold: what it was held against.
        gradient_ratio: see `gradient_ratio`; NaN where it was not measured.
    """

    task_loss: float
    divergence: float
    threshold: float
    kept: bool
    gradient_ratio: float = math.nan


def shared_divergence(
    shared: Student, local_maps: list[Tensor], images: Tensor, settings: DeductionSettings, autocast: bool = False
) -> Tensor:
    """KL between the shared model's prediction and that of its head on the local features, per sample.

    Args:
        shared: the shared model, in eval mode; its parameters receive no gradient.
        local_maps: the local model's stage maps of `images`; the gradient flows into them.
        images: (B, 3, H, W) in [0, 1].
        autocast: on a GPU the shared model's own prediction is computed in bfloat16.
    Returns: (B,) in nats: for segmentation summed (pixel_sum) or averaged (pixel_mean) over pixels; times tau^2 with `tau_squared`.
    """
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=autocast and images.is_cuda):
        shared_logits = shared(images).float()
    local_logits = shared.head_from_stages(local_maps)
    temperature = effective_temperature(settings, shared_logits)
    divergence = temperature_kl(local_logits, shared_logits, temperature)
    if settings.reduction == "pixel_mean" and shared_logits.dim() == 4:
        divergence = divergence / shared_logits[0, 0].numel()
    return divergence * temperature**2 if settings.tau_squared else divergence


def effective_temperature(settings: DeductionSettings, logits: Tensor) -> float:
    """tau; for a sum over pixels tau * side / 256, because that sum grows with side^2 / tau^2 and tau belongs to a side of 256."""
    if logits.dim() == 4 and settings.reduction == "pixel_sum":
        return settings.temperature * (logits.shape[-2] * logits.shape[-1]) ** 0.5 / RELEASED_SIDE
    return settings.temperature


def margin_to_drop(settings: DeductionSettings, local_task_loss: float, side: int | None = None) -> float:
    """How far apart two predictions must be for a batch to be dropped by KL > kappa * l_task (see above).

    Args:
        local_task_loss: l_task, mean task loss of the round's stage I.
        side: of a segmentation's square image, pixels; None: a classification.
    Returns: the root mean square over samples and pixels of d: with two classes the difference between the two logit margins z_1 - z_0,
        with more the range over the classes of the difference of logits. At or under it no batch is dropped; beyond it one may be.
    Example: `margin_to_drop(load_settings("nuclei", "paper").deduction, 0.45, 256)` is 7.4.
    """
    logits = torch.empty((1, 2) if side is None else (1, 2, side, side), device="meta")
    summed = logits[0, 0].numel() if settings.reduction == "pixel_sum" else 1
    softened = 1.0 if settings.tau_squared else effective_temperature(settings, logits)
    return math.sqrt(8 * settings.keep_ratio * local_task_loss / summed) * softened


def lowest_share(divergences: Sequence[float], quantile: float) -> tuple[float, list[bool]]:
    """Which of n batches the quantile rule keeps: those at or under the k-th lowest divergence, k = ceil(q n).

    So k batches are kept, and more only where others have the very divergence of the k-th (the same images again in another local epoch).

    Args:
        quantile: q in (0, 1].
    Returns: the threshold, and kept or not in the order given.
    """
    count = math.ceil(round(quantile * len(divergences), 9))  # 0.55 * 100 is 55.00000000000001
    threshold = float(np.sort(divergences)[count - 1])
    return threshold, [divergence <= threshold for divergence in divergences]


@torch.no_grad()
def untouched_divergence(student: Student, shared: Student, images: Tensor, settings: DeductionSettings, autocast: bool = False) -> float:
    """The divergence that `deduction_step` would meet now, mean over the batch; BN statistics are put back, nothing else is touched."""
    statistics = [buffer.clone() for buffer in student.buffers()]
    divergence = shared_divergence(shared, student.encode(images), images, settings, autocast).mean()
    _put_back(student, statistics)
    return divergence.item()


def gradient_ratio(student: Student, task: Tensor, divergence: Tensor) -> float:
    """|grad KL| / |grad L_task|, L2 norms over the free tensors that the KL reaches; NaN where it reaches none.

    Without alpha, and with tau^2 where the KL has it. The graph stays, and no gradient is written into a parameter.
    """
    if not divergence.requires_grad:
        return math.nan
    free = [parameter for parameter in student.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(divergence, free, retain_graph=True, allow_unused=True)
    reached = [parameter for parameter, gradient in zip(free, found, strict=True) if gradient is not None]
    of_task = torch.autograd.grad(task, reached, retain_graph=True)
    of_divergence = [gradient for gradient in found if gradient is not None]
    return (get_total_norm(of_divergence) / get_total_norm(of_task)).item()


def deduction_step(
    student: Student,
    shared: Student,
    images: Tensor,
    target: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    task_loss: Callable[[Tensor, Tensor], Tensor],
    threshold: float,
    settings: DeductionSettings,
    decision: bool | None = None,
    task_only: bool = False,
    with_ratio: bool = False,
    autocast: bool = False,
) -> DeductionRecord:
    """One batch of stage II; moves the student's free parameters if the batch is kept.

    Args:
        student: the local model with its critical stages frozen (`models.students.set_training_mode`).
        threshold: kappa * l_task, or whatever else the divergence is held against.
        decision: kept (True) or dropped, whatever the divergence; None: kept iff the divergence is at or under the threshold.
        task_only: the loss is alpha L_task, without the KL, which is measured all the same.
        with_ratio: measure `gradient_ratio`; it changes no bit of the step.
        autocast: see `shared_divergence`.
    """
    statistics = [buffer.clone() for buffer in student.buffers()]
    logits, maps = student.forward_stages(images)
    task = task_loss(logits, target)
    divergence = shared_divergence(shared, maps, images, settings, autocast).mean()
    ratio = gradient_ratio(student, task, divergence) if with_ratio else math.nan
    kept = divergence.item() <= threshold if decision is None else decision
    if kept:
        optimizer.zero_grad(set_to_none=True)
        loss = settings.task_share * task
        (loss if task_only else loss + (1 - settings.task_share) * divergence).backward()
        optimizer.step()
    else:
        _put_back(student, statistics)
    return DeductionRecord(task.item(), divergence.item(), threshold, kept, ratio)


def _put_back(student: Student, statistics: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, before in zip(student.buffers(), statistics, strict=True):
            buffer.copy_(before)
