"""What the user's surroundings may do to a run, and what is done about it: the terminal's encoding, proxies, memory."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from urllib.request import getproxies, proxy_bypass


def print_anything() -> None:
    """From now on what the terminal or a log cannot encode is written as \\u2026 and the like, instead of ending the command.

    For the start of a command; stderr is so from the beginning, stdout is not.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def write_out(text: str) -> None:
    """Writes to stdout; where nobody can read it (closed, a pipe that has ended, a full disk) a finished command is still finished."""
    try:
        if sys.stdout is not None:
            sys.stdout.write(text)
            sys.stdout.flush()
    except OSError:
        sys.stdout = None  # what it still holds would fail again at the end


def is_loopback(host: str) -> bool:
    """Whether a name or address, without its port, is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".").rpartition(".")[2] == "localhost"


def proxy_for(host: str) -> str:
    """The proxy that the environment names for TLS connections to a host, without user and password; "" where there is none.

    Args:
        host: without its port.
    """
    proxies = getproxies()
    proxy = proxies.get("https") or proxies.get("all") or ""
    if not proxy or is_loopback(host) or proxy_bypass(host):
        return ""
    return re.sub(r"^([^/]*//)?[^/]*@", r"\1", proxy)


def about_proxy(host: str) -> str:
    """What an error about a connection to a host adds; "" where no proxy is in between."""
    if not (proxy := proxy_for(host)):
        return ""
    return f"; the environment names the proxy {proxy} for it: is it right and does it let this through, or should NO_PROXY name {host}?"


@contextmanager
def direct_to_loopback(host: str) -> Iterator[None]:
    """For making a client of `host`: one of this machine's own addresses is to be reached past every proxy of the environment."""
    if not is_loopback(host):
        yield
        return
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    os.environ.update(dict.fromkeys(before, "*"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def keep_freed_memory() -> None:
    """From now on memory that is freed stays in this process; for where training starts.

    glibc gives blocks of a tensor's size back to the kernel and takes them again zeroed, page by page, for the next tensor. Kept in the
    process instead they make a training step about 5 % faster. Every thread's arena keeps its own, though: a process of many threads would
    hold as many models as its threads ever had at once. Both are measured in benchmarks/README.md.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        # M_TRIM_THRESHOLD, -1: never; M_TOP_PAD; M_MMAP_THRESHOLD, 32 MiB: the largest that glibc takes.
        for parameter, kept in ((-1, -1), (-2, 64 * 2**20), (-3, 32 * 2**20)):
            ctypes.CDLL(None).mallopt(parameter, kept)
