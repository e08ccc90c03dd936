"""DDBL: data deduction at batch level with distillation from the shared model (paper: "DDBL"; stage II of a round).

For each batch, with the shared model frozen and in eval mode and tau the temperature,

    p = softmax(z_s / tau),  z_s = shared(x)           q = softmax(head_s(stages_local(x)) / tau), the shared head on the local features
    KL = sum p (log p - log q), mean over the batch (segmentation: summed over pixels)
    kept iff KL <= kappa * l_task, l_task the mean task loss of the round's stage I; else the batch is skipped: high heterogeneity
    loss = alpha L_task + (1 - alpha) KL

A skipped batch leaves no trace: the BN statistics that its forward pass moved are put back (the released code lets them move).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vfmgl_lib.config import DeductionSettings
from vfmgl_lib.kernels.distillation import temperature_kl
from vfmgl_lib.models.students import Student

RELEASED_SIDE = 256  # the side at which the released temperature of the pixel sum was set


@dataclass(frozen=True)
class DeductionRecord:
    """One batch of stage II: divergence (mean KL over the batch), the threshold it was held against, whether it was kept."""

    task_loss: float
    divergence: float
    threshold: float
    kept: bool


def shared_divergence(
    shared: Student, local_maps: list[Tensor], images: Tensor, settings: DeductionSettings, autocast: bool = False
) -> Tensor:
    """KL between the shared model's prediction and that of its head on the local features, per sample.

    Args:
        shared: the shared model, in eval mode; its parameters receive no gradient.
        local_maps: the local model's stage maps of `images`; the gradient flows into them.
        images: (B, 3, H, W) in [0, 1].
        autocast: on a GPU the shared model's own prediction is computed in bfloat16.
    Returns: (B,) in nats: for segmentation summed (pixel_sum) or averaged (pixel_mean) over pixels.
    """
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=autocast and images.is_cuda):
        shared_logits = shared(images).float()
    local_logits = shared.head_from_stages(local_maps)
    divergence = temperature_kl(local_logits, shared_logits, effective_temperature(settings, shared_logits))
    if settings.reduction == "pixel_mean" and shared_logits.dim() == 4:
        divergence = divergence / shared_logits[0, 0].numel()
    return divergence


def effective_temperature(settings: DeductionSettings, logits: Tensor) -> float:
    """tau; for a sum over pixels tau * side / 256, because that sum grows with side^2 / tau^2 and tau belongs to a side of 256."""
    if logits.dim() == 4 and settings.reduction == "pixel_sum":
        return settings.temperature * (logits.shape[-2] * logits.shape[-1]) ** 0.5 / RELEASED_SIDE
    return settings.temperature


def deduction_step(
    student: Student,
    shared: Student,
    images: Tensor,
    target: Tensor,
    *,
    optimizer: torch.optim.Optimizer,
    task_loss: Callable[[Tensor, Tensor], Tensor],
    local_task_loss: float,
    settings: DeductionSettings,
    deduct: bool = True,
    autocast: bool = False,
) -> DeductionRecord:
    """One batch of stage II; moves the student's free parameters if the batch is kept.

    Args:
        student: the local model with its critical stages frozen (`models.students.set_training_mode`).
        local_task_loss: l_task, mean task loss of the round's stage I.
        deduct: False keeps every batch (HGKT+KD).
        autocast: see `shared_divergence`.
    """
    statistics = [buffer.clone() for buffer in student.buffers()]
    logits, maps = student.forward_stages(images)
    task = task_loss(logits, target)
    divergence = shared_divergence(shared, maps, images, settings, autocast).mean()
    threshold = settings.keep_ratio * local_task_loss
    kept = not deduct or divergence.item() <= threshold
    if kept:
        optimizer.zero_grad(set_to_none=True)
        (settings.task_share * task + (1 - settings.task_share) * divergence).backward()
        optimizer.step()
    else:
        with torch.no_grad():
            for buffer, before in zip(student.buffers(), statistics, strict=True):
                buffer.copy_(before)
    return DeductionRecord(task.item(), divergence.item(), threshold, kept)
