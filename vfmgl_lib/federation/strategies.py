"""What a client trains with under each method, and the server: how updates become the messages of the next round.

A server and its clients exchange what a network could carry: state dicts of tensors to a centre, an `Update` from it. In a round the
driver (`federation.rounds`) goes through `order`, asks for each centre's `message`, hands its update to `receive`, and calls
`finish_round` after the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Strategy:
    """A method as switches over the same client.

    Attributes:
        transfer: stage I uses HGKT.
        distillation: stage II exists: distillation from the shared model, critical stages frozen.
        deduction: stage II skips batches of high heterogeneity (DDBL).
        teacher: the frozen foundation model is used.
        embeds: the model itself reads the teacher's features, so that every split needs the teacher's own resize.
        sends: the local model leaves the centre after a round.
        adopts: the shared model overwrites the local one; otherwise it only teaches.
    """

    transfer: bool = False
    distillation: bool = False
    deduction: bool = False
    teacher: bool = False
    embeds: bool = False
    sends: bool = False
    adopts: bool = False


STRATEGIES = {
    "local": Strategy(),
    "fedavg": Strategy(sends=True, adopts=True),
    "fedprox": Strategy(sends=True, adopts=True),
    "harmofl": Strategy(sends=True, adopts=True),
    "metafed": Strategy(sends=True),
    "frozen_probe": Strategy(teacher=True, embeds=True),
    "logit_kd": Strategy(teacher=True),
    "hgkt": Strategy(transfer=True, teacher=True, sends=True),
    "hgkt_kd": Strategy(transfer=True, distillation=True, teacher=True, sends=True),
    "vfmgl": Strategy(transfer=True, distillation=True, deduction=True, teacher=True, sends=True),
}


@dataclass(frozen=True)
class Update:
    """Everything that leaves a centre after a round.

    Attributes:
        center: the centre's name.
        state: the student's parameters and BN statistics; empty where the method sends no model.
        samples: n_k, number of training samples.
        metrics: the declared scalars (`DECLARED_METRICS`).
        aggregates: the tensors that the method declares by name and size, beside the model.
    """

    center: str
    state: State
    samples: int
    metrics: dict[str, float]
    aggregates: State = field(default_factory=dict)


DECLARED_METRICS = ("task_loss", "kept_share")


class Server:
    """What every server does; by itself that of a method without federation: nothing is sent to a centre, no model may come from one."""

    checkpoint: str | None = None  # name of the server's part of a round's checkpoint; none: it has no state

    def order(self, centers: list[str], round_number: int) -> list[str]:
        """The centres of a round in the order in which they train."""
        return centers

    def message(self, center: str, round_number: int) -> State | None:
        """What a centre receives before it trains; None: nothing."""
        return None

    def receive(self, update: Update) -> None:
        """Takes what a centre sends after it has trained.

        Raises: ValueError: for a tensor that the method does not declare; names centre and tensor.
        """
        check_tensors(update, "state", update.state, {})
        check_tensors(update, "aggregate", update.aggregates, {})

    def finish_round(self) -> State | None:
        """The shared model after the round; None: the method has none."""
        return None

    def state_dict(self) -> State:
        """Everything that the next round depends on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Takes back what `state_dict` gave."""


class Averaging(Server):
    """The server of FedAvg's kind: the next shared model is the weighted mean of the updates.

    Args:
        initial: the state that all students start from.
        weights: see `average`.
        sends_initial: centres receive the initial state in round 1, too; otherwise nothing, since it teaches nothing.
        aggregates: name -> shape of what a method declares beside the model: averaged with the same weights, part of the shared state.
    """

    checkpoint = "shared"

    def __init__(
        self,
        initial: State,
        weights: str = "samples",
        *,
        sends_initial: bool = False,
        aggregates: Mapping[str, tuple[int, ...]] | None = None,
    ):
        self.state = {name: tensor.detach().cpu().clone() for name, tensor in initial.items()}
        self.weights, self.sends_initial, self.aggregates = weights, sends_initial, dict(aggregates or {})
        self._updates: list[Update] = []

    def message(self, center: str, round_number: int) -> State | None:
        return self.state if round_number > 1 or self.sends_initial else None

    def receive(self, update: Update) -> None:
        check_tensors(update, "aggregate", update.aggregates, self.aggregates)
        own = {name: tuple(tensor.shape) for name, tensor in self.state.items() if name not in self.aggregates}
        check_tensors(update, "state", update.state, own)
        self._updates.append(update)

    def finish_round(self) -> State:
        self.state = average(self._updates, self.weights)
        self._updates = []
        return self.state

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        self.state = dict(state)


def average(updates: list[Update], weights: str = "samples") -> State:
    """The next shared model: sum_k a_k theta_k over parameters, BN statistics and declared aggregates.

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
    states = [{**update.state, **update.aggregates} for update in updates]
    first = states[0]
    for center, state in zip(centers, states, strict=True):
        if state.keys() != first.keys():
            raise ValueError(f"update of centre {center}: tensors {sorted(state.keys() ^ first.keys())[:3]} are missing or additional")
        for name, tensor in state.items():
            if tensor.shape != first[name].shape:
                raise ValueError(f"update of centre {center}: {name} must be {tuple(first[name].shape)}, got {tuple(tensor.shape)}")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"update of centre {center}: {name} holds values that are not finite")
    shares = [update.samples if weights == "samples" else 1 for update in updates]
    if min(shares) <= 0:
        raise ValueError(f"sample counts must be positive, got {dict(zip(centers, shares, strict=True))}")
    total = math.fsum(shares)
    shared: State = {}
    for name, tensor in first.items():
        mean = torch.zeros_like(tensor, dtype=torch.float64)
        for share, state in zip(shares, states, strict=True):
            mean += share / total * state[name].double()
        shared[name] = mean.to(tensor.dtype) if tensor.is_floating_point() else mean.round().to(tensor.dtype)
    return shared


def check_tensors(update: Update, kind: str, sent: State, declared: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses what is not of the names and shapes that a method declares.

    Raises: ValueError: naming centre, tensor, what was declared and what came.
    """
    for name in sorted(sent.keys() | declared.keys()):
        found, expected = tuple(sent[name].shape) if name in sent else "nothing", declared.get(name, "nothing: it is not declared")
        if found != expected:
            raise ValueError(f"update of centre {update.center}: {kind} {name} must be {expected}, got {found}")
