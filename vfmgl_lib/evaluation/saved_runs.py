"""What is read for the comparison with the paper: its own numbers, and the tables that notebooks 05 to 09 save of a run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from vfmgl_lib import __version__
from vfmgl_lib.config import FIRST_VERSION
from vfmgl_lib.data.manifest import Manifest
from vfmgl_lib.tasks.datasheets import FOLDER, Datasheet, compare_counts, datasheet_of

log = logging.getLogger(__name__)
PAPER_RESULTS = FOLDER / "paper_results.csv"
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
    sheet = datasheet_of(task)
    stand_in = sheet.stand_in if sheet and not on_phantoms and _is_stand_in(manifest, sheet) else None
    origin = "phantoms" if on_phantoms else "stand-in" if stand_in else "own"
    training = list(manifest.training_centers)
    findings = compare_counts(manifest, sheet) if sheet and origin == "own" else [stand_in.what] if stand_in else []
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


def facts_of(run: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """What `about` says of a run: item -> text."""
    return dict(zip(run["about"]["item"], run["about"]["text"], strict=True))
