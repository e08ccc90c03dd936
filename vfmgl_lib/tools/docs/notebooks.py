"""Notebooks as pages: those of a run with their outputs, or as they are stored where there is no run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from vfmgl_lib.tools.batch.story import described, plain

NOTEBOOKS = "notebooks"
TUTORIALS = ("tutorials/own_data.ipynb",)
NO_RUN = "The notebooks are shown without outputs: there is no run in {run}. Run `./run_all.sh`, then `vfmgl docs` again."
WIDGET = "application/vnd.jupyter.widget-view+json"  # needs a running kernel
PICTURE, MARKDOWN = "image/png", "text/markdown"
LONGEST_TEXT = 300  # letters of a picture's alternative text


@dataclass(frozen=True)
class Notebook:
    """A notebook on the site.

    Attributes:
        file: where it lies.
        stored: its place below `notebooks/`, by which pages link to it.
        place: its place on the site.
        task: whose run it is; "" of one that is shown as it is stored.
    """

    file: Path
    stored: str
    place: str
    task: str = ""


@dataclass(frozen=True)
class Found:
    """The notebooks to show, and what is to be said about them."""

    notebooks: list[Notebook]
    notes: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> list[str]:
        """The tasks of the run, in the order of their names; none where there is no run."""
        return list(dict.fromkeys(notebook.task for notebook in self.notebooks if notebook.task))


def find_notebooks(root: Path, run: Path) -> Found:
    """The executed notebooks of a run, each task's beside the others'; a notebook that no task has run is shown as it is stored."""
    stored = sorted((root / NOTEBOOKS).glob("[0-9]*.ipynb"))
    names = {file.name for file in stored}
    executed = [file for file in sorted(run.glob(f"*/{NOTEBOOKS}/*.ipynb")) if file.name in names]
    found = [Notebook(file, file.name, f"{NOTEBOOKS}/{file.parts[-3]}/{file.name}", file.parts[-3]) for file in executed]
    left = [file for file in stored if file.name not in {one.stored for one in found}]
    notes = []
    if not executed:
        notes = [NO_RUN.format(run=run)]
    elif left:
        notes = [f"{', '.join(file.stem for file in left)}: shown without outputs, since {run} has none; `./run_all.sh` runs all nine"]
    found += [Notebook(file, file.name, f"{NOTEBOOKS}/{file.name}") for file in left]
    found += [Notebook(root / NOTEBOOKS / name, name, f"{NOTEBOOKS}/{name}") for name in TUTORIALS]
    return Found(found, notes)


def page_of(notebook: Notebook, relink: Callable[[str], str]) -> str:
    """A notebook as Sphinx shall show it: with links of the site, texts for its pictures, and without progress and widgets.

    Args:
        relink: writes the links of a text anew.
    """
    content = nbformat.read(notebook.file, as_version=4)
    about = ""
    for cell in content.cells:
        cell.metadata = {name: value for name, value in cell.metadata.items() if name == "tags"}
        if cell.cell_type == "markdown":
            title, more = described(cell.source)
            about = f"{title}. {more}".strip(". ") or plain(cell.source.rpartition("\n\n")[2])
            if notebook.task and cell.source.startswith("# "):
                heading, _, rest = cell.source.partition("\n")
                cell.source = f"{heading} ({notebook.task})\n{rest}"
            cell.source = relink(cell.source)
        elif cell.cell_type == "code":
            cell.outputs = [_without_front_matter(output) for output in cell.outputs if _is_shown(output)]
            if any(PICTURE in output.get("data", {}) for output in cell.outputs):
                cell.metadata["mystnb"] = {"image": {"alt": shortened(about) or "Figure of this cell"}}
    return json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True)


def shortened(text: str) -> str:
    """One line without quotes, at most `LONGEST_TEXT` letters, ended at a sentence where there is one."""
    line = " ".join(text.replace('"', "'").split())
    if len(line) <= LONGEST_TEXT:
        return line
    cut = line[:LONGEST_TEXT]
    return cut[: cut.rfind(". ") + 1] if ". " in cut else f"{cut.rpartition(' ')[0]} …"


def _is_shown(output: Any) -> bool:
    """Neither progress, which notebooks write to standard error, nor what needs a kernel."""
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def _without_front_matter(output: Any) -> Any:
    """A model's card as Markdown begins with what is for machines, between two lines of dashes."""
    text = "".join(output.get("data", {}).get(MARKDOWN, ""))
    if text.startswith("---\n"):
        output["data"][MARKDOWN] = text.split("\n---\n", 1)[1]
    return output


def story_of(found: Found) -> str:
    """The part of docs/what_you_see.md that lists the notebooks, in MyST's Markdown."""
    parts = []
    for task in found.tasks:
        rows = [notebook for notebook in found.notebooks if notebook.task == task]
        parts.append(_part(f"Task `{task}`", rows))
    stored = [notebook for notebook in found.notebooks if not notebook.task]
    if not found.tasks:
        parts.append(
            "```{warning}\nThis copy of the site was built without a run. Run `./run_all.sh`, then build again, to see outputs.\n```\n"
        )
    titles = [notebook for notebook in stored if "tutorials" not in notebook.place]
    if titles:
        parts.append(_part("Shown without outputs" if found.tasks else "The notebooks", titles))
    parts.append(_part("The tutorial", [notebook for notebook in stored if "tutorials" in notebook.place]))
    return "\n".join(parts)


def _part(title: str, notebooks: list[Notebook]) -> str:
    tree = "\n".join(notebook.place.removesuffix(".ipynb") for notebook in notebooks)
    return f"## {title}\n\n```{{toctree}}\n:maxdepth: 1\n\n{tree}\n```\n"
