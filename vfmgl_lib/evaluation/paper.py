"""Every number of `data_manifests/paper_results.csv` beside ours, or the reason why it is not measurable here.

Ours are read from the tables that notebooks 05 to 08 save below `runs/<profile>/<task>[-<data>]/figures/`; nothing is computed from images
or trained here. A difference is given only where the data hold the centre that the paper's row is about: on phantoms, on a stand-in set
and on other centres ours stands beside the paper's without one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from vfmgl_lib.evaluation.beside_paper import LIGHTWEIGHT
from vfmgl_lib.evaluation.counterparts import NotMeasuredError, counterpart, paper_centers, pooled_letters
from vfmgl_lib.evaluation.saved_runs import facts_of

COMPARED, SHOWN, MISSING = "compared", "not comparable", "not measurable here"
COLUMNS = tuple(
    "task data center split method metric paper paper_std paper_counts measured std difference low high n counts seeds status because "
    "protocol where".split()
)
NUMBERS = ("measured", "std", "low", "high", "n", "seeds")
SHOWN_SETTINGS = 5
# These are named first; the rest follows as it comes. What changes no number of a run on one's own images is not named at all.
WEIGHTY = (
    "federation.rounds",
    "data.image_size",
    "student.name",
    "student.width",
    "student.weights",
    "teacher.source",
    "teacher.grid",
    "data.per_center",
)
WEIGHTLESS = ("data.workers", "phantoms.", "comparison.", "compute.")


def paper_rows(paper: pd.DataFrame, runs: Sequence[Mapping[str, pd.DataFrame]], tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Every row of the paper with our counterpart, for every run of its task.

    Args:
        paper: from `saved_runs.read_paper`.
        runs: from `saved_runs.read_runs`; each has at least the table "about".
        tasks: only these; None: all.
    Returns: `COLUMNS`. paper_counts and counts: "349/437" where a value is a share. low, high: 95 % interval of one run, of several seeds
        the mean of their limits. std: over divisions or, else, over seeds. status: "compared", with a difference; "not comparable": ours
        is of other data than the paper's; "not measurable here". because: why, in the last two. protocol: what was done otherwise.
    """
    by_task: dict[str, list[Mapping[str, pd.DataFrame]]] = {}
    for run in runs:
        by_task.setdefault(facts_of(run)["task"], []).append(run)
    found = []
    for row in paper.to_dict("records"):
        if tasks is not None and row["task"] not in tasks:
            continue
        if row["task"] == "lightweight":
            found.append(_joined(row, *_lightweight(row, runs)))
            continue
        own = by_task.get(row["task"], [])
        if not own:
            why = f"no run of the task {row['task']} is in this profile's folder (notebooks 05 and 06 make one)"
            found.append(_joined(row, None, {}, MISSING, why))
        found += [_joined(row, run, *_of_run(row, run)) for run in own]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _joined(row: dict, run: Mapping | None, value: dict, status: str, because: str) -> dict:
    data = facts_of(run)["data"] if run else ""
    joined = {name: row[name] for name in ("task", "center", "split", "method", "metric", "where")} | {"data": data}
    joined |= {"paper": row["value"], "paper_std": row["std"], "paper_counts": _counts(row["numerator"], row["denominator"])}
    joined |= dict.fromkeys(NUMBERS, math.nan) | {name: value[name] for name in NUMBERS if name in value}
    joined["counts"] = _counts(value.get("numerator", math.nan), value.get("denominator", math.nan))
    given = status == COMPARED and row["metric"] != "t_test_p"  # nothing is learnt from the difference of two p values
    joined["difference"] = joined["measured"] - row["value"] if given else math.nan
    joined |= {"status": status, "because": because}
    # What is lightweight is counted at the paper's own settings, whatever the run's are.
    of_run = run if status != MISSING and row["task"] != "lightweight" else None
    protocol = [value.get("protocol", ""), _protocol(of_run) if of_run else ""]
    return joined | {"protocol": "; ".join(filter(None, protocol))}


def _counts(numerator: float, denominator: float) -> str:
    return "" if pd.isna(numerator) or pd.isna(denominator) else f"{int(numerator)}/{int(denominator)}"


