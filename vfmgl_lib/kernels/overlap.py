"""Soft Dice loss over all classes (Milletari et al. 2016, in the paper's released form: sums over batch and pixels).

loss = 1 - mean_k (2 sum p_k y_k + 1e-5) / (sum p_k + sum y_k + 1e-5),    p = softmax(logits)

Torch's own operations: a Triton kernel that read every input once was measured on a GPU and was slower at all of the study's sizes, which
are launches more than work (benchmarks/README.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

SMOOTH = 1e-5


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss, averaged over the classes (background included); differentiable twice.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64 class indices in [0, K); others are an error of torch's.
    Returns: scalar in [0, 1], in the logits' dtype, half precisions in float32. A class absent from both prediction and target counts
        as a perfect overlap.
    Raises: ValueError: if the shapes do not fit; the message names both.
    """
    if logits.dim() != 4 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(f"logits must be (B, K, H, W) and target (B, H, W), got {tuple(logits.shape)} and {tuple(target.shape)}")
    probability = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    one_hot = torch.zeros_like(probability).scatter_(1, target[:, None], 1.0)
    overlap = (probability * one_hot).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
    return 1 - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def foreground_dice(predicted: Tensor, target: Tensor, classes: int = 2) -> Tensor:
    """Dice of each image, (B,) float64 in [0, 1], the mean over the foreground classes 1, …, K - 1; a class that both masks lack: 1.

    Args:
        predicted, target: (B, H, W) int64 class indices.
        classes: K.
    """
    scores = []
    for place in range(1, classes):
        found, true = (predicted == place).flatten(1), (target == place).flatten(1)
        both, either = (found & true).sum(1), found.sum(1) + true.sum(1)
        scores.append(torch.where(either > 0, 2 * both.double() / either.clamp(min=1), 1.0))
    return torch.stack(scores).mean(0)
