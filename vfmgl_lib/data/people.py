"""Who is one person: patients belong to their centre, unless the set says that all centres number them together."""

from __future__ import annotations

import re
from typing import Literal

import pandas as pd

from vfmgl_lib.data.manifest import GROUP
from vfmgl_lib.data.names import same_name

PatientNames = Literal["own", "shared"]
SHOWN_NAMES = 3
# Names that are given once in the world: at two centres they mean one person all the same.
UNIVERSAL = re.compile(r"TCGA-\w{2}-\w{4}\b.*", re.IGNORECASE)


def with_unique_patients(table: pd.DataFrame, names: PatientNames) -> tuple[pd.DataFrame, list[str]]:
    """Tells patients of one name at several centres apart: from then on one name is one person.

    Where any name is at two centres, all patients (and groups) of the set are called CENTRE/NAME, so that the order of the names within a
    centre, which its division is drawn by, does not depend on other centres. Names are compared as people do (`names.same_name`); TCGA
    barcodes stay as they are.

    Args:
        table: columns center, patient, and perhaps `GROUP`.
        names: "own": each centre names its patients; "shared": one name is one person, at whatever centre.
    Returns: the table, and a note that counts the names; the table itself and no note where nothing had to be done.
    """
    if names == "shared":
        return table, []
    notes = []
    for kind in ("patient", *([GROUP] if GROUP in table else [])):
        places = table.drop_duplicates(["center", kind])
        places = places[~places[kind].map(UNIVERSAL.fullmatch).astype(bool)]
        again = places.assign(key=places[kind].map(same_name)).groupby("key").agg(name=(kind, "first"), centers=("center", "unique"))
        again = again[again["centers"].map(len) > 1]
        if kind == GROUP:  # not those who are alone, under their own name: they are told as patients
            named = places.loc[places[GROUP] != places["patient"], GROUP].map(same_name)
            again = again[again.index.isin(named)]
        if len(again):
            first = again.head(SHOWN_NAMES)
            shown = ", ".join(f"{name} at {' and '.join(sorted(set(homes)))}" for name, homes in first.itertuples(index=False))
            more = ", …" if len(again) > SHOWN_NAMES else ""
            notes.append(
                f"{len(again)} {kind} name(s) are at several centers ({shown}{more}): taken for different {kind}s, each called CENTER/NAME;"
                " where one name is one person, `vfmgl data prepare --patients shared` says so"
            )
    if not notes:
        return table, []
    kinds = ["patient", *([GROUP] if GROUP in table else [])]
    renamed = {
        kind: [name if UNIVERSAL.fullmatch(name) else f"{center}/{name}" for center, name in zip(table["center"], table[kind], strict=True)]
        for kind in kinds
    }
    return table.assign(**renamed), notes


def matching_names(listed: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """The names that a manifest has for the patients of another table.

    Args:
        listed: columns patient (a name, or CENTER/NAME) and perhaps center, as people write them.
        table: the manifest's: columns center and patient.
    Returns: for each row the manifest's name; where there is none, or several centres have one, a name that is not the manifest's.
    """
    people = table.drop_duplicates("patient")
    whole = {same_name(patient): patient for patient in people["patient"]}
    placed: dict[tuple[str, str], str] = {}
    alone: dict[str, list[str]] = {}
    for center, patient in zip(people["center"], people["patient"], strict=True):
        name = same_name(patient.removeprefix(f"{center}/"))
        placed[same_name(center), name] = patient
        alone.setdefault(name, []).append(patient)
    found = []
    centers = listed["center"] if "center" in listed else [""] * len(listed)
    for center, patient in zip(centers, listed["patient"], strict=True):
        if center:
            found.append(placed.get((same_name(center), same_name(patient)), f"{center}/{patient}"))
        else:
            several = alone.get(same_name(patient), [])
            found.append(whole.get(same_name(patient), several[0] if len(several) == 1 else patient))
    return found
