"""Models away from home: other centres, external centres, subgroups of patients, other divisions of the data, and the ablation.

Tables in, tables out: `results` is a table of `evaluation.results.results_table`, `final` one of `final_predictions`; both may hold
several methods, seeds and divisions (`split_id`), of which each function takes its own. Nothing here trains or draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import scipy

from vfmgl_lib.data.names import same_name
from vfmgl_lib.evaluation.classification import is_classification
from vfmgl_lib.evaluation.margin import lower_is_better, within
from vfmgl_lib.evaluation.results import ADAPTED, NOT_LOCAL, SHARED, compare_methods, results_table
from vfmgl_lib.evaluation.similarity import choose_model
from vfmgl_lib.evaluation.statistics import holm_families
from vfmgl_lib.methods.registry import METHODS

MARGIN = 0.05  # ours; the paper's Fig. 6 shows which models generalise and does not say by how much they may fall short
OWN_SPLIT = "own"
ABLATION = ("hgkt", "hgkt_kd", "vfmgl")
STEPS = (("hgkt", "hgkt_kd"), ("hgkt", "vfmgl"), ("hgkt_kd", "vfmgl"))  # panels d, e and f of Fig. 9
SIGNIFICANT = 0.05
GROUPS = ("younger", "older", "well_differentiated")
SUBGROUP_METRICS = ("auc", "accuracy", "sensitivity", "specificity")
NOT_TESTED = "not tested"
NO_RANKS = "no rank correlation of fewer than three different models"
NO_TABLE = "no patients.csv beside the data"
OF_WHOLE_SET = ("auc", "accuracy", "dice")  # their n is the size of the test set
MODEL = ["method", "split_id", "budget", "model_center", "test_center", "split", "metric"]


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds: a row for each method, division, budget, model, test set and metric.

    Args:
        results: a results table.
    Returns: its columns without seed, and with std (over the seeds, n - 1; NaN of one seed) and seeds, how many there are. `low` and
        `high` are the means of the seeds' limits: how uncertain one run is because its test set is small, not how uncertain the mean is.
        A value that is undefined for one seed is undefined; n is the smallest of the seeds'; numerator and denominator are kept where there
        is one seed only.
    Raises: ValueError: methods or seeds whose test sets of a centre differ in size; names them.
    """
    order = results.reset_index(drop=True)
    _check_sizes(order)
    found = []
    for key, group in order.groupby(MODEL, sort=False, dropna=False):
        row = dict(zip(MODEL, key, strict=True)) | {"unit": group["unit"].iloc[0]}
        row |= {name: group[name].mean(skipna=False) for name in ("value", "low", "high")}
        single = len(group) == 1
        row |= {name: group[name].iloc[0] if single else np.nan for name in ("numerator", "denominator")}
        row |= {"std": group["value"].std(ddof=1, skipna=False), "seeds": len(group), "n": group["n"].min()}
        reasons = [text for text in group["reason"] if text]
        found.append(row | {"interval": group["interval"].iloc[0], "reason": reasons[0] if reasons else ""})
    columns = [*MODEL, "unit", "value", "std", "seeds", "low", "high", "interval", "n", "numerator", "denominator", "reason"]
    return pd.DataFrame(found, columns=columns)


def _check_sizes(results: pd.DataFrame) -> None:
    tested = results[(results["split"] == "test") & results["metric"].isin(OF_WHOLE_SET) & (results["test_center"] != "all")]
    for (_, center, metric), rows in tested.groupby(["split_id", "test_center", "metric"], sort=False):
        if rows["n"].nunique() > 1:
            runs = rows.drop_duplicates("n").head(2)
            sizes = " and ".join(f"{int(row.n)} of {row.method}, seed {row.seed}" for row in runs.itertuples())
            raise ValueError(f"centre {center}: {sizes}: {metric} of different test sets cannot be compared")


