"""The methods of the comparison, one file each: its record, its client, its server. `registry.METHODS` has them all."""

from __future__ import annotations

import importlib
import os
import pkgutil

from vfmgl_lib.methods.registry import METHODS, add_methods, add_methods_from

__all__ = ["METHODS"]

add_methods(
    method
    for module in pkgutil.iter_modules(__path__)
    if module.name != "registry"
    for method in getattr(importlib.import_module(f"{__name__}.{module.name}"), "METHODS", ())
)
for _folder in filter(None, os.environ.get("VFMGL_METHODS", "").split(os.pathsep)):
    add_methods_from(_folder)
