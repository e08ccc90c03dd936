"""The rounds at which each method is reported, so that as much was spent on it as on VFMGL: in rounds, in updates, in passes."""

from __future__ import annotations

from vfmgl_lib.config import StudySettings
from vfmgl_lib.methods.passes import student_passes
from vfmgl_lib.methods.registry import METHODS

VFMGL_UPDATES, HGKT_UPDATES = 3, 2


def epoch_factor(settings: StudySettings) -> int:
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
    compute         where `federation.match_compute` asks for it: as many passes of the student (`passes.student_passes`), to the
                    nearest round; of pooled training as many as VFMGL makes at all centres together

    Without `federation.match_updates` nothing is matched but the rounds. A frozen model with a fitted classifier has one round, which
    stands in every budget.

    Not matched to the last update: VFMGL's R rounds make 3 R - 1 a batch, since round 1 has no stage II, and the methods with one update
    have 3 R.
    """
    federation, method = settings.federation, METHODS[settings.method]
    rounds, updates = federation.rounds, max(method.updates, 1)
    budgets = {"rounds": rounds} if epoch_factor(settings) == 1 else {}
    if federation.match_updates and method.own_images:
        if federation.match_by == "epochs":
            budgets |= {"epochs": rounds} if updates * epoch_factor(settings) == VFMGL_UPDATES or not method.updates else {}
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
    passes = student_passes(settings, rounds) * epoch_factor(settings)
    spent = student_passes(settings.model_copy(update={"method": "vfmgl"}), rounds) * rounds
    return max(1, round(spent / passes)) if passes else 1
