"""Pages made from the program itself: what each command's --help says, and the library's modules by floor."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

Main = Callable[[Sequence[str]], int]

PARTS = {"data": ("template", "new-task", "prepare", "verify", "fetch"), "federation": ("init", "key", "check", "server", "site")}
NO_HELP = ("lab",)  # its words are JupyterLab's
# in the order in which they are read
FLOORS = (
    "method",
    "kernels",
    "federation",
    "methods",
    "models",
    "study",
    "evaluation",
    "interpretation",
    "figures",
    "data",
    "tasks",
    "config",
    "base",
    "tools",
)
LEFT_OUT = ("earlier", "docs", "__main__")


def commands_of(main: Main, commands: Mapping[str, str]) -> str:
    """Every command's help, as Markdown.

    Args:
        main: runs the words of a command line.
        commands: their names and what they do, in the order of the page.
    """
    parts = []
    for name, about in commands.items():
        parts.append(f"## vfmgl {name}\n")
        if name in NO_HELP:
            parts.append(f"{about[0].upper()}{about[1:]}. All further words go to `jupyter lab`.\n")
        else:
            parts.append(_fenced(help_of(main, name)))
        parts += [f"### vfmgl {name} {part}\n\n{_fenced(help_of(main, name, part))}" for part in PARTS.get(name, ())]
    return "\n".join(parts)


def help_of(main: Main, *words: str) -> str:
    """What a command prints for --help, 100 letters wide."""
    said = io.StringIO()
    wide = mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"})
    with wide, contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return said.getvalue()


def _fenced(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def reference_pages(root: Path) -> dict[str, str]:
    """Place on the site -> reStructuredText: a page a floor with all its modules, and their list."""
    pages = {}
    rows = []
    for floor in FLOORS:
        modules = list(_modules(root / "vfmgl_lib", floor))
        pages[f"api/{floor}.rst"] = _floor_page(floor, modules)
        rows.append(f"   {floor}")
    head = _title("Library reference", "=")
    text = (
        "Made from the docstrings, which say shapes, units and errors. A page is a floor of the library: a module imports only from\n"
        "floors below its own (:doc:`/contributing`). Shapes: B images, C channels, H and W rows and columns, M teacher blocks, N student\n"
        "stages.\n"
    )
    tree = ".. toctree::\n   :maxdepth: 1\n\n"
    return {"api/index.rst": f"{head}\n{text}\n{tree}" + "\n".join(rows) + "\n", **pages}


def _modules(library: Path, floor: str) -> Iterator[str]:
    for file in sorted((library / floor).rglob("*.py")):
        parts = file.relative_to(library.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part in LEFT_OUT or part.startswith("_") for part in parts) and file.read_text("utf-8").strip():
            yield ".".join(parts)


def _floor_page(floor: str, modules: Sequence[str]) -> str:
    package = f"vfmgl_lib.{floor}"
    parts = [_title(floor, "="), ""]
    for module in modules:
        importlib.import_module(module)  # an error here is clearer than Sphinx's
        name = module.removeprefix(f"{package}.") if module != package else package
        parts += [_title(name, "-"), "", f".. automodule:: {module}", "   :members:", "   :ignore-module-all:", ""]
    return "\n".join(parts)


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"
