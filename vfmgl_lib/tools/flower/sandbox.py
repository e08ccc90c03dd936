"""A process that can read and write only what it was given: Linux's Landlock, which needs no privileges and cannot be undone.

See landlock(7). What is not asked for here stays allowed to the process as before (network, signals).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# Numbers of the calls, the same on all of Linux's architectures.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38
_READ = 0b1101  # execute, read files, list folders
_WRITES_BY_VERSION = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF}  # all rights over files that the version knows
_FILE_RIGHTS = 0b111 | 1 << 14  # execute, write, read, truncate: what a rule on a file (not a folder) may name


def landlock_version() -> int:
    """The kernel's version of Landlock; 0: it has none, as every system but Linux."""
    if sys.platform != "linux":
        return 0
    version = ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(int(version), 0)


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """From now on this process and its children reach no other files; threads that were started before are not covered.

    Args:
        readable: folders and files; those that do not exist are passed over.
        writable: folders, readable as well.
    Raises: OSError: a kernel without Landlock, or one that refuses.
    """
    version = landlock_version()
    if not version:
        raise OSError("this kernel has no Landlock (Linux 5.13 or newer, security module 'landlock' enabled)")
    libc = ctypes.CDLL(None, use_errno=True)
    every = _WRITES_BY_VERSION[min(version, 3)]
    attributes = struct.pack("Q", every)
    ruleset = _checked(libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    try:
        for rights, paths in ((_READ, readable), (every, writable)):
            for path in paths:
                if path.exists():
                    _allow(libc, ruleset, path, rights & every)
        _checked(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _checked(libc.syscall(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights if path.is_dir() else rights & _FILE_RIGHTS, descriptor)
        _checked(libc.syscall(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return result
