"""Packages whose public names are imported on first use, so that importing the package stays light (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        modules: module within the package, such as "tasks.reconstruction" → the public names that come from it.
    """
    module_of = {name: module for module, names in modules.items() for name in names}
    namespace = vars(sys.modules[package])

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = namespace[name] = getattr(import_module(f"{package}.{module_of[name]}"), name)
        return value

    def names() -> list[str]:
        return sorted({*namespace, *module_of})

    return get, names