def cross_centers(
    results: pd.DataFrame, limits: pd.DataFrame, metric: str, method: str = "vfmgl", budget: str = "rounds", margin: float = MARGIN
) -> pd.DataFrame:
    """Every local model on every centre's test set, and whether it generalises there (paper: Fig. 6).

    A model generalises to a centre if the one-sided 95 % limit of how far it may be behind the centre's own model, by patient, is within
    the margin, and enough patients were tested for a rare failure to be seen (`margin.within`). Where there is no limit there is no
    verdict: a few patients cannot show it. Verdicts are not corrected for there being many.

    Args:
        results: see the module; of several seeds the means are taken (`over_seeds`).
        limits: from `margin.margin_limits`, of the same metric, method and budget.
        margin: in units of the metric, at least 0.
    Returns: metric, model_center, test_center, value, std, seeds, low, high, n, unit, own (value of the test centre's own model), ahead and
        limit (see `margin_limits`), worst, patients, generalizes (True; False: not shown; NA: at home, at an external centre, where a value
        is undefined, there is no limit or too few patients), margin, reason (of an undefined value or of an NA away from home).
        `ahead` is the mean over patients and `value` and `own` are over images: their difference may be another where patients have
        different numbers of images; then the reason says so.
    Raises: ValueError: a negative margin; no such metric, method or budget.
    """
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, got {margin}")
    rows = _chosen(results, metric, method, budget)
    rows = rows[(rows["split"] == "test") & ~rows["model_center"].isin(NOT_LOCAL)].copy()
    home = rows[rows["model_center"] == rows["test_center"]].set_index("test_center")["value"]
    rows["own"] = rows["test_center"].map(home)
    rows = rows.merge(limits.rename(columns={"reason": "no_limit"}), on=["model_center", "test_center"], how="left")
    away = rows["model_center"] != rows["test_center"]
    verdicts = [within(row.limit, row.worst, row.patients, margin) for row in rows.itertuples()]
    rows["generalizes"] = pd.array([verdict for verdict, _ in verdicts], dtype="boolean")
    rows["generalizes"] = rows["generalizes"].mask(~away)
    withheld = pd.Series([why for _, why in verdicts], index=rows.index)
    apart = (rows["value"] - rows["own"]) * (-1 if lower_is_better(metric) else 1) * rows["ahead"] < 0
    rows["margin"] = margin
    # A value that is there may have a reason already: why it has no interval.
    external, defined = ~rows["test_center"].isin(home.index), rows["value"].notna()
    here, own = away & ~external, rows["own"].notna()
    for where, why in (
        (external, "an external centre has no model of its own"),
        (here & ~own, "the centre's own model has no value"),
        (here & own & rows["limit"].isna(), rows["no_limit"].fillna("no limit: the pair is not among the limits")),
        (here & own & rows["limit"].notna() & (withheld != ""), withheld),
        (here & own & rows["limit"].notna() & apart, "over images the difference has the other sign"),
    ):
        said = pd.DataFrame({"why": why, "reason": rows["reason"]}, index=rows.index)[where & defined]
        rows.loc[said.index, "reason"] = [f"{row.why}; {row.reason}" if row.reason else row.why for row in said.itertuples()]
    columns = ["metric", "model_center", "test_center", "value", "std", "seeds", "low", "high", "n", "unit", "own", "ahead", "limit"]
    columns += ["worst", "patients", "generalizes", "margin", "reason"]
    return rows.sort_values(["model_center", "test_center"])[columns].reset_index(drop=True)


def generalization_summary(table: pd.DataFrame) -> pd.DataFrame:
    """To which centres each model generalises, in words as the paper has it.

    Args:
        table: from `cross_centers`.
    Returns: one row a model: model_center, generalizes_to, mutual (centres whose model also generalises here), count, of (centres where
        the question has an answer), undefined (where it has none: names).
    """
    reaching = table[table["generalizes"].fillna(False).astype(bool)]
    yes = set(reaching[["model_center", "test_center"]].itertuples(index=False, name=None))
    found = []
    for model, group in table.groupby("model_center"):
        away = group[group["test_center"] != model]
        reached = [center for center in away["test_center"] if (model, center) in yes]
        unanswered = away[away["generalizes"].isna()]["test_center"]
        found.append(
            {
                "model_center": model,
                "generalizes_to": ", ".join(reached),
                "mutual": ", ".join(center for center in reached if (center, model) in yes),
                "count": len(reached),
                "of": int(away["generalizes"].notna().sum()),
                "undefined": ", ".join(unanswered),
            }
        )
    return pd.DataFrame(found)


