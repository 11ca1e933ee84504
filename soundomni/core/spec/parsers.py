"""Registered plugin names in other people's jsonargparse parsers.

jsonargparse looks up a class name without dots among the classes that are already imported. It has no public way to
add other names, and it refuses names with a dash, so `extend_jsonargparse` wraps the one function that resolves names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from soundomni.core.errors import PluginError
from soundomni.core.spec import registry

_FUNCTION = "resolve_class_path_by_name"


def extend_jsonargparse() -> None:
    """Let every jsonargparse parser of this process take registered plugin names wherever it expects a plugin.

    An argument typed `Codec`, `Sampler` or another contract of `soundomni.core.interfaces` then takes `mdct` or
    `dist:name` as its `class_path`, on the command line, in files, in defaults and in the environment, next to the
    import paths and class names that jsonargparse takes by itself. A registered name comes before a class of that name.
    The parsed config holds the import path, so any jsonargparse parser can read it. For a wrong name, the parser's
    error says which plugin is nearest.

    A second call changes nothing. Raise PluginError if the installed jsonargparse resolves names differently.
    """
    import jsonargparse
    from jsonargparse import _typehints

    resolve = getattr(_typehints, _FUNCTION, None)
    if isinstance(resolve, _Resolver):
        return
    if resolve is None or list(inspect.signature(resolve).parameters) != ["cls", "name"]:
        raise PluginError(
            f"jsonargparse {jsonargparse.__version__} resolves class names differently; expected 4.53. "
            "Install jsonargparse 4.53, or give import paths instead of registered names"
        )
    setattr(_typehints, _FUNCTION, _Resolver(resolve))


class _Resolver:
    """Turns a name into an import path: that of a registered plugin, or else of the class that jsonargparse finds."""

    def __init__(self, original: Callable[[Any, str], str]) -> None:
        self._original = original

    def __call__(self, cls: Any, name: str) -> str:
        if isinstance(cls, tuple):
            return self._of_union(cls, name)
        kind = _kind(cls)
        if kind is None:
            return self._original(cls, name)
        if not registry.is_registered(kind, name) and ":" not in name:
            path = self._original(cls, name)
            if "." in path:
                return path
        try:
            plugin = registry.load(kind, name)
        except PluginError as error:
            raise ImportError(str(error)) from error  # jsonargparse turns it into an error of the argument
        return f"{plugin.__module__}.{plugin.__qualname__}"

    def _of_union(self, classes: tuple[Any, ...], name: str) -> str:
        """Return the path that the first of several classes gives for a name; raise the first error if none gives one."""
        errors = []
        for cls in classes:
            try:
                path = self(cls, name)
            except ImportError as error:
                errors.append(error)
            else:
                if "." in path:
                    return path
        if errors:
            raise errors[0]
        return name


def _kind(cls: Any) -> str | None:
    """Return the kind of plugin that a class in an annotation asks for, or None."""
    from soundomni.core import interfaces

    if not isinstance(cls, type):
        return None
    return next((kind for kind, contract in interfaces.KINDS.items() if issubclass(cls, contract)), None)
