"""Pair-weighted feature matching of HGKT (paper: "HGKT"; Jang et al. 2019, "Learning what and where to transfer", eq. 2).

For one student stage S (B, C_n, H, W) and the M blocks of one teacher T (B, M, C_t, g, g)

    loss_b = sum_m lambda_bm sum_c w_bmc mean_hw ( up(T_m)_bc,hw - (P_m S)_bc,hw - b_mc )^2

up() is bilinear (align_corners=False) and therefore linear: up(T) = A_h T A_w^T with the (H, g) interpolation matrix A. So

    mean_hw (...)^2 = <up T, up T>/HW - 2 (C . P)_c - 2 b_c mean(up T)_c + (P G P^T)_cc + 2 b_c (P m)_c + b_c^2
    C = T (A^T S A)^T / HW   (C_t x C_n, formed on the teacher's own grid: the teacher is never upsampled)
    G = S S^T / HW           (C_n x C_n),          m = mean_hw S

Nothing of size C_t x H x W is built: at 112 x 112 the direct form holds M C_t H W = 38.5 M floats a sample for ViT-B, the Gram form
M C_t (g^2 + C_n) = 1 M. All M blocks stack into one (M C_t)-channel operand, so a stage costs one cross-Gram, one Gram and one
product. Where the student's map is small (H W of the order of C_n) P S itself is cheaper and is formed directly; where the teacher's
grid is the finer one, C is formed at the student's size.

HGKT differentiates the loss twice. With R = P S + b - up(T) and z = upstream lambda w, gradients are moments of R, and along directions
(S', P', b') their derivatives are moments of R' = P' S + P S' + b':

    dP = 2 z mean R S^T        db = 2 z mean R        dS = 2/HW P^T z R        d distance = 2 mean R R'
    (dP)' = 2 z mean (R' S^T + R S'^T)                (dS)' = 2/HW (P'^T z R + P^T z R')

Both forms write these out (mean R S^T = P G - C + b m^T =: A, P^T z R = (P^T z P) S + P^T z b - P^T z up(T)), which costs about half of
what automatic differentiation makes of the loss. The definition, `pair_matching_reference`, is plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

PASSES = 64  # forward, backward and double backward, float32, CPU: the forms break even between 20 and 64 (benchmarks/matching.py)


def pair_matching_reference(
    teacher: Tensor, student: Tensor, weight: Tensor, bias: Tensor, channel_weights: Tensor, pair_weights: Tensor
) -> Tensor:
    """The definition, in its direct form; arguments and result as in `pair_matching`. Holds (B, M, C_t, H, W) tensors."""
    _check_shapes(teacher.shape[:3], student, weight, bias, channel_weights, pair_weights)
    upsampled = _upsample(teacher, student.shape[-2:])  # (B, M, C_t, H, W)
    projected = torch.einsum("mcn,bnhw->bmchw", weight, student) + bias[:, :, None, None]
    distances = (upsampled - projected).square().mean((-2, -1))  # (B, M, C_t)
    return (pair_weights[..., None] * channel_weights * distances).sum((1, 2))


@dataclass(frozen=True)
class TeacherTerms:
    """What `pair_matching` needs of the teacher for one student stage; constant over a step, so prepared once (`prepare_teacher`).

    Attributes:
        form: "gram" or "direct" (`matching_form`).
        operand: teacher maps; Gram form: (B, M*C_t, L) on the smaller of the two grids, direct form: (M*C_t, B*H*W) at the student's size.
        shape: (B, M, C_t).  size: (H, W) of the student stage.  grid: g.
        square: (B, M*C_t) mean_hw up(T)^2; None in direct form, which does not use it.
        mean: (B, M*C_t) mean_hw up(T); the same.
    """

    form: str
    operand: Tensor
    shape: tuple[int, int, int]
    size: tuple[int, int]
    grid: int
    square: Tensor | None = None
    mean: Tensor | None = None


def matching_form(grid: int, size: tuple[int, int], student_channels: int) -> str:
    """Which form `pair_matching` takes at these sizes: "gram" or "direct", whichever costs less.

    Per sample and teacher channel the Gram form takes C_n (L + C_n) products, L = min(g^2, H W), the direct form H W C_n products and
    several passes over an (M C_t, H W) map, which were measured to weigh as much as `PASSES` products a pixel.
    """
    pixels = size[0] * size[1]
    gram = student_channels * (min(grid**2, pixels) + student_channels)
    return "gram" if gram < pixels * (student_channels + PASSES) else "direct"


def prepare_teacher(teacher: Tensor, size: tuple[int, ...], student_channels: int, form: str | None = None) -> TeacherTerms:
    """The teacher-only terms of the matching loss.

    Args:
        teacher: (B, M, C_t, g, g), frozen teacher maps (no gradient is propagated to them).
        size: (H, W) of the student stage.
        student_channels: C_n of the student stage.
        form: "gram" or "direct"; None: whichever costs less (`matching_form`).
    Raises: ValueError: if the maps are not square or the tensor has another number of axes.
    """
    if teacher.dim() != 5 or teacher.shape[-1] != teacher.shape[-2]:
        raise ValueError(f"teacher must be (B, M, C_t, g, g), got {tuple(teacher.shape)}")
    teacher, size = teacher.detach(), (int(size[0]), int(size[1]))
    grid, pixels, maps = teacher.shape[-1], size[0] * size[1], teacher.flatten(1, 2)  # (B, M*C_t, g, g)
    batch, blocks, channels = teacher.shape[:3]
    known = (batch, blocks, channels), size, grid
    form = form or matching_form(grid, size, student_channels)
    rows, columns = (_interpolation(side, grid, maps.dtype, maps.device) for side in size)
    if form == "gram" and grid**2 < pixels:
        # <up T, up T> = <T, (A_h^T A_h) T (A_w^T A_w)>: the squared map is summed without being built.
        smoothed = (rows.mT @ rows) @ maps @ (columns.mT @ columns)
        square = smoothed.mul_(maps).sum((-2, -1)) / pixels
        maps = maps.flatten(2)
        return TeacherTerms(form, maps, *known, square, maps @ torch.outer(rows.mean(0), columns.mean(0)).flatten())
    # Products with the matrices are quicker than torch's interpolation, and its float32 coordinates would be off by up to 5e-6.
    maps = rows @ maps @ columns.mT
    if form == "direct":
        return TeacherTerms(form, _stacked(maps), *known)
    return TeacherTerms(form, maps.flatten(2), *known, maps.square().mean((-2, -1)), maps.mean((-2, -1)))


def pair_matching(
    teacher: Tensor | TeacherTerms,
    student: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_weights: Tensor,
    pair_weights: Tensor,
    upstream_only: bool = False,
) -> Tensor:
    """Pair-weighted feature matching of HGKT, in Gram form where that is cheaper (see `matching_form`).

    Args:
        teacher: (B, M, C_t, g, g), frozen teacher maps, M teacher blocks; or what `prepare_teacher` made of them for this stage.
        student: (B, C_n, H, W), one student stage.
        weight: (M, C_t, C_n), the 1x1 projections.
        bias: (M, C_t).
        channel_weights: (B, M, C_t), in [0, 1], summing to 1 over C_t.
        pair_weights: (B, M), dimensionless, in [0, 6].
        upstream_only: second derivatives by student, weight and bias are left out (see `twice_differentiable_layers`).
    Returns: (B,) loss per sample, dimensionless, without the factor beta; differentiable twice. Float32 products in full (TF32 off).
    Raises: ValueError: if a spatial or channel size does not fit; the message names both shapes.
    """
    terms = teacher if isinstance(teacher, TeacherTerms) else prepare_teacher(teacher, student.shape[-2:], student.shape[1])
    _check_shapes(terms.shape, student, weight, bias, channel_weights, pair_weights)
    if tuple(student.shape[-2:]) != terms.size:
        raise ValueError(f"teacher terms were prepared for {terms.size}, the student stage is {tuple(student.shape[-2:])}")
    scale = (pair_weights[..., None] * channel_weights).flatten(1)  # (B, D), D = M*C_t
    return _Matching.apply(student, weight.flatten(0, 1), bias.flatten(), scale, terms, upstream_only)


class _Matching(Function):
    """(B, C, H, W), (D, C), (D,), (B, D) -> (B,)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, terms: TeacherTerms, upstream_only: bool) -> Tensor:
        distances, residual = _FORMS[terms.form][0](student, weight, bias, terms)
        ctx.save_for_backward(student, weight, bias, scale, distances, *residual)
        ctx.terms, ctx.upstream_only = terms, upstream_only
        return (scale * distances).sum(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple:
        return *_MatchingBackward.apply(upstream, *ctx.saved_tensors[:4], ctx, ctx.saved_tensors[4:]), None, None


class _MatchingBackward(Function):
    @staticmethod
    def forward(ctx: Any, upstream: Tensor, student: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, of: Any, saved: tuple) -> tuple:
        distances, *residual = saved
        z = upstream[:, None] * scale
        *gradients, kept = _FORMS[of.terms.form][1](z, student, weight, bias, residual, of.terms)
        ctx.save_for_backward(upstream, student, weight, bias, scale, distances, *residual, *kept)
        ctx.terms, ctx.upstream_only = of.terms, of.upstream_only
        ctx.set_materialize_grads(False)
        return *gradients, upstream[:, None] * distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_student: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None, to_scale: Tensor | None) -> tuple:
        upstream, student, weight, bias, scale, distances, *residual = ctx.saved_tensors
        directions = [torch.zeros_like(x) if h is None else h for h, x in ((to_student, student), (to_weight, weight), (to_bias, bias))]
        _, gradient, second = _FORMS[ctx.terms.form]
        z = upstream[:, None] * scale
        along, *products = second(z, student, weight, bias, residual, directions, ctx.terms, ctx.upstream_only)
        of_upstream, of_scale = (scale * along).sum(1), upstream[:, None] * along
        if to_scale is not None:  # the gradient by the scale is upstream * distances: linear in both
            of_upstream = of_upstream + (to_scale * distances).sum(1)
            if not ctx.upstream_only:
                first = gradient(upstream[:, None] * to_scale, student, weight, bias, residual, ctx.terms)
                products = [one + other for one, other in zip(products, first, strict=False)]
        return of_upstream, *(products or (None, None, None)), of_scale, None, None