def external(results: pd.DataFrame, similarity: pd.DataFrame, metric: str, method: str = "vfmgl", budget: str = "rounds") -> pd.DataFrame:
    """Every local model, and the shared one, at every external centre, beside the similarity by which one of them was chosen.

    The choice is read from `similarity` alone, before the results are looked at (`similarity.choose_model`).

    Args:
        results: of one seed.
        similarity: center, model_center, similarity (`similarity.similarity_scores`).
    Returns: metric, center, model_center, similarity (NaN of the shared model), chosen, best (of the local models), value, low, high,
        interval, n, unit, reason; no rows where there is no external centre.
    Raises: ValueError: results of several seeds; no similarity of a model at an external centre, or none at all.
    """
    choice = choose_model(similarity)
    rows = _chosen(results, metric, method, budget)
    if rows["seeds"].max() > 1:
        raise ValueError(f"one model can be chosen by one run only, the results have {rows['seeds'].max()} seeds: give those of one")
    rows = rows[(rows["split"] == "test") & (rows["model_center"] != "all")]
    trained = set(rows["model_center"]) - set(NOT_LOCAL)
    rows = rows[~rows["test_center"].isin([*trained, "all"])].rename(columns={"test_center": "center"})
    rows = rows.merge(similarity[["center", "model_center", "similarity"]], on=["center", "model_center"], how="left")
    local = rows["model_center"] != "shared"
    lacking = rows[local & rows["similarity"].isna()]
    if len(lacking):
        center, model = lacking.iloc[0][["center", "model_center"]]
        raise ValueError(f"there is no similarity of external centre {center} to {model}, whose model was tested there")
    rows["chosen"] = local & (rows["model_center"] == rows["center"].map(choice))
    rank = rows["value"].where(local) * (-1 if lower_is_better(metric) else 1)
    rows["best"] = rank.eq(rank.groupby(rows["center"]).transform("max"))
    rows = rows.assign(place=~local).sort_values(["center", "place", "model_center"])
    columns = "metric center model_center similarity chosen best value low high interval n unit reason".split()
    return rows[columns].reset_index(drop=True)


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """What the choice by similarity was worth at each external centre.

    Args:
        table: from `external`.
    Returns: center, chosen, value (of the chosen model), mean (of all local ones: a choice by lot), best, best_value, shared (the shared
        model's value), rank_correlation (Spearman, of similarity and value over the local models; NaN of fewer than 3), models, reason.
    """
    found = []
    for center, group in table.groupby("center"):
        local, shared = group[group["model_center"] != "shared"], group[group["model_center"] == "shared"]
        chosen = local[local["chosen"]].iloc[0]
        defined = local.dropna(subset=["value"])
        best = local[local["best"]]
        varied = len(defined) > 2 and defined["value"].nunique() > 1 and defined["similarity"].nunique() > 1
        found.append(
            {
                "center": center,
                "chosen": chosen["model_center"],
                "value": chosen["value"],
                "mean": defined["value"].mean() if len(defined) else np.nan,
                "best": ", ".join(best["model_center"]),
                "best_value": best["value"].iloc[0] if len(best) else np.nan,
                "shared": shared["value"].iloc[0] if len(shared) else np.nan,
                "rank_correlation": float(scipy.stats.spearmanr(defined["similarity"], defined["value"])[0]) if varied else np.nan,
                "models": len(defined),
                "reason": chosen["reason"] if pd.isna(chosen["value"]) else "" if varied else NO_RANKS,
            }
        )
    return pd.DataFrame(found)


