"""HGKT in numbers, from a study's tables: the steps of stage I, how far lambda moved, and whether the transfer can work."""

from __future__ import annotations

import pandas as pd


def stage_one_steps(steps: pd.DataFrame) -> pd.DataFrame:
    """The steps of stage I with `total_step`, counted from 1 through all rounds of a centre."""
    table = steps[steps["stage"] == "I"].sort_values(["center", "round", "step"], ignore_index=True)
    return table.assign(total_step=table.groupby("center").cumcount() + 1)


def movement(stages: pd.DataFrame) -> pd.Series:
    """How far lambda has moved from the first to the last round, beside how much the pairs differ to begin with.

    Args:
        stages: rows of one centre: round, teacher_block, student_stage, pair_weight.
    Returns: "largest change", "mean change" (both absolute) and "spread" (SD between the pairs in the first round), in units of lambda.
    """
    rounds = stages.pivot(index=["teacher_block", "student_stage"], columns="round", values="pair_weight")
    change = (rounds[rounds.columns.max()] - rounds[rounds.columns.min()]).abs()
    return pd.Series(
        {"largest change": change.max(), "mean change": change.mean(), "spread": rounds[rounds.columns.min()].std()}, name="lambda"
    )


def trajectory(stages: pd.DataFrame, pair_init: str) -> pd.DataFrame:
    """lambda of every pair from its start on: the rounds' means, and where the start is known a round 0 before them.

    Args:
        stages: center, round, teacher_block, student_stage, pair_weight.
        pair_init: the setting `transfer.pair_init`. "zero": every lambda starts at exactly 1; "random": the start is drawn and not kept, so
            that the first round stands for it.
    Returns: center, round, teacher_block, student_stage, pair_weight.
    """
    table = stages[["center", "round", "teacher_block", "student_stage", "pair_weight"]]
    if pair_init != "zero":
        return table.reset_index(drop=True)
    start = table[table["round"] == table["round"].min()].assign(round=0, pair_weight=1.0)
    return pd.concat([start, table], ignore_index=True)


def times_chosen(stages: pd.DataFrame) -> pd.DataFrame:
    """How often each student stage was robustness-critical, in each round, over several runs.

    Args:
        stages: seed, center, round, student_stage, critical; a run is a seed at a centre.
    Returns: round, student_stage (in the student's order), chosen (runs in which it was critical), runs, share.
    """
    once = stages.drop_duplicates(["seed", "center", "round", "student_stage"])
    counted = once.groupby(["round", "student_stage"], sort=False)["critical"].agg(chosen="sum", runs="size").reset_index()
    return counted.assign(share=counted["chosen"] / counted["runs"]).sort_values("round", kind="stable", ignore_index=True)


def balance(rounds: pd.DataFrame, stages: pd.DataFrame) -> pd.DataFrame:
    """Whether the transfer can work, a row a centre and round.

    Args:
        rounds: round, center, stage, task_loss, match_loss.
        stages: round, center, teacher_block, student_stage, pair_weight, r2.
    Returns: center, round, match_to_task (L_match, beta included, by the task loss), r2, r2_low and r2_high (median and range over the
        pairs), change (mean |lambda - lambda of the first round|), spread (SD of lambda between the pairs in the first round) and moved
        (change / spread).
    """
    first = rounds[rounds["stage"] == "I"].set_index(["center", "round"])
    pairs = stages.set_index(["center", "teacher_block", "student_stage"])
    start = pairs[pairs["round"] == pairs["round"].min()]["pair_weight"]
    change = (
        (pairs["pair_weight"] - start.reindex(pairs.index)).abs().groupby([pairs.index.get_level_values("center"), pairs["round"]]).mean()
    )
    fit = stages.groupby(["center", "round"])["r2"].agg(r2="median", r2_low="min", r2_high="max")
    table = (
        pd.DataFrame({"match_to_task": first["match_loss"] / first["task_loss"]})
        .join(fit)
        .join(change.rename("change"))
        .sort_index()
        .reset_index()
    )
    spread = table["center"].map(start.groupby("center").std())
    return table.assign(spread=spread, moved=table["change"] / spread)


def as_initialised(stages: pd.DataFrame) -> bool:
    """True where no pair weight has moved by a tenth of the spread between the pairs: the ranking is that of the initial weights."""
    moved = movement(stages)
    return bool(moved["largest change"] < 0.1 * moved["spread"])