def _gram_residual(student: Tensor, weight: Tensor, bias: Tensor, terms: TeacherTerms) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Distances (B, D); A = mean R S^T (B, D, C), a = mean R (B, D), G (B, C, C) and m (B, C)."""
    pixels, pulled = student.flatten(2), pull_back(student, terms)  # (B, C, H*W), (B, C, L)
    gram, mean = pixels @ pixels.mT * (1 / pixels.shape[-1]), pulled.sum(-1)
    cross = terms.operand @ pulled.mT  # (B, D, C)
    assert terms.mean is not None and terms.square is not None  # in Gram form
    on_teacher = (cross * weight).sum(-1) + bias * terms.mean
    moment = cross.baddbmm_(weight.expand(len(cross), -1, -1), gram, beta=-1).addcmul_(bias[:, None], mean[:, None])
    level = mean @ weight.mT + bias - terms.mean
    distances = (moment * weight).sum(-1) + bias * level - on_teacher + terms.square
    return distances, (moment, level, gram, mean)


def _gram_gradient(z: Tensor, student: Tensor, weight: Tensor, bias: Tensor, residual: list[Tensor], terms: TeacherTerms) -> tuple:
    """Gradients by student, weight and bias; P^T z P (B, C, C) is kept for the second derivative."""
    moment, level, *_ = residual
    pixels, factor = student.flatten(2), 2 / student.shape[2:].numel()
    weighted = (z[..., None] * weight).mT  # (B, C, D)
    inner = weighted @ weight
    on_teacher = (weighted @ terms.operand).sub_(((z * bias) @ weight)[..., None])
    of_student = _push_forward(on_teacher, terms).baddbmm_(inner, pixels, beta=-2, alpha=factor)
    return of_student.view_as(student), 2 * (z[..., None] * moment).sum(0), 2 * (z * level).sum(0), (inner,)


def _gram_second(
    z: Tensor,
    student: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: list[Tensor],
    directions: list[Tensor],
    terms: TeacherTerms,
    partly: bool,
) -> tuple:
    """The distances' derivative (B, D) along the directions and, unless `partly`, that of the three gradients."""
    moment, level, gram, mean, inner = residual
    to_student, to_weight, to_bias = directions
    batch, factor = len(student), 2 / student.shape[2:].numel()
    pixels, moved = student.flatten(2), to_student.flatten(2)
    pulled = pull_back(to_student, terms)
    moved_gram, moved_mean = pixels @ moved.mT * (factor / 2), pulled.sum(-1)
    change = (terms.operand @ pulled.mT).baddbmm_(weight.expand(batch, -1, -1), moved_gram, beta=-1)
    change.addcmul_(bias[:, None], moved_mean[:, None])
    along = 2 * ((moment * to_weight).addcmul_(change, weight.expand_as(change)).sum(-1) + to_bias * level)
    if partly:
        return (along,)
    change.baddbmm_(to_weight.expand(batch, -1, -1), gram).baddbmm_(weight.expand(batch, -1, -1), moved_gram.mT)
    change.addcmul_(to_bias[:, None], mean[:, None])
    weighted = (z[..., None] * to_weight).mT
    half = weighted @ weight
    on_teacher = (weighted @ terms.operand).sub_(((z * bias) @ to_weight + (z * to_bias) @ weight)[..., None])
    of_student = _push_forward(on_teacher, terms).baddbmm_(half + half.mT, pixels, beta=-2, alpha=factor)
    of_student.baddbmm_(inner, moved, alpha=factor)
    of_bias = 2 * (z * (mean @ to_weight.mT + moved_mean @ weight.mT + to_bias)).sum(0)
    return along, of_student.view_as(student), 2 * (z[..., None] * change).sum(0), of_bias