def subgroups(
    final: pd.DataFrame,
    patients: pd.DataFrame | None,
    *,
    unit: str,
    chosen: Mapping[str, str] | None = None,
    method: str = "vfmgl",
    budget: str = "rounds",
    age: float | None = None,
) -> pd.DataFrame:
    """A method's models on groups of test patients, at the cutoffs of the whole models (paper: "Robustness, part I"; Discussion).

    Groups: patients up to the mean age of all patients of the table, those above it, and those with a well-differentiated endometrioid
    carcinoma (grade 1 of type I). Where a group has one class only it has no AUC, and its accuracy stands alone, as in the paper.

    Args:
        final: final predictions of one seed with their validation and training rows, for the cutoffs; a segmentation's have no subgroups.
        patients: `tasks.patients.read_patients`; None: there is no table.
        unit: "patient" or "image" (`prediction.scoring_unit`).
        chosen: external centre -> the training centre whose model it is given (`similarity.choose_model`); others are left out.
        age: years that divide the ages; None: the mean of all patients.
    Returns: group, title, seed, center ("all": counts of all centres summed), split ("test" or "external"), model_center, metric, value,
        low, high, interval, n, numerator, denominator, cutoff, cutoff_from (the set it was chosen on: "val", "train" or
        ""), unknown (patients whose age or grade is not in the table), reason.
    """
    mine = final[(final["method"] == method) & (final["budget"] == budget) & (final["split_id"] == OWN_SPLIT)]
    mine = mine[(mine["model_center"] == mine["test_center"]) & mine["split"].isin(["train", "val", "test"])]
    outside = _given(final[(final["method"] == method) & (final["budget"] == budget)], chosen or {})
    rows = pd.concat([mine, outside], ignore_index=True)
    if rows.empty:
        raise ValueError(f"no predictions of {method!r} at matched {budget} on the data's own division")
    if rows["seed"].nunique() > 1:
        raise ValueError(f"one model can be chosen by one run only: predictions must be of one seed, got {sorted(rows['seed'].unique())}")
    homes = {center: center for center in mine["test_center"]} | dict(chosen or {})
    tested = rows[rows["split"] == "test"]
    if patients is None or not is_classification(final):
        why = NO_TABLE if is_classification(final) else "a segmentation has no subgroups: the paper's are of the endometrial task"
        absent = [_absent(group, center, homes, why) for group in GROUPS for center in sorted(set(tested["test_center"]))]
        return pd.DataFrame(absent).assign(seed=rows["seed"].iloc[0])
    age = float(patients["age"].mean()) if age is None else age
    keys = tested["patient"].map(same_name)
    found = []
    for group, (title, members, known) in _groups(patients, age).items():
        inside = rows[(rows["split"] != "test") | rows["patient"].map(same_name).isin(members)]
        table = results_table(inside, unit=unit)
        cutoffs = table[table["metric"] == "cutoff"].set_index("test_center")
        table = table[(table["split"] == "test") & table["metric"].isin(SUBGROUP_METRICS)].rename(columns={"test_center": "center"})
        table["cutoff"] = table["center"].map(cutoffs["value"])
        table["cutoff_from"] = table["center"].map(cutoffs["split"].where(cutoffs["value"].notna(), "")).fillna("")
        unknown = tested[~keys.isin(known)].groupby("test_center")["patient"].nunique()
        empty = sorted(set(tested["test_center"]) - set(table["center"]))
        nobody = {center for center in empty if unknown.get(center, 0) == tested[tested["test_center"] == center]["patient"].nunique()}
        reasons = {center: "of no test patient is it known" if center in nobody else "no test patient of this group" for center in empty}
        reasons = reasons if known else dict.fromkeys(empty, "patients.csv has no grade")
        table = pd.concat([table, pd.DataFrame([_absent(group, center, homes, reasons[center]) for center in empty])], ignore_index=True)
        table["unknown"] = table["center"].map(unknown).fillna(0).astype(int)
        table.loc[table["center"] == "all", "unknown"] = int(unknown.sum())
        found.append(table.assign(group=group, title=title))
    joined = pd.concat(found, ignore_index=True)
    joined["seed"] = rows["seed"].iloc[0]
    joined["split"] = np.where(joined["center"].isin(list(chosen or {})), "external", "test")
    joined["model_center"] = joined["center"].map(homes).fillna("all")
    return joined[list(_absent("", "", {}, ""))]


