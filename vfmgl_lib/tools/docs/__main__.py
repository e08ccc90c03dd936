"""vfmgl docs
Builds the site from a clone of the repository: guides, the notebooks of a run with their figures, commands, library. It needs no network;
a warning of Sphinx's, a link to nothing and a file from elsewhere end it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vfmgl_lib.base.files import reason
from vfmgl_lib.base.places import LIBRARY
from vfmgl_lib.base.surroundings import print_anything, write_out
from vfmgl_lib.tools.docs.gallery import GalleryError, write_gallery
from vfmgl_lib.tools.docs.links import problems_of
from vfmgl_lib.tools.docs.pages import stage

ROOT = LIBRARY.parent
NEEDED = ("sphinx", "myst_nb", "furo", "sphinx_copybutton")
INSTALL = "pip install -c constraints.txt -e '.[docs]'"


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vfmgl docs", description=__doc__.split("\n", 1)[1], allow_abbrev=False)
    parser.add_argument(
        "--run", type=Path, metavar="DIR", help="a profile's results, whose notebooks are shown (default: runs/smoke in the project)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the site goes (default: build/docs); the pages are in DIR/html")
    parser.add_argument("--gallery", action="store_true", help="make the figures of docs/figures anew from the run, and nothing else")
    return parser


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Builds the site.

    Args:
        root: the clone.
    Returns: 0, or 1 if the site has a fault, 2 if what was asked for is not possible.
    """
    print_anything()
    given = command_line().parse_args(arguments)
    run, out = (given.run or root / "runs" / "smoke").resolve(), (given.out or root / "build" / "docs").resolve()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not (root / "docs" / "conf.py").is_file():
        return _refuse(f"{root} has no docs/conf.py: the site is built from a clone of the repository, not from an installed package")
    if given.run and not run.is_dir():
        return _refuse(f"{run}: no such folder; give the folder of a profile's results, such as runs/smoke, or make it with ./run_all.sh")
    try:
        if given.gallery:
            write_out("".join(f"{file}\n" for file in write_gallery(root, run)))
            return 0
        if missing:
            return _refuse(f"{', '.join(missing)}: not installed; in the project's folder: {INSTALL}")
        return _build(root, run, out)
    except GalleryError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(reason(error))


def _build(root: Path, run: Path, out: Path) -> int:
    source, html = out / "source", out / "html"
    for note in stage(root, run, source):
        sys.stderr.write(f"vfmgl docs: {note}\n")
    from sphinx.cmd.build import main as sphinx_build  # takes a second

    # All pages are written, since each has the list of the others; what has been read is kept in doctrees.
    shutil.rmtree(html, ignore_errors=True)
    options = ["-W", "-a", "--keep-going", "-q", "-b", "html", "-c", str(root / "docs"), "-d", str(out / "doctrees")]
    if sphinx_build([*options, str(source), str(html)]):
        return 1
    problems = problems_of(html)
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    size = sum(file.stat().st_size for file in html.rglob("*") if file.is_file()) / 2**20
    write_out(f"{html / 'index.html'}: {len(list(html.rglob('*.html')))} pages, {size:.1f} MiB\n")
    return int(bool(problems))


def _refuse(why: str) -> int:
    sys.stderr.write(f"vfmgl docs: {why}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