def _direct_residual(student: Tensor, weight: Tensor, bias: Tensor, terms: TeacherTerms) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Distances (B, D) and R (D, B*H*W)."""
    residual = torch.addmm(terms.operand, weight, _stacked(student), beta=-1).add_(bias[:, None])
    norms = torch.linalg.vector_norm(residual.unflatten(1, (len(student), -1)), dim=-1)
    return norms.square().mT / student.shape[2:].numel(), (residual,)


def _direct_gradient(z: Tensor, student: Tensor, weight: Tensor, bias: Tensor, residual: list[Tensor], terms: TeacherTerms) -> tuple:
    """Gradients by student, weight and bias."""
    weighted = _weighted(residual[0], z, student)
    return _unstacked(weight.mT @ weighted, student), weighted @ _stacked(student).mT, weighted.sum(1), ()


def _direct_second(
    z: Tensor,
    student: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: list[Tensor],
    directions: list[Tensor],
    terms: TeacherTerms,
    partly: bool,
) -> tuple:
    """As `_gram_second`."""
    to_student, to_weight, to_bias = directions
    pixels, moved = _stacked(student), _stacked(to_student)
    change = torch.addmm(to_bias[:, None], weight, moved).addmm_(to_weight, pixels)  # R'
    along = (residual[0] * change).unflatten(1, (len(student), -1)).sum(-1).mT * (2 / student.shape[2:].numel())
    if partly:
        return (along,)
    weighted, change = _weighted(residual[0], z, student), _weighted(change, z, student)
    of_student = torch.addmm(to_weight.mT @ weighted, weight.mT, change)
    return along, _unstacked(of_student, student), torch.addmm(change @ pixels.mT, weighted, moved.mT), change.sum(1)


# form -> residual, first and second derivative
_FORMS = {
    "gram": (_gram_residual, _gram_gradient, _gram_second),
    "direct": (_direct_residual, _direct_gradient, _direct_second),
}


def _weighted(residual: Tensor, z: Tensor, student: Tensor) -> Tensor:
    """2/HW z R, (D, B*H*W)."""
    return (residual.unflatten(1, (len(student), -1)) * (z.mT * (2 / student.shape[2:].numel()))[..., None]).flatten(1)


def _stacked(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (C, B*H*W): all samples beside one another, so that one product serves the whole batch."""
    return maps.flatten(2).transpose(0, 1).flatten(1)


