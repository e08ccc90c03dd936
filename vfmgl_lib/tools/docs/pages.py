"""The site's sources in one folder: pages with links that fit there, notebooks, the reference.

Pages live where they are read in the repository, and link to one another by file. On the site they stand elsewhere, so each link is written
anew; one to a file that is no page becomes a download. What has not changed is not written, so that Sphinx reads it once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from vfmgl_lib.base.files import write_bytes
from vfmgl_lib.tools.docs.notebooks import NOTEBOOKS, Found, find_notebooks, page_of, story_of
from vfmgl_lib.tools.docs.reference import reference_pages

# pages outside docs/ -> where they stand on the site
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "data_manifests/README.md": "data.md",
    "deploy/README.md": "federation.md",
    "results/README.md": "results.md",
    "results/PLAN.md": "results_plan.md",
    "results/pocket_teacher/README.md": "results_pocket_teacher.md",
    "results/privacy/README.md": "results_privacy.md",
    "results/v0.1.0/README.md": "results_0.1.0.md",
    "vfmgl_lib/models/pocket_vit.md": "pocket_vit.md",
}
STORY = "<!-- the notebooks of the run -->"  # docs/what_you_see.md has it where the list of notebooks goes
LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?(\))")
CODE_SPAN = re.compile(r"(?<!\[)`([\w./-]+\.(?:md|ipynb))`(?!\])")
FENCE = re.compile(r"^ *(```|~~~)")

Content = dict[str, bytes]


def stage(root: Path, run: Path, source: Path) -> list[str]:
    """Puts everything that Sphinx reads below `source`, and takes away what is there from an earlier build and no longer belongs there.

    Args:
        root: the clone.
        run: a profile's results; without any, notebooks are shown as they are stored.
    Returns: what the reader of the log should know.
    """
    found = find_notebooks(root, run)
    places = page_places(root, found)
    content: Content = {}
    for origin, place in places.items():
        if origin.endswith(".md"):
            text = (root / origin).read_text("utf-8").replace(STORY, story_of(found))
            content[place] = rewritten(text, origin, places, root, content).encode()
    for notebook in found.notebooks:

        def relink(text: str) -> str:
            return rewritten(text, f"notebooks/{notebook.file.name}", places, root, content, notebook.place)  # noqa: B023

        content[notebook.place] = page_of(notebook, relink).encode()
    content |= {f"figures/{file.name}": file.read_bytes() for file in sorted((root / "docs" / "figures").glob("*.png"))}
    content |= {name: text.encode() for name, text in reference_pages(root).items()}
    _write(source, content)
    return found.notes


def page_places(root: Path, found: Found) -> dict[str, str]:
    """Of each page and notebook: its file in the repository -> where it stands on the site."""
    places = {
        file.relative_to(root).as_posix(): file.relative_to(root / "docs").as_posix() for file in sorted((root / "docs").rglob("*.md"))
    }
    places |= ELSEWHERE
    for notebook in reversed(found.notebooks):  # of several tasks a link leads to the first
        places[f"{NOTEBOOKS}/{notebook.stored}"] = notebook.place
    return places


def rewritten(text: str, origin: str, places: Mapping[str, str], root: Path, files: Content, place: str = "") -> str:
    """A page's text with links for the site; files that are linked to and are no pages are added to `files`.

    Args:
        origin: the page's file in the repository, from which its links lead.
        place: where it stands on the site; "": as `places` says.
    """
    here = PurePosixPath(origin).parent
    start = PurePosixPath(place or places[origin]).parent

    def moved(target: str, from_root: bool = False) -> str | None:
        path = os.path.normpath(target if from_root else here / target)
        if path.startswith(".."):
            return None
        if path not in places and (root / path).is_dir():
            path = f"{path}/README.md"  # as GitHub shows a folder
        if path not in places:
            if from_root or not (root / path).is_file():
                return None
            if not path.startswith("docs/figures/"):
                files[path] = (root / path).read_bytes()
            return os.path.relpath(path.removeprefix("docs/"), start)
        return os.path.relpath(places[path], start)

    def link(match: re.Match[str]) -> str:
        opening, target, anchor, closing = match.groups()
        if not target or ":" in target:
            return match[0]
        return f"{opening}{moved(target) or target}{anchor or ''}{closing}"

    def span(match: re.Match[str]) -> str:
        to = moved(match[1], from_root=True)
        return f"[`{match[1]}`]({to})" if to and places.get(match[1]) != (place or places[origin]) else match[0]

    lines, fenced = [], False
    for line in text.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        is_code = fenced or line.startswith("    ")
        lines.append(line if is_code else CODE_SPAN.sub(span, LINK.sub(link, line)))
    return "\n".join(lines)


def _write(source: Path, content: Content) -> None:
    for file in [path for path in source.rglob("*") if path.is_file()]:
        if file.relative_to(source).as_posix() not in content:
            file.unlink()
    for name, data in content.items():
        file = source / name
        if not file.is_file() or file.read_bytes() != data:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, data)
