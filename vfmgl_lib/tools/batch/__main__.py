"""The command line of the batch: `vfmgl run`, which `run_all.sh` calls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vfmgl_lib.base.places import PlaceError, project_folder
from vfmgl_lib.base.surroundings import print_anything, write_out
from vfmgl_lib.config.sections import TEACHER_HELP
from vfmgl_lib.tools.batch.settings import DEFAULT_TASKS, BatchError, read_settings


def command_line() -> argparse.ArgumentParser:
    """The options; `run_all.sh --help` tells the same, before anything is installed."""
    parser = argparse.ArgumentParser(
        prog="vfmgl run",
        description="Runs the notebooks and writes them, their figures and an index page to runs/<profile>/.",
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="smoke", metavar="NAME|FILE", help="smoke (default), quick, paper or YAML")
    parser.add_argument(
        "--task",
        action="append",
        metavar="NAME|FILE",
        help="may be repeated; FILE: the YAML file of a task of your own (vfmgl data new-task); default: " + ", ".join(DEFAULT_TASKS),
    )
    parser.add_argument("--all-tasks", action="store_true", help="every task of the profile")
    parser.add_argument(
        "--data", metavar="DIR", help="images laid out as the task expects; needs exactly one --task; a task of your own needs it"
    )
    parser.add_argument("--teacher", default="", help=TEACHER_HELP)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="study seed, default: 0")
    parser.add_argument("--only", action="append", default=[], metavar="NN[,NN]", help="these notebooks only")
    parser.add_argument(
        "--engine", default="process", choices=("process", "flower"), help="how notebook 04 runs its rounds; default: process"
    )
    parser.add_argument("--jobs", type=whole_number, metavar="N", help="notebooks at a time, default: the number of cores; 1 with cuda")
    parser.add_argument("--check", action="store_true", help="runs nothing; says what disk, memory and hours it will take on this machine")
    parser.add_argument(
        "--runs", metavar="DIR", help="where results go, default: runs/ in the project, or in the folder that vfmgl init made"
    )
    return parser


def whole_number(text: str) -> int:
    """Raises: argparse.ArgumentTypeError: none of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def main(arguments: Sequence[str] | None = None, notebooks: Path | None = None) -> int:
    """Runs what the arguments ask for.

    Args:
        notebooks: their folder; None: that of the folder to work in (`base.places.project_folder`).

    Returns: 0, or 1 if a notebook failed (with --check: if disk or memory do not suffice), 2 if what was asked for is not possible, 130
        if interrupted.
    """
    print_anything()
    parser = command_line()
    options = vars(parser.parse_args(arguments))
    tasks, only_check = options.pop("task") or [], options.pop("check")
    if options.pop("all_tasks"):
        if tasks:
            parser.error("--all-tasks and --task exclude one another")
        tasks = None
    try:
        notebooks = notebooks or project_folder() / "notebooks"
        settings = read_settings(tasks=tasks, here=Path.cwd(), **options)
        from vfmgl_lib.tools.batch.runner import find_notebooks, run_batch  # after the checks: papermill and torch take seconds to import

        if only_check:
            from vfmgl_lib.tools.batch.preflight import check

            text, enough = check(settings, [notebook.stem for notebook in find_notebooks(notebooks, settings.only)])
            write_out(text)
            return 0 if enough else 1

        done = run_batch(notebooks, settings)
    except (BatchError, PlaceError, OSError) as error:
        sys.stderr.write(f"vfmgl run: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("vfmgl run: interrupted; run it again to go on, finished studies are reused\n")
        return 130
    failed = [run for run in done if run.status == "failed"]
    for run in failed:
        executed = settings.results / run.folder / "notebooks" / f"{run.notebook}.ipynb"
        sys.stdout.write(f"\nFAILED: {run.notebook}, task {run.task}\n{run.error}\n\n{executed}\n{run.traceback}\n")
    ran = len(done) - len(failed)
    sys.stdout.write(f"\n{ran} of {len(done)} notebooks ran to their end. Results: {settings.results / 'index.html'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
