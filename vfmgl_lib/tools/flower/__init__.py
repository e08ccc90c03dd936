"""A federation over a network, with Flower: certificates, a server, a process for every centre."""

import os
import tempfile
from collections.abc import Callable

# Read by flwr when it is imported: nothing is reported, looked up or installed.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
if os.path.expanduser("~") == "~":  # a container's user without a home, for whose folder flwr asks; nothing is written there
    os.environ.setdefault("FLWR_HOME", os.path.join(tempfile.gettempdir(), "flwr"))


def rounds_apart(engine: str) -> Callable | None:
    """What `Workspace.run` takes as `network`.

    Args:
        engine: "process": None, all centres in one process; "flower": over TLS, every centre in a process of its own.
    Raises: ValueError: another engine.
    """
    if engine not in ("process", "flower"):
        raise ValueError(f"engine must be process or flower, got {engine!r}")
    if engine == "process":
        return None
    from vfmgl_lib.tools.flower.one_machine import run_rounds_apart  # here: flwr takes seconds to import

    return run_rounds_apart
