"""Soft Dice loss over all classes (Milletari et al. 2016, in the paper's released form: sums over batch and pixels).

loss = 1 - mean_k (2 sum p_k y_k + 1e-5) / (sum p_k + sum y_k + 1e-5),    p = softmax(logits)

Memory: the reference holds probabilities, one-hot target and their product, (B, K, H, W) each; the Triton form holds three sums per
class and block of pixels, and reads logits and target once forward and once backward. The blocks' sums are added afterwards: no
atomics, same bits in every run.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for macOS and for CPUs comes without Triton: the reference serves
    triton = None

jit = triton.jit if triton else lambda function: function
INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels then run on the CPU, for tests
CLASSES = range(2, 9)
TILE = 2048  # logits per program
SMOOTH = 1e-5


def soft_dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Soft Dice loss, averaged over the classes (background included), in the form that `soft_dice_form` names; differentiable twice.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W) int64 class indices in [0, K). Others: an error from torch in the reference, NaN in the Triton form.
    Returns: scalar in [0, 1], in the logits' dtype, half precisions in float32. A class absent from both prediction and target counts
        as a perfect overlap.
    Raises: ValueError: if the shapes do not fit; the message names both.
    """
    _check(logits, target)
    if soft_dice_form(logits, target) == "reference":
        return soft_dice_loss_reference(logits, target)
    # A view where the strides allow one, a copy elsewhere: the kernels walk (B, K, pixels) by any strides.
    return _SoftDice.apply(logits.reshape(*logits.shape[:2], -1), target.reshape(target.shape[0], -1))


def soft_dice_form(logits: Tensor, target: Tensor) -> str:
    """Which form `soft_dice_loss` takes: "triton" for 2 to 8 classes in float32, float16 or bfloat16 on a GPU, else "reference"."""
    reachable = triton is not None and logits.device == target.device and (logits.is_cuda or INTERPRETED)
    types = logits.dtype in (torch.float32, torch.float16, torch.bfloat16) and target.dtype == torch.int64
    return "triton" if reachable and types and logits.shape[1] in CLASSES and logits.numel() > 0 else "reference"


def soft_dice_loss_reference(logits: Tensor, target: Tensor) -> Tensor:
    """The definition; arguments and result as in `soft_dice_loss`."""
    _check(logits, target)
    probability = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    one_hot = torch.zeros_like(probability).scatter_(1, target[:, None], 1.0)
    overlap = (probability * one_hot).sum((0, 2, 3))
    total = probability.sum((0, 2, 3)) + one_hot.sum((0, 2, 3))
    return 1 - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


