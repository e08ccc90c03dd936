"""The split of a prepared set: its source's own, or drawn by patient or by image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.data.divisions import with_held_out
from vfmgl_lib.data.manifest import COLUMNS, GROUP, SPLITS, Manifest, ManifestError, division_units
from vfmgl_lib.data.names import near_names
from vfmgl_lib.data.people import with_unique_patients
from vfmgl_lib.tasks.cases import Findings, SourceError
from vfmgl_lib.tasks.records import TaskRecord

TEST_SHARE, VALIDATION_SHARE = 0.2, 0.2  # 64/16/20: a fifth for the test, then a fifth of the rest


def with_groups(rows: list[tuple]) -> pd.DataFrame:
    """A manifest's table of rows with a group at their end; without that column where nobody is in one."""
    table = pd.DataFrame(rows, columns=[*COLUMNS, GROUP])
    table[GROUP] = table[GROUP].where(table[GROUP] != "", table["patient"])
    return table if (table[GROUP] != table["patient"]).any() else table[list(COLUMNS)]


def told_apart(manifest: Manifest, settings: dict, findings: Findings) -> Manifest:
    """Patients of one name at several centres as the set's rule has them (`data.people`)."""
    table, notes = with_unique_patients(manifest.table, settings["patients"])
    findings.warnings += [note for note in notes if note not in findings.warnings]
    return replace(manifest, table=table)


def with_splits(manifest: Manifest, settings: dict, findings: Findings) -> Manifest:
    """The manifest with every row in a split, by the rule of `prepare`; external centres stay external.

    A centre whose samples come without a split is divided, whatever the others bring.
    """
    table, rule, seed = manifest.table, settings["split"], settings["seed"]
    given, own = table["split"] != "", division_units(table)
    divides = (table[given].groupby(own[given])["split"].nunique() > 1).any()
    if given.all() and (rule == "source" or (rule == "patient" and not divides)):
        return replace(manifest, split_unit="image" if divides else "patient")
    blank = set(table.loc[~given, "center"])
    if partly := sorted(blank & set(table.loc[given, "center"])):
        counts = f"{given.sum()} of {len(table)} samples have a split"
        raise ManifestError(f"{manifest.root}: {counts}, expected all or none of a center (here: {', '.join(partly)})")
    if rule == "source":
        of = f" of {', '.join(sorted(blank))}" if given.any() else ""
        raise ManifestError(f"{manifest.root}: --split source: the source names no split{of}; use patient")
    redivided = manifest.training_centers if divides or rule == "image" else ()
    centers = tuple(sorted(blank | set(redivided)))
    units = own if rule == "patient" else table["id"]
    moved = table.assign(split=table["split"].mask(table["center"].isin(centers), "train"), patient=units)
    whole = replace(manifest, table=moved[list(COLUMNS)])
    counts = whole.table.groupby("center")["patient"].nunique()
    few = [center for center in centers if counts[center] < len(SPLITS)]
    expected = f"expected at least {len(SPLITS)}, one for each of {', '.join(SPLITS)}"
    findings.problems += [
        f"center {center!r}: {counts[center]} {rule}(s) to divide, {expected}{_near_center(center, table['center'])}" for center in few
    ]
    centers = tuple(center for center in centers if center not in few)
    test = with_held_out(whole, TEST_SHARE, seed, "test", centers)
    divided = with_held_out(test, VALIDATION_SHARE, seed, "val", centers).table["split"]
    if divides and rule == "patient":
        findings.warnings.append("the source's own split divides patients, so it was not used; --split source would keep it")
    return replace(manifest, table=table.assign(split=divided), split_unit="patient" if rule == "patient" else "image")


def _near_center(center: str, centers: Iterable[str]) -> str:
    near = [name for pair in near_names(set(centers)) if center in pair for name in pair if name != center]
    return f"; is it {near[0]!r} in another spelling? Then give both one name" if near else ""


def shuffled(record: TaskRecord, source: Path, manifest: Manifest, seed: int, findings: Findings) -> Manifest:
    """Images divided without regard to patients: in a published order where the source has one, else drawn by the seed.

    The limits are HarmoFL's, rounded down. External centres stay external.
    """
    table, published = manifest.table.copy(), getattr(record.reader, "image_order", None)
    for center in manifest.training_centers:
        own = table.index[table["center"] == center]
        names = table.loc[own, "id"].str.rsplit("/", n=1).str[-1]
        try:
            order = published(source, center) if published else None
        except SourceError as error:
            findings.problems.append(str(error))
            continue
        if order is None and not names.is_unique:  # cases of several patients called alike: each is told by its patient's folder, too
            names = table.loc[own, "id"]
        if order is None:
            order = names.iloc[np.random.default_rng(seed_sequence(seed, "images", center)).permutation(len(own))].tolist()
        elif unknown := sorted(set(order) ^ set(names)):
            findings.problems.append(f"{center}-dir.npy: HarmoFL's list and the slices of {center} differ, e.g. {', '.join(unknown[:3])}")
            continue
        training = (1 - TEST_SHARE) * len(order) * (1 - VALIDATION_SHARE)
        limits = int(training), int(training + ((1 - TEST_SHARE) * len(order) - training))
        place = {name: position for position, name in enumerate(order)}
        sides = ["train" if place[name] < limits[0] else "val" if place[name] < limits[1] else "test" for name in names]
        table.loc[own, "split"] = sides
    table["id"] = [f"{row.center}/{row.split}/{row.id.split('/', 2)[-1]}" for row in table.itertuples()]
    return replace(manifest, table=table, split_unit="image")
