"""What a client trains with under each method, and the server: how updates become the messages of the next round.

A server and its clients exchange what a network could carry: state dicts of tensors to a centre, an `Update` from it. In a round the
driver (`federation.rounds`) goes through `order`, asks for each centre's `message`, hands its update to `receive`, and calls
`finish_round` after the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Switches:
    """What a method's client does, as switches over the same client.

    Attributes:
        transfer: stage I uses HGKT.
        distillation: stage II exists: distillation from the shared model, critical stages frozen.
        deduction: stage II skips batches of high heterogeneity (DDBL).
        task_only: stage II without the KL, a control: its loss is alpha times the task loss.
        permuted: DDBL's own decisions in a random order within centre and round, a control.
        teacher: the frozen foundation model is used.
        embeds: the model itself reads the teacher's features, so that every split needs the teacher's own resize.
        sends: the local model leaves the centre after a round.
        adopts: the shared model overwrites the local one; otherwise it only teaches.
        keeps: the part of the model that is never sent and never overwritten, as `models.students.part_names` has it; "": none. What is
            shared is then no whole model, and none is measured.
    """

    transfer: bool = False
    distillation: bool = False
    deduction: bool = False
    task_only: bool = False
    permuted: bool = False
    teacher: bool = False
    embeds: bool = False
    sends: bool = False
    adopts: bool = False
    keeps: str = ""


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


ROUND_METRICS = ("task_loss", "kept_share")
# Over a network alone: AUC or mean foreground Dice, on a centre's validation images, of its model and of the one received.
VALIDATION_METRICS = ("own_validation", "shared_validation")
DECLARED_METRICS = ROUND_METRICS + VALIDATION_METRICS
VARIANCE, COUNTER = "running_var", "num_batches_tracked"  # how the names of batch normalisation's end
LARGEST_COUNTER = 2**40  # batches that a centre can have seen


def is_count(value: object) -> bool:
    """Whether it is a whole number; True is none."""
    return isinstance(value, int) and not isinstance(value, bool)


class UpdateError(ValueError):
    """An update that the server refuses; the message names centre and tensor, what came and what was expected."""


class Server:
    """What every server does; by itself that of a method without federation: nothing is sent to a centre, no model may come from one."""

    checkpoint: str | None = None  # name of the server's part of a round's checkpoint; none: it has no state
    sequential = False  # a centre's message depends on the updates before it in the same round
    largest_norm = math.inf  # an update is refused if its norm is more than so many times the declared model's

    def order(self, centers: list[str], round_number: int) -> list[str]:
        """The centres of a round in the order in which their updates are received."""
        return centers

    def message(self, center: str, round_number: int) -> State | None:
        """What a centre receives before it trains; None: nothing."""
        return None

    def declared(self) -> tuple[State, dict[str, tuple[int, ...]]]:
        """What an update holds: a model of these names, shapes and types, and name -> shape of the aggregates beside it."""
        return {}, {}

    def receive(self, update: Update) -> None:
        """Takes what a centre sends after it has trained.

        Raises: UpdateError: for what the method does not declare; nothing of the update is taken then.
        """
        model, aggregates = self.declared()
        check_update(update, model, aggregates, self.largest_norm)

    def finish_round(self) -> State | None:
        """The shared model after the round, made of the updates received in it; None: the method has none."""
        return None

    def state_dict(self) -> State:
        """Everything that the next round depends on."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Takes back what `state_dict` gave."""


class Averaging(Server):
    """The server of FedAvg's kind: the next shared model is the weighted mean of the updates. It holds one update at a time.

    Args:
        initial: the state that all students start from.
        weights: see `WeightedMean`.
        sends_initial: centres receive the initial state in round 1, too; otherwise nothing, since it teaches nothing.
        aggregates: name -> shape of what a method declares beside the model: averaged with the same weights, part of the shared state.
        largest_norm: an update is refused if its norm is more than so many times the shared model's.
        new_mean: makes what the updates of a round are added to (`federation.aggregation` has others).
    """

    checkpoint = "shared"

    def __init__(
        self,
        initial: State,
        weights: str = "samples",
        *,
        sends_initial: bool = False,
        aggregates: Mapping[str, tuple[int, ...]] | None = None,
        largest_norm: float = math.inf,
        new_mean: Callable[[str], WeightedMean] | None = None,
    ):
        self.state = {name: tensor.detach().cpu().clone() for name, tensor in initial.items()}
        self.weights, self.sends_initial, self.aggregates = weights, sends_initial, dict(aggregates or {})
        self.largest_norm = largest_norm
        self._new_mean = new_mean or WeightedMean
        self._mean = self._new_mean(weights)

    def message(self, center: str, round_number: int) -> State | None:
        return self.state if round_number > 1 or self.sends_initial else None

    def declared(self) -> tuple[State, dict[str, tuple[int, ...]]]:
        return {name: tensor for name, tensor in self.state.items() if name not in self.aggregates}, self.aggregates

    def receive(self, update: Update) -> None:
        super().receive(update)
        self._mean.add(update)

    def finish_round(self) -> State:
        self.state = self._mean.state()
        self._mean = self._new_mean(self.weights)
        return self.state

    def state_dict(self) -> State:
        return self.state

    def load_state_dict(self, state: State) -> None:
        self.state = dict(state)
        self._mean = self._new_mean(self.weights)


