"""vfmgl lab [options of jupyter lab]: opens the notebooks in JupyterLab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from vfmgl_lib.base.places import PlaceError, project_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs JupyterLab until it is closed.

    Returns: its exit status; 2 where there are no notebooks.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        notebooks = project_folder() / "notebooks"
    except PlaceError as error:
        sys.stderr.write(f"vfmgl lab: {error}\n")
        return 2
    try:
        return subprocess.run([sys.executable, "-m", "jupyterlab", "--notebook-dir", str(notebooks), *words], check=False).returncode
    except KeyboardInterrupt:
        return 0
