"""What a client trains with under each method, and how updates become the next shared model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strategy:
    """A method of the comparison, as switches over the same client.

    Attributes:
        transfer: stage I uses HGKT.
        distillation: stage II exists: distillation from the shared model, critical stages frozen.
        deduction: stage II skips batches of high heterogeneity (DDBL).
    """

    transfer: bool
    distillation: bool
    deduction: bool


METHODS = {
    "vfmgl": Strategy(transfer=True, distillation=True, deduction=True),
    "hgkt_kd": Strategy(transfer=True, distillation=True, deduction=False),
    "hgkt": Strategy(transfer=True, distillation=False, deduction=False),
    "local": Strategy(transfer=False, distillation=False, deduction=False),
}


@dataclass(frozen=True)
class Update:
    """Everything that leaves a centre after a round.

    Attributes:
        center: the centre's name.
        state: the student's parameters and BN statistics.
        samples: n_k, number of training samples.
        metrics: the declared scalars (`DECLARED_METRICS`).
    """

    center: str
    state: dict[str, Tensor]
    samples: int
    metrics: dict[str, float]


DECLARED_METRICS = ("task_loss", "kept_share")


def average(updates: list[Update], weights: str = "samples") -> dict[str, Tensor]:
    """The next shared model: sum_k a_k theta_k over parameters and BN statistics.

    Args:
        updates: one per centre; the sum runs in the order of the centres' names, so the result does not depend on the list's order.
        weights: "samples" (a_k = n_k / sum n) or "uniform" (1/K, the released code).
    Returns: a state of the students' own types; integer buffers (BN's counter) hold the weighted mean, rounded.
    Raises: ValueError: for no updates, two from one centre, unequal names or shapes, values that are not finite; names centre and tensor.
    """
    updates = sorted(updates, key=lambda update: update.center)
    centers = [update.center for update in updates]
    if not updates or len(set(centers)) < len(centers):
        raise ValueError(f"one update per centre is needed, got {centers}")
    if weights not in ("samples", "uniform"):
        raise ValueError(f"federation.weights must be samples or uniform, got {weights!r}")
    first = updates[0].state
    for update in updates:
        if update.state.keys() != first.keys():
            raise ValueError(
                f"update of centre {update.center}: tensors {sorted(update.state.keys() ^ first.keys())[:3]} are missing or additional"
            )
        for name, tensor in update.state.items():
            if tensor.shape != first[name].shape:
                raise ValueError(f"update of centre {update.center}: {name} must be {tuple(first[name].shape)}, got {tuple(tensor.shape)}")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"update of centre {update.center}: {name} holds values that are not finite")
    shares = [update.samples if weights == "samples" else 1 for update in updates]
    if min(shares) <= 0:
        raise ValueError(f"sample counts must be positive, got {dict(zip(centers, shares, strict=True))}")
    total = math.fsum(shares)
    shared: dict[str, Tensor] = {}
    for name, tensor in first.items():
        mean = torch.zeros_like(tensor, dtype=torch.float64)
        for share, update in zip(shares, updates, strict=True):
            mean += share / total * update.state[name].double()
        shared[name] = mean.to(tensor.dtype) if tensor.is_floating_point() else mean.round().to(tensor.dtype)
    return shared
