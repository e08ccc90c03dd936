"""Every number of `data_manifests/paper_results.csv` beside ours, or the reason why it is not measurable here.

Ours are read from the tables that notebooks 05 to 08 save below `runs/<profile>/<task>[-<data>]/figures/`; nothing is computed from images
or trained here. A difference is given only where the data hold the centre that the paper's row is about: on phantoms, on a stand-in set
and on other centres ours stands beside the paper's without one.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vfmgl_lib import __version__
from vfmgl_lib.config import FIRST_VERSION
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.evaluation.generalization import ablation_summary, over_seeds
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.tasks.datasheets import FOLDER, Datasheet, compare_counts, read_datasheet

log = logging.getLogger(__name__)
PAPER_RESULTS = FOLDER / "paper_results.csv"
COMPARATORS = tuple(name for name, method in METHODS.items() if method.in_paper)
# Table -> the notebooks that save it; the first that has it counts.
TABLES = {
    "about": ("06_generalization", "09_paper_vs_measured"),
    "deviations": ("06_generalization", "09_paper_vs_measured"),
    "results": ("05_comparison", "06_generalization"),
    "robustness": ("06_generalization",),
    "external": ("06_generalization",),
    "subgroups": ("06_generalization",),
    "ablation": ("06_generalization",),
    "score_tests": ("07_interpretability",),
    "lightweight": ("08_lightweight",),
}
# Columns that look like numbers in some run, or whose empty cells mean "nothing".
TEXT = tuple(
    "task where method split_id budget model_center test_center center split metric unit interval reason source test test_reason group "
    "title cutoff_from before after step stage model quantity item text setting here remark".split()
)
# The paper's method and metric -> quantity in lightweight.csv; its "flops" are multiply-accumulates.
LIGHTWEIGHT = {
    ("VFM (DINOv2 ViT-B/14)", "parameters"): "teacher, parameters",
    ("VFM (DINOv2 ViT-B/14)", "flops"): "teacher, MACs without the products inside attention",
    ("VFMGL (ResNet18)", "parameters"): "student, parameters",
    ("VFMGL (ResNet18)", "flops"): "student, MACs",
    ("VFMGL", "memory_bytes_upper"): "student, peak memory in bytes",
}
COMPARED, SHOWN, MISSING = "compared", "not comparable", "not measurable here"
COLUMNS = tuple(
    "task data center split method metric paper paper_std paper_counts measured std difference low high n counts seeds status because "
    "protocol where".split()
)
NUMBERS = ("measured", "std", "low", "high", "n", "seeds")
SHOWN_SETTINGS = 5
# These are named first; the rest follows as it comes. What changes no number of a run on one's own images is not named at all.
WEIGHTY = ("federation.rounds", "data.image_size", "student.width", "student.weights", "teacher.source", "teacher.grid", "data.per_center")
WEIGHTLESS = ("data.workers", "phantoms.", "comparison.", "compute.")
MEAN_OF_CLASSES = "Dice is the mean of background and foreground, as in the released code"
OUR_SIMILARITY = "the paper gives no formula for the score; ours is described in evaluation/similarity.py"


class NotMeasuredError(LookupError):
    """A row of the paper has no counterpart here; the message goes on after "not measurable here, because"."""


def read_paper(path: Path = PAPER_RESULTS) -> pd.DataFrame:
    """The paper's numbers: task, center, split, method, metric, where as text ("" where there is none), the rest as numbers."""
    return _read_table(path)


def about(manifest: Manifest, task: str, data: str, on_phantoms: bool) -> pd.DataFrame:
    """What a run's data are, to be saved beside its results: columns item, text.

    Args:
        manifest: of the run.  data: the folder's name; "" for phantoms.
    Returns: rows task, data, origin ("phantoms", "stand-in": the public set that the datasheet names in place of the paper's, or "own"),
        training centres, external centres (comma-separated) and findings (how the data differ from the paper's counts; what a stand-in is).
    """
    sheet = read_datasheet(task)
    stand_in = sheet.stand_in if not on_phantoms and _is_stand_in(manifest, sheet) else None
    origin = "phantoms" if on_phantoms else "stand-in" if stand_in else "own"
    training = list(manifest.training_centers)
    findings = compare_counts(manifest, sheet) if origin == "own" else [stand_in.what] if stand_in else []
    more = f"; and {len(findings) - 1} more" if len(findings) > 1 else ""
    lines = {
        "task": task,
        "data": data or "embedded phantoms",
        "origin": origin,
        "training centres": ", ".join(training),
        "external centres": ", ".join(center for center in manifest.centers if center not in training),
        "findings": findings[0] + more if findings else "",
    }
    return pd.DataFrame(lines.items(), columns=["item", "text"])


def _is_stand_in(manifest: Manifest, sheet: Datasheet) -> bool:
    """The centres are those of the datasheet's stand-in, and none has more images: a run may use fewer."""
    known = sheet.stand_in.images if sheet.stand_in else None
    if not isinstance(known, dict) or set(known) != set(manifest.centers):
        return False
    sizes = manifest.table.groupby("center").size()
    return all(sizes[center] <= _total(count) for center, count in known.items())


def _total(count: int | Mapping) -> int:
    return sum(map(_total, count.values())) if isinstance(count, Mapping) else count


