"""How an update is written before it leaves a centre, and read where it arrives: number format, withheld counts, differential privacy.

Differential privacy of a centre (McMahan et al. 2018, "Learning differentially private recurrent language models", ICLR; local form): the
change of the model from the one received, over all tensors that leave the centre, is shortened to length `clip`, and every value gets
Gaussian noise of SD `noise * clip`. Whatever a centre's data are, its true message differs by at most 2 clip from that of other data, so
that a round is rho-zCDP with rho = 2 / noise^2 (Bun and Steinke 2016, "Concentrated differential privacy", TCC), and `epsilon` follows.

Statistics of batch normalisation are clipped and noised like all else, and take most of the clip: in short runs on phantoms 75 to 100 % of
a change's squared length, re-estimated (`batch_norm: recalibrated`) no less than as running averages, so that parameters hardly move under
a tight clip (`results/privacy`). Where they are re-estimated a centre replaces those it receives by its own before it uses them; only the
shared model with averaged statistics carries what is left of them.

The noise comes from the operating system's entropy: a seed that others know could be subtracted. A run with noise is therefore the one
kind of run that is not reproducible. Attacks on floating-point Gaussian samplers (Mironov 2012) are not defended against.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vfmgl_lib.config.sections import ExchangeSettings
from vfmgl_lib.federation.servers import COUNTER, VARIANCE, State, Update, UpdateError

SMALLEST_VARIANCE = 1e-5  # of a batch normalisation after noise: a variance cannot be negative


def outgoing(update: Update, reference: State, received: State | None, settings: ExchangeSettings) -> Update:
    """The update as it leaves the centre.

    Args:
        update: as trained.
        reference: the model that its change is measured from: the one received or, before there is one, the common initial one.
        received: the server's message of this round.
    Raises: ValueError: a value that does not fit the number format; names centre and tensor.
    """
    if not settings.share_counts:
        kept = {name: torch.zeros_like(tensor) if name.endswith(COUNTER) else tensor for name, tensor in update.state.items()}
        update = replace(update, state=kept, samples=0, metrics={})
    if settings.clip:
        update = _protected(update, reference, settings)
    if settings.number_format == "float32":
        return update
    base = received if settings.number_format == "float16_change" and received is not None else {}
    halves = {name: _half(update.center, name, tensor, base.get(name)) for name, tensor in update.state.items()}
    return replace(update, state=halves)


def incoming(update: Update, sent: State | None, settings: ExchangeSettings) -> Update:
    """The update in float32, as the server goes on with it.

    Args:
        update: as it arrived.
        sent: the message that it answers.
    Raises: UpdateError: a tensor of another type than agreed, or that does not fit the one it is a change of; names centre and tensor.
    """
    if settings.number_format == "float32":
        return update
    base = sent if settings.number_format == "float16_change" and sent is not None else {}
    state = {name: _full(update.center, name, tensor, base.get(name)) for name, tensor in update.state.items()}
    return replace(update, state=state)


def epsilon(noise: float, rounds: int, delta: float = 1e-5) -> float:
    """Epsilon of (epsilon, delta)-differential privacy for a centre that took part in so many rounds; infinite without noise."""
    if not noise:
        return math.inf
    rho = rounds * 2 / noise**2
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def in_words(settings: ExchangeSettings, rounds: int) -> str:
    """Format and protection of the updates, with the epsilon of so many rounds where there is noise."""
    parts = [settings.number_format] + ["counts and losses withheld"] * (not settings.share_counts)
    parts += [f"changes clipped to {settings.clip:g}"] * bool(settings.clip)
    if settings.noise:
        parts.append(f"noise {settings.noise:g}: epsilon {epsilon(settings.noise, rounds):.3g} after {rounds} rounds (delta 1e-5)")
    return ", ".join(parts)


def _protected(update: Update, reference: State, settings: ExchangeSettings) -> Update:
    tensors = {name: tensor for name, tensor in (update.state | update.aggregates).items() if tensor.is_floating_point()}
    changes = {name: tensor.double() - reference.get(name, torch.zeros_like(tensor)).double() for name, tensor in tensors.items()}
    length = math.sqrt(sum(float(change.square().sum()) for change in changes.values()))
    scale = min(1.0, settings.clip / length) if length else 1.0
    generator = np.random.default_rng()  # the operating system's entropy, see above
    noisy: State = {}
    for name, change in changes.items():
        value = tensors[name].double() - change + change * scale
        if settings.noise:
            value += torch.from_numpy(generator.normal(0, settings.noise * settings.clip, tuple(change.shape)))
            value = value.clamp(min=SMALLEST_VARIANCE) if name.endswith(VARIANCE) else value
        noisy[name] = value.to(tensors[name].dtype)
    state = {name: noisy.get(name, tensor) for name, tensor in update.state.items()}
    return replace(update, state=state, aggregates={name: noisy[name] for name in update.aggregates})


def _half(center: str, name: str, tensor: Tensor, base: Tensor | None) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    sent = tensor - base if base is not None else tensor
    half = sent.half()
    if torch.isfinite(sent).all() and not torch.isfinite(half).all():
        what = f"the change of {name}" if base is not None else name
        raise ValueError(
            f"centre {center}: {what} reaches {sent.abs().max():.3g}, more than float16 holds; use exchange.number_format float32"
        )
    return half


def _full(center: str, name: str, tensor: Tensor, base: Tensor | None) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    if tensor.dtype != torch.float16:
        raise UpdateError(f"update of centre {center}: {name} must be {torch.float16} on its way, got {tensor.dtype}")
    if base is None:
        return tensor.float()
    # Not left to the sum: it would stretch a smaller tensor to the shape declared, and an unfit one would end the round.
    if tensor.shape != base.shape:
        raise UpdateError(f"update of centre {center}: the change of {name} must be {tuple(base.shape)}, got {tuple(tensor.shape)}")
    full = tensor.float() + base
    return full.clamp(min=0) if name.endswith(VARIANCE) else full  # a large fall, rounded, can end below zero
