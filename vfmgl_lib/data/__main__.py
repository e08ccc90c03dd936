"""python -m vfmgl_lib.data of 0.1.0."""

import sys

from vfmgl_lib.cli import earlier_command

if __name__ == "__main__":
    sys.exit(earlier_command("data"))
