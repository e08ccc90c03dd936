"""The methods of the comparison, in the order of all tables and legends, and the rounds at which each is reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vfmgl_lib.config import StudySettings, checked_settings
from vfmgl_lib.methods.compute import student_passes

VFMGL_UPDATES, HGKT_UPDATES = 3, 2
RANDOM = "random:"  # before a teacher's text: its network with random weights (`models.teachers`)


def with_random_weights(teacher: str) -> str:
    """The same network with random weights, always the same ones; a text that asks for random ones stays as it is."""
    return teacher if teacher.startswith(RANDOM) else RANDOM + teacher


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        title: as tables and legends have it.
        source: where it was published.
        updates: of the reported model per batch: VFMGL makes one by HGKT, one on the task and one in stage II. Ditto's and ProxyFL's second
            model and FedRep's head, trained beside it, do not count here, but in `compute.student_passes`. 0: it has neither rounds nor
            updates, and its one model stands in every budget.
        own_images: a round is each centre's batches of its own images; false: updates are not counted beside VFMGL's. A round of pooled
            training makes as many as all centres together.
        last_round_differs: from those before, so that it is reported where it ends and nowhere on the way (`hgkt_updates`).
        needs_validation: it takes decisions on a validation set: where the data have none, a fifth of the training patients becomes one.
        tunes: settings of its own that `sweep --tune` chooses on validation sets, beside the rate.
        revision: raised when the method's numbers change and its settings do not; part of what names a study.
        private: images stay at their centres; a method of which this is false runs in one process alone.
        parent: of a control and of nothing else (`is_control`), the method that it is held against and differs from in one thing alone: its
            `overrides` or a switch of its strategy (`federation.strategies`). What a part of the method is worth is its parent's lead.
        overrides: settings that are this method's own, whatever the profile says: "section.name" -> value, or a function of the
            profile's value (`with_overrides`).
    """

    title: str
    source: str
    updates: int = 1
    own_images: bool = True
    needs_validation: bool = False
    last_round_differs: bool = False
    revision: int = 1
    tunes: tuple[str, ...] = ()
    private: bool = True
    parent: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_control(self) -> bool:
        return bool(self.parent)


METHODS: dict[str, Method] = {
    "local": Method("Local only", "each centre alone"),
    "fedavg": Method("FedAvg", "McMahan et al. 2017, AISTATS", revision=2),
    "fedavg_ft": Method("FedAvg + fine-tuning", "FedAvg's model after one more local epoch; Wang et al. 2019, arXiv:1910.10252"),
    "fedprox": Method("FedProx", "Li et al. 2020, MLSys", revision=2, tunes=("comparators.fedprox.mu",)),
    "harmofl": Method("HarmoFL", "Jiang et al. 2022, AAAI", revision=2),
    "metafed": Method("MetaFed", "Chen et al. 2023, IEEE TNNLS", needs_validation=True, last_round_differs=True),
    "fedbn": Method("FedBN", "Li et al. 2021, ICLR"),
    "ditto": Method("Ditto", "Li et al. 2021, ICML", tunes=("comparators.ditto.proximity",)),
    "fedrep": Method("FedRep", "Collins et al. 2021, ICML"),
    "fedper": Method("FedPer", "Arivazhagan et al. 2019, arXiv:1912.00818", overrides={"comparators.fedrep.head_epochs": 0}),
    "proxyfl": Method("ProxyFL", "Kalra et al. 2023, Nature Communications; the paper's reference 29"),
    "pooled": Method("Pooled (not private)", "upper bound: all centres' training images in one place", private=False, own_images=False),
    "frozen_probe": Method(
        "Frozen VFM + linear", "linear probe, as the paper's Virchow row (Vorontsov et al. 2024)", updates=0, revision=2
    ),
    "logit_kd": Method("Logit KD", "Hinton et al. 2015; the paper's Supp. Fig. 12", revision=2),
    "hgkt": Method("HGKT", "the paper's Fig. 9, first matrix", updates=2),
    "fedavg_hgkt": Method("FedAvg + HGKT", "HGKT's stage I, then FedAvg's averaging and adoption", updates=2),
    "hgkt_beta0": Method("HGKT, β = 0", "control: HGKT's schedule without its teacher", 2, parent="hgkt", overrides={"transfer.beta": 0.0}),
    "hgkt_random": Method(
        "HGKT, random teacher",
        "control: HGKT from the teacher's architecture with random weights",
        updates=2,
        parent="hgkt",
        overrides={"teacher.source": with_random_weights},
    ),
    "hgkt_kd": Method("HGKT+KD", "the paper's Fig. 9, second matrix", updates=3),
    "vfmgl_task": Method("VFMGL without KL", "control: stage II on the task loss alone, every batch", updates=3, parent="hgkt_kd"),
    "vfmgl_random": Method("VFMGL, random drops", "control: DDBL's decisions permuted within centre and round", updates=3, parent="vfmgl"),
    "vfmgl": Method("VFMGL", "the paper: HGKT+KD+DDBL", updates=VFMGL_UPDATES),
}


