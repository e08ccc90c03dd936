"""DDBL in numbers and words, from a study's tables: which batches it kept, what the threshold asked for, what its teacher was worth."""

from __future__ import annotations

import pandas as pd
import torch

from vfmgl_lib.config.sections import DeductionSettings
from vfmgl_lib.federation.stage_two import Worth
from vfmgl_lib.method.ddbl import effective_temperature, margin_to_drop


def stage_two_batches(steps: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """Every batch of stage II beside what it was held against.

    Args:
        steps, rounds: a study's tables.
    Returns: round, center, step, task_loss (of the batch), local_task_loss (l_task: mean of the round's stage I), divergence (KL),
        divergence_before (KL before the stage, where the rule is the quantile), threshold (kappa * l_task, or the quantile), ratio (of the
        KL that decided to the threshold), kept (0 or 1), gradient_ratio (|grad KL| / |grad task|, NaN where not measured). Empty for a
        study of one round.
    """
    batches = steps[steps["stage"] == "II"]
    local = rounds.loc[rounds["stage"] == "I", ["round", "center", "task_loss"]].rename(columns={"task_loss": "local_task_loss"})
    columns = ["round", "center", "step", "task_loss", "local_task_loss", "divergence", "divergence_before", "threshold", "ratio", "kept"]
    merged = batches.merge(local, on=["round", "center"], how="left", validate="many_to_one")
    merged = merged.reindex(columns=[*columns, "gradient_ratio"])
    return merged.assign(ratio=merged["divergence_before"].fillna(merged["divergence"]) / merged["threshold"])


def rule_in_words(settings: DeductionSettings) -> str:
    """The threshold as legends have it."""
    if settings.rule == "quantile":
        return f"the {settings.quantile:g} quantile of the stage's KL, by construction"
    return f"KL = {settings.keep_ratio:g} $\\ell_{{task}}$"


def telling_batches(batches: pd.DataFrame) -> pd.DataFrame:
    """The batch furthest under and the batch furthest over the threshold, by KL / threshold: two rows, with `shown` saying what each is.

    Where nothing was dropped the second is the kept batch nearest to the threshold, and `shown` says that.
    """
    if batches.empty:
        return batches.assign(shown=pd.Series(dtype=str))
    ranked = batches.sort_values("ratio")
    kept = ranked[ranked["kept"] == 1]
    dropped = ranked[ranked["kept"] == 0]
    rows = []
    if len(kept):
        rows.append(kept.head(1).assign(shown="kept, lowest KL"))
    if len(dropped):
        rows.append(dropped.tail(1).assign(shown="dropped, highest KL"))
    elif len(kept) > 1:
        rows.append(kept.tail(1).assign(shown="highest KL, kept as well"))
    return pd.concat(rows, ignore_index=True)


def what_happened(batches: pd.DataFrame, rule: str = "kappa") -> str:
    """In one or two sentences: how many batches were dropped, and how far the median batch is from its threshold.

    Args:
        batches: from `stage_two_batches`.
        rule: `deduction.rule`.
    """
    if batches.empty:
        return "Stage II starts in round 2: this run has no batch to keep or drop."
    dropped = int((batches["kept"] == 0).sum())
    median = f"The median of KL / threshold is {batches['ratio'].median():.2g}."
    if not dropped:
        return f"No batch was dropped: this run does not exercise DDBL's selection. {median}"
    why = " by construction, which is no evidence of heterogeneity" if rule == "quantile" else ""
    return f"{dropped} of {len(batches)} batches were dropped{why}. {median}"


def what_it_takes(batches: pd.DataFrame, settings: DeductionSettings, side: int | None, classes: int = 2) -> str:
    """When KL > kappa * l_task could drop a batch in this run, and how near it came (`method.ddbl.margin_to_drop`).

    Args:
        batches: from `stage_two_batches`.
        side: of a segmentation's images, pixels; None: a classification.
        classes: K.
    """
    if batches.empty:
        return "Stage II starts in round 2: this run has no batch to keep or drop."
    two = "the logit margins of the two predictions differ by"
    apart = two if classes == 2 else "the difference between the logits of the two predictions spans, over the classes,"
    lowest, highest = batches["local_task_loss"].min(), batches["local_task_loss"].max()
    margin = margin_to_drop(settings, lowest, side)
    logits = torch.empty((1, 2) if side is None else (1, 2, side, side), device="meta")
    tau, unit = effective_temperature(settings, logits), "samples" if side is None else f"pixels, side {side}"
    nearest = (batches["divergence"] / (settings.keep_ratio * batches["local_task_loss"])).max()
    return (
        f"At these settings (κ = {settings.keep_ratio:g}, τ = {tau:g}{', KL times τ²' if settings.tau_squared else ''}, ℓ between "
        f"{lowest:.2g} and {highest:.2g}) a batch can be dropped by KL > κℓ only if {apart} "
        f"more than {margin:.2g} (root mean square over {unit}; at the lowest ℓ). The largest KL / (κℓ) of this run is {nearest:.2g}."
    )


def idle_teachers(rounds: pd.DataFrame) -> str:
    """In a sentence: where the teacher of stage II was no better than the untrained student (`federation.stage_two.Worth`).

    Args:
        rounds: a study's table.
    """
    table = taught(rounds)
    if table.empty:
        return "The teacher of stage II was not measured: no round has one."
    better = [
        Worth(row.shared_task_loss, row.shared_score).better_than(Worth(row.untrained_task_loss, row.untrained_score))
        for row in table.itertuples()
    ]
    idle = table[[not one for one in better]]
    if idle.empty:
        return f"In all {len(table)} stages II the shared model was better than the untrained student on the centre's training images."
    where = "; ".join(f"{center}: round {', '.join(map(str, part['round']))}" for center, part in idle.groupby("center"))
    return (
        f"Warning: in {len(idle)} of {len(table)} stages II the shared model that taught was no better than the untrained student "
        f"({where}). What such a teacher passes on is no knowledge, whatever its KL."
    )


def taught(rounds: pd.DataFrame) -> pd.DataFrame:
    columns = [f"{model}_{name}" for model in ("shared", "untrained") for name in ("task_loss", "score")]
    table = rounds[rounds["stage"] == "II"].reindex(columns=["round", "center", *columns])
    return table.dropna(how="all", subset=columns)
