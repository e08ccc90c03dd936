"""python -m vfmgl_lib.sweep of 0.1.0."""

import sys

from vfmgl_lib.cli import earlier_command

if __name__ != "__main__":
    raise ImportError("vfmgl_lib.sweep is vfmgl_lib.tools.sweep since 0.2.0")
sys.exit(earlier_command("sweep"))
