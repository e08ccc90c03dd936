"""The index page of a profile's results: every executed notebook and every figure, on one page that needs no network.

Reads what lies in the folder and the log beside it; names of files and folders are data and are escaped.
"""

import html
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from vfmgl_lib import __version__
from vfmgl_lib.base.files import write_text

PACKAGES = (
    "vfmgl-workbook",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "scikit-image",
    "papermill",
)

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5b6675; --line: #dde2e8; --page: #f7f8fa; --card: #fff;
        --link: #0b5cad; --ok: #1a7f4b; --failed: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b3; --line: #333b46; --page: #14181e; --card: #1c2129;
          --link: #7db7f5; --ok: #5ecb95; --failed: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .25rem 0; }
a { color: var(--link); }
.soft { color: var(--soft); font-size: .875rem; }
ul.notebooks { list-style: none; margin: .75rem 0 0; padding: 0; background: var(--card); border: 1px solid var(--line);
               border-radius: .5rem; }
ul.notebooks li { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; padding: .6rem .9rem; }
ul.notebooks li + li { border-top: 1px solid var(--line); }
.name { flex: 1 1 14rem; font-weight: 600; }
.ok { color: var(--ok); } .failed { color: var(--failed); }
.error { flex-basis: 100%; color: var(--failed); font: .8125rem/1.4 ui-monospace, monospace; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; }
figure img { display: block; width: 100%; height: 15rem; object-fit: contain; background: #fff; padding: .5rem; }
figcaption { padding: .5rem .75rem .7rem; font-size: .875rem; border-top: 1px solid var(--line); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; }
"""


def write_index(results: Path, log: Sequence[Mapping[str, str]]) -> Path:
    """Writes `index.html` into a profile's results folder, atomically.

    Args:
        results: runs/<profile>, with <folder>/notebooks/*.ipynb and <folder>/figures/**/*.png.
        log: the rows of its runs.csv, oldest first; the newest row of a notebook says how it went.
    Returns: the page's path.
    """
    newest = {(row["folder"], row["notebook"]): row for row in log}
    folders = sorted(path for path in results.iterdir() if (path / "notebooks").is_dir() or (path / "figures").is_dir())
    title = f"VFMGL Workbook · profile {html.escape(results.name)}"
    sections = "\n".join(folder_section(results, folder, newest) for folder in folders)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{title}</h1>
<p class="soft">{link("runs.csv", "every run with its time and memory")}</p>
{sections}
<h2>Versions</h2>
{versions_list()}
</body>
</html>
"""
    target = results / "index.html"
    write_text(target, page)
    return target


def link(path: str, text: str) -> str:
    """A link to a POSIX path relative to the page; path and text are escaped."""
    return f'<a href="{html.escape(quote(path))}">{html.escape(text)}</a>'


def folder_section(results: Path, folder: Path, newest: Mapping[tuple[str, str], Mapping[str, str]]) -> str:
    """One task's notebooks and figures."""
    rows = [row for (name, _), row in newest.items() if name == folder.name]
    settings = sorted({run_settings(row) for row in rows})
    notebooks = sorted(path for path in folder.glob("notebooks/*.ipynb") if not path.name.startswith("."))
    parts = [f"<h2>{html.escape(folder.name)}</h2>", *(f'<p class="soft">{html.escape(text)}</p>' for text in settings)]
    if notebooks:
        items = [notebook_item(results, path, newest.get((folder.name, path.stem))) for path in notebooks]
        parts += ['<ul class="notebooks">', *items, "</ul>"]
    figures = sorted(path for path in folder.glob("figures/**/*.png") if not path.name.startswith("."))
    if figures:
        parts += [
            "<h3>Figures</h3>",
            '<div class="figures">',
            *(figure_card(results, path) for path in figures),
            "</div>",
        ]
    return "\n".join(parts)


def run_settings(row: Mapping[str, str]) -> str:
    """What a run was given, in words."""
    data = row["data"] or "embedded phantoms"
    return f"task {row['task']} · data: {data} · teacher: {row['teacher']} · {row['device']} · seed {row['seed']}"


def notebook_item(results: Path, notebook: Path, row: Mapping[str, str] | None) -> str:
    """A notebook's line: its name, how it went, the links, and the error if there is one."""
    page, source = notebook.with_suffix(".html"), notebook.relative_to(results).as_posix()
    name = link(page.relative_to(results).as_posix(), notebook.stem) if page.exists() else html.escape(notebook.stem)
    parts = [f'<span class="name">{name}</span>']
    if row:
        when = row["started"][:16].replace("T", " ")
        other = f" · made with vfmgl_lib {row['version']}, as are its figures" if row["version"] != __version__ else ""
        went = f"{duration(float(row['seconds']))} · {row['peak_memory_mib']} MiB · {when} UTC{other}"
        parts += [f'<span class="{html.escape(row["status"])}">{html.escape(row["status"])}</span>']
        parts += [f'<span class="soft">{html.escape(went)}</span>']
    parts.append(f"<span>{link(source, 'ipynb')}</span>")
    if row and row["error"]:
        parts.append(f'<span class="error">{html.escape(row["error"])}</span>')
    return f"<li>{''.join(parts)}</li>"


def figure_card(results: Path, image: Path) -> str:
    """A figure with links to its numbers and its PDF, where they are."""
    source = image.relative_to(results).as_posix()
    name = image.relative_to(results).with_suffix("").as_posix().partition("figures/")[2]
    beside = [(suffix, image.with_suffix(f".{suffix.lower()}")) for suffix in ("CSV", "PDF")]
    links = " · ".join(link(path.relative_to(results).as_posix(), suffix) for suffix, path in beside if path.exists())
    picture = f'<img src="{html.escape(quote(source))}" alt="{html.escape(name)}" loading="lazy">'
    return f"""<figure><a href="{html.escape(quote(source))}">{picture}</a>
<figcaption>{html.escape(name)}<br>{links}</figcaption></figure>"""


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "3 min 05 s"."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def versions_list() -> str:
    """Python, platform and packages as a definition list."""
    versions = {"Python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in versions.items()) + "</dl>"
