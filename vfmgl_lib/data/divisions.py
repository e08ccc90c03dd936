"""Ways to cut a manifest: a validation set, a new division of the patients, folds, a subset. All but `subset` move whole patients.

Where the manifest has groups of patients, whole groups move (`manifest.division_units`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.data.manifest import SPLITS, Manifest, ManifestError, division_units

RESPLIT_VALIDATION = 0.2  # of the training patients, as in the 64/16/20 of the prepared sets


def with_validation(manifest: Manifest, share: float, seed: int) -> Manifest:
    """Move a share of each centre's training patients to the validation set; a centre that has one is left alone (`with_held_out`)."""
    have = set(manifest.table.loc[manifest.table["split"] == "val", "center"])
    return with_held_out(manifest, share, seed, "val", [center for center in manifest.training_centers if center not in have])


def with_held_out(manifest: Manifest, share: float, seed: int, split: Literal["val", "test"], centers: Iterable[str]) -> Manifest:
    """Move a share of the named centres' training patients to another split.

    Whole patients move, chosen at random in proportion to the classes they have; where it can be, one patient of each
    kind stays in training. A centre's choice depends on the seed and on its own rows alone.

    Args:
        share: of the training patients, 0 < share < 1, rounded, at least one patient.
    Raises: ValueError: share out of range. ManifestError: a centre with fewer than two training patients.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    table, purpose = manifest.table.copy(), {"val": "validation", "test": "test"}[split]
    for center in centers:
        train = table[(table["center"] == center) & (table["split"] == "train")]
        units = division_units(train)
        patients = units.nunique()
        if patients < 2:
            raise ManifestError(f"center {center!r} has {patients} training patient(s), expected at least 2 to set one aside for {purpose}")
        count = min(max(1, int(share * patients + 0.5)), patients - 1)
        chosen = _draw_patients(manifest, train, count, np.random.default_rng(seed_sequence(seed, purpose, center)))
        table.loc[train.index[units.isin(chosen)], "split"] = split
    return replace(manifest, table=table)


def resplit(manifest: Manifest, train: float, seed: int) -> Manifest:
    """All patients of each training centre divided anew: the robustness of results to the split (method.md §7).

    Whole patients go to training or test, in proportion to the classes they have (`with_held_out`); where the centre had a validation set,
    a fifth of its training patients becomes the new one. External centres stay as they are. Ids stay too: they name the folder a file
    came from, not the split it is in. A centre's division depends on the seed and on its own rows alone.

    Args:
        train: share of the patients for training (and validation), 0 < train < 1, rounded, at least one patient on either side.
        seed: of the division, apart from a study's seed.
    Raises: ValueError: share out of range. ManifestError: a set divided by image; a centre with too few patients for its splits.
    """
    if not 0 < train < 1:
        raise ValueError(f"the training share of a split must be above 0 and below 1, got {train}")
    together, centers, validated = _together(manifest)
    divided = with_held_out(replace(manifest, table=together), 1 - train, seed, "test", centers)
    return with_held_out(divided, RESPLIT_VALIDATION, seed, "val", validated)


def fold(manifest: Manifest, folds: int, number: int, seed: int) -> Manifest:
    """One division of a cross-validation: the patients of fold `number` test, those of the other folds train.

    Every patient of a training centre tests in exactly one fold. Folds of a centre differ by at most one patient, and have the classes that
    patients have in like proportions. Else as `resplit`: a new validation set where there was one, external centres and ids as they are.

    Args:
        folds: how many, at least 2.
        number: 1 to `folds`.
        seed: of the division into folds.
    Raises: ValueError: a number out of range. ManifestError: a set divided by image; a centre with fewer patients than folds.
    """
    if not 1 <= number <= folds or folds < 2:
        raise ValueError(f"fold must be 1 to {folds} of at least 2 folds, got {number} of {folds}")
    table, centers, validated = _together(manifest)
    split = table["split"].copy()
    for center in centers:
        own = table[table["center"] == center]
        units = division_units(own)
        if (patients := units.nunique()) < folds:
            raise ManifestError(f"center {center!r} has {patients} patient(s), expected at least {folds}, one a fold")
        order = _by_kind(manifest, own, np.random.default_rng(seed_sequence(seed, "folds", center)))
        split[own.index[units.isin(order[number - 1 :: folds])]] = "test"
    return with_held_out(replace(manifest, table=table.assign(split=split)), RESPLIT_VALIDATION, seed, "val", validated)


def _together(manifest: Manifest) -> tuple[pd.DataFrame, tuple[str, ...], list[str]]:
    """The table with all of the training centres' samples in training, these centres, and those that had a validation set."""
    if manifest.split_unit != "patient":
        raise ManifestError(f"{manifest.root}: divided by {manifest.split_unit}, expected a set divided by patient to divide it anew")
    table, centers = manifest.table, manifest.training_centers
    validated = [center for center in centers if len(manifest.select(center, "val"))]
    return table.assign(split=table["split"].mask(table["center"].isin(centers), "train")), centers, validated


