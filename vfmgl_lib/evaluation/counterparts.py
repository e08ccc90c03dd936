"""Our number for a row of the paper: which of our centres is the paper's, and where among a run's tables the value stands.

Every function that finds a value takes the paper's row, the run's tables and `paper_centers`, and returns `measured` and what is known
beside it (`NUMBERS` and the counts of `evaluation.paper`, reason, protocol).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from vfmgl_lib.evaluation.generalization import ablation_summary, over_seeds
from vfmgl_lib.evaluation.saved_runs import TABLES
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.tasks.datasheets import Datasheet, datasheet_of, read_datasheet

COMPARATORS = tuple(name for name, method in METHODS.items() if method.in_paper)
MEAN_OF_CLASSES = "Dice is the mean of background and foreground, as in the released code"
OUR_SIMILARITY = "the paper gives no formula for the score; ours is described in evaluation/similarity.py"


class NotMeasuredError(LookupError):
    """A row of the paper has no counterpart here; the message goes on after "not measurable here, because"."""


def paper_centers(task: str, centers: Sequence[str], origin: str) -> dict[str, tuple[str, bool]]:
    """The paper's letter -> our centre, and whether it is the same centre or has its place and name only.

    Args:
        origin: see `saved_runs.about`.
    Returns: none of a task that the paper does not have.
    """
    sheet = datasheet_of(task)
    if sheet is None:
        return {}
    letters = {name: _letter(name, entry) for name, entry in sheet.centers.items()}
    same = letters
    if origin != "own":
        same = (sheet.stand_in.model_extra or {}).get("paper_centers", {}) if origin == "stand-in" and sheet.stand_in else {}
    found = {same[name]: (name, True) for name in centers if name in same}
    used = {name for name, _ in found.values()}
    alike = {letters[name]: (name, False) for name in centers if name in letters and name not in used}
    return alike | found


@functools.cache
def _datasheet(task: str) -> Datasheet:
    """Each row of the paper asks for it."""
    return read_datasheet(task)


def _letter(name: str, entry: object) -> str:
    given = entry if isinstance(entry, Mapping) else {}
    return str(given.get("letter") or given.get("paper") or name.removeprefix("Site"))


def pooled_letters(row: dict) -> list[str]:
    """The letters that a row over several centres is about."""
    if row["center"] == "A-E":
        return list("ABCDE")
    entries = _datasheet(row["task"]).centers
    return [_letter(name, entry) for name, entry in entries.items() if entry != "external"]


def counterpart(row: dict) -> Callable[[dict, Mapping, dict], dict]:
    """The function that finds our value for a row of the paper; it raises NotMeasuredError where the run has none."""
    by_metric = {"auc_gain": _gain, "accuracy_well_differentiated_eec": _well_differentiated, "t_test_p": _scores, "score_mean": _scores}
    by_split = {"external": _external, "six splits": _robustness, "cross-centre mean": _ablation}
    if row["metric"] in by_metric:
        return by_metric[row["metric"]]
    if row["split"] in by_split:
        return by_split[row["split"]]
    if row["split"].startswith("test age"):
        return _subgroup
    return _pooled if row["center"] == "all" else _own


def _table(run: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    if name not in run:
        notebooks = " or ".join(TABLES[name])
        raise NotMeasuredError(f"there is no table {name}.csv of notebook {notebooks}")
    return run[name]


def _center(row: dict, centers: dict[str, tuple[str, bool]], letter: str = "") -> str:
    letter = letter or row["center"]
    if letter not in centers:
        here = ", ".join(name for name, _ in centers.values()) or "none with a letter of the paper"
        raise NotMeasuredError(f"the data have no centre {letter} of the paper (they have {here})")
    return centers[letter][0]


def _metric(row: dict) -> str:
    return "dice_mean_of_classes" if row["metric"] == "dice" else row["metric"]


def _number(row: Mapping, **further: object) -> dict:
    """A row of a table as our value: those of `NUMBERS` and counts that it has."""
    value = {name: row[name] for name in ("std", "low", "high", "n", "numerator", "denominator", "seeds", "reason") if name in row}
    return value | {"measured": row["value"]} | further


def _vfmgl(run: Mapping[str, pd.DataFrame], metric: str) -> pd.DataFrame:
    """VFMGL's own-division results of one metric, a row a seed and pair of model and test set."""
    table = _table(run, "results")
    rows = table[(table["method"] == "vfmgl") & (table["split_id"] == "own") & (table["budget"] == "rounds") & (table["split"] == "test")]
    rows = rows[rows["metric"] == metric]
    if rows.empty:
        raise NotMeasuredError(f"results.csv has no {metric} of VFMGL")
    return rows