class _SoftDice(torch.autograd.Function):
    """The Triton form: logits (B, K, P) and target (B, P), P pixels -> scalar float32."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        batch, classes, pixels = logits.shape
        blocks, launch = _launch(logits)
        partial = torch.empty(batch * blocks, 3, launch["PADDED"], dtype=torch.float32, device=logits.device)
        with torch.cuda.device_of(logits):
            _forward_kernel[(batch * blocks,)](logits, target, partial, *logits.stride(), *target.stride(), pixels, blocks, **launch)
        overlap, predicted, present = partial.sum(0)[:, :classes]  # (K,) each
        total = predicted + present + SMOOTH
        dice = (2 * overlap + SMOOTH) / total
        # d loss / d p_k = -(2 y_k - dice_k) / (K total_k)
        ctx.save_for_backward(logits, target, torch.stack([-2 / total, dice / total]) / classes)
        return 1 - dice.mean()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        logits, target, coefficients = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated in turn, so it is the reference's
            value = soft_dice_loss_reference(logits[..., None], target[..., None])
            return torch.autograd.grad(value, logits, upstream, create_graph=True)[0], None
        blocks, launch = _launch(logits)
        gradient = torch.empty_like(logits)
        with torch.cuda.device_of(logits):
            _backward_kernel[(logits.shape[0] * blocks,)](
                logits,
                target,
                upstream * coefficients,  # (2, K)
                gradient,
                *logits.stride(),
                *target.stride(),
                *gradient.stride(),
                logits.shape[2],
                blocks,
                **launch,
            )
        return gradient, None


@jit
def _forward_kernel(
    logits,
    target,
    partial,
    logits_b,
    logits_k,
    logits_p,
    target_b,
    target_p,
    pixels,
    blocks,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: sum p y, sum p and sum y per class over BLOCK pixels of one sample, into partial[program] (3, PADDED)."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    k = tl.arange(0, PADDED)
    pixel = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < pixels
    inside = (k < CLASSES)[:, None] & valid[None, :]
    z = tl.load(logits + sample * logits_b + k[:, None] * logits_k + pixel[None, :] * logits_p, mask=inside, other=0.0)
    y = tl.load(target + sample * target_b + pixel * target_p, mask=valid, other=0)
    p = _softmax(z.to(tl.float32), (k < CLASSES)[:, None])
    # An index that is no class must not pass for background.
    p = tl.where(((y >= 0) & (y < CLASSES))[None, :], p, float("nan"))
    p = tl.where(inside, p, 0.0)
    one_hot = (y[None, :] == k[:, None]) & inside
    row = partial + program.to(tl.int64) * 3 * PADDED + k
    tl.store(row, tl.sum(tl.where(one_hot, p, 0.0), axis=1))
    tl.store(row + PADDED, tl.sum(p, axis=1))
    tl.store(row + 2 * PADDED, tl.sum(one_hot.to(tl.float32), axis=1))


@jit
def _backward_kernel(
    logits,
    target,
    coefficients,
    gradient,
    logits_b,
    logits_k,
    logits_p,
    target_b,
    target_p,
    gradient_b,
    gradient_k,
    gradient_p,
    pixels,
    blocks,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: p (g - sum_k p_k g_k) of BLOCK pixels of one sample, g = coefficients[0] y + coefficients[1] = d loss / d p."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    k = tl.arange(0, PADDED)
    pixel = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    valid = pixel < pixels
    inside = (k < CLASSES)[:, None] & valid[None, :]
    z = tl.load(logits + sample * logits_b + k[:, None] * logits_k + pixel[None, :] * logits_p, mask=inside, other=0.0)
    y = tl.load(target + sample * target_b + pixel * target_p, mask=valid, other=0)
    at_target = tl.load(coefficients + k, mask=k < CLASSES, other=0.0)[:, None]
    everywhere = tl.load(coefficients + CLASSES + k, mask=k < CLASSES, other=0.0)[:, None]
    p = _softmax(z.to(tl.float32), (k < CLASSES)[:, None])
    g = tl.where(y[None, :] == k[:, None], at_target, 0.0) + everywhere
    g = p * (g - tl.sum(p * g, axis=0)[None, :])
    pointers = gradient + sample * gradient_b + k[:, None] * gradient_k + pixel[None, :] * gradient_p
    tl.store(pointers, g.to(gradient.dtype.element_ty), mask=inside)


@jit
def _softmax(z, is_class):
    """(PADDED, BLOCK) probabilities over the classes, 0 where `is_class` is not."""
    z = tl.where(is_class, z, -float("inf"))
    p = tl.exp(z - tl.max(z, axis=0)[None, :])
    return p / tl.sum(p, axis=0)[None, :]


def _launch(logits: Tensor) -> tuple[int, dict[str, int]]:
    """(blocks per sample, compile-time arguments) for logits (B, K, P)."""
    classes, pixels = logits.shape[1:]
    padded = triton.next_power_of_2(classes)
    block = min(TILE // padded, triton.next_power_of_2(pixels))
    warps = 4 if block * padded >= 512 else 1
    return triton.cdiv(pixels, block), {"CLASSES": classes, "PADDED": padded, "BLOCK": block, "num_warps": warps}


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.dim() != 4 or target.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(f"logits must be (B, K, H, W) and target (B, H, W), got {tuple(logits.shape)} and {tuple(target.shape)}")
