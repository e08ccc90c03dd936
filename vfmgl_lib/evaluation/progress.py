"""How the centres fare over the federated rounds, from a study's tables, and what the last round's models do elsewhere."""

from __future__ import annotations

import pandas as pd

from vfmgl_lib.evaluation.results import NOT_LOCAL, STAGES

MODELS = ("trivial", "untrained", "first round", "last round")


def _last_stages(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of every model after each round's last stage, on every set that it was measured on."""
    rows = metrics[metrics["metric"] == metric]
    ordered = rows.assign(place=rows["stage"].map(STAGES.index)).sort_values(["round", "place"])
    return ordered.drop_duplicates(["round", "model_center", "test_center", "split"], keep="last")


def own_models(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric of every local model on its own centre, after each round's last stage (untrained in round 0).

    Args:
        metrics: a study's table.
    Returns: round, center, split, stage, unit, value (NaN where undefined), n, reason.
    """
    own = _last_stages(metrics[metrics["model_center"] == metrics["test_center"]], metric).rename(columns={"test_center": "center"})
    return own[["round", "center", "split", "stage", "unit", "value", "n", "reason"]].reset_index(drop=True)


def last_models(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Every last-round model, and the shared one, on every centre's test set: model_center, test_center, unit, value, n, reason.

    The shared model is there twice where statistics of batch normalisation are re-estimated ("shared", "adapted"; see
    `evaluation.rounds`), the adapted one at training centres alone.
    """
    last = _last_stages(metrics[(metrics["round"] == metrics["round"].max()) & (metrics["split"] == "test")], metric)
    order = last.assign(shared=last["place"].where(last["model_center"].isin(NOT_LOCAL), 0))
    order = order.sort_values(["shared", "model_center", "test_center"])
    return order[["model_center", "test_center", "unit", "value", "n", "reason"]].reset_index(drop=True)


def comparison(metrics: pd.DataFrame, trivial: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Trivial baseline, untrained student, first and last round on every centre's test set.

    Args:
        metrics: a study's table.  trivial: rows of `study.study.trivial_baseline`.
    Returns: center, model (one of `MODELS`), unit, value, n, reason; in a study of one round first and last are the same round.
    """
    own = own_models(metrics, metric)
    own = own[own["split"] == "test"]
    last = own["round"].max()
    base = trivial[(trivial["metric"] == metric) & (trivial["split"] == "test")].rename(columns={"test_center": "center"})
    parts = [base, *(own[own["round"] == number] for number in (0, 1, last))]
    named = [part.assign(model=model) for part, model in zip(parts, MODELS, strict=True)]
    return pd.concat(named, ignore_index=True)[["center", "model", "unit", "value", "n", "reason"]]


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """A `comparison` with one row a centre: n of the test set, a column a model, the gains of the last round; the last row is the mean."""
    wide = table.pivot(index="center", columns="model", values="value").reindex(columns=list(MODELS))
    sizes = table[table["model"] == "last round"].set_index("center")["n"]
    wide.loc["mean"] = wide.mean()
    wide.insert(0, "n", sizes.reindex(wide.index))
    for humble in ("trivial", "untrained"):
        wide[f"gain over {humble}"] = wide["last round"] - wide[humble]
    return wide.rename_axis(index="centre", columns=None)


def verdict(table: pd.DataFrame) -> str:
    """At how many centres the last round beats the trivial baseline and the untrained student, in one sentence.

    Where the metric is undefined for one of the two models it is neither a victory nor a defeat, and the sentence says so.

    Args:
        table: from `comparison`.
    """
    wide = side_by_side(table).drop(index="mean")
    parts = []
    for humble, name in (("trivial", "the trivial baseline"), ("untrained", "the untrained student")):
        gain = wide[f"gain over {humble}"]
        undefined = f" (undefined at {gain.isna().sum()})" if gain.isna().any() else ""
        parts.append(f"{name} at {(gain > 0).sum()} of {len(gain)} centres{undefined}")
    return f"The last round beats {' and '.join(parts)}."
