"""The report of a profile's results, `report.json`: for each task what was run, its numbers with intervals, what they show, its figures.

It is gathered from the tables and notebooks that lie in the folder. The same files give the same report; only what is a time in them
(when and how long a notebook ran, memory, latency) differs between two runs. `index_page` shows it to people.
"""

from __future__ import annotations

import platform
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vfmgl_lib import __version__
from vfmgl_lib.figures.words import short
from vfmgl_lib.tools.batch.findings import findings
from vfmgl_lib.tools.batch.measures import COMPARISON, DATA, MEASURES, read_measures, read_saved
from vfmgl_lib.tools.batch.story import Cell, cell_of, in_words, read_cells

SCHEMA = 1  # raised when a key changes its meaning or goes
RUN = ("task", "data", "teacher", "device", "seed", "version")  # what a run was given, and by which version
PACKAGES = ("vfmgl-workbook", "torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "scikit-image", "papermill")
TEACHER = re.compile(r"^Teacher: (.+)\. Data: ")  # the beginning of what a table says of its source
Log = Sequence[Mapping[str, str]]


def gather_report(results: Path, log: Log) -> dict[str, Any]:
    """The report of a profile, ready for JSON; all paths are relative to its folder.

    Args:
        results: runs/<profile>, with <folder>/notebooks/*.ipynb and <folder>/figures/**/*.png.
        log: the rows of its runs.csv, oldest first; the newest row of a notebook says how it went.
    Returns: schema, library, profile, versions, and for each folder `tasks`: `_task` says what.
    """
    newest = {(row["folder"], row["notebook"]): row for row in log}
    folders = sorted(path for path in results.iterdir() if (path / "notebooks").is_dir() or (path / "figures").is_dir())
    tasks = [_task(folder, {name: row for (place, name), row in newest.items() if place == folder.name}) for folder in folders]
    return {"schema": SCHEMA, "library": __version__, "profile": results.name, "versions": dict(_versions()), "tasks": tasks}


def _task(folder: Path, rows: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """One task's part: folder, what it was given (runs), its notebooks and their figures, centres, metric, measures and findings."""
    notebooks, anchors = _notebooks(folder, rows)
    failures = {name: row["error"] or "no message" if row["status"] == "failed" else "" for name, row in rows.items()}
    for notebook in notebooks:  # of a run whose log is gone
        failures.setdefault(notebook["name"], "")
    measures = read_measures(folder, failures)
    home = read_saved(folder / "figures" / COMPARISON / "home_means.csv", failures)[0]
    metric = home[0]["metric"] if home and "metric" in home[0] else None
    runs = [dict(zip(RUN, run, strict=True)) for run in sorted({tuple(row[name] for name in RUN) for row in rows.values()})]
    seeds = {run["seed"] for run in runs}
    task: dict[str, Any] = {
        "folder": folder.name,
        "runs": runs,
        "phantoms": bool(runs) and not any(run["data"] for run in runs),
        "teacher": _teacher(folder, failures) or ", ".join(sorted({run["teacher"] for run in runs})),
        "seed": int(seeds.pop()) if len(seeds) == 1 else None,
        "deviations": _deviations(folder, failures),
        "centers": _centers(folder, failures, measures),
        "metric": metric,
        "metric_title": short(metric) if metric else None,
        "metric_unit": home[0].get("unit") if home else None,
        "measures": measures,
        "notebooks": notebooks,
        "figures": _figures(folder, anchors),
    }
    return task | findings(task)


def _notebooks(folder: Path, rows: Mapping[str, Mapping[str, str]]) -> tuple[list[dict[str, Any]], dict[str, tuple[str, list[Cell]]]]:
    """How each notebook went; and of those that are there their page and the cells in it that draw."""
    found, drawn = [], {}
    stems = {path.stem for path in _shown(folder, "notebooks/*.ipynb")} | set(rows)
    for name in sorted(stems):
        row, source = rows.get(name, {}), folder / "notebooks" / f"{name}.ipynb"
        title, cells = read_cells(source)
        page = _relative(folder, source.with_suffix(".html"))
        drawn[name] = (page, cells)
        went: dict[str, Any] = {
            "status": row.get("status"),
            "error": row.get("error", ""),
            "started": row.get("started"),
            "version": row.get("version"),
        }
        went |= {"seconds": float(row["seconds"]) if row else None, "peak_memory_mib": int(row["peak_memory_mib"]) if row else None}
        found.append({"name": name, "title": title or in_words(name), "source": _relative(folder, source), "page": page, **went})
    return found, drawn


def _figures(folder: Path, drawn: Mapping[str, tuple[str, list[Cell]]]) -> list[dict[str, Any]]:
    """In the order of the story: by notebook, within it by the cell that draws; those of no cell come last in their notebook."""
    found = []
    for path in _shown(folder, "figures/**/*.png"):
        name = path.relative_to(folder / "figures").with_suffix("").as_posix()
        notebook = name.partition("/")[0] if "/" in name else ""
        page, cells = drawn.get(notebook, ("", []))
        cell = cell_of(path.stem, cells)
        place = cells.index(cell) if cell else len(cells)
        anchor = cell.anchor if cell and _has_anchor(folder.parent / page if page else None, cell.anchor) else ""
        width, height = _size(path)
        found.append(
            (
                (notebook or "~", place, name),
                {
                    "notebook": notebook,
                    "name": name,
                    "title": cell.title if cell and cell.title else in_words(name),
                    "about": cell.about if cell else "",
                    "page": page,
                    "anchor": anchor,
                    "width": width,
                    "height": height,
                    **{kind: _relative(folder, path.with_suffix(f".{kind}")) for kind in ("png", "pdf", "csv")},
                },
            )
        )
    return [figure for _, figure in sorted(found, key=lambda pair: pair[0])]


def _has_anchor(page: Path | None, anchor: str) -> bool:
    return bool(anchor) and page is not None and f'id="{anchor}"' in page.read_text("utf-8", "replace")


def _size(png: Path) -> tuple[int, int] | tuple[None, None]:
    """Pixels, from the file's header; None of what is no PNG."""
    with png.open("rb") as file:
        head = file.read(24)
    return struct.unpack(">II", head[16:24]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 24 else (None, None)


def _centers(folder: Path, failures: Mapping[str, str], measures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The training and the external centres; where notebook 01 has not run those that other tables name, external is None."""
    counts, reason = read_saved(folder / "figures" / DATA / "counts.csv", failures)
    training = [row.get("center", "") for row in counts if row.get("split") == "train"]
    if training:
        external = sorted({row.get("center", "") for row in counts} - set(training))
        return {"training": training, "external": external, "reason": ""}
    named = {center for measure in measures.values() for center in measure["centers"]}
    return {"training": sorted(named), "external": None, "reason": reason or "no training images are listed"}


def _teacher(folder: Path, failures: Mapping[str, str]) -> str:
    """The teacher's description, as the first table has it that names it."""
    measured = dict.fromkeys(folder / "figures" / measure.notebook / f"{measure.table}.csv" for measure in MEASURES.values())
    for file in (*measured, *sorted(folder.glob("figures/*/deviations.csv"))):
        for row in read_saved(file, failures)[0]:
            if named := TEACHER.match(row.get("source") or ""):
                return named[1]
    return ""


def _deviations(folder: Path, failures: Mapping[str, str]) -> int | None:
    """How many settings differ from the paper's; None where no notebook has said so."""
    for file in sorted(folder.glob("figures/*/deviations.csv")):
        rows, reason = read_saved(file, failures)
        if not reason:
            return len(rows)
    return None


def _shown(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _relative(folder: Path, path: Path) -> str:
    """ "" where there is no such file."""
    return path.relative_to(folder.parent).as_posix() if path.exists() else ""


def _versions() -> Iterator[tuple[str, str]]:
    yield from (("Python", platform.python_version()), ("platform", platform.platform()))
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"
