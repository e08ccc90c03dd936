"""The benchmarks are run by hand: here only that what they take from the library is there."""

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).resolve().parent.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_is_imported_is_there(script: Path):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vfmgl_lib"):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):  # then it is a module of a package
                    importlib.import_module(f"{node.module}.{name.name}")