def _protocol(run: Mapping[str, pd.DataFrame]) -> str:
    """What the whole run did otherwise than the paper: settings and data."""
    parts = []
    settings = run.get("deviations")
    rows = [] if settings is None else [row for row in settings.itertuples() if not row.setting.startswith(WEIGHTLESS)]
    if rows:
        place = {name: index for index, name in enumerate(WEIGHTY)}
        rows.sort(key=lambda row: place.get(row.setting, len(WEIGHTY)))
        named = [f"{row.setting} {row.here} (paper: {row.paper})" for row in rows[:SHOWN_SETTINGS]]
        more = f" and {len(rows) - SHOWN_SETTINGS} more" if len(rows) > SHOWN_SETTINGS else ""
        parts.append(f"settings: {', '.join(named)}{more}")
    if facts_of(run)["findings"]:
        parts.append(f"data: {facts_of(run)['findings']}")
    return "; ".join(parts)


def _of_run(row: dict, run: Mapping[str, pd.DataFrame]) -> tuple[dict, str, str]:
    """Our value, its status and the reason, for a row of the run's task."""
    facts = facts_of(run)
    training, external = (list(filter(None, facts[f"{kind} centres"].split(", "))) for kind in ("training", "external"))
    centers = paper_centers(row["task"], training + external, facts["origin"])
    try:
        value = counterpart(row)(row, run, centers)
    except NotMeasuredError as error:
        return {}, MISSING, str(error)
    if pd.isna(value["measured"]):
        return value, MISSING, value.get("reason") or "the value is undefined and no reason was recorded"
    return value, *_comparable(row, centers, training, facts)


def _comparable(row: dict, centers: dict[str, tuple[str, bool]], training: list[str], facts: dict[str, str]) -> tuple[str, str]:
    if facts["origin"] == "phantoms":
        return SHOWN, "the images are embedded phantoms, not the paper's patients"
    what = f"the images are a stand-in ({facts['data']}), not the paper's" if facts["origin"] == "stand-in" else ""
    if row["center"] in centers:
        name, same = centers[row["center"]]
        return (COMPARED, "") if same else (SHOWN, what or f"{name} is not the paper's centre {row['center']}")
    needed = pooled_letters(row)
    here = [letter for letter in needed if centers.get(letter, ("", False))[1]]
    others = [name for name in training if name not in {centers[letter][0] for letter in here}]
    if here == needed and not others:
        return COMPARED, ""
    return SHOWN, what or f"it is over the centres {', '.join(training)}; the paper's is over {', '.join(needed)}"


def _lightweight(row: dict, runs: Sequence[Mapping[str, pd.DataFrame]]) -> tuple[Mapping | None, dict, str, str]:
    """From the first run that has such a model; parameters and operations do not depend on the images."""
    having = [run for run in runs if "lightweight" in run]
    if not having:
        return None, {}, MISSING, "there is no table lightweight.csv of notebook 08_lightweight"
    for run in having:
        table = run["lightweight"]
        # The paper's number is there beside the network that it is of.
        rows = table[(table["quantity"] == LIGHTWEIGHT[row["method"], row["metric"]]) & table["paper"].notna() & table["measured"].notna()]
        if len(rows):
            remark = "; ".join(filter(None, [rows["quantity"].iloc[0], rows["remark"].iloc[0]]))
            return run, {"measured": rows["measured"].iloc[0], "protocol": remark}, COMPARED, ""
    return having[0], {}, MISSING, f"lightweight.csv has no {row['metric']} of {row['method']}"


def not_in_paper(task: str) -> str:
    """What stands in the place of a table of numbers of the paper where it has none of a task."""
    return f"Not in the paper: it prints no such number of the task {task}."


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """How many of the paper's numbers have a counterpart, per task and data: columns task, data, rows and the three states."""
    counted = table.groupby(["task", "data"], sort=False)["status"].value_counts().unstack(fill_value=0)
    counted = counted.reindex(columns=[COMPARED, SHOWN, MISSING], fill_value=0)
    return counted.assign(rows=counted.sum(axis=1)).reset_index().rename_axis(columns=None)
