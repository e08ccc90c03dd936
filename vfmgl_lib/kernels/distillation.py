"""Temperature-softened Kullback-Leibler divergence (Hinton et al. 2015, without the factor tau^2, as in the paper's DDBL).

KL_b = sum_pixels sum_k p_k ( log p_k - log q_k ),    p = softmax(z_teacher / tau),  q = softmax(z_student / tau)

At tau = 500 a pixel's KL is of the order of 1e-6 while its terms are of the order of 1e-3: summed as it stands in float32 it keeps a
digit or two. The reference therefore takes float64. The Triton form stays in float32 with the same accuracy, because it never
subtracts: with d = (z_student - z_teacher) / tau and y = d - sum_k p_k d_k,

    KL = log sum_k p_k exp(y_k) = log1p( sum_k p_k (exp(y_k) - 1 - y_k) ),    q_k - p_k = p_k expm1(y_k - KL)

where every summand is >= 0 and has a series of its own for small |y|.

Memory: the reference holds six (B, K, H, W) float64 tensors for its backward pass, the Triton form none beside its inputs; it reads
each input once forward and once backward. Sums go over blocks of pixels, then over the blocks' partial sums: no atomics, same bits
in every run. No library does this: torch's kl_div and the fused kernels in use take log p - log q, which loses those digits in float32.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for macOS and for CPUs comes without Triton: the reference serves
    triton = None

jit = triton.jit if triton else lambda function: function
INTERPRETED = triton is not None and os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels then run on the CPU, for tests
CLASSES = range(2, 9)
TILE = 2048  # values of one logit tensor per program
HALF_AND_SINGLE = (torch.float32, torch.float16, torch.bfloat16)


def temperature_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) per sample, summed over pixels, in the form that `temperature_kl_form` names; differentiable twice.

    Args:
        student_logits: (B, K) or (B, K, H, W).
        teacher_logits: the same shape; no gradient is propagated to it.
        temperature: > 0, dimensionless.
    Returns: (B,) divergence in nats, >= 0; for maps the sum over H*W pixels. In the student's dtype, half precisions in float32
        (a sum over pixels leaves float16's range).
    Raises: ValueError: for different shapes or a temperature that is not positive.
    """
    _check(student_logits, teacher_logits, temperature)
    if temperature_kl_form(student_logits, teacher_logits) == "reference":
        return temperature_kl_reference(student_logits, teacher_logits, temperature)
    batch, classes = student_logits.shape[:2]
    # A view where the strides allow one, a copy elsewhere: the kernels walk (B, K, pixels) by any strides.
    student, teacher = (logits.reshape(batch, classes, -1) for logits in (student_logits, teacher_logits.detach()))
    return _TemperatureKL.apply(student, teacher, float(temperature))


def temperature_kl_form(student_logits: Tensor, teacher_logits: Tensor) -> str:
    """Which form `temperature_kl` takes: "triton" for 2 to 8 classes in float32, float16 or bfloat16 on a GPU, else "reference"."""
    logits = (student_logits, teacher_logits)
    return "triton" if _on_triton(*logits) and all(z.dtype in HALF_AND_SINGLE for z in logits) else "reference"


