"""VFMGL Workbook: federated learning with personalised models guided by a vision foundation model.

The notebooks tell the story; this library holds the mathematics, the data handling and the federation they call.
`vfmgl_lib.study.workspace` is the entry the notebooks use, `vfmgl_lib.tools.batch` runs the notebooks themselves.
"""

import os
from pathlib import Path

# The one thing that importing does to the process. It acts only before torch loads its OpenMP: idle threads that spin instead of sleeping
# made a training step over 20 times slower whenever another process (a second notebook, a test worker) wanted the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__path__.append(str(Path(__file__).parent / "tools" / "earlier"))  # python -m vfmgl_lib.sweep and its like, of 0.1.0

__version__ = "0.2.0"
