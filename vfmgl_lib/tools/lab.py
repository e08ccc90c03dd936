"""vfmgl lab [options of jupyter lab]: opens the notebooks in JupyterLab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs JupyterLab until it is closed.

    Returns: its exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return subprocess.run([sys.executable, "-m", "jupyterlab", "--notebook-dir", str(NOTEBOOKS), *words], check=False).returncode
    except KeyboardInterrupt:
        return 0
