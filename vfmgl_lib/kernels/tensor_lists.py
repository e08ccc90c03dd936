"""Arithmetic on whole lists of tensors, one launch a list on a GPU where a loop takes one a tensor.

torch's own optimisers are made of these functions, which have no public names; every use of them is in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor]  # of one device and type; two lists have the same shapes, tensor by tensor


def add(first: Tensors, second: Tensors) -> tuple[Tensor, ...]:
    """New tensors, first + second."""
    return torch._foreach_add(tuple(first), tuple(second))


def add_(totals: Tensors, terms: Tensors) -> None:
    """totals += terms."""
    torch._foreach_add_(tuple(totals), tuple(terms))


def scale(tensors: Tensors, factor: Tensor) -> tuple[Tensor, ...]:
    """New tensors, tensors * factor; factor is a scalar on their device, which is not waited for."""
    return torch._foreach_mul(tuple(tensors), factor)


def sgd_(
    parameters: Tensors, gradients: Tensors, momenta: Tensors, *, lr: float, momentum: float, weight_decay: float, dampening: float
) -> None:
    """A step of torch.optim.SGD in place, in one pass over the memory.

    Args:
        gradients: with the parameters' strides.  momentum: above 0.
    """
    options: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dampening": dampening}
    options |= {"nesterov": False, "maximize": False, "is_first_step": False}
    torch._fused_sgd_(tuple(parameters), tuple(gradients), tuple(momenta), **options)


def copy_(targets: Tensors, sources: Tensors) -> None:
    """Takes over the values of the sources, to the bit."""
    torch._foreach_copy_(tuple(targets), tuple(sources))