def _unstacked(maps: Tensor, like: Tensor) -> Tensor:
    return maps.unflatten(1, (len(like), -1)).transpose(0, 1).reshape(like.shape)


def pull_back(student: Tensor, terms: TeacherTerms) -> Tensor:
    """(B, C, L): the student stage on the grid of `terms.operand`, by the adjoint of the interpolation, divided by H*W."""
    pixels = terms.size[0] * terms.size[1]
    if terms.operand.shape[-1] == pixels:
        return student.flatten(2) / pixels
    rows, columns = (_interpolation(side, terms.grid, student.dtype, student.device) for side in terms.size)
    return ((rows / pixels).mT @ (student @ columns)).flatten(2)


def _push_forward(maps: Tensor, terms: TeacherTerms) -> Tensor:
    """(B, C, L) -> (B, C, H*W): the adjoint of `pull_back`; both keep constants, since the interpolation's rows sum to 1."""
    pixels = terms.size[0] * terms.size[1]
    if maps.shape[-1] == pixels:
        return maps / pixels
    rows, columns = (_interpolation(side, terms.grid, maps.dtype, maps.device) for side in terms.size)
    return ((rows / pixels) @ maps.unflatten(-1, (terms.grid, terms.grid)) @ columns.mT).flatten(2)


def _upsample(teacher: Tensor, size: tuple[int, ...]) -> Tensor:
    resized = F.interpolate(teacher.flatten(0, 1), size=tuple(size), mode="bilinear", align_corners=False)
    return resized.unflatten(0, teacher.shape[:2])


@lru_cache(maxsize=64)
def _interpolation(size: int, grid: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, grid) matrix A of 1-D linear interpolation with align_corners=False."""
    identity = torch.eye(grid, dtype=torch.float64)[None]
    matrix = F.interpolate(identity, size=size, mode="linear", align_corners=False)[0].mT
    return matrix.to(dtype=dtype, device=device).contiguous()


def _check_shapes(
    teacher: tuple[int, ...],
    student: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_weights: Tensor,
    pair_weights: Tensor,
) -> None:
    batch, blocks, channels = teacher
    if student.dim() != 4 or student.shape[0] != batch:
        raise ValueError(f"student must be (B, C_n, H, W) with B = {batch} as the teacher's, got {tuple(student.shape)}")
    expected = {
        "weight": (weight, "(M, C_t, C_n)", (blocks, channels, student.shape[1])),
        "bias": (bias, "(M, C_t)", (blocks, channels)),
        "channel_weights": (channel_weights, "(B, M, C_t)", (batch, blocks, channels)),
        "pair_weights": (pair_weights, "(B, M)", (batch, blocks)),
    }
    for name, (tensor, axes, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must be {axes} = {shape}, got {tuple(tensor.shape)}")
