"""The log of results that is committed: small CSVs of what a sweep has finished, and what of it is missing.

    <folder>/<data set>/studies.csv    one row a study, also those that are left: state, rounds, seconds, study, settings (hash of what all
                                       methods share), teacher, version, commit; own: settings that this method alone reads
                                       (`own_settings`); tuned: what it has instead of the profile's (`sweep.tuning`); kept_share: of the
                                       batches that DDBL kept, where a finished study has it
    <folder>/<data set>/metrics.csv    test metrics of those that are done: every model on its own centre's test set and the pooled rows;
                                       of the shared model and of other centres' test sets the main metric alone; budget
                                       "rounds+updates" where one round serves several; no_comparison: why a control is none
                                       (`study.study.no_comparison`)
    <folder>/<data set>/summary.csv    means over seeds and centres, and how far the reference is ahead (`tools.sweep.summary`)

No images, no predictions, no patients. Files are brought up to date whole after every study, so what is there is valid at any time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_text
from vfmgl_lib.config import FIRST_VERSION, ConfigError, StudySettings, check_version, setting_value
from vfmgl_lib.evaluation.prediction import scoring_unit
from vfmgl_lib.evaluation.results import results_table, with_distances
from vfmgl_lib.methods.registry import METHODS
from vfmgl_lib.study.study import NO_TEACHER, Study, mark_controls
from vfmgl_lib.study.workspace import Workspace
from vfmgl_lib.tools.sweep.jobs import Job, in_words, status_table
from vfmgl_lib.tools.sweep.summary import AND, MAIN, summary

STUDIES, METRICS, SUMMARY = "studies.csv", "metrics.csv", "summary.csv"
BRIEF = (*MAIN, "dice_mean_of_classes")
IDENTITY = ["method", "seed", "split_id"]
LIMIT = 2**20  # bytes of all CSVs of a data set: what is larger belongs to runs/


def dataset_name(workspace: Workspace) -> str:
    """The data folder's name; "phantoms-<task>" for the embedded images."""
    task = workspace.settings.task
    return f"phantoms-{task}" if workspace.on_phantoms else workspace.folder.name.removeprefix(f"{task}-")


def settings_key(workspace: Workspace, tuned: bool = False) -> str:
    """Hash of the data and of every setting that all of the sweep's studies share: results of another key are no fair comparison.

    Args:
        tuned: whether methods have settings of their own beside these (`sweep.tuning`): tuned methods are not compared with others.
    """
    shared = workspace.settings.model_copy(
        update={"method": "", "seed": 0, "centers": None, "data": workspace.settings.data.model_copy(update={"split": None})}
    )
    teacher = workspace.settings.teacher.model_dump_json(exclude={"source", "cache_gib"})
    return hashlib.sha256(f"{shared.key(workspace.prepared.sha256)} {teacher}{' tuned' * tuned}".encode()).hexdigest()[:10]


def own_settings(settings: StudySettings) -> str:
    """What a study has beside the settings that all methods share, in words; two seeds of a method with different ones are no two seeds.

    Its parts of `methods`, its overrides (but for the teacher, which has a column of its own) and its revision, above 1.

    Args:
        settings: of a study, with its method's overrides.
    """
    method = METHODS[settings.method]
    own = {
        f"comparators.{part}.{name}": value
        for part, values in settings.comparators.of(settings.method).items()
        for name, value in values.items()
    }
    own |= {name: setting_value(settings, name) for name in method.overrides if name != "teacher.source"}
    return in_words(own | ({"revision": method.revision} if method.revision > 1 else {}))