def _own(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    center = _center(row, centers)
    rows = _vfmgl(run, _metric(row))
    rows = rows[(rows["model_center"] == center) & (rows["test_center"] == center)]
    if rows.empty:
        raise NotMeasuredError(f"results.csv has no model of centre {center}")
    return _number(over_seeds(rows).iloc[0], protocol=MEAN_OF_CLASSES if row["metric"] == "dice" else "")


def _pooled(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    """Counts summed over the centres where the paper has counts, else the mean of the centres' means ("average across centers").

    The interval of that mean is put together from the centres' own, which have different patients (MOVER, Zou and Donner 2008).
    """
    rows = _vfmgl(run, _metric(row))
    if not math.isnan(row["denominator"]):
        summed = rows[rows["model_center"] == "all"]
        if summed.empty:
            raise NotMeasuredError(f"results.csv has no {row['metric']} over all centres")
        return _number(over_seeds(summed).iloc[0])
    home = rows[(rows["model_center"] == rows["test_center"]) & (rows["model_center"] != "all")]
    by_seed = home.groupby("seed")["value"].agg(lambda values: values.mean(skipna=False))
    centers = over_seeds(home)
    below, above = (np.sqrt(((centers["value"] - centers[end]) ** 2).sum(skipna=False)) / len(centers) for end in ("low", "high"))
    unit = f", in {home['unit'].iloc[0]}" if row["metric"] in ("assd", "hd95") else ""
    return {
        "measured": by_seed.mean(skipna=False),
        "low": by_seed.mean(skipna=False) - below,
        "high": by_seed.mean(skipna=False) + above,
        "std": by_seed.std(ddof=1),
        "n": centers["n"].sum(),
        "seeds": len(by_seed),
        "reason": next(filter(None, home["reason"]), ""),
        "protocol": f"mean of {len(centers)} centres{unit}",
    }


def _gain(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    """VFMGL less the mean of the paper's five comparators, at matched rounds as in the paper; at matched updates in the protocol."""
    center = _center(row, centers)
    _vfmgl(run, "auc")
    table = run["results"]
    rows = table[(table["metric"] == "auc") & (table["split"] == "test") & (table["split_id"] == "own")]
    rows = rows[(rows["model_center"] == center) & (rows["test_center"] == center)]
    present = [name for name in COMPARATORS if ((rows["method"] == name) & (rows["budget"] == "rounds")).any()]
    if not present:
        wanted = ", ".join(METHODS[name].title for name in COMPARATORS)
        raise NotMeasuredError(f"results.csv has none of the paper's comparators ({wanted}) at matched rounds")
    gains = {}
    for budget, group in rows.groupby("budget"):
        wide = group.pivot(index="seed", columns="method", values="value").reindex(columns=[*present, "vfmgl"])
        gains[budget] = wide["vfmgl"] - wide[present].mean(axis=1, skipna=False)
    gain = gains["rounds"]
    absent = [METHODS[name].title for name in COMPARATORS if name not in present]
    notes = [f"without {', '.join(absent)}"] if absent else []
    notes += [f"at matched updates {gains['updates'].mean(skipna=False):+.3f}"] if "updates" in gains else []
    reason = next(filter(None, rows[rows["budget"] == "rounds"]["reason"]), "a method lacks a seed")
    sizes = {"n": rows["n"].iloc[0], "seeds": len(gain)}
    return sizes | {"measured": gain.mean(skipna=False), "std": gain.std(ddof=1), "reason": reason, "protocol": "; ".join(notes)}


def _external(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    center, model = _center(row, centers), _center(row, centers, row["method"].removeprefix("VFMGL model "))
    table = _table(run, "external")
    rows = table[(table["center"] == center) & (table["model_center"] == model) & (table["metric"] == "auc")]
    if rows.empty:
        raise NotMeasuredError(f"{center} is no external centre of these data, or {model} trains no model here")
    found = rows.iloc[0]
    if row["metric"] == "similarity":
        return {"measured": found["similarity"], "protocol": OUR_SIMILARITY}
    return _number(found, protocol="the model chosen by similarity" if found["chosen"] else "")


def _subgroup(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    center, table = _center(row, centers), _table(run, "subgroups")
    rows = table[(table["center"] == center) & (table["group"] == ("younger" if "<=" in row["split"] else "older"))]
    found = rows[rows["metric"] == row["metric"]]
    if found.empty:
        raise NotMeasuredError(next(filter(None, rows["reason"]), f"subgroups.csv has no {row['metric']} of centre {center}"))
    found = found.iloc[0]
    notes = [f"here {found['title']}"]
    from_set = {"val": "validation", "train": "training"}.get(found.get("cutoff_from", ""))
    notes += [f"cutoff {found['cutoff']:.4f} from the {from_set} set"] if row["metric"] == "accuracy" and from_set else []
    return _number(found, protocol="; ".join(notes))


def _well_differentiated(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    """Counts of the centres A to E summed, E with the model that its similarity chose."""
    table = _table(run, "subgroups")
    names = [centers[letter][0] for letter in pooled_letters(row) if letter in centers]
    rows = table[(table["group"] == "well_differentiated") & (table["metric"] == "accuracy") & table["center"].isin(names)]
    counted = rows[rows["denominator"] > 0]
    if counted.empty:
        raise NotMeasuredError(next(filter(None, rows["reason"]), f"subgroups.csv has no such patients of the centres {', '.join(names)}"))
    numerator, denominator = counted["numerator"].sum(), counted["denominator"].sum()
    note = f"grade 1 of type I, as the paper does not define it; centres {', '.join(counted['center'])}"
    value = {"measured": numerator / denominator, "numerator": numerator, "denominator": denominator, "n": denominator}
    return value | {"protocol": note}


def _robustness(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    center, table = _center(row, centers), _table(run, "robustness")
    rows = table[(table["center"] == center) & (table["metric"] == _metric(row))]
    if rows.empty:
        raise NotMeasuredError(f"robustness.csv has no {_metric(row)} of centre {center}")
    found = rows.iloc[0]
    notes = [f"mean and SD of {found['splits']:.0f} divisions of our own ({', '.join(rows['split_id'])}), by patient"]
    notes += [MEAN_OF_CLASSES] if row["metric"] == "dice" else []
    return {"measured": found["mean"], "std": found["std"], "n": found["n"], "reason": found["reason"], "protocol": "; ".join(notes)}


def _ablation(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    table = _table(run, "ablation")
    after = {"HGKT+KD minus HGKT": "hgkt_kd", "HGKT+KD+DDBL minus HGKT": "vfmgl"}[row["method"]]
    step = table[(table["before"] == "hgkt") & (table["after"] == after) & (table["metric"] == "dice_mean_of_classes")]
    if step.empty:
        raise NotMeasuredError(f"ablation.csv has no mean-of-classes Dice from HGKT to {METHODS[after].title}")
    found = ablation_summary(step).iloc[0]
    value = {"n": found["of"], "seeds": step["seeds"].max(), "reason": "no pair of model and test centre has a value"}
    if row["metric"] == "cross_centre_results_improved":
        clear = found["significantly_better"]
        tested = "not tested" if pd.isna(clear) else f"significant by Holm's correction: {clear} of {found['tested']} tested"
        counts = {"numerator": found["improved"], "denominator": found["of"]}
        return value | counts | {"measured": found["share"], "protocol": f"any gain counts; {tested}"}
    pairs = f"mean over {found['of']} pairs of model and test centre; {MEAN_OF_CLASSES}"
    return value | {"measured": found["mean_change"], "protocol": pairs}


def _scores(row: dict, run: Mapping[str, pd.DataFrame], centers: dict) -> dict:
    """Mean score of a class, or the p value of the t-test between the classes, after the last stage (Fig. 7c)."""
    center, table = _center(row, centers), _table(run, "score_tests")
    rows = table[(table["center"] == center) & (table["split"] == row["split"])]
    if rows.empty:
        raise NotMeasuredError(f"score_tests.csv has no {row['split']} set of centre {center}")
    found = rows.sort_values("stage").iloc[-1]
    if row["metric"] == "t_test_p":
        return {"measured": found["p"], "n": found["n_0"] + found["n_1"], "reason": found["reason"]}
    label = 0 if row["method"].endswith("NMI cases") else 1
    value = {"measured": found[f"mean_{label}"], "std": found[f"std_{label}"], "n": found[f"n_{label}"]}
    return value | {"reason": f"the {row['split']} set of centre {center} has no case of this class"}
