"""The index page of a profile's results: every executed notebook and every figure, on one page that needs no network.

Reads what lies in the folder and the log beside it; names of files and folders are data, and the template escapes them.
"""

import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_text

TEMPLATE = Path(__file__).with_suffix(".html")
RUN = ("task", "data", "teacher", "device", "seed")  # what a run was given
PACKAGES = ("vfmgl-workbook", "torch", "torchvision", "timm", "numpy", "pandas", "scikit-learn", "scikit-image", "papermill")


def write_index(results: Path, log: Sequence[Mapping[str, str]]) -> Path:
    """Writes `index.html` into a profile's results folder, atomically.

    Args:
        results: runs/<profile>, with <folder>/notebooks/*.ipynb and <folder>/figures/**/*.png.
        log: the rows of its runs.csv, oldest first; the newest row of a notebook says how it went.
    Returns: the page's path.
    """
    newest = {(row["folder"], row["notebook"]): row for row in log}
    folders = sorted(path for path in results.iterdir() if (path / "notebooks").is_dir() or (path / "figures").is_dir())
    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    sections = [_section(results, folder, newest) for folder in folders]
    target = results / "index.html"
    write_text(target, page.render(profile=results.name, folders=sections, version=__version__, versions=dict(_versions())))
    return target


def _section(results: Path, folder: Path, newest: Mapping[tuple[str, str], Mapping[str, str]]) -> dict[str, Any]:
    """One task's notebooks and figures; all paths are relative to the page."""
    runs = {tuple(row[name] for name in RUN) for (name, _), row in newest.items() if name == folder.name}
    notebooks = []
    for path in _shown(folder, "notebooks/*.ipynb"):
        row, page = newest.get((folder.name, path.stem)), _relative(results, path.with_suffix(".html"))
        went = {"row": row, "duration": duration(float(row["seconds"])) if row else ""}
        notebooks.append({"name": path.stem, "source": _relative(results, path), "page": page, **went})
    figures = []
    for path in _shown(folder, "figures/**/*.png"):
        beside = [(kind, _relative(results, path.with_suffix(f".{kind.lower()}"))) for kind in ("CSV", "PDF")]
        name = path.relative_to(folder / "figures").with_suffix("").as_posix()
        figures.append({"name": name, "source": _relative(results, path), "beside": [pair for pair in beside if pair[1]]})
    settings = [dict(zip(RUN, run, strict=True)) for run in sorted(runs)]
    return {"name": folder.name, "runs": settings, "notebooks": notebooks, "figures": figures}


def _shown(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _relative(results: Path, path: Path) -> str:
    """ "" where there is no such file."""
    return path.relative_to(results).as_posix() if path.exists() else ""


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "3 min 05 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _versions() -> Iterator[tuple[str, str]]:
    yield from (("Python", platform.python_version()), ("platform", platform.platform()))
    for package in PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"
