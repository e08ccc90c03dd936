"""Whether DDBL drops the batches that hold more images with an artefact: of phantoms it is known which have one; no training reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from vfmgl_lib.base.randomness import seed_sequence
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation.statistics import NO_INTERVAL, bootstrap_interval
from vfmgl_lib.tasks.phantoms import read_artefacts
from vfmgl_lib.tasks.prepare import phantoms_of

ALL = "all centres"
FEWEST = 5  # dropped and kept batches: with fewer the limits are those of chance
COLUMNS = [
    "center",
    "kind",
    "images",
    "with_artefact",
    "dropped",
    "kept",
    "share_dropped",
    "share_kept",
    "difference",
    "low",
    "high",
    "reason",
]


def known_artefacts(manifest: Manifest) -> tuple[pd.Series, str]:
    """The artefact of each training image of the training centres by id ("": none), and why that is not known: then there are no rows."""
    table, nothing = manifest.select(split="train"), pd.Series(dtype=str, name="artefact")
    if (root := phantoms_of(manifest)) is None:
        return nothing, "The images are no phantoms: which of them have artefacts is not known."
    if (kinds := read_artefacts(root, table)) is None:
        return nothing, "These phantoms are of a version that had no artefacts."
    return (kinds, "") if (kinds != "").any() else (nothing, "No training image has an artefact (phantoms.artefacts).")


def dropped_and_kept(
    batches: pd.DataFrame, batch_ids: Callable[[str, int, str], Sequence[Sequence[str]]], artefacts: pd.Series, seed: int
) -> pd.DataFrame:
    """How large a share of a batch's images has an artefact, in dropped and in kept batches, for each centre and for all.

    The difference is of means over batches, dropped less kept. For all centres it is the mean of the centres' differences, each weighted by
    dropped * kept / (dropped + kept), so that a centre that drops more than the others does not count for its own share of artefacts; the
    two shares are weighted alike. The interval is a bootstrap over batches, within each centre. It tells the difference from what
    chance does in putting images together. Images and patients are the same in all rounds, and a batch of one round is made of those of
    another: the interval holds for other orders of these images in this run, and says nothing about other patients, centres or seeds.

    Args:
        batches: from `ddbl_tables.stage_two_batches`.
        batch_ids: of a study: (center, round, "II") -> ids of each batch, by step.
        artefacts: from `known_artefacts`.
        seed: of the bootstrap.
    Returns: `COLUMNS`, a row a centre and, of several, `ALL`: kind of artefact, training images and those with it, batches dropped and
        kept, shares in [0, 1] and their 95 % limits; NaN, and why, where a side has no batch or the interval cannot be had.
    """
    if artefacts.empty or batches.empty:
        return pd.DataFrame(columns=COLUMNS)
    marred = artefacts != ""
    rounds = batches[["center", "round"]].drop_duplicates().itertuples(index=False, name=None)
    members = {(center, number): batch_ids(center, number, "II") for center, number in rounds}
    shares = [marred[list(members[row.center, row.round][row.step])].mean() for row in batches.itertuples()]
    marked = batches.assign(share=shares)
    trained = {
        center: list(dict.fromkeys(i for (c, _), b in members.items() if c == center for one in b for i in one)) for center, _ in members
    }
    rows = []
    for center, own in marked.groupby("center"):
        kinds = artefacts[trained[center]]
        about = {"kind": ", ".join(sorted(set(kinds) - {""})), "images": len(kinds), "with_artefact": int((kinds != "").sum())}
        rows.append({"center": center, **about, **_compared(own, seed, str(center))})
    if len(rows) > 1:
        of_all = {name: sum(row[name] for row in rows) for name in ("images", "with_artefact")}
        rows.append({"center": ALL, "kind": "", **of_all, **_compared(marked, seed, ALL)})
    return pd.DataFrame(rows, columns=COLUMNS)


def what_was_dropped(found: pd.DataFrame, reason: str) -> str:
    """In a sentence: whether the dropped batches have more images with an artefact.

    Args:
        found: from `dropped_and_kept`.  reason: why nothing is known of artefacts, from `known_artefacts`.
    """
    if reason or found.empty:
        return reason or "Stage II starts in round 2: this run has no batch to keep or drop."
    row = found.iloc[-1]
    if not np.isfinite(row["difference"]):
        what = row["reason"].removeprefix("no interval: ")
        return f"Whether dropped batches hold more images with an artefact cannot be said: {what}."
    limits = f"95 % interval over batches {100 * row['low']:+.1f} to {100 * row['high']:+.1f}" if not row["reason"] else row["reason"]
    verdict = "which of the two have more is open"
    if not row["reason"] and (row["low"] > 0 or row["high"] < 0):
        verdict = f"the {'dropped' if row['low'] > 0 else 'kept'} ones have more"
    return (
        f"Images with an artefact: {row['share_dropped']:.1%} of the dropped batches' and {row['share_kept']:.1%} of the kept batches', "
        f"difference {100 * row['difference']:+.1f} percentage points ({limits}): {verdict}. All rounds share their images and patients."
    )


def _compared(batches: pd.DataFrame, seed: int, name: str) -> dict:
    """Columns from `dropped` on, of one or of several centres."""
    sides = {"dropped": int((batches["kept"] == 0).sum()), "kept": int((batches["kept"] == 1).sum())}
    centers = batches["center"].to_numpy()
    dropped, kept = (float(side[0]) for side in _shares(batches, [np.flatnonzero(centers == c)[None] for c in np.unique(centers)]))
    interval = NO_INTERVAL
    if not np.isfinite(dropped - kept):
        none = next((f"nothing was {side}" for side, count in sides.items() if not count), "no centre has batches of both")
        interval = NO_INTERVAL._replace(reason=f"no interval: {none}")
    elif min(sides.values()) < FEWEST:
        few = min(sides, key=lambda side: sides[side])
        interval = NO_INTERVAL._replace(reason=f"no interval: {sides[few]} {few}, at least {FEWEST} batches are needed")
    else:
        generator = np.random.default_rng(seed_sequence(seed, name, "artefacts in batches"))
        interval = bootstrap_interval(centers, lambda drawn: np.subtract(*_shares(batches, drawn)), generator)
    return {**sides, "share_dropped": dropped, "share_kept": kept, "difference": dropped - kept, **interval._asdict()}


def _shares(batches: pd.DataFrame, drawn: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean share of dropped and of kept batches (n,), the centres weighted; NaN where no centre has both.

    Args:
        drawn: of each centre (n, b), rows of `batches`.
    """
    kept, share = batches["kept"].to_numpy() == 1, batches["share"].to_numpy()
    total, sums = 0.0, [0.0, 0.0]
    for rows in drawn:
        chosen = [~kept[rows], kept[rows]]
        counts = [side.sum(1) for side in chosen]
        weight = counts[0] * counts[1] / rows.shape[1]
        total = total + weight
        means = [(share[rows] * side).sum(1) / np.maximum(count, 1) for side, count in zip(chosen, counts, strict=True)]
        sums = [one + weight * mean for one, mean in zip(sums, means, strict=True)]
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[0]) / total, np.asarray(sums[1]) / total