def _by_kind(manifest: Manifest, rows: pd.DataFrame, generator: np.random.Generator) -> list[str]:
    """Patients in a random order, but one kind (the classes a patient has) after the other."""
    return [
        names[position]
        for _, names in sorted(_kinds(manifest, rows).items(), key=lambda kind: (len(kind[1]), kind[0]))
        for position in generator.permutation(len(names))
    ]


def _kinds(manifest: Manifest, rows: pd.DataFrame) -> dict[tuple[int, ...], list[str]]:
    """The classes that a patient has -> patients, sorted."""
    kinds: dict[tuple[int, ...], list[str]] = {}
    for patient, own in rows.groupby(division_units(rows)):
        labels = own["label"] if manifest.task_kind == "classification" else ()
        kinds.setdefault(tuple(sorted(set(labels))), []).append(patient)
    return kinds


def _draw_patients(manifest: Manifest, rows: pd.DataFrame, count: int, generator: np.random.Generator) -> list[str]:
    chosen: list[str] = []
    left, due = [], 0.0
    # Rarest kind first; what it cannot give without losing its last patient, a more common one gives.
    for _, names in sorted(_kinds(manifest, rows).items(), key=lambda kind: (len(kind[1]), kind[0])):
        shuffled = [names[position] for position in generator.permutation(len(names))]
        due += count * len(names) / division_units(rows).nunique()
        take = min(int(due + 0.5) - len(chosen), len(names) - 1)
        chosen += shuffled[:take]
        left += shuffled[take:]
    return chosen + left[::-1][: count - len(chosen)]


def subset(manifest: Manifest, per_center: Mapping[str, int], seed: int) -> Manifest:
    """At most so many samples per centre and split, evenly over classes, and over patients within a class.

    Samples are drawn one at a time: from the class with the fewest so far, from its patient with the fewest so far
    (over all classes). So a smaller subset of the same seed lies within a larger one. A centre's choice depends on the
    seed and on its own rows alone; the rows keep their order.

    Args:
        per_center: split -> number of samples, at least 1; a split that is not named stays whole.
    Raises: ValueError: an unknown split, a number below 1.
    """
    for split, count in per_center.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r} in per_center, expected {', '.join(SPLITS)}")
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"per_center[{split!r}] must be a whole number of at least 1, got {count!r}")
    kept = []
    for (center, split), rows in manifest.table.groupby(["center", "split"]):
        count = per_center.get(split, len(rows))
        if count >= len(rows):
            kept += list(rows.index)
        else:
            generator = np.random.default_rng(seed_sequence(seed, "subset", center, split))
            labels = rows["label"] if manifest.task_kind == "classification" else pd.Series(0, index=rows.index)
            kept += _spread(labels, rows["patient"], count, generator)
    return replace(manifest, table=manifest.table.loc[sorted(kept)])


def _spread(labels: pd.Series, patients: pd.Series, count: int, generator: np.random.Generator) -> list[int]:
    waiting: dict[int, dict[str, list[int]]] = {}
    for index in generator.permutation(labels.index.to_numpy()):
        waiting.setdefault(labels[index], {}).setdefault(patients[index], []).append(int(index))
    taken = []
    per_class, per_patient = Counter[int](), Counter[str]()
    for _ in range(count):
        # min() keeps the first of equals, and the order of both dictionaries is the random one.
        label = min(waiting, key=per_class.__getitem__)
        patient = min(waiting[label], key=per_patient.__getitem__)
        taken.append(waiting[label][patient].pop())
        per_class[label] += 1
        per_patient[patient] += 1
        if not waiting[label][patient]:
            del waiting[label][patient]
        if not waiting[label]:
            del waiting[label]
    return taken