def robustness(
    results: pd.DataFrame, metric: str, method: str = "vfmgl", budget: str = "rounds", split_ids: Iterable[str] | None = None
) -> pd.DataFrame:
    """Every centre's own model over several divisions of the data (paper: "Robustness, part II").

    Args:
        results: see the module; of several seeds of a division the means are taken.
        split_ids: the divisions; None: all but the data's own or, where that is the only one, it.
    Returns: one row a centre and division: center, split_id, metric, unit, value, low, high, n, then for the centre mean, std (n - 1),
        splits (how many have a value) and reason (why a value or the SD is missing).
    Raises: ValueError: no such metric, method or budget, or a division that the results do not have.
    """
    rows = _chosen(results, metric, method, budget, split_id=None)
    rows = rows[(rows["split"] == "test") & (rows["model_center"] == rows["test_center"]) & (rows["model_center"] != "all")]
    there = list(dict.fromkeys(rows["split_id"]))
    wanted = list(split_ids) if split_ids is not None else ([name for name in there if name != OWN_SPLIT] or there)
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise ValueError(f"the results have no division {', '.join(lacking)}, they have {', '.join(there) or 'none'}")
    rows = rows[rows["split_id"].isin(wanted)].rename(columns={"test_center": "center"})
    by_center = rows.groupby("center")["value"]
    rows = rows.assign(mean=by_center.transform("mean"), splits=by_center.transform("count"))
    rows["std"] = by_center.transform(lambda values: values.std(ddof=1))
    single = (rows["splits"] < 2) & rows["value"].notna()
    rows.loc[single, "reason"] = "no spread of one division"
    columns = ["center", "split_id", "metric", "unit", "value", "low", "high", "n", "mean", "std", "splits", "reason"]
    return rows.sort_values(["center", "split_id"])[columns].reset_index(drop=True)


def ablation(results: pd.DataFrame, metric: str, budget: str = "rounds", tests: pd.DataFrame | None = None) -> pd.DataFrame:
    """HGKT, HGKT+KD and HGKT+KD+DDBL at every pair of model and test centre, and what each step changes (paper: Fig. 9).

    The three matrices are `value_before` and `value_after`, the paper's panels d, e and f are `difference` of the three steps.

    Args:
        results: see the module; of several seeds the means are taken. A method that is not in it has no steps.
        tests: from `cell_tests`; None: no test.
    Returns: metric, step ("HGKT → VFMGL"), before, after (methods), model_center, test_center, value_before, value_after, difference
        (after less before), improved (NA where undefined), seeds, n, unit, reason and, of the test, tested_seed, tested_difference (that
        of the seed), low, high, p, p_holm, test, patients, test_reason; significant: "better" or "worse" where p by Holm is below 0.05 and
        the tested seed's difference has the sign of the mean.
    Raises: ValueError: fewer than two of the three methods, or no such metric or budget.
    """
    there = [name for name in ABLATION if (results["method"] == name).any()]
    if len(there) < 2:
        raise ValueError(f"an ablation compares at least two of {', '.join(ABLATION)}, the results have {', '.join(there) or 'none'}")
    key = ["model_center", "test_center"]
    matrices = {}
    for method in there:
        rows = _chosen(results, metric, method, budget)
        rows = rows[(rows["split"] == "test") & ~rows["model_center"].isin(NOT_LOCAL)]
        matrices[method] = rows[[*key, "value", "seeds", "n", "unit", "reason"]]
    found = []
    for before, after in STEPS:
        if before in matrices and after in matrices:
            both = matrices[before].merge(matrices[after], on=key, suffixes=("_before", "_after"))
            defined = both["value_before"].notna() & both["value_after"].notna()
            both["reason"] = both["reason_after"].where(both["value_after"].isna(), both["reason_before"]).mask(defined, "")
            both = both.rename(columns={"seeds_after": "seeds", "n_after": "n", "unit_after": "unit"})
            found.append(both.assign(step=f"{METHODS[before].title} → {METHODS[after].title}", before=before, after=after))
    table = pd.concat(found, ignore_index=True)
    table["difference"] = table["value_after"] - table["value_before"]
    gain = -table["difference"] if lower_is_better(metric) else table["difference"]
    table["improved"] = (gain > 0).astype("boolean").mask(gain.isna())
    columns = ["metric", "step", "before", "after", *key, "value_before", "value_after", "difference", "improved", "seeds", "n", "unit"]
    table = table.assign(metric=metric)[[*columns, "reason"]]
    if tests is None:
        nothing = dict.fromkeys(("tested_seed", "tested_difference", "low", "high", "p", "p_holm", "patients"), np.nan)
        return table.assign(**nothing, test="", test_reason=NOT_TESTED, significant="")
    table = table.merge(tests, on=["before", "after", *key], how="left").fillna({"test": "", "test_reason": NOT_TESTED})
    clear = (table["p_holm"] < SIGNIFICANT) & (np.sign(table["tested_difference"]) == np.sign(table["difference"]))
    table["significant"] = np.where(clear, np.where(table["improved"].fillna(False), "better", "worse"), "")
    return table