class WeightedMean:
    """The next shared model, sum_k a_k theta_k over parameters, BN statistics and declared aggregates, from updates added one by one.

    It holds one model in float64, however many centres there are. The sum runs in the order in which updates are added.

    Args:
        weights: "samples" (a_k = n_k / sum n) or "uniform" (1/K, the released code).
    """

    def __init__(self, weights: str = "samples"):
        if weights not in ("samples", "uniform"):
            raise ValueError(f"federation.weights must be samples or uniform, got {weights!r}")
        self.weights, self.centers, self._total = weights, list[str](), 0
        self._sums: State = {}
        self._first: State = {}  # names, shapes and types alone
        self._broken = ""  # the centre whose update was added in part

    def add(self, update: Update) -> None:
        """Adds a centre's update.

        Raises: UpdateError: a second one of a centre, unequal names or shapes, values that are not finite; names centre and tensor.
        """
        if update.center in self.centers:
            raise UpdateError(f"update of centre {update.center}: one update per centre is needed, got a second one")
        state = update.state | update.aggregates
        if self._first:
            check_tensors(update, "tensor", state, self._first)
        check_finite(update)
        share = update.samples if self.weights == "samples" else 1
        if share <= 0:
            raise UpdateError(f"update of centre {update.center}: the number of samples must be positive, got {share}")
        self._first = self._first or {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
        self._broken = self._broken or update.center
        self._take(state, share)
        self._broken = ""
        self.centers.append(update.center)

    def state(self) -> State:
        """The mean in the students' own types; integer buffers (BN's counter) hold the weighted mean, rounded.

        Raises: ValueError: if no update was added. RuntimeError: an addition ended half-way, as for want of memory.
        """
        if not self.centers:
            raise ValueError("one update per centre is needed, got none")
        if self._broken:
            raise RuntimeError(f"the update of centre {self._broken} was added in part: the round has to be repeated")
        shared: State = {}
        for name, like in self._first.items():
            mean, kind = self._value(name), like.dtype
            shared[name] = mean.to(kind) if kind.is_floating_point else mean.round().to(kind)
        return shared

    def _take(self, state: State, share: int) -> None:
        for name, tensor in state.items():
            part = tensor.double() * share
            self._sums[name] = self._sums[name].add_(part) if name in self._sums else part
        self._total += share

    def _value(self, name: str) -> Tensor:
        """One tensor of the next shared model, in float64."""
        return self._sums[name] / self._total


def check_update(update: Update, model: State, aggregates: Mapping[str, tuple[int, ...]], largest_norm: float = math.inf) -> None:
    """Refuses an update that is not what a method declares.

    Args:
        model: the state that the update's must equal in names, shapes and types.
        aggregates: name -> shape of the declared aggregates.
        largest_norm: of the update's floating-point tensors together, as a multiple of the model's (taken as 1 if it is less).
    Raises: UpdateError: naming centre and tensor, what was declared and what came.
    """
    check_tensors(update, "state", update.state, model)
    check_tensors(update, "aggregate", update.aggregates, {name: torch.empty(shape) for name, shape in aggregates.items()})
    unknown = sorted(set(update.metrics) - set(DECLARED_METRICS))
    if unknown:
        raise UpdateError(f"update of centre {update.center}: metrics {unknown} are not declared; declared are {DECLARED_METRICS}")
    check_finite(update)
    check_statistics(update)
    norm, own = _norm(update.state), max(_norm(model), 1.0)
    if norm > largest_norm * own:
        raise UpdateError(
            f"update of centre {update.center}: its norm is {norm:.3g}, over faults.largest_norm ({largest_norm:g}) times the "
            f"shared model's {own:.3g}"
        )


def check_tensors(update: Update, kind: str, sent: State, declared: State) -> None:
    """Refuses what is not of the declared names, shapes and types.

    Raises: UpdateError: naming centre and tensor, what was declared and what came.
    """
    for name in sorted(sent.keys() | declared.keys()):
        found, expected = (state[name] if name in state else None for state in (sent, declared))
        if found is None or expected is None or found.shape != expected.shape:
            must = tuple(expected.shape) if expected is not None else "nothing: it is not declared"
            got = tuple(found.shape) if found is not None else "nothing"
            raise UpdateError(f"update of centre {update.center}: {kind} {name} must be {must}, got {got}")
        if found.dtype != expected.dtype:
            raise UpdateError(f"update of centre {update.center}: {kind} {name} must be {expected.dtype}, got {found.dtype}")


def check_finite(update: Update) -> None:
    """Refuses NaN and infinities.

    Raises: UpdateError: naming centre and tensor.
    """
    for name, tensor in (update.state | update.aggregates).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UpdateError(f"update of centre {update.center}: {name} holds values that are not finite")


def check_statistics(update: Update) -> None:
    """Refuses statistics of batch normalisation that no batch can have: they would outlive the round in the shared model.

    Raises: UpdateError: naming centre and tensor.
    """
    for name, tensor in update.state.items():
        if name.endswith(VARIANCE) and (tensor < 0).any():
            raise UpdateError(
                f"update of centre {update.center}: {name} is a variance and must not be negative, got {float(tensor.min()):g}"
            )
        if name.endswith(COUNTER) and ((tensor < 0) | (tensor > LARGEST_COUNTER)).any():
            raise UpdateError(
                f"update of centre {update.center}: {name} counts batches and must be in 0 to {LARGEST_COUNTER}, got {tensor.max().item()}"
            )


def _norm(state: State) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in state.values() if tensor.is_floating_point()))
