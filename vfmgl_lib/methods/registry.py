"""All methods, in the order of tables and legends; a study's method: its settings, its client, its server."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from vfmgl_lib.config import ConfigError, StudySettings
from vfmgl_lib.federation.servers import Server
from vfmgl_lib.methods.record import Method, averaging_server
from vfmgl_lib.models.students import Student

METHODS: dict[str, Method] = {}  # filled by `vfmgl_lib.methods` with the built-in ones


def add_methods(methods: Iterable[Method]) -> None:
    """Adds methods to `METHODS`.

    Raises: ConfigError: a name that is taken, or a control whose parent is not there.
    """
    there = dict(METHODS)
    for method in (added := list(methods)):
        if method.name in there:
            raise ConfigError(f"method {method.name!r}: the name is taken by {there[method.name].title}")
        there[method.name] = method
    for method in added:
        if method.parent and method.parent not in there:
            raise ConfigError(f"method {method.name!r}: its parent {method.parent!r} is no method, there are {', '.join(there)}")
    ordered = sorted(there.values(), key=lambda method: method.order)
    METHODS.clear()
    METHODS.update({method.name: method for method in ordered})


def add_methods_from(folder: Path | str) -> None:
    """Adds the methods of a folder: of every Python file there what its `METHODS` holds. The files are run.

    Raises: ConfigError: the folder is not there, or a file has no `METHODS`.
    """
    files = sorted(Path(folder).glob("*.py"))
    if not files:
        raise ConfigError(f"methods of {folder}: no Python file there, expected one a method with METHODS = (Method(...),)")
    for file in files:
        name = f"vfmgl_methods_{file.stem}"
        specification = importlib.util.spec_from_file_location(name, file)
        assert specification and specification.loader  # a .py file has both
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        if not hasattr(module, "METHODS"):
            raise ConfigError(f"{file}: has no METHODS, expected METHODS = (Method(...),)")
        add_methods(module.METHODS)


def new_server(settings: StudySettings, centers: list[str], student: Student) -> Server:
    """The server of the study's method.

    Args:
        centers: the training centres, sorted.
        student: in the state that every client's student starts from.
    """
    method = METHODS[settings.method]
    if method.server:
        return method.server(settings, centers, student)
    return averaging_server(settings, student, method.switches) if method.switches.sends else Server()
