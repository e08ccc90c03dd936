"""vfmgl init FOLDER: a folder of one's own with the notebooks, the profiles and run_all.sh, ready for `vfmgl run` and `vfmgl lab`.

    FOLDER/notebooks/            01 … 09, tutorials/, profiles/: copies to read, run and change
    FOLDER/run_all.sh            runs the notebooks with the environment that made the folder
    FOLDER/workbook.json         says that it is such a folder, and of which version
    FOLDER/runs/                 comes with the first run

The folder appears whole or not at all. Exit status: 0 all is well, 1 refused, 2 the call itself is wrong.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vfmgl_lib import __version__
from vfmgl_lib.base.files import new_folder, reason, write_json, write_text
from vfmgl_lib.base.places import DELIVERED, MARK
from vfmgl_lib.base.surroundings import print_anything, write_out

SCRIPT = Path(__file__).with_name("own_folder.sh")


def main(arguments: Sequence[str] | None = None) -> int:
    print_anything()
    parser = argparse.ArgumentParser(
        prog="vfmgl init", description=(__doc__ or "").split("\n", 1)[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that is not there yet")
    folder = Path(os.path.abspath(parser.parse_args(arguments).folder))
    try:
        make_folder(folder)
    except OSError as error:
        sys.stderr.write(f"vfmgl init: {reason(error)}\n")
        return 1
    write_out(
        f"{folder} is made. Next:\n  cd {shlex.quote(str(folder))}\n  vfmgl run --help\n  vfmgl run --only 02 --task nuclei\n  vfmgl lab\n"
    )
    return 0


def make_folder(folder: Path) -> None:
    """Makes the folder, whole or not at all.

    Raises: FileExistsError: it is there. OSError: it cannot be written.
    """
    if os.path.lexists(folder):
        raise FileExistsError(f"{folder} is there already; give the name of a new folder, nothing was written")
    with new_folder(folder) as part:
        shutil.copytree(
            DELIVERED / "notebooks", part / "notebooks", copy_function=shutil.copyfile, ignore=shutil.ignore_patterns(".*", "__pycache__")
        )
        write_text(part / "run_all.sh", SCRIPT.read_text("utf-8").replace("@PYTHON@", shlex.quote(sys.executable)))
        (part / "run_all.sh").chmod(0o755)
        write_json(part / MARK, {"vfmgl_lib": __version__})
