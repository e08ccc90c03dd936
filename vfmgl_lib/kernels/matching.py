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
Both forms are plain torch and differentiable twice, which the bilevel step of HGKT needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

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
        operand: (B, M*C_t, L) teacher maps: for the Gram form on the smaller of the two grids, for the direct form at the student's size.
        square: (B, M*C_t) mean_hw up(T)^2.
        mean: (B, M*C_t) mean_hw up(T).
        blocks: M.  size: (H, W) of the student stage.  grid: g.
    """

    form: str
    operand: Tensor
    square: Tensor
    mean: Tensor
    blocks: int
    size: tuple[int, int]
    grid: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, M, C_t)."""
        return self.operand.shape[0], self.blocks, self.operand.shape[1] // self.blocks


def matching_form(grid: int, size: tuple[int, int], student_channels: int) -> str:
    """Which form `pair_matching` takes at these sizes: "gram" or "direct", whichever costs less.

    Per sample and teacher channel the Gram form takes C_n (L + C_n) products, L = min(g^2, H W), the direct form H W C_n products and
    several passes over an (M C_t, H W) map, which were measured to weigh as much as `PASSES` products a pixel.
    """
    pixels = size[0] * size[1]
    gram = student_channels * (min(grid**2, pixels) + student_channels)
    return "gram" if gram < pixels * (student_channels + PASSES) else "direct"


def prepare_teacher(teacher: Tensor, size: tuple[int, int], student_channels: int) -> TeacherTerms:
    """The teacher-only terms of the matching loss.

    Args:
        teacher: (B, M, C_t, g, g), frozen teacher maps (no gradient is propagated to them).
        size: (H, W) of the student stage.
        student_channels: C_n of the student stage.
    Raises: ValueError: if the maps are not square or the tensor has another number of axes.
    """
    if teacher.dim() != 5 or teacher.shape[-1] != teacher.shape[-2]:
        raise ValueError(f"teacher must be (B, M, C_t, g, g), got {tuple(teacher.shape)}")
    teacher, size = teacher.detach(), (int(size[0]), int(size[1]))
    grid, blocks = teacher.shape[-1], teacher.shape[1]
    form = matching_form(grid, size, student_channels)
    if form == "gram" and grid**2 < size[0] * size[1]:
        maps = teacher.flatten(1, 2)  # (B, M*C_t, g, g)
        rows, columns = (_interpolation(side, grid, maps.dtype, maps.device) for side in size)
        # <up T, up T> = <T, (A_h^T A_h) T (A_w^T A_w)>: the squared map is summed without being built.
        smoothed = (rows.mT @ rows) @ maps @ (columns.mT @ columns)
        square = (maps * smoothed).sum((-2, -1)) / (size[0] * size[1])
        mean = torch.einsum("bchw,h,w->bc", maps, rows.mean(0), columns.mean(0))
    else:
        maps = _upsample(teacher, size).flatten(1, 2)
        square, mean = maps.square().mean((-2, -1)), maps.mean((-2, -1))
    return TeacherTerms(form, maps.flatten(2), square, mean, blocks, size, grid)


def pair_matching(
    teacher: Tensor | TeacherTerms,
    student: Tensor,
    weight: Tensor,
    bias: Tensor,
    channel_weights: Tensor,
    pair_weights: Tensor,
) -> Tensor:
    """Pair-weighted feature matching of HGKT, in Gram form where that is cheaper (see `matching_form`).

    Args:
        teacher: (B, M, C_t, g, g), frozen teacher maps, M teacher blocks; or what `prepare_teacher` made of them for this stage.
        student: (B, C_n, H, W), one student stage.
        weight: (M, C_t, C_n), the 1x1 projections.
        bias: (M, C_t).
        channel_weights: (B, M, C_t), in [0, 1], summing to 1 over C_t.
        pair_weights: (B, M), dimensionless, in [0, 6].
    Returns: (B,) loss per sample, dimensionless, without the factor beta. Full float32 products are assumed (TF32 off).
    Raises: ValueError: if a spatial or channel size does not fit; the message names both shapes.
    """
    terms = teacher if isinstance(teacher, TeacherTerms) else prepare_teacher(teacher, student.shape[-2:], student.shape[1])
    _check_shapes(terms.shape, student, weight, bias, channel_weights, pair_weights)
    if tuple(student.shape[-2:]) != terms.size:
        raise ValueError(f"teacher terms were prepared for {terms.size}, the student stage is {tuple(student.shape[-2:])}")
    projection, offset = weight.flatten(0, 1), bias.flatten()  # (M*C_t, C_n), (M*C_t,)
    pixels = student.flatten(2)  # (B, C_n, H*W)
    if terms.form == "gram":
        gram = pixels @ pixels.mT / pixels.shape[-1]  # (B, C_n, C_n)
        cross = terms.operand @ _pull_back(student, terms).mT  # (B, M*C_t, C_n)
        quadratic = ((projection @ gram - 2 * cross) * projection).sum(-1)
        linear = offset * (pixels.mean(-1) @ projection.mT - terms.mean)
        distances = terms.square + quadratic + 2 * linear + offset.square()
    else:
        distances = (terms.operand - offset[:, None] - projection @ pixels).square().mean(-1)
    scale = pair_weights[..., None] * channel_weights  # (B, M, C_t)
    return (scale.flatten(1) * distances).sum(1)


def _pull_back(student: Tensor, terms: TeacherTerms) -> Tensor:
    """(B, C_n, L): the student stage on the grid of `terms.operand`, by the adjoint of the interpolation, divided by H*W."""
    pixels = terms.size[0] * terms.size[1]
    if terms.operand.shape[-1] != pixels:
        rows, columns = (_interpolation(side, terms.grid, student.dtype, student.device) for side in terms.size)
        student = rows.mT @ student @ columns
    return student.flatten(2) / pixels


def _upsample(teacher: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(teacher.flatten(0, 1), size=tuple(size), mode="bilinear", align_corners=False)
    return resized.unflatten(0, teacher.shape[:2])


@lru_cache(maxsize=64)
def _interpolation(size: int, grid: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, grid) matrix A of 1-D linear interpolation with align_corners=False."""
    identity = torch.eye(grid, dtype=torch.float64)[None]
    matrix = F.interpolate(identity, size=size, mode="linear", align_corners=False)[0].mT
    return matrix.to(dtype=dtype, device=device).contiguous()


def _check_shapes(
    teacher: tuple[int, int, int],
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
