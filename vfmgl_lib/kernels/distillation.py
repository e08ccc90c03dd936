"""Temperature-softened Kullback-Leibler divergence (Hinton et al. 2015, without the factor tau^2, as in the paper's DDBL).

KL_b = sum_pixels sum_k p_k ( log p_k - log q_k ),    p = softmax(z_teacher / tau),  q = softmax(z_student / tau)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def temperature_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) per sample, summed over pixels.

    Args:
        student_logits: (B, K) or (B, K, H, W).
        teacher_logits: the same shape; no gradient is propagated to it.
        temperature: > 0, dimensionless.
    Returns: (B,) divergence in nats, >= 0; for maps the sum over H*W pixels.
    Raises: ValueError: for different shapes or a temperature that is not positive.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.dim() not in (2, 4):
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"logits must both be (B, K) or both (B, K, H, W), got {shapes}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    # At tau = 500 a pixel's KL is of the order of 1e-6 while its terms are of the order of 1e-3: float32 would keep a digit or two.
    student = F.log_softmax(student_logits.double() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach().double() / temperature, dim=1)
    return (teacher.exp() * (teacher - student)).flatten(1).sum(1).to(student_logits.dtype)