def cell_tests(final: pd.DataFrame, metric: str, *, unit: str, budget: str = "rounds") -> pd.DataFrame:
    """A paired test of every step of the ablation at every pair of model and test centre (`results.compare_methods`).

    Holm's correction is over all steps and pairs (`statistics.holm`).

    Args:
        final: final predictions of one seed.
    Returns: before, after, model_center, test_center, tested_seed, tested_difference, its low and high, p, p_holm, test, patients,
        test_reason.
    Raises: ValueError: predictions of several seeds.
    """
    rows = final[final["method"].isin(ABLATION) & (final["split_id"] == OWN_SPLIT) & (final["budget"] == budget)]
    if rows["seed"].nunique() > 1:
        raise ValueError(f"a paired test takes predictions of one seed, got {sorted(rows['seed'].unique())}")
    rows = rows[(rows["split"] == "test") & ~rows["model_center"].isin([SHARED, ADAPTED])]
    pairs = rows[["model_center", "test_center"]].drop_duplicates().reset_index(drop=True)
    # One "centre" a pair: to `compare_methods` every model is then at home.
    names = {pair: f"{place}" for place, pair in enumerate(pairs.itertuples(index=False, name=None))}
    place = [names[pair] for pair in rows[["model_center", "test_center"]].itertuples(index=False, name=None)]
    rows = rows.assign(model_center=place, test_center=place)
    found = []
    for before, after in STEPS:
        both = rows[rows["method"].isin([before, after])]
        if both["method"].nunique() == 2:
            found.append(compare_methods(both, after, unit=unit, metrics=[metric]).assign(before=before, after=after))
    table = pd.concat(found, ignore_index=True)
    table["p_holm"] = holm_families(table)
    table = table.rename(columns={"reason": "test_reason", "seed": "tested_seed", "difference": "tested_difference"})
    table = table.join(pairs, on=table["center"].astype(int))
    columns = ["before", "after", "model_center", "test_center", "tested_seed", "tested_difference", "low", "high", "p", "p_holm", "test"]
    return table[[*columns, "patients", "test_reason"]]