def temperature_kl_reference(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The definition, in float64; arguments and result as in `temperature_kl`."""
    _check(student_logits, teacher_logits, temperature)
    student = F.log_softmax(student_logits.double() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().double() / temperature, dim=1)
    divergence = (teacher.exp() * (teacher - student)).flatten(1).sum(1)
    return divergence.to(torch.promote_types(student_logits.dtype, torch.float32))


class _TemperatureKL(torch.autograd.Function):
    """The Triton form: (B, K, P) student and teacher, P pixels -> (B,) float32."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        batch, blocks, launch = _launch(student)
        partial = torch.empty(batch, blocks, dtype=torch.float32, device=student.device)
        with torch.cuda.device_of(student):
            _forward_kernel[(batch * blocks,)](
                student, teacher, partial, *student.stride(), *teacher.stride(), student.shape[2], blocks, 1 / temperature, **launch
            )
        return partial.sum(1)

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        student, teacher = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient will be differentiated in turn, so it is the reference's
            value = temperature_kl_reference(student[..., None], teacher[..., None], ctx.temperature)
            return torch.autograd.grad(value, student, upstream, create_graph=True)[0], None, None
        batch, blocks, launch = _launch(student)
        gradient = torch.empty_like(student)
        with torch.cuda.device_of(student):
            _backward_kernel[(batch * blocks,)](
                student,
                teacher,
                upstream,
                gradient,
                *student.stride(),
                *teacher.stride(),
                upstream.stride(0),
                *gradient.stride(),
                student.shape[2],
                blocks,
                1 / ctx.temperature,
                **launch,
            )
        return gradient, None, None


@jit
def _forward_kernel(
    student,
    teacher,
    partial,
    student_b,
    student_k,
    student_p,
    teacher_b,
    teacher_k,
    teacher_p,
    pixels,
    blocks,
    scale,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the KL of BLOCK pixels of one sample, summed into partial[sample, block]; scale = 1 / tau."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    k = tl.arange(0, PADDED)[:, None]
    pixel = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = (k < CLASSES) & (pixel < pixels)[None, :]
    z_student = tl.load(student + sample * student_b + k * student_k + pixel[None, :] * student_p, mask=inside, other=0.0)
    z_teacher = tl.load(teacher + sample * teacher_b + k * teacher_k + pixel[None, :] * teacher_p, mask=inside, other=0.0)
    _, _, _, divergence = _pixel_terms(z_student.to(tl.float32), z_teacher.to(tl.float32), k < CLASSES, scale)
    tl.store(partial + program, tl.sum(tl.where(pixel < pixels, divergence, 0.0), axis=0))


@jit
def _backward_kernel(
    student,
    teacher,
    upstream,
    gradient,
    student_b,
    student_k,
    student_p,
    teacher_b,
    teacher_k,
    teacher_p,
    upstream_b,
    gradient_b,
    gradient_k,
    gradient_p,
    pixels,
    blocks,
    scale,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: d KL / d z_student = (q - p) / tau of BLOCK pixels of one sample, times the upstream gradient."""
    program = tl.program_id(0)
    sample = (program // blocks).to(tl.int64)
    k = tl.arange(0, PADDED)[:, None]
    pixel = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = (k < CLASSES) & (pixel < pixels)[None, :]
    z_student = tl.load(student + sample * student_b + k * student_k + pixel[None, :] * student_p, mask=inside, other=0.0)
    z_teacher = tl.load(teacher + sample * teacher_b + k * teacher_k + pixel[None, :] * teacher_p, mask=inside, other=0.0)
    p, log_p, y, divergence = _pixel_terms(z_student.to(tl.float32), z_teacher.to(tl.float32), k < CLASSES, scale)
    y -= divergence[None, :]  # log q - log p
    # Far from p the difference is formed as it stands: p may have underflowed where q has not.
    difference = tl.where(tl.abs(y) < 1, p * (y + _exp_tail(y)), tl.exp(log_p + y) - p)
    factor = tl.load(upstream + sample * upstream_b).to(tl.float32) * scale
    target = gradient + sample * gradient_b + k * gradient_k + pixel[None, :] * gradient_p
    tl.store(target, (factor * difference).to(gradient.dtype.element_ty), mask=inside)


@jit
def _pixel_terms(z_student, z_teacher, is_class, scale):
    """p, log p, y (PADDED, BLOCK) and the KL (BLOCK,); logits are 0 where `is_class` is not."""
    log_p = tl.where(is_class, z_teacher * scale, -float("inf"))
    log_p -= tl.max(log_p, axis=0)[None, :]
    p = tl.exp(log_p)
    total = tl.sum(p, axis=0)[None, :]
    p /= total
    log_p -= tl.log(total)
    y = (z_student - z_teacher) * scale
    y -= tl.max(tl.where(is_class, y, -float("inf")), axis=0)[None, :]  # what all classes share would cost digits of the mean
    y -= tl.sum(p * y, axis=0)[None, :]
    # p (exp(y) - 1 - y); where |y| >= 1 from log p, since exp(y) alone may overflow.
    summand = tl.where(tl.abs(y) < 1, p * _exp_tail(y), tl.exp(log_p + y) - p * (1 + y))
    small = _log1p(tl.sum(summand, axis=0))
    peak = tl.max(log_p + y, axis=0)
    large = peak + tl.log(tl.sum(tl.exp(log_p + y - peak[None, :]), axis=0))
    return p, log_p, y, tl.where(peak > 20, large, small)


@jit
def _exp_tail(y):
    """exp(y) - 1 - y for |y| < 1, by its series (1e-9 relative): the difference itself would cancel."""
    series = 1 / 479001600
    series = series * y + 1 / 39916800
    series = series * y + 1 / 3628800
    series = series * y + 1 / 362880
    series = series * y + 1 / 40320
    series = series * y + 1 / 5040
    series = series * y + 1 / 720
    series = series * y + 1 / 120
    series = series * y + 1 / 24
    series = series * y + 1 / 6
    series = series * y + 1 / 2
    return series * y * y


@jit
def _log1p(x):
    """log(1 + x), x >= 0; below 1 as 2 artanh(x / (2 + x)), since rounding 1 + x would take the digits of a small x."""
    w = x / (2 + x)
    square = w * w
    series = square / 15 + 1 / 13
    series = series * square + 1 / 11
    series = series * square + 1 / 9
    series = series * square + 1 / 7
    series = series * square + 1 / 5
    series = series * square + 1 / 3
    series = series * square + 1
    return tl.where(x < 1, 2 * w * series, tl.log(1 + x))


def _launch(logits: Tensor) -> tuple[int, int, dict[str, int]]:
    """(B, blocks per sample, compile-time arguments) for logits (B, K, P)."""
    batch, classes, pixels = logits.shape
    padded = triton.next_power_of_2(classes)
    block = min(TILE // padded, triton.next_power_of_2(pixels))
    warps = 4 if block * padded >= 512 else 1
    return batch, triton.cdiv(pixels, block), {"CLASSES": classes, "PADDED": padded, "BLOCK": block, "num_warps": warps}


def _on_triton(logits: Tensor, other: Tensor) -> bool:
    reachable = triton is not None and logits.device == other.device and (logits.is_cuda or INTERPRETED)
    return reachable and logits.shape[1] in CLASSES and logits.numel() > 0


def _check(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    if student_logits.shape != teacher_logits.shape or student_logits.dim() not in (2, 4):
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"logits must both be (B, K) or both (B, K, H, W), got {shapes}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