def with_overrides(settings: StudySettings) -> StudySettings:
    """The settings with those that the study's method has of its own; applying it again changes nothing.

    They are `Method.overrides` and, where updates are matched by epochs, how many times the local epochs it has.

    Raises: ConfigError: a value out of range.
    """
    overrides, factor = dict(METHODS[settings.method].overrides), _epoch_factor(settings)
    if factor != settings.federation.epoch_factor:
        overrides["federation.epoch_factor"] = factor
    if not overrides:
        return settings
    values = settings.model_dump()
    for name, value in overrides.items():
        *sections, last = name.split(".")
        part = values
        for section in sections:
            part = part[section]
        part[last] = value(part[last]) if callable(value) else value
    return checked_settings(values)


def _epoch_factor(settings: StudySettings) -> int:
    """How many times the profile's local epochs the study's method has, so that R rounds make as many updates as VFMGL's."""
    federation, method = settings.federation, METHODS[settings.method]
    by_epochs = federation.match_updates and federation.match_by == "epochs"
    return VFMGL_UPDATES if by_epochs and method.updates == 1 and method.own_images else 1


def report_rounds(settings: StudySettings) -> dict[str, int]:
    """budget -> the round at which the study's method is reported; a budget is there only where it holds, several may have the same round.

    rounds          as many rounds as VFMGL has, R, of the profile's local epochs
    updates         as many updates of the student: R rounds of methods with three a batch, 3 R of those with one. Not of HGKT and its
                    controls, which stay at 2 R updates, nor of pooled training (`Method.own_images`)
    hgkt_updates    as many updates as HGKT in R rounds: its own R, 2 R of methods with one a batch, which is on their way; not of one
                    whose last round differs from those before (MetaFed)
    epochs          in place of these two where `federation.match_by` says so: R rounds with as many updates as VFMGL, which methods with
                    one a batch make by three times the local epochs; they then have no budget "rounds"
    compute         where `federation.match_compute` asks for it: as many passes of the student (`compute.student_passes`), to the
                    nearest round; of pooled training as many as VFMGL makes at all centres together

    Without `federation.match_updates` nothing is matched but the rounds. A frozen model with a fitted classifier has one round, which
    stands in every budget.

    Not matched to the last update: VFMGL's R rounds make 3 R - 1 a batch, since round 1 has no stage II, and the methods with one update
    have 3 R.
    """
    federation, method = settings.federation, METHODS[settings.method]
    rounds, updates = federation.rounds, max(method.updates, 1)
    budgets = {"rounds": rounds} if _epoch_factor(settings) == 1 else {}
    if federation.match_updates and method.own_images:
        if federation.match_by == "epochs":
            budgets |= {"epochs": rounds} if updates * _epoch_factor(settings) == VFMGL_UPDATES or not method.updates else {}
        else:
            wanted = {"updates": VFMGL_UPDATES} | ({} if method.last_round_differs else {"hgkt_updates": HGKT_UPDATES})
            budgets |= {budget: rounds * number // updates for budget, number in wanted.items() if number % updates == 0}
    if federation.match_compute:
        budgets["compute"] = _rounds_of_equal_compute(settings)
    return budgets if method.updates else dict.fromkeys(budgets, 1)


def reference_at(budget: str) -> str:
    """The method that all others are compared with at a budget: VFMGL, at "hgkt_updates" HGKT."""
    return "hgkt" if budget == "hgkt_updates" else "vfmgl"


def _rounds_of_equal_compute(settings: StudySettings) -> int:
    rounds = settings.federation.rounds
    passes = student_passes(settings, rounds) * _epoch_factor(settings)
    spent = student_passes(settings.model_copy(update={"method": "vfmgl"}), rounds) * rounds
    return max(1, round(spent / passes)) if passes else 1