def check_log(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuses what must not be mixed; of studies that the jobs replace only what all methods share is asked.

    Raises: ConfigError: as `checked_table`, or the log holds a method tuned otherwise, with other settings of its own or another teacher.
    """
    file = folder / dataset_name(jobs[0].shared) / STUDIES
    given, replaced = {job.method: job for job in jobs}, _identities(jobs)
    for row in checked_table(file, _key(jobs), {job.method: job.study.teacher_description for job in jobs}).to_dict("records"):
        job = given.get(row["method"])
        if job is None or tuple(row[name] for name in IDENTITY) in replaced:
            continue
        mine = {"tuned": job.tuned, "own": own_settings(job.study.settings), "teacher": job.study.teacher_description}
        for column, value in mine.items():
            there = row.get(column, "")
            if there != value:
                raise ConfigError(
                    f"{file}: holds {job.method} with {there or f'nothing {column}'}, this one has {value or f'nothing {column}'}; "
                    "run all of its seeds in one call"
                )


def checked_table(file: Path, key: str, teachers: Mapping[str, str]) -> pd.DataFrame:
    """A table of studies as text, empty where there is none yet.

    Args:
        teachers: method -> description of its teacher; one with a teacher of its own, as a control has, says nothing about the others'.
    Raises: ConfigError: it is of another version of the library, of other settings, data or another teacher.
    """
    there = read_log(file)
    for version in sorted(set(there["version"])) if "version" in there else [FIRST_VERSION] * bool(len(there)):
        check_version(file, version, "give another folder, or move this data set's to one of that version, as results/v0.1.0 is")
    if len(there) and set(there["settings"]) != {key}:
        raise ConfigError(
            f"{file}: holds studies of other settings or data ({', '.join(sorted(set(there['settings'])))} instead of {key}); "
            "choose another folder, or delete that of this data set"
        )
    own = {NO_TEACHER, *(teacher for method, teacher in teachers.items() if "teacher.source" in METHODS[method].overrides)}
    common = set(teachers.values()) - own
    own_methods = [name for name, method in METHODS.items() if "teacher.source" in method.overrides]
    found = set(there.loc[~there["method"].isin(own_methods), "teacher"]) - own if len(there) else set()
    if common and found - common:
        other = ", ".join(sorted(found - common))
        raise ConfigError(f"{file}: holds studies with the teacher {other}, these have {', '.join(sorted(common))}")
    return there


def write_log(folder: Path, jobs: Sequence[Job], brief: bool = False) -> None:
    """Brings the log of a sweep's data set up to date: all its jobs in `studies.csv`, the finished ones in `metrics.csv`.

    Rows of studies that are not among the jobs stay as they are.

    Args:
        brief: the Dice and AUC alone, and no `summary.csv`: of a plan's many divisions `tools.sweep.effects` makes one.
    Raises: ConfigError: as `check_log`; the data set's log would exceed `LIMIT`, in which case nothing is written.
    """
    check_log(folder, jobs)
    home = folder / dataset_name(jobs[0].shared)
    before, rows = read_log(home / STUDIES), study_rows(jobs, _key(jobs))
    rows["kept_share"] = [_kept_share(job.study) for job in jobs]
    there = set(before.loc[before["state"] == "done", "study"]) if len(before) else set()
    new = [job for job in jobs if job.study.folder.name not in there]
    finished = [_metric_rows(job, brief) for job in new if job.study.complete]
    metrics, texts = _merged(read_log(home / METRICS), finished, new), {}
    if len(metrics.columns):  # else nothing was finished yet
        texts[home / METRICS] = _csv(metrics)
        if not brief:
            texts[home / SUMMARY] = _csv(_shortened(summary(metrics.assign(value=pd.to_numeric(metrics["value"])))))
    texts[home / STUDIES] = _csv(_merged(before, [rows], jobs))  # last: what it calls done has its metrics
    others = sum(file.stat().st_size for file in home.glob("*.csv") if file not in texts)
    size = others + sum(len(text.encode()) for text in texts.values())
    if size > LIMIT:
        raise ConfigError(f"{home}: the log would have {size} bytes, at most {LIMIT} are meant to be committed; give it another folder")
    for file, text in texts.items():
        write_text(file, text)


def _key(jobs: Sequence[Job]) -> str:
    return settings_key(jobs[0].shared, tuned=any(job.changes for job in jobs))


def _identities(jobs: Sequence[Job]) -> set[tuple[str, ...]]:
    """The values of `IDENTITY`, as text."""
    return {(job.method, str(job.seed), job.split_id) for job in jobs}


def study_rows(jobs: Sequence[Job], key: str) -> pd.DataFrame:
    """A row a job, but for what its metrics say; `key` is that of the settings they share."""
    status = status_table(jobs)
    rows = status[[*IDENTITY, "state", "rounds_done", "rounds", "seconds", "error"]].assign(
        state=status["state"].replace("running", "left"),  # what is committed is not there in time to run on
        study=[job.study.folder.name for job in jobs],
        settings=key,
        teacher=[job.study.teacher_description for job in jobs],
        version=__version__,
        tuned=[job.tuned for job in jobs],
        own=[own_settings(job.study.settings) for job in jobs],
    )
    starts = [_last_start(job.study) for job in jobs]
    for column in ("commit", "device", "threads"):
        rows[column] = [start.get(column, "") for start in starts]
    return rows.astype(str)


def _kept_share(study: Study) -> str:
    """Of the batches of every round and centre that distil, the share that was kept (all, where they do not choose)."""
    if not study.complete or "kept_share" not in study.rounds:
        return ""
    return f"{study.rounds['kept_share'].mean():.5g}"


def _last_start(study: Study) -> dict:
    file = study.folder / "environment.json"
    return json.loads(file.read_text(encoding="utf-8"))[-1] if file.is_file() else {}


def logged(folder: Path, jobs: Sequence[Job]) -> set[str]:
    """The folders' names of the jobs' studies that the log has as done: what another machine has run need not be run again here."""
    rows = read_log(folder / dataset_name(jobs[0].shared) / STUDIES)
    done = set(rows.loc[rows["state"] == "done", "study"]) if len(rows) else set()
    return done & {job.study.folder.name for job in jobs}


def _metric_rows(job: Job, brief: bool) -> pd.DataFrame:
    """The rows of a finished study that the log keeps."""
    table = results_of(job.study).query("split == 'test' and metric != 'cutoff'")
    own = table["model_center"] == table["test_center"]
    table = table[table["metric"].isin(BRIEF) if brief else own | table["metric"].isin(MAIN)].drop(columns="split")
    budgets: dict[int, list[str]] = {}
    for budget, number in job.study.report_rounds.items():
        budgets.setdefault(number, []).append(budget)
    first = {same[0]: AND.join(same) for same in budgets.values()}
    table = table[table["budget"].isin(first)].replace({"budget": first})
    parent = METHODS[job.method].parent
    return _shortened(mark_controls(table, [job.study, *([job.workspace.study(parent)] if parent else [])]))


def _shortened(table: pd.DataFrame) -> pd.DataFrame:
    """As text, numbers with five digits."""
    numbers = {name: [f"{value:.5g}" if value == value else "" for value in table[name]] for name in table.select_dtypes("float")}
    return table.assign(**numbers).astype(str)


def results_of(study: Study) -> pd.DataFrame:
    """A study's `evaluation.results.results_table`, for a segmentation with the distances between surfaces."""
    final, segmentation = study.final_predictions(), study.settings.is_segmentation
    if segmentation:
        final = with_distances(final, study.manifest)
    return results_table(final, unit=scoring_unit(study.manifest.table, segmentation))


def _merged(before: pd.DataFrame, rows: Sequence[pd.DataFrame], jobs: Sequence[Job]) -> pd.DataFrame:
    """`before` with the rows of the jobs replaced, sorted by job; text throughout."""
    replaced = _identities(jobs)
    if len(before):
        before = before[[key not in replaced for key in before[IDENTITY].itertuples(index=False, name=None)]]
    joined = pd.concat([before, *rows], ignore_index=True)
    return joined.sort_values(IDENTITY, kind="stable") if len(joined) else joined


def read_log(file: Path) -> pd.DataFrame:
    """A CSV of the log as text; empty where there is none.

    Raises: ConfigError: no CSV as this library writes it.
    """
    if not file.is_file():
        return pd.DataFrame()
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:  # of pandas: no text, no table, an uneven row
        raise ConfigError(f"{file}: cannot be read as CSV in UTF-8 ({str(error).strip()}); restore it") from error
    if "method" not in table:
        raise ConfigError(f"{file}: has no column method; was it saved by a spreadsheet program, with another separator? restore it")
    return table


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, lineterminator="\n")
