"""Which client and which server a method has."""

from __future__ import annotations

from vfmgl_lib.config import StudySettings
from vfmgl_lib.federation.client import Client
from vfmgl_lib.federation.strategies import STRATEGIES, Averaging, Server
from vfmgl_lib.methods import harmofl
from vfmgl_lib.methods.ditto import DittoClient
from vfmgl_lib.methods.fedavg_ft import FineTunedClient
from vfmgl_lib.methods.fedprox import FedProxClient
from vfmgl_lib.methods.frozen_probe import FrozenProbeClient
from vfmgl_lib.methods.harmofl import HarmoFLClient
from vfmgl_lib.methods.logit_kd import LogitKDClient
from vfmgl_lib.methods.metafed import MetaFedClient, Ring
from vfmgl_lib.methods.personal_parts import FedRepClient
from vfmgl_lib.methods.pooled import PooledClient, PoolServer
from vfmgl_lib.methods.proxyfl import ProxyFLClient, PushSum, new_proxy
from vfmgl_lib.models.students import Student, part_names

# A method that is not here has the plain client: its switches say all (`federation.strategies`).
CLIENTS: dict[str, type[Client]] = {
    "fedavg_ft": FineTunedClient,
    "fedprox": FedProxClient,
    "harmofl": HarmoFLClient,
    "metafed": MetaFedClient,
    "ditto": DittoClient,
    "fedrep": FedRepClient,
    "fedper": FedRepClient,
    "proxyfl": ProxyFLClient,
    "pooled": PooledClient,
    "frozen_probe": FrozenProbeClient,
    "logit_kd": LogitKDClient,
}


def client_class(method: str) -> type[Client]:
    """The client of a method; all take the same arguments."""
    return CLIENTS.get(method, Client)


def new_server(settings: StudySettings, centers: list[str], student: Student) -> Server:
    """The server of the study's method.

    Args:
        centers: the training centres, sorted.
        student: in the state that every client's student starts from.
    """
    initial = (harmofl.normalised(student, settings) if settings.method == "harmofl" else student).state_dict()
    strategy, limit = STRATEGIES[settings.method], settings.faults.largest_norm
    if settings.method == "metafed":
        return Ring(settings, centers, initial)
    if settings.method == "proxyfl":
        return PushSum(settings, centers, new_proxy(settings).state_dict())
    if not strategy.sends:
        return Server()
    if settings.method == "harmofl":
        declared = harmofl.declared_aggregates(settings)
        return Averaging(initial, settings.comparators.harmofl.weights, sends_initial=True, aggregates=declared, largest_norm=limit)
    kept = part_names(student, strategy.keeps)
    initial = {name: tensor for name, tensor in initial.items() if name not in kept}
    build = PoolServer if settings.method == "pooled" else Averaging
    return build(initial, settings.federation.weights, sends_initial=strategy.adopts, largest_norm=limit)
