"""What DDBL keeps and drops, what the KL pulls beside the task, and what the shared model that teaches is worth at a centre."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vfmgl_lib.config.sections import DeductionSettings
from vfmgl_lib.federation.stage_two import Worth
from vfmgl_lib.figures.style import DOUBLE, MM, MUTED, center_style, grid, journal, names, new_figure, nothing, panel_grid, whole_numbers
from vfmgl_lib.method.ddbl import effective_temperature, margin_to_drop

LIMIT = "#333333"  # the threshold: no centre has this colour
TINY = 1e-12  # a divergence of 0 or, by rounding, just under it has no place on a logarithmic axis
FROM_ROUND_TWO = "Stage II starts in round 2: with one round there is nothing to keep or drop."


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


@journal
def divergence_over_threshold(batches: pd.DataFrame, rule: str, all_centers: Sequence[str] | None = None) -> Figure:
    """KL / threshold of every batch over the rounds, logarithmic: what lies above 1 is dropped. A panel a centre.

    Args:
        batches: from `stage_two_batches`; the batches of a round are drawn side by side, in the order of their steps.
        rule: of `rule_in_words`.
    """
    if batches.empty:
        return nothing(FROM_ROUND_TWO)
    centers = sorted(batches["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure, axes = panel_grid(len(centers), panel=50 * MM, extra=14 * MM, sharex=True, sharey=True)
    drawn = batches.assign(ratio=batches["ratio"].clip(lower=TINY), place=_side_by_side(batches))
    bottom, top = 0.4 * min(drawn["ratio"].min(), 1), 5 * max(drawn["ratio"].max(), 1)
    for axis, center in zip(axes, centers, strict=True):
        axis.axhspan(1, top, color=LIMIT, alpha=0.09, linewidth=0)
        axis.axhline(1, color=LIMIT, linewidth=1)
        rows = drawn[drawn["center"] == center]
        kept, dropped = rows[rows["kept"] == 1], rows[rows["kept"] == 0]
        style = {"color": styles[center]["color"], "linestyle": "none"}
        axis.plot(kept["place"], kept["ratio"], "o", alpha=0.55, markeredgewidth=0, **style)
        axis.plot(dropped["place"], dropped["ratio"], "x", markersize=4.5, **style)
        axis.set(ylim=(bottom, top), yscale="log")
        axis.set_title(f"centre {printed[center]}: {len(kept)} of {len(rows)} kept")
        _round_axis(axis, batches)
    for axis in axes[::4]:
        axis.set_ylabel("KL of the batch / threshold")
    entries = [
        Line2D([], [], marker="o", linestyle="none", color=MUTED, label="batch kept"),
        Line2D([], [], marker="x", linestyle="none", color=MUTED, label="batch dropped"),
        Line2D([], [], color=LIMIT, label=f"threshold: {rule}; shaded: dropped"),
    ]
    figure.legend(handles=entries, loc="outside upper center", ncols=3)
    return figure


@journal
def kept_share(rounds: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """Share of batches kept in stage II over the rounds, a line a centre; equal values are drawn side by side.

    Args:
        rounds: a study's table: round, center, stage, kept_share (0 to 1).
    """
    table = rounds[rounds["stage"] == "II"]
    if table.empty:
        return nothing(FROM_ROUND_TWO)
    centers = sorted(table["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure = new_figure(120 * MM, 56 * MM)
    axis = figure.subplots()
    for place, center in enumerate(centers):
        line = table[table["center"] == center].sort_values("round")
        shift = 0.3 * ((place + 0.5) / len(centers) - 0.5)
        axis.plot(line["round"] + shift, 100 * line["kept_share"], label=printed[center], **styles[center])
    axis.set(ylabel="batches kept (%)", ylim=(-3, 103))
    _round_axis(axis, table)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", title="centre")
    return figure


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


def what_it_takes(batches: pd.DataFrame, settings: DeductionSettings, side: int | None) -> str:
    """When KL > kappa * l_task could drop a batch in this run, and how near it came (`method.ddbl.margin_to_drop`).

    Args:
        batches: from `stage_two_batches`.
        side: of a segmentation's images, pixels; None: a classification.
    """
    if batches.empty:
        return "Stage II starts in round 2: this run has no batch to keep or drop."
    lowest, highest = batches["local_task_loss"].min(), batches["local_task_loss"].max()
    margin = margin_to_drop(settings, lowest, side)
    logits = torch.empty((1, 2) if side is None else (1, 2, side, side), device="meta")
    tau, unit = effective_temperature(settings, logits), "samples" if side is None else f"pixels, side {side}"
    nearest = (batches["divergence"] / (settings.keep_ratio * batches["local_task_loss"])).max()
    return (
        f"At these settings (κ = {settings.keep_ratio:g}, τ = {tau:g}{', KL times τ²' if settings.tau_squared else ''}, ℓ between "
        f"{lowest:.2g} and {highest:.2g}) a batch can be dropped by KL > κℓ only if the logit margins of the two predictions differ by "
        f"more than {margin:.2g} (root mean square over {unit}; at the lowest ℓ). The largest KL / (κℓ) of this run is {nearest:.2g}."
    )


@journal
def gradient_ratios(batches: pd.DataFrame, all_centers: Sequence[str] | None = None) -> Figure:
    """|grad KL| / |grad task| of the batches at which it was measured, over the rounds, logarithmic. A panel a centre.

    Args:
        batches: from `stage_two_batches`.
    """
    if batches.empty:
        return nothing(FROM_ROUND_TWO)
    measured = batches.assign(place=_side_by_side(batches)).query("gradient_ratio > 0")
    if measured.empty:
        return nothing("The gradients were not measured: deduction.gradient_every is 0.")
    centers = sorted(batches["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure, axes = panel_grid(len(centers), panel=50 * MM, extra=14 * MM, sharex=True, sharey=True)
    for axis, center in zip(axes, centers, strict=True):
        rows = measured[measured["center"] == center]
        axis.axhline(1, color=LIMIT, linewidth=1)
        axis.plot(rows["place"], rows["gradient_ratio"], linestyle="none", alpha=0.7, markeredgewidth=0, **styles[center])
        axis.set(yscale="log", ylim=(0.5 * min(measured["gradient_ratio"].min(), 1), 2 * max(measured["gradient_ratio"].max(), 1)))
        axis.set_title(f"centre {printed[center]}: median {rows['gradient_ratio'].median():.2g}")
        _round_axis(axis, batches)
    for axis in axes[::4]:
        axis.set_ylabel("|∇KL| / |∇task loss|")
    entries = [Line2D([], [], color=LIMIT, label="the KL pulls as hard as the task, on the tensors that it reaches")]
    figure.legend(handles=entries, loc="outside upper center")
    return figure


@journal
def teacher_worth(rounds: pd.DataFrame, score: str, all_centers: Sequence[str] | None = None) -> Figure:
    """Task loss and score of the shared model that teaches, over the rounds, against the untrained student's (dashed); a colour a centre.

    Args:
        rounds: a study's table.
        score: what the score is, e.g. "Dice of the foreground".
    """
    table = _taught(rounds)
    if table.empty:
        return nothing("No round in which the teacher of stage II was measured.")
    centers = sorted(table["center"].unique())
    styles, printed = center_style(centers, all_centers), names(centers)
    figure = new_figure(DOUBLE, 58 * MM)
    axes = figure.subplots(1, 2)
    for axis, (column, label) in zip(axes, (("task_loss", "task loss"), ("score", score)), strict=True):
        for center in centers:
            line = table[table["center"] == center].sort_values("round")
            axis.plot(line["round"], line[f"shared_{column}"], label=printed[center], **styles[center])
            axis.axhline(line[f"untrained_{column}"].iloc[0], color=styles[center]["color"], linestyle="dashed", linewidth=0.8)
        axis.set(ylabel=f"{label}, training images")
        _round_axis(axis, table)
    axes[1].set_ylim(-0.02, 1.02)
    handles, labels = axes[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color=MUTED, linestyle="dashed", label="untrained student"))
    figure.legend(handles, [*labels, "untrained student"], loc="outside upper center", ncols=min(len(handles), 6))
    return figure


def idle_teachers(rounds: pd.DataFrame) -> str:
    """In a sentence: where the teacher of stage II was no better than the untrained student (`federation.stage_two.Worth`).

    Args:
        rounds: a study's table.
    """
    table = _taught(rounds)
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


def _taught(rounds: pd.DataFrame) -> pd.DataFrame:
    columns = [f"{model}_{name}" for model in ("shared", "untrained") for name in ("task_loss", "score")]
    table = rounds[rounds["stage"] == "II"].reindex(columns=["round", "center", *columns])
    return table.dropna(how="all", subset=columns)


def _side_by_side(batches: pd.DataFrame) -> pd.Series:
    """Places of batches on the round axis, those of a round in the order of their steps."""
    steps = batches.groupby(["center", "round"])["step"]
    spread = (batches["step"] - steps.transform("min") + 0.5) / (steps.transform("max") - steps.transform("min") + 1) - 0.5
    return batches["round"] + 0.6 * spread


def _round_axis(axis: Axes, table: pd.DataFrame) -> None:
    axis.set(xlabel="round (the first has no stage II)", xlim=(table["round"].min() - 0.5, table["round"].max() + 0.5))
    whole_numbers(axis)
    grid(axis)
