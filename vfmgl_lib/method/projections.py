"""Projections of HGKT by ridge regression, and how well projections fit (R2), from moments of a set of images.

With the covariances over N images and their H x W places, of a student stage G (C_n, C_n) and between teacher and stage C (C_t, C_n),

    P* = C (G + eps I)^-1      b* = mean up(T) - P* mean S      eps = ridge_penalty * trace(G) / C_n

minimise mean |up(T) - P S - b|^2 + eps |P|^2: every image, place and channel counts the same. That is not L_match, whose channel weights w
and pair weights lambda differ from image to image and move. A fit to each batch would be an interpolation (512 channels against
4 x 49 places); a fit to a centre's training set is not.

C is formed as in `kernels.matching`, on the smaller of the two grids: the teacher is never upsampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vfmgl_lib.kernels.matching import prepare_teacher, pull_back

HELD_OUT = 5  # of a training set without a validation set beside it, every fifth patient is not fitted
ROUNDING = 1e-10  # the penalty's least size, as a share of a stage's mean square: a constant stage's covariances are rounding


@dataclass(frozen=True)
class PairMoments:
    """Of one teacher stack (M blocks, D = M*C_t channels, upsampled) and one student stage, float64.

    Attributes:
        gram: (C_n, C_n) and cross: (M, C_t, C_n), covariances.  variance: (M, C_t) of the teacher.
        student_mean: (C_n,).  teacher_mean: (M, C_t).
    """

    gram: Tensor
    cross: Tensor
    variance: Tensor
    student_mean: Tensor
    teacher_mean: Tensor


class Moments:
    """First and second moments of teacher features and student maps, accumulated in float64.

    moments = Moments()
    for maps, stacks in batches:
        moments.add(maps, stacks)
    weight, bias = ridge(moments.pair(0, "layer1"), penalty=1e-2)
    """

    def __init__(self) -> None:
        self.images = 0
        self._sums: dict[tuple, Tensor] = {}

    def add(self, maps: dict[str, Tensor], stacks: list[Tensor]) -> None:
        """Adds a batch: student stage -> (B, C_n, H, W), and the teacher's stacks (B, M, C_t, g, g)."""
        self.images += len(stacks[0])
        for stage, stage_map in maps.items():
            student = stage_map.double()
            pixels = student.transpose(0, 1).flatten(1)
            self._add("gram", stage, value=pixels @ pixels.mT / student.shape[2:].numel())
            self._add("student_mean", stage, value=student.mean((-2, -1)).sum(0))
            for k, stack in enumerate(stacks):
                terms = prepare_teacher(stack.double(), (student.shape[2], student.shape[3]), student.shape[1], form="gram")
                assert terms.mean is not None and terms.square is not None  # the Gram form has both
                operand, pulled = (part.transpose(0, 1).flatten(1) for part in (terms.operand, pull_back(student, terms)))
                shape = stack.shape[1:3]
                self._add("cross", k, stage, value=(operand @ pulled.mT).unflatten(0, shape))
                self._add("teacher_mean", k, stage, value=terms.mean.sum(0).unflatten(0, shape))
                self._add("teacher_square", k, stage, value=terms.square.sum(0).unflatten(0, shape))

    def pair(self, stack: int, stage: str) -> PairMoments:
        """The moments of one teacher stack and one student stage over the images added so far, at least one."""
        of_stage = {name: self._sums[name, stage] / self.images for name in ("gram", "student_mean")}
        of_pair = {name: self._sums[name, stack, stage] / self.images for name in ("cross", "teacher_mean", "teacher_square")}
        mean, level = of_stage["student_mean"], of_pair["teacher_mean"]
        return PairMoments(
            gram=of_stage["gram"] - torch.outer(mean, mean),
            cross=of_pair["cross"] - level[..., None] * mean,
            variance=(of_pair["teacher_square"] - level.square()).clamp(min=0),
            student_mean=mean,
            teacher_mean=level,
        )

    def _add(self, *key: str | int, value: Tensor) -> None:
        self._sums[key] = self._sums[key] + value if key in self._sums else value


def ridge(pair: PairMoments, penalty: float) -> tuple[Tensor, Tensor]:
    """The projection (M, C_t, C_n) and bias (M, C_t) of the module's docstring, float64.

    It minimises the unweighted matching, not L_match. The bias is not penalised.

    Args:
        penalty: above 0; relative to the mean variance of the stage's channels, trace(G) / C_n.
    """
    width = len(pair.gram)
    least = ROUNDING * (pair.gram.trace() + pair.student_mean.square().sum()) + torch.finfo(torch.float64).tiny
    epsilon = torch.maximum(penalty * pair.gram.trace(), least) / width
    system = pair.gram + epsilon * torch.eye(width, dtype=torch.float64, device=pair.gram.device)
    weight = torch.linalg.solve(system, pair.cross.flatten(0, 1).mT).mT.unflatten(0, pair.cross.shape[:2])
    return weight, pair.teacher_mean - weight @ pair.student_mean


def r_squared(pair: PairMoments, weight: Tensor, bias: Tensor) -> Tensor:
    """(M,) share of a teacher block's variance that P S + b gives back, all channels together; 1 at most, below 0 for worse than the mean.

    Args:
        pair: of images that were not fitted.  weight: (M, C_t, C_n).  bias: (M, C_t).
    Returns: float64; NaN for a block without variance.
    """
    weight, bias = weight.double(), bias.double()
    shift = pair.teacher_mean - weight @ pair.student_mean - bias
    residual = pair.variance - 2 * (pair.cross * weight).sum(-1) + ((weight @ pair.gram) * weight).sum(-1) + shift.square()
    total = pair.variance.sum(1)
    return torch.where(total > 0, 1 - residual.sum(1) / total, torch.nan)


def held_out_rows(patients: Sequence[str]) -> list[int]:
    """Rows of every fifth patient, in the order of first appearance; with fewer than five patients, every fifth row."""
    known = list(dict.fromkeys(patients))
    if len(known) < HELD_OUT:
        return list(range(HELD_OUT - 1, len(patients), HELD_OUT))
    chosen = set(known[HELD_OUT - 1 :: HELD_OUT])
    return [row for row, patient in enumerate(patients) if patient in chosen]
