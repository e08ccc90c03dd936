"""VFMGL Workbook: federated learning with personalised models guided by a vision foundation model.

The notebooks tell the story; this library holds the mathematics, the data handling and the federation they call.
`vfmgl_lib.study.workspace` is the entry the notebooks use, `vfmgl_lib.batch` runs the notebooks themselves.
"""

import ctypes
import os
import sys

# Set before torch loads its OpenMP: idle threads that spin instead of sleeping made a training step over 20 times slower
# whenever another process (a second notebook, a test worker) wanted the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory(keep: bool) -> None:
    """Whether memory that is freed stays in this process.

    glibc gives blocks of a tensor's size back to the kernel and takes them again zeroed, page by page, for the next tensor. Kept in the
    process instead they make a training step about 5 % faster, which is how the library starts. Every thread's arena keeps its own,
    though: a process of many threads (the SuperLink) would hold as many models as its threads ever had at once. Both are measured in
    benchmarks/README.md.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        # M_TRIM_THRESHOLD, -1: never; M_TOP_PAD; M_MMAP_THRESHOLD, 32 MiB: the largest that glibc takes. Else glibc's first values.
        for parameter, kept, given_back in ((-1, -1, 2**17), (-2, 64 * 2**20, 2**17), (-3, 32 * 2**20, 2**17)):
            ctypes.CDLL(None).mallopt(parameter, kept if keep else given_back)


keep_freed_memory(True)

__version__ = "0.2.0.dev0"