def read_run(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a run that the comparison with the paper reads, by name; those that are not there are left out.

    So are, with a warning, those that another version of the library saved: a notebook that has not been run again has none yet.

    Args:
        folder: `runs/<profile>/<task>[-<data>]`.
    """
    found = {}
    for name, notebooks in TABLES.items():
        for file in (folder / "figures" / notebook / f"{name}.csv" for notebook in notebooks):
            if name in found or not file.is_file():
                continue
            table = _read_table(file)
            if (made_with := _version(table)) == __version__:
                found[name] = table
            else:
                log.warning("%s: left out, vfmgl_lib %s saved it, this is %s; run the notebook again", file, made_with, __version__)
    return found


def _version(table: pd.DataFrame) -> str:
    """The version that saved a table with its source; a table without rows or source has nothing of another version in it."""
    if "source" not in table or table.empty:
        return __version__
    named = re.search(r" vfmgl_lib (\S+)$", str(table["source"].iloc[0]))
    return named[1] if named else FIRST_VERSION


def _read_table(file: Path) -> pd.DataFrame:
    columns = pd.read_csv(file, nrows=0).columns
    text = {name: str for name in columns if name in TEXT}
    return pd.read_csv(file, dtype=text, keep_default_na=False, na_values={name: [""] for name in columns if name not in TEXT})


def read_runs(profile: Path) -> list[dict[str, pd.DataFrame]]:
    """The tables of every run of a profile whose data are described, in the order of their folders.

    Args:
        profile: `runs/<profile>`.
    """
    runs = [read_run(folder) for folder in sorted(profile.iterdir()) if folder.is_dir()] if profile.is_dir() else []
    return [run for run in runs if "about" in run]


def paper_centers(task: str, centers: Sequence[str], origin: str) -> dict[str, tuple[str, bool]]:
    """The paper's letter -> our centre, and whether it is the same centre or has its place and name only.

    Args:
        origin: see `about`.
    """
    sheet = _datasheet(task)
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


def paper_rows(paper: pd.DataFrame, runs: Sequence[Mapping[str, pd.DataFrame]], tasks: Sequence[str] | None = None) -> pd.DataFrame:
    """Every row of the paper with our counterpart, for every run of its task.

    Args:
        paper: from `read_paper`.
        runs: from `read_runs`; each has at least the table "about".
        tasks: only these; None: all.
    Returns: `COLUMNS`. paper_counts and counts: "349/437" where a value is a share. low, high: 95 % interval of one run, of several seeds
        the mean of their limits. std: over divisions or, else, over seeds. status: "compared", with a difference; "not comparable": ours
        is of other data than the paper's; "not measurable here". because: why, in the last two. protocol: what was done otherwise.
    """
    by_task: dict[str, list[Mapping[str, pd.DataFrame]]] = {}
    for run in runs:
        by_task.setdefault(_about(run)["task"], []).append(run)
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
    data = _about(run)["data"] if run else ""
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


def _about(run: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    return dict(zip(run["about"]["item"], run["about"]["text"], strict=True))


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
    if _about(run)["findings"]:
        parts.append(f"data: {_about(run)['findings']}")
    return "; ".join(parts)


def _of_run(row: dict, run: Mapping[str, pd.DataFrame]) -> tuple[dict, str, str]:
    """Our value, its status and the reason, for a row of the run's task."""
    facts = _about(run)
    training, external = (list(filter(None, facts[f"{kind} centres"].split(", "))) for kind in ("training", "external"))
    centers = paper_centers(row["task"], training + external, facts["origin"])
    try:
        value = _counterpart(row)(row, run, centers)
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
    needed = _pooled_letters(row)
    here = [letter for letter in needed if centers.get(letter, ("", False))[1]]
    others = [name for name in training if name not in {centers[letter][0] for letter in here}]
    if here == needed and not others:
        return COMPARED, ""
    return SHOWN, what or f"it is over the centres {', '.join(training)}; the paper's is over {', '.join(needed)}"


def _pooled_letters(row: dict) -> list[str]:
    """The letters that a row over several centres is about."""
    if row["center"] == "A-E":
        return list("ABCDE")
    entries = _datasheet(row["task"]).centers
    return [_letter(name, entry) for name, entry in entries.items() if entry != "external"]


def _counterpart(row: dict) -> Callable[[dict, Mapping, dict], dict]:
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
    names = [centers[letter][0] for letter in _pooled_letters(row) if letter in centers]
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


def _lightweight(row: dict, runs: Sequence[Mapping[str, pd.DataFrame]]) -> tuple[Mapping | None, dict, str, str]:
    """From the first run that has such a model; parameters and operations do not depend on the images."""
    having = [run for run in runs if "lightweight" in run]
    if not having:
        return None, {}, MISSING, "there is no table lightweight.csv of notebook 08_lightweight"
    for run in having:
        table = run["lightweight"]
        rows = table[(table["quantity"] == LIGHTWEIGHT[row["method"], row["metric"]]) & table["measured"].notna()]
        if len(rows):
            remark = "; ".join(filter(None, [rows["quantity"].iloc[0], rows["remark"].iloc[0]]))
            return run, {"measured": rows["measured"].iloc[0], "protocol": remark}, COMPARED, ""
    return having[0], {}, MISSING, f"lightweight.csv has no {row['metric']} of {row['method']}"


def headline(table: pd.DataFrame) -> pd.DataFrame:
    """How many of the paper's numbers have a counterpart, per task and data: columns task, data, rows and the three states."""
    counted = table.groupby(["task", "data"], sort=False)["status"].value_counts().unstack(fill_value=0)
    counted = counted.reindex(columns=[COMPARED, SHOWN, MISSING], fill_value=0)
    return counted.assign(rows=counted.sum(axis=1)).reset_index().rename_axis(columns=None)
