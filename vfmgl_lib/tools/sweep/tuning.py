"""Each method's rate, and what else `Method.tunes` names, chosen on validation sets with a seed that is never reported.

    <folder>/<data set>/tuning.csv    one row for each method and combination of the grid:
        method; tuned: the combination, as "optimizer.lr=0.01 comparators.fedprox.mu=0.01"; metric; value: the mean over the centres of the
        main metric of each centre's own model on its own validation set, averaged over the rounds at which the method is reported; one
        column a centre ("value at A"); chosen: 1 for the best of its method once all of them have ended; state, seconds, seed, split_id,
        study, settings, own, teacher, version, commit, error: as in `studies.csv`

The grid is every setting's value times each of `comparison.tuning.factors`, in all combinations. A test set is measured in these studies
as in all others, and not read here. A sweep takes the table by `read_tuned`: the chosen values become settings of each method's studies.
They are refused for the seeds and for other divisions than those of the table: what was chosen on a patient is not reported on it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from vfmgl_lib.base.files import write_text
from vfmgl_lib.config import ConfigError, StudySettings, setting_value
from vfmgl_lib.evaluation.results import STAGES
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.methods.settings import changed_settings, with_overrides
from vfmgl_lib.study.study import Study
from vfmgl_lib.study.workspace import Workspace
from vfmgl_lib.tools.sweep.jobs import Changes, Job, Split, checked_methods, in_words, split_name, tuned_job
from vfmgl_lib.tools.sweep.log import checked_table, dataset_name, own_settings, settings_key, study_rows
from vfmgl_lib.tools.sweep.summary import MAIN

TUNING = "tuning.csv"
RATE = "optimizer.lr"
DIGITS = 2  # of a grid's values but the profile's own
AT = "value at "
ABOUT = ["state", "seconds", "seed", "split_id", "study", "settings", "own", "teacher", "version", "commit", "error"]


def grid(method: str, settings: StudySettings) -> list[Changes]:
    """All combinations of a method's values, the profile's own first; none for a method without anything to tune, or for a control.

    A control has its parent's values: it differs from it in the named thing alone.
    """
    if METHODS[method].parent:
        return []
    names = ((RATE,) if METHODS[method].updates else ()) + METHODS[method].tunes
    factors = sorted(settings.comparison.tuning.factors, key=lambda factor: abs(math.log(factor)))
    values = [[_times(setting_value(settings, name), factor) for factor in factors] for name in names]
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)] if names else []


def _times(value: float, factor: float) -> float:
    return value if factor == 1 else float(f"{value * factor:.{DIGITS}g}")


def tuning_plan(workspace: Workspace, methods: Iterable[str]) -> list[Job]:
    """The jobs of the tuning, on the data's own division: method by method, so that what is finished first can be used.

    Raises: ConfigError: an unknown method, or methods with nothing to tune; centres without a validation set to choose on.
    """
    methods, tuning = checked_methods(methods), workspace.settings.comparison.tuning
    seeded = workspace.variant(seed=tuning.seed)
    without = [center for center in seeded.manifest.training_centers if seeded.manifest.select(center, "val").empty]
    if without:
        raise ConfigError(f"tuning: {', '.join(without)} have no validation set to choose on; set data.validation_share above 0")
    jobs = [tuned_job(seeded, method, changes) for method in methods for changes in grid(method, seeded.settings)]
    if not jobs:
        raise ConfigError(f"tuning: {', '.join(methods)} have nothing to tune")
    return jobs


def validation_metric(study: Study) -> tuple[str, pd.Series]:
    """The main metric's name, and by centre its value of the centre's own model on its validation set, the mean of the report rounds."""
    table = study.metrics
    own = (table["model_center"] == table["test_center"]) & (table["split"] == "val") & table["metric"].isin(MAIN)
    rows = table[own & table["round"].isin(study.report_rounds.values())]
    place = rows["stage"].map(STAGES.index)
    last = rows[place == place.groupby([rows["round"], rows["model_center"]]).transform("max")]
    return last["metric"].iloc[0], last.groupby("model_center")["value"].mean()


def check_tuning(folder: Path, jobs: Sequence[Job]) -> pd.DataFrame:
    """The table that is there, as text.

    Raises: ConfigError: it is of another version, other settings or another teacher, which these must not be mixed with.
    """
    file = folder / dataset_name(jobs[0].shared) / TUNING
    return checked_table(file, settings_key(jobs[0].shared), {job.method: job.study.teacher_description for job in jobs})


def write_tuning(folder: Path, jobs: Sequence[Job]) -> pd.DataFrame:
    """Brings the table up to date with all jobs, and returns it; rows of methods that are not among the jobs stay as they are.

    Raises: ConfigError: as `check_tuning`.
    """
    file = folder / dataset_name(jobs[0].shared) / TUNING
    before = check_tuning(folder, jobs)
    rows = pd.DataFrame([_row(job) for job in jobs]).join(study_rows(jobs, settings_key(jobs[0].shared))[ABOUT])
    rows["chosen"] = 0
    for _, part in rows.groupby("method"):
        if part["state"].isin(["done", "failed"]).all() and part["value"].notna().any():
            rows.loc[part["value"].idxmax(), "chosen"] = 1  # of equal ones the first, which is nearest to the profile's own
    values = ["value", *sorted(name for name in rows.columns if name.startswith(AT))]
    numbers = {name: rows[name].map(lambda value: "" if pd.isna(value) else f"{value:.5g}") for name in values}
    rows = rows.assign(**numbers)[["method", "tuned", "metric", *values, "chosen", *ABOUT]].astype(str)
    kept = before[~before["method"].isin(set(rows["method"]))] if len(before) else before
    table = pd.concat([kept, rows], ignore_index=True).fillna("")
    order = table["method"].map({method: place for place, method in enumerate(METHODS)})
    table = table.iloc[order.argsort(kind="stable")]
    write_text(file, table.to_csv(index=False, lineterminator="\n"))
    return table


def _row(job: Job) -> dict:
    row = {"method": job.method, "tuned": job.tuned, "metric": "", "value": math.nan}
    if not job.study.complete:
        return row
    metric, values = validation_metric(job.study)
    # A centre with one class has no AUC, whatever the combination: the mean is of the same centres for all.
    return row | {"metric": metric, "value": values.mean()} | {f"{AT}{center}": value for center, value in values.items()}


def read_tuned(
    file: Path, workspace: Workspace, methods: Iterable[str], seeds: Iterable[int], splits: Iterable[Split | None]
) -> dict[str, Changes]:
    """Method -> the settings chosen for it, from a table of `write_tuning`.

    Args:
        workspace, seeds, splits: of the sweep that will use them (`jobs.plan`): the same data and settings.
    Raises: ConfigError: no such table, one of other settings or another version, a method whose tuning has not ended or was on another
        grid or with other settings of its own, a seed or division that must not be reported with it.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: is not there; `vfmgl sweep ... --tune --results DIR` makes it")
    methods, tuned = checked_methods(methods), {}
    table = checked_table(file, settings_key(workspace), {method: workspace.study(method).teacher_description for method in methods})
    lacking = {"own", "split_id"} - set(table.columns)
    if lacking:
        raise ConfigError(f"{file}: has no column {', '.join(sorted(lacking))}; make it anew with --tune, which loads finished studies")
    _check_not_chosen_on(file, table, workspace, seeds, splits)
    for method in methods:
        source = METHODS[method].parent or method
        combinations, rows = grid(source, workspace.settings), table[table["method"] == source]
        wanted = {(in_words(changes), _own(workspace.settings, source, changes)) for changes in combinations}
        if len(rows) and set(zip(rows["tuned"], rows["own"], strict=True)) != wanted:
            raise ConfigError(f"{file}: {source} was tuned on another grid or with other settings of its own; tune it anew")
        chosen = set(rows.loc[rows["chosen"] == "1", "tuned"])
        found = [changes for changes in combinations if in_words(changes) in chosen]
        if combinations and not found:
            raise ConfigError(f"{file}: has no chosen value for {source} on the grid of these settings; tune it, or leave {method} out")
        tuned[method] = found[0] if found else {}
    return tuned


def _own(settings: StudySettings, method: str, changes: Changes) -> str:
    """`own_settings` of the study that tries these values."""
    return own_settings(with_overrides(changed_settings(settings.model_copy(update={"method": method}), changes)))


def _check_not_chosen_on(
    file: Path, table: pd.DataFrame, workspace: Workspace, seeds: Iterable[int], splits: Iterable[Split | None]
) -> None:
    """Raises: ConfigError: a seed of the tuning, or a division that may test patients on whom it chose."""
    chosen_on = sorted(set(table["seed"]) & set(map(str, seeds)))
    if chosen_on:
        raise ConfigError(f"{file}: its settings were chosen on seed {', '.join(chosen_on)}, which is never reported; give other seeds")
    asked = {split_name(split) if split else workspace.settings.data.split_id for split in splits}
    others = sorted(asked - set(table["split_id"]))
    if others:
        raise ConfigError(
            f"{file}: its settings were chosen on validation patients of the division {', '.join(sorted(set(table['split_id'])))}, whom "
            f"{', '.join(others)} may test; run {', '.join(others)} without --tuned"
        )