def ablation_summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many of the results each step improves, and by how much on average.

    Args:
        table: from `ablation`.
    Returns: step, before, after, mean_change (over all defined pairs), mean_change_home, mean_change_away, improved, of (defined pairs),
        share, significantly_better, significantly_worse (as `significant` has it; NA where no pair has a p), tested (pairs with a p),
        undefined.
    """
    found = []
    for (step, before, after), group in table.groupby(["step", "before", "after"], sort=False):
        defined = group.dropna(subset=["difference"])
        home = defined["model_center"] == defined["test_center"]
        improved = defined["improved"].astype(bool)
        tested = int(group["p_holm"].notna().sum())
        found.append(
            {
                "step": step,
                "before": before,
                "after": after,
                "mean_change": defined["difference"].mean(),
                "mean_change_home": defined["difference"][home].mean(),
                "mean_change_away": defined["difference"][~home].mean(),
                "improved": int(improved.sum()),
                "of": len(defined),
                "share": improved.mean() if len(defined) else np.nan,
                "significantly_better": int((defined["significant"] == "better").sum()) if tested else pd.NA,
                "significantly_worse": int((defined["significant"] == "worse").sum()) if tested else pd.NA,
                "tested": tested,
                "undefined": len(group) - len(defined),
            }
        )
    return pd.DataFrame(found)


def _chosen(results: pd.DataFrame, metric: str, method: str, budget: str, split_id: str | None = OWN_SPLIT) -> pd.DataFrame:
    """Rows of one metric, method and budget over the seeds; `split_id` None: of all divisions."""
    rows = results
    for column, value in (("metric", metric), ("method", method), ("budget", budget), ("split_id", split_id)):
        if value is not None:
            kept = rows[rows[column] == value]
            if kept.empty:
                there = ", ".join(map(str, dict.fromkeys(rows[column]))) or "no rows"
                raise ValueError(f"the results have no {column} {value!r}, they have {there}")
            rows = kept
    return over_seeds(rows)


def _given(final: pd.DataFrame, chosen: Mapping[str, str]) -> pd.DataFrame:
    """External centres' test rows and the training and validation rows of the model that each is given, as if the model were its own."""
    parts = []
    for center, model in chosen.items():
        rows = final[(final["model_center"] == model) & (final["split_id"] == OWN_SPLIT)]
        tested = rows[(rows["test_center"] == center) & (rows["split"] == "test")]
        trained = rows[(rows["test_center"] == model) & (rows["split"] != "test")]
        if tested.empty:
            raise ValueError(f"external centre {center}: the model of {model} has no predictions there")
        parts.append(pd.concat([tested, trained]).assign(model_center=center, test_center=center))
    return pd.concat(parts, ignore_index=True) if parts else final.iloc[:0]


def _groups(patients: pd.DataFrame, age: float) -> dict[str, tuple[str, set[str], set[str]]]:
    """group -> its title, the names of its patients, and of those of whom the table says whether they belong to it."""
    names = patients["patient"].map(same_name)
    aged = patients["age"].notna()
    groups = {
        "younger": (f"age ≤ {age:.1f}", set(names[patients["age"] <= age]), set(names[aged])),
        "older": (f"age > {age:.1f}", set(names[patients["age"] > age]), set(names[aged])),
    }
    grade = patients["grade"].fillna("") if "grade" in patients else pd.Series("", patients.index)
    # Type II is not endometrioid, whatever its grade.
    known = (grade != "") | (patients["histology"] == "II")
    well = (grade == "1") & (patients["histology"] == "I")
    title = "well-differentiated (grade 1 of type I)"
    return groups | {"well_differentiated": (title, set(names[well]), set(names[known]) if (grade != "").any() else set())}


def _absent(group: str, center: str, homes: Mapping[str, str], reason: str) -> dict:
    """A row of `subgroups` without a value; its keys are the columns of the table."""
    about = {"group": group, "title": group.replace("_", "-"), "seed": pd.NA, "center": center, "split": "test"}
    about |= {"model_center": homes.get(center, ""), "metric": "accuracy"}
    nothing = dict.fromkeys(("value", "low", "high"), np.nan) | {"interval": "", "n": 0}
    nothing |= dict.fromkeys(("numerator", "denominator", "cutoff"), np.nan)
    return about | nothing | {"cutoff_from": "", "unknown": 0, "reason": reason}
