"""Batch normalisation's statistics: re-estimated on a centre's own training images ("precise BN"), or taken from each batch.

Running averages (momentum 0.1) lag behind after few updates, differ between methods with different numbers of updates, and their average
over models that never meet belongs to none of them. Re-estimated statistics have none of this (Wu and Johnson 2021, "Rethinking 'Batch' in
BatchNorm", arXiv 2105.07576): they are the moments of all inputs that a layer has in one pass over a fixed set of images.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """Name -> layer, of every batch normalisation of a model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm)}


@torch.no_grad()
def recalibrate(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Replaces the running statistics of every batch normalisation by those of one pass over `images`, in place.

    In the pass each batch is normalised by its own statistics, as in training; a layer's mean and (population) variance are those of all
    its inputs, pooled over the batches by their numbers of values. The result depends on which images share a batch, not, to the last
    bit, on the batches' order. No label is read, no parameter, counter (num_batches_tracked) or mode changes, no random number is drawn.

    Args:
        model: with running statistics; layers other than batch normalisation work as in eval mode.
        images: batches (B, 3, H, W) in [0, 1], on the model's device; not empty where there is a layer to re-estimate.
    Raises: ValueError: no batch.

    Example:
        recalibrate(student, (batch["image"] for batch in load_batches(training_set, fixed_batches(len(training_set)))))
    """
    layers = list(batch_norms(model).values())
    if not layers:
        return
    moments: list[list[tuple[int, Tensor, Tensor]]] = [[] for _ in layers]  # per call: values a channel, mean, sum of squared deviations
    modes = {module: module.training for module in model.modules()}
    before = [(layer.momentum, layer.get_buffer("num_batches_tracked").clone()) for layer in layers]
    hooks = [layer.register_forward_hook(_collector(found)) for layer, found in zip(layers, moments, strict=True)]
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.momentum = 1.0  # the running statistics become this batch's
        for batch in images:
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, (momentum, counter) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer.get_buffer("num_batches_tracked").copy_(counter)
        for module, training in modes.items():
            module.training = training
    if not moments[0]:
        raise ValueError("batch normalisation: its statistics need at least one batch of images, got none")
    for layer, found in zip(layers, moments, strict=True):
        mean, variance = _pooled(found)
        layer.get_buffer("running_mean").copy_(mean)
        layer.get_buffer("running_var").copy_(variance)


def use_batch_statistics(model: nn.Module) -> None:
    """Takes the running statistics away, in place: each batch is normalised by itself, in evaluation too (as the released UNet's are)."""
    for layer in batch_norms(model).values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def uses_batch_statistics(model: nn.Module) -> bool:
    """Whether a batch is normalised by itself in evaluation too, so that a prediction depends on the images beside it."""
    return any(layer.running_mean is None for layer in batch_norms(model).values())


def _collector(found: list[tuple[int, Tensor, Tensor]]):
    def collect(layer: BatchNorm, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        count = inputs[0].numel() // inputs[0].shape[1]
        mean, variance = layer.get_buffer("running_mean").double(), layer.get_buffer("running_var").double()
        found.append((count, mean.clone(), variance * (count - 1)))  # of a float64 model `double` makes no copy

    return collect


def _pooled(found: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and population variance of all batches together; summed in order of size, so that the batches' order leaves no trace."""
    total = sum(count for count, _, _ in found)
    mean = torch.stack([count * mean for count, mean, _ in found]).sort(0).values.sum(0) / total
    squares = torch.stack([squares + count * (own - mean).square() for count, own, squares in found])
    return mean, squares.sort(0).values.sum(0) / total
