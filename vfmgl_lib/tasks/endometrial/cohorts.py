"""What the phantoms' patients are like: age, FIGO stage and histologic type, drawn from the paper's Table 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from vfmgl_lib.tasks.painting.sampling import blend

FIGO, HISTOLOGY = ("I", "II", "III", "IV"), ("I", "II")
_AGES = (20.0, 95.0)  # years; a normal distribution has no ends


@dataclass(frozen=True)
class Cohort:
    """Patients of one class: mean and SD of their age in years, and how often each FIGO stage and histologic type occurs."""

    age_mean: float
    age_std: float
    figo: tuple[float, ...]
    histology: tuple[float, ...]


# fmt: off
# Table 1 of the paper by centre and set, NMI before MI; NaN where it gives no age. A copy of
# data_manifests/table1_endometrial_patients.csv: what a version of the phantoms is drawn from must not change under it.
TABLE_1 = {
    ("A", "train"): (Cohort(50.3673, 9.4001, (46, 0, 2, 1), (42, 7)), Cohort(55.9335, 8.1279, (261, 31, 61, 8), (336, 25))),
    ("A", "test"): (Cohort(47.5588, 7.2413, (34, 0, 0, 0), (34, 0)), Cohort(54.8423, 7.8782, (168, 21, 50, 2), (216, 25))),
    ("B", "train"): (Cohort(48.3750, 5.8294, (8, 0, 0, 0), (8, 0)), Cohort(52.8824, 7.9839, (28, 2, 3, 1), (32, 2))),
    ("B", "test"): (Cohort(45.5000, 10.4451, (6, 0, 0, 0), (6, 0)), Cohort(55.5652, 10.2772, (16, 3, 4, 0), (22, 1))),
    ("C", "train"): (Cohort(math.nan, math.nan, (1, 0, 0, 0), (0, 1)), Cohort(60.9524, 8.1944, (15, 2, 3, 1), (19, 2))),
    ("C", "test"): (Cohort(math.nan, math.nan, (1, 0, 0, 0), (1, 0)), Cohort(60.1429, 10.2421, (9, 3, 2, 0), (14, 0))),
    ("D", "train"): (Cohort(51.1818, 11.7883, (11, 0, 0, 0), (10, 1)), Cohort(54.6788, 8.1195, (127, 5, 31, 2), (148, 17))),
    ("D", "test"): (Cohort(51.0000, 3.1168, (7, 0, 1, 0), (8, 0)), Cohort(54.4636, 7.8503, (91, 3, 14, 2), (101, 9))),
    ("E", "test"): (Cohort(math.nan, math.nan, (1, 0, 0, 0), (1, 0)), Cohort(55.0968, 8.9511, (42, 11, 7, 2), (60, 2))),
    ("F", "test"): (Cohort(54.6250, 13.7730, (8, 0, 0, 0), (7, 1)), Cohort(54.9358, 8.9134, (91, 2, 15, 1), (99, 10))),
}
# fmt: on


def draw_record(center: str, split: str, label: int, heterogeneity: float, rng: np.random.Generator) -> tuple[float, str, str]:
    """Age in years, FIGO stage and histologic type of a patient; `rng` is the patient's own."""
    everyone, own = _everyone(label), TABLE_1[center, split][label]
    if math.isnan(own.age_mean):
        # A single patient has no age in Table 1, and those of C not in the other set either: the whole class's instead.
        own = replace(own, age_mean=everyone.age_mean, age_std=everyone.age_std)
    cohort = blend(everyone, _in_shares(own), heterogeneity)
    age = float(np.clip(rng.normal(cohort.age_mean, max(cohort.age_std, 1.0)), *_AGES))
    figo, histology = (np.maximum(shares, 0) for shares in (cohort.figo, cohort.histology))  # above 1 a blend may fall below 0
    return age, str(rng.choice(FIGO, p=figo / figo.sum())), str(rng.choice(HISTOLOGY, p=histology / histology.sum()))


@lru_cache
def _everyone(label: int) -> Cohort:
    """All patients of a class, whatever their centre and set: what each centre is like at heterogeneity 0."""
    cohorts = [pair[label] for pair in TABLE_1.values()]
    aged = [(sum(c.figo), c.age_mean, c.age_std) for c in cohorts if not math.isnan(c.age_mean)]
    n, mean, std = np.array(aged).T
    middle = (n * mean).sum() / n.sum()
    variance = ((n - 1) * std**2 + n * (mean - middle) ** 2).sum() / (n.sum() - 1)
    figo, histology = (tuple(np.sum(counts, axis=0)) for counts in ([c.figo for c in cohorts], [c.histology for c in cohorts]))
    return _in_shares(Cohort(float(middle), math.sqrt(variance), figo, histology))


def _in_shares(cohort: Cohort) -> Cohort:
    figo, histology = (tuple(float(n / sum(counts)) for n in counts) for counts in (cohort.figo, cohort.histology))
    return replace(cohort, figo=figo, histology=histology)
