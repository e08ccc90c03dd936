"""python -m vfmgl_lib.export of 0.1.0."""

import sys

from vfmgl_lib.cli import earlier_command

if __name__ != "__main__":
    raise ImportError("vfmgl_lib.export is vfmgl_lib.tools.export since 0.2.0")
sys.exit(earlier_command("export"))
