"""Clients, strategies and rounds: who trains with what, what leaves a centre, how it becomes the next shared model; in one process or over
a network, with Flower."""

import os
import tempfile

# Read by flwr when it is imported: nothing is reported, looked up or installed.
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1"}
if os.path.expanduser("~") == "~":  # a container's user without a home, for whose folder flwr asks; nothing is written there
    os.environ.setdefault("FLWR_HOME", os.path.join(tempfile.gettempdir(), "flwr"))
