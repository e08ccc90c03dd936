"""The methods of the comparison, in the order of all tables and legends, and the rounds at which each is reported."""

from __future__ import annotations

from dataclasses import dataclass

from vfmgl_lib.config import StudySettings

VFMGL_UPDATES = 3


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
        title: as tables and legends have it.
        source: where it was published.
        updates: of the student per batch: VFMGL makes one by HGKT, one on the task and one in stage II.
        needs_validation: it takes decisions on a validation set: where the data have none, a fifth of the training patients becomes one.
        tunes: settings of its own that `sweep --tune` chooses on validation sets, beside the rate.
        revision: raised when the method's numbers change and its settings do not; part of what names a study.
    """

    title: str
    source: str
    updates: int = 1
    needs_validation: bool = False
    revision: int = 1
    tunes: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    "local": Method("Local only", "each centre alone"),
    "fedavg": Method("FedAvg", "McMahan et al. 2017, AISTATS", revision=2),
    "fedprox": Method("FedProx", "Li et al. 2020, MLSys", revision=2, tunes=("comparators.fedprox.mu",)),
    "harmofl": Method("HarmoFL", "Jiang et al. 2022, AAAI", revision=2),
    "metafed": Method("MetaFed", "Chen et al. 2023, IEEE TNNLS", needs_validation=True),
    "frozen_probe": Method(
        "Frozen VFM + linear", "linear probe, as the paper's Virchow row (Vorontsov et al. 2024)", updates=0, revision=2
    ),
    "logit_kd": Method("Logit KD", "Hinton et al. 2015; the paper's Supp. Fig. 12", revision=2),
    "hgkt": Method("HGKT", "the paper's Fig. 9, first matrix", updates=2),
    "hgkt_kd": Method("HGKT+KD", "the paper's Fig. 9, second matrix", updates=3),
    "vfmgl": Method("VFMGL", "the paper: HGKT+KD+DDBL", updates=VFMGL_UPDATES),
}


def report_rounds(settings: StudySettings) -> dict[str, int]:
    """budget -> the round at which the study's method is reported.

    "rounds": as many rounds as VFMGL has. "updates": as many updates of the student, where `federation.match_updates` asks for them and
    the method makes one a batch; otherwise the same round. A frozen model with a fitted classifier has one round.

    Not matched to the last update: VFMGL's R rounds make 3R - 1 a batch, since round 1 has no stage II, and the methods with one update
    have 3R; HGKT's two a batch stay 2R.
    """
    rounds, updates = settings.federation.rounds, METHODS[settings.method].updates
    if updates == 0:
        return {"rounds": 1, "updates": 1}
    factor = VFMGL_UPDATES // updates if settings.federation.match_updates else 1
    return {"rounds": rounds, "updates": rounds * factor}
