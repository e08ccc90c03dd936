"""ProxyFL (Kalra et al. 2023, "Decentralized federated learning through proxy model sharing", Nature Communications; the paper's reference
29; code: layer6ai-labs/ProxyFL). No shared model: every centre has a private model, which never leaves it, and a proxy, which goes round.

    private  (1 - a) task + a KL(proxy || private)         both on the same batch, each taught by the other's predictions as they are,
    proxy    (1 - a) task + a KL(private || proxy)         temperature 1, segmentation: mean over pixels

After a round the proxies are mixed by PushSum over a directed exponential graph: in round t, of K centres in the order of their names,
centre k keeps a share of its proxy and passes the rest on to centre k + 2^(t mod L), L = floor(log2(K - 1)) + 1. So it does with a weight,
1 at the start, and goes on with the sum of what it has divided by the sum of its weights: a centre that takes no part in a round biases
nothing. The private model is reported as the centre's.

Deviations: its differential privacy (DP-SGD on the proxy) is off; `exchange.clip` and `exchange.noise` protect what is sent of every method
instead. Half of a proxy is kept (Assran et al. 2019, "Stochastic gradient push", ICML); the official code passes it on whole, so that no
two proxies are ever averaged. Proxy and private model are both the task's student, with the task's optimiser and different initial weights.
The proxies pass through the server, which mixes them: in one process and over a network alike.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from vfmgl_lib.base.randomness import seed_sequence, torch_seed
from vfmgl_lib.config import StudySettings
from vfmgl_lib.config.sections import Settings
from vfmgl_lib.federation.servers import Server, State, Switches, Update
from vfmgl_lib.kernels.distillation import temperature_kl
from vfmgl_lib.methods.passes import UPDATE
from vfmgl_lib.methods.record import Method
from vfmgl_lib.methods.two_models import TwoModelClient
from vfmgl_lib.models.students import Student, build_student

WEIGHT = "pushsum.weight"


class ProxyFLSettings(Settings):
    # The official code's weight of the mutual distillation.
    distillation_share: float = Field(default=0.5, ge=0, le=1, description="a: loss = (1 - a) task + a KL, of both models")
    # Assran et al. 2019; the official code keeps nothing.
    kept_share: float = Field(default=0.5, gt=0, lt=1, description="share of its proxy that a centre does not pass on")


class ProxyFLClient(TwoModelClient):
    """A centre whose private model (`student`) and proxy (`sent`) teach each other."""

    def task_step(self, images: Tensor, target: Tensor, batch: dict) -> Tensor:
        private, proxy = self.student(images), self.sent(images)
        task = self.task_loss(private, target)
        self.optimizer.zero_grad(set_to_none=True)
        self.sent_optimizer.zero_grad(set_to_none=True)
        self._mutual(task, private, proxy).backward()
        self._mutual(self.task_loss(proxy, target), proxy, private).backward()
        self.optimizer.step()
        self.sent_optimizer.step()
        return task.detach()

    def _mutual(self, task: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        share = self.settings.comparators.proxyfl.distillation_share
        return (1 - share) * task + share * temperature_kl(logits, taught.detach(), 1.0).mean() / logits[0, 0].numel()


def new_proxy(settings: StudySettings) -> Student:
    """The proxy that all centres start from: the study's student with initial weights of its own, so that there is something to teach."""
    chosen = settings.student
    with torch_seed(seed_sequence(settings.seed, "proxy")):
        batch_statistics = settings.batch_norm == "batch"
        return build_student(chosen.name, settings.data.class_count, chosen.width, chosen.weights, batch_statistics=batch_statistics)


class PushSum(Server):
    """Mixes the centres' proxies, each with one neighbour's.

    Args:
        settings: the study's.
        centers: in the graph's order.
        initial: the state that all proxies start from; every update must have its names, shapes and types.
    """

    checkpoint = "pushsum.state"  # for resuming only, as the centres' own state

    def __init__(self, settings: StudySettings, centers: list[str], initial: State):
        self.settings, self.centers, self.initial = settings, list(centers), initial
        self.kept = settings.comparators.proxyfl.kept_share
        self.largest_norm = settings.faults.largest_norm
        self.sums = {center: {name: tensor.detach().cpu().double() for name, tensor in initial.items()} for center in centers}
        self.weights = dict.fromkeys(centers, 1.0)
        self.there: set[str] = set()
        self.round = 0

    def message(self, center: str, round_number: int) -> State:
        self.round = round_number
        return self.proxy(center)

    def proxy(self, center: str) -> State:
        """What a centre goes on with: its sum, divided by its weight."""
        found = {name: total / self.weights[center] for name, total in self.sums[center].items()}
        kinds = {name: tensor.dtype for name, tensor in self.initial.items()}
        return {name: (value if kinds[name].is_floating_point else value.round()).to(kinds[name]) for name, value in found.items()}

    def declared(self) -> tuple[State, dict[str, tuple[int, ...]]]:
        return self.initial, {}

    def receive(self, update: Update) -> None:
        super().receive(update)
        self.sums[update.center] = {name: tensor.double() * self.weights[update.center] for name, tensor in update.state.items()}
        self.there.add(update.center)

    def finish_round(self) -> None:
        """Every centre that took part passes a share of its sum and of its weight on to its neighbour of this round."""
        mass = {center: self.sums[center] | {WEIGHT: torch.tensor(self.weights[center], dtype=torch.float64)} for center in self.centers}
        mixed = {center: dict(mass[center]) for center in self.centers}
        for place, center in enumerate(self.centers):
            neighbour = self.centers[(place + distance(self.round, len(self.centers))) % len(self.centers)]
            if center not in self.there or neighbour == center:
                continue
            for name, value in mass[center].items():
                passed = value * (1 - self.kept)
                mixed[center][name] = mixed[center][name] - passed
                mixed[neighbour][name] = mixed[neighbour][name] + passed
        self.weights = {center: float(part.pop(WEIGHT)) for center, part in mixed.items()}
        self.sums, self.there = mixed, set()

    def state_dict(self) -> State:
        weights = {f"{center}/{WEIGHT}": torch.tensor(weight, dtype=torch.float64) for center, weight in self.weights.items()}
        return {f"{center}/{name}": tensor for center, sums in self.sums.items() for name, tensor in sums.items()} | weights

    def load_state_dict(self, state: State) -> None:
        self.sums, self.weights, self.there = {}, {}, set()
        for key, tensor in state.items():
            center, _, name = key.rpartition("/")
            if name == WEIGHT:
                self.weights[center] = float(tensor)
            else:
                self.sums.setdefault(center, {})[name] = tensor


def distance(round_number: int, centers: int) -> int:
    """How far a proxy goes in a round, in places of the ring; 0 for one centre."""
    return 2 ** (round_number % (math.floor(math.log2(centers - 1)) + 1)) if centers > 1 else 0


METHODS = (
    Method(
        "proxyfl",
        "ProxyFL",
        "Kalra et al. 2023, Nature Communications; the paper's reference 29",
        order=110,
        color="#661100",
        line="dash_dot",
        marker=(3, 1, 0),
        switches=Switches(sends=True, adopts=True),
        client=ProxyFLClient,
        server=lambda settings, centers, student: PushSum(settings, centers, new_proxy(settings).state_dict()),
        settings=ProxyFLSettings,
        extra_passes=lambda settings: UPDATE,  # the proxy
    ),
)
