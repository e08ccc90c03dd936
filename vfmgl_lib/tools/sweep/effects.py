"""The answers of a plan (`tools.sweep.evidence`), from the CSVs of the log alone: every contrast's lead with its limits, every arm's mean.

<folder>/effects.csv    a row a question, set and contrast (`effects`)
<folder>/arms.csv       a row a set, variant, method, budget and place (`arms`)
<folder>/forest_A.png   the contrasts of question A (`figures.forest`)
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from vfmgl_lib.base.files import write_text
from vfmgl_lib.config import ConfigError
from vfmgl_lib.evaluation.statistics import ALPHA, crossed_test, holm
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.tools.sweep.evidence import MAIN_VARIANT, Contrast, Plan, SetPlan, split_arm
from vfmgl_lib.tools.sweep.log import METRICS, read_log
from vfmgl_lib.tools.sweep.summary import MAIN, by_place, each_budget

BUDGETS = {"rounds": "", "updates": "updates", "hgkt_updates": "HGKT's updates", "epochs": "epochs", "compute": "compute"}
EFFECTS, ARMS = "effects.csv", "arms.csv"
COLUMNS = (
    *"question set contrast of less budget place metric value_of value_less lead low high p p_holm".split(),
    *"runs planned centers verdict reason".split(),
)


def report(folder: Path, plan: Plan) -> pd.DataFrame:
    """Brings tables and figures up to date with the logs below the folder, and returns the effects.

    Raises: ConfigError: nothing of the plan is finished.
    """
    from vfmgl_lib.figures.forest import forest
    from vfmgl_lib.figures.style import write_png

    logs = _logs(folder, plan)
    table = effects(logs, plan)
    for name, one in ((EFFECTS, table), (ARMS, arms(logs, plan))):
        write_text(folder / name, one.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    for key, rows in table.groupby("question", sort=False):
        ordered = rows.sort_values("set", key=lambda names: names.map(list(plan.sets).index), kind="stable")
        figure = forest(ordered, plan.questions[key].asks, plan.margins)
        write_png(figure, folder / f"forest_{key}.png")
    return table


def _logs(folder: Path, plan: Plan) -> dict[tuple[str, str], pd.DataFrame]:
    """(set, variant) -> rows of one budget and place each: method, metric, seed, split_id, test_center, value, no_comparison."""
    logs = {}
    for variant in (MAIN_VARIANT, *plan.variants):
        for name, one in plan.sets.items():
            file = folder / variant / (one.data or f"phantoms-{one.task}") / METRICS
            rows = read_log(file)
            if len(rows):
                rows = rows[rows["metric"].isin(MAIN)]
                logs[name, variant] = by_place(each_budget(rows.assign(value=pd.to_numeric(rows["value"]), seed=rows["seed"].astype(int))))
    return logs


def effects(logs: dict[tuple[str, str], pd.DataFrame], plan: Plan) -> pd.DataFrame:
    """Every contrast of every set on which both of its arms are planned.

    Returns: a row a question, set and contrast: contrast ("HGKT - Local only"), of, less (arms), budget, place, metric; value_of and
        value_less: means over the runs and centres that both have; lead: their difference; low, high: its 95 % limits for other runs and
        other centres, p: against 0 (`statistics.crossed_test`); p_holm: p corrected for all primary contrasts of a primary set, NaN for
        others, which are exploratory; runs of `planned` ones; centers; verdict (`_verdict`); reason: why there are no limits, or which
        runs are left out.
    """
    rows = []
    for key, question in plan.questions.items():
        for contrast in question.contrasts:
            for name, one in plan.sets.items():
                if _is_planned(plan, name, contrast):
                    about = {"question": key, "set": name, "primary": contrast.primary and one.primary}
                    rows.append(about | _effect(logs, name, one, contrast))
    table = pd.DataFrame(rows)
    table["p_holm"] = math.nan
    for _, family in table[table["primary"]].groupby("set"):
        table.loc[family.index, "p_holm"] = holm(family["p"])
    table["verdict"] = [_verdict(row, plan) for row in table.to_dict("records")]
    return table[list(COLUMNS)]


def _is_planned(plan: Plan, name: str, contrast: Contrast) -> bool:
    arms_of_set = {arm for step in plan.steps if name in step.sets for arm in step.arms}
    return {contrast.of, contrast.less} <= arms_of_set


def _effect(logs: dict[tuple[str, str], pd.DataFrame], name: str, one: SetPlan, contrast: Contrast) -> dict:
    of, less = (_values(logs, name, arm, contrast) for arm in (contrast.of, contrast.less))
    row = {"contrast": contrast_title(contrast)} | contrast.model_dump(exclude={"primary"})
    nothing = dict.fromkeys(("value_of", "value_less", "lead", "low", "high", "p"), math.nan)
    row |= nothing | {"metric": "", "runs": 0, "planned": one.runs, "centers": 0, "reason": ""}
    if of.empty or less.empty:
        return row | {"reason": f"not run: {', '.join(arm for arm, rows in ((contrast.of, of), (contrast.less, less)) if rows.empty)}"}
    unlike = less[less["no_comparison"] != ""].drop_duplicates(["seed", "split_id"])
    why = "; ".join(f"{text} ({count} runs)" for text, count in unlike["no_comparison"].value_counts().items())
    less = less[less["no_comparison"] == ""]
    tables = [rows.pivot(index=["seed", "split_id"], columns="test_center", values="value") for rows in (of, less)]
    difference = (tables[0] - tables[1]).dropna(axis=1, how="all").dropna()
    row["metric"] = of["metric"].iloc[0]
    if not difference.size:
        return row | {"reason": why or "no run is there of both"}
    row |= {"runs": len(difference), "centers": difference.shape[1]}
    mine = [float(table.loc[difference.index, difference.columns].to_numpy().mean()) for table in tables]
    test = crossed_test(difference.to_numpy())
    limits = {"lead": test.difference, "low": test.low, "high": test.high, "p": test.p}
    return row | {"value_of": mine[0], "value_less": mine[1]} | limits | {"reason": "; ".join(filter(None, [why, test.reason]))}


def _values(logs: dict[tuple[str, str], pd.DataFrame], name: str, arm: str, contrast: Contrast) -> pd.DataFrame:
    method, variant = split_arm(arm)
    rows = logs.get((name, variant))
    if rows is None:
        return pd.DataFrame()
    return rows[(rows["method"] == method) & (rows["budget"] == contrast.budget) & (rows["place"] == contrast.place)]


def contrast_title(contrast: Contrast) -> str:
    """As figures and tables have it: "HGKT - Local only (HGKT's updates)"."""
    where = filter(None, [BUDGETS[contrast.budget], "away" if contrast.place == "away" else ""])
    return f"{arm_title(contrast.of)} - {arm_title(contrast.less)}" + "".join(f" ({text})" for text in where)


def arm_title(arm: str) -> str:
    """As figures and tables have it: "HGKT, pocket_vit"."""
    method, variant = split_arm(arm)
    return METHODS[method].title + (f", {variant.replace('_', ' ')}" if variant != MAIN_VARIANT else "")


def _verdict(row: dict, plan: Plan) -> str:
    """ "ahead", "behind", "no effect above the margin", "undecided", "no comparison" or "not run".

    Of a primary contrast by the corrected p, else by the limits.
    """
    if not row["runs"]:
        return "not run" if row["reason"].startswith("not run") else "no comparison"
    if math.isnan(row["low"]):
        return "undecided"
    found = row["p_holm"] < ALPHA if row["primary"] else row["low"] > 0 or row["high"] < 0
    if found:
        return "ahead" if row["lead"] > 0 else "behind"
    margin = plan.margins[row["metric"]]
    return "no effect above the margin" if -margin < row["low"] and row["high"] < margin else "undecided"


def arms(logs: dict[tuple[str, str], pd.DataFrame], plan: Plan) -> pd.DataFrame:
    """Means of every arm over its runs and centres.

    Returns: set, variant, method, budget, place, metric, value; sd: of the runs' means; low, high: 95 % limits of the mean for other runs
        and other centres; runs, planned, centers, reason.
    """
    rows = []
    for (name, variant), log in logs.items():
        keys = ["method", "budget", "place", "metric"]
        for key, part in log.groupby(keys, sort=False):
            table = part.pivot(index=["seed", "split_id"], columns="test_center", values="value").dropna(axis=1, how="all").dropna()
            if not table.size:
                continue
            test, means = crossed_test(table.to_numpy()), table.mean(axis=1)
            row = {"set": name, "variant": variant} | dict(zip(keys, key, strict=True)) | {"value": test.difference, "sd": means.std()}
            row |= {"low": test.low, "high": test.high, "runs": len(table), "planned": plan.sets[name].runs}
            rows.append(row | {"centers": table.shape[1], "reason": test.reason})
    if not rows:
        raise ConfigError("no study of the plan is finished, so there is nothing to report")
    table = pd.DataFrame(rows)
    order = {method: place for place, method in enumerate(METHODS)}
    return table.iloc[np.lexsort([table["method"].map(order), table["variant"], table["set"]])].reset_index(drop=True)
