"""The house: a module imports only from floors below its own, and from its own; importing has no effects."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "vfmgl_lib"
# Ground first, as in CONTRIBUTING.md.
FLOORS = (
    "base",
    "kernels",
    "models",
    "data",
    "tasks",
    "config",
    "method",
    "federation",
    "methods",
    "evaluation",
    "interpretation",
    "figures",
    "study",
    "tools",
    "cli",
)
EARLIER = {LIBRARY / room / "__main__.py" for room in ("data", "federation")}  # python -m vfmgl_lib.data and its like, of 0.1.0


@cache  # every tool's test reads the whole library
def names(code: str) -> frozenset[str]:
    """What a file's imports name of the library, wherever they stand in it."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.startswith("vfmgl_lib."))


def imported(code: str) -> set[str]:
    """The rooms among them."""
    return {name.split(".")[1] for name in names(code)} & set(FLOORS)


def modules() -> list[Path]:
    return sorted(file for file in LIBRARY.rglob("*.py") if file not in EARLIER and file.parent != LIBRARY / "tools" / "earlier")


def test_every_room_has_a_floor():
    rooms = {entry.stem for entry in LIBRARY.iterdir() if entry.suffix in ("", ".py") and not entry.name.startswith("__")}
    assert rooms == set(FLOORS) and len(rooms) <= 16


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(LIBRARY)))
def test_imports_go_down(file):
    room = file.relative_to(LIBRARY).parts[0].removesuffix(".py")
    if room == "__init__":
        assert not imported(file.read_text(encoding="utf-8"))
        return
    upward = {other for other in imported(file.read_text(encoding="utf-8")) if FLOORS.index(other) > FLOORS.index(room)}
    assert not upward, f"{file.relative_to(ROOT)} stands on {room} and imports from {', '.join(sorted(upward))} above it"


@pytest.mark.parametrize(
    "code",
    [
        "from vfmgl_lib.study import workspace",
        "import vfmgl_lib.study.workspace as w",
        "def f():\n    from vfmgl_lib import study",
        "if TYPE_CHECKING:\n    from vfmgl_lib.study.study import Study",
    ],
)
def test_an_upward_import_is_seen(code):
    assert imported(code) == {"study"}


@pytest.mark.parametrize("tool", sorted(entry.name for entry in (LIBRARY / "tools").iterdir() if (entry / "__init__.py").is_file()))
def test_a_tool_may_be_deleted(tool):
    """Only another tool, where it says so here, imports it; the command `vfmgl` names it."""
    users = set()
    for file in modules():
        parts = file.relative_to(LIBRARY).parts
        if parts[:2] != ("tools", tool) and any(
            f"{name}.".startswith(f"vfmgl_lib.tools.{tool}.") for name in names(file.read_text("utf-8"))
        ):
            users.add(parts[1] if parts[0] == "tools" else "/".join(parts))
    assert users <= {"predict": {"export"}, "batch": {"sweep", "docs"}}.get(tool, set())


def test_importing_has_no_effects():
    """Neither pandas nor the allocator nor the environment is changed, but for the waiting of OpenMP's threads (`vfmgl_lib.__init__`)."""
    code = (
        "import ctypes, os, pandas\n"
        "calls, before, loader = [], dict(os.environ), ctypes.CDLL\n"
        "class Watched(loader):\n"
        "    def __getattr__(self, name):\n"
        "        calls.append(name)\n"
        "        return super().__getattr__(name)\n"
        "ctypes.CDLL = Watched\n"
        "style = pandas.DataFrame.style\n"
        "import vfmgl_lib.study.workspace\n"
        "assert 'mallopt' not in calls, calls\n"
        "assert pandas.DataFrame.style is style\n"
        "changed = {name for name in os.environ if os.environ[name] != before.get(name)} - {'KMP_DUPLICATE_LIB_OK', 'KMP_INIT_AT_FORK'}\n"
        "assert changed <= {'OMP_WAIT_POLICY'}, changed\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
