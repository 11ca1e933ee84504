"""Find the third-party plugin that an unexpected error comes from, by its traceback.

A frame belongs to a plugin if it runs a method of an instance of its class, or code in its package. Errors from other
processes carry their traceback as text, which names the same files. A plugin's return value may also cause a failure
later, in code that is not the plugin's. Then no frame belongs to it, and the error can only list the third-party
plugins that are loaded.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

from soundomni.core.errors import describe, reason
from soundomni.core.spec.discovery import PluginEntry
from soundomni.core.spec.registry import loaded

_HERE = str(Path(__file__).parents[2])
_FILE_LINE = re.compile(r'^ +File "([^"]+)", line \d+', re.MULTILINE)


def culprit(error: BaseException, *, raised: bool = False) -> str | None:
    """Return kind, name and distribution of the third-party plugin that an error comes from, or None if no frame
    belongs to one.

    Args:
        error: the caught error; its causes are examined first.
        raised: only find a plugin that raised the error itself, not one that called library code that raised it.
    """
    roots = _roots()
    for one in _chain(error):
        hits: list[PluginEntry] = []
        for place in _places(one):
            found = _owners(place, roots)
            if raised and not found and _file(place).startswith(_HERE + os.sep):
                break
            hits = ([entry for entry in hits if entry in found] or hits) if hits else found
            if len(hits) == 1:
                break
        if hits:
            return " or ".join(entry.label for entry in hits)
    return None


def named(error: BaseException) -> str:
    """Return an unexpected error as one line (see `reason`), with the plugin that it comes from, or else all that are
    loaded."""
    label = culprit(error)
    if label is not None:
        return f"{label} failed: {reason(error)}"
    others = ", ".join(dict.fromkeys(entry.label for entry in loaded().values()))
    return f"{reason(error)}; third-party plugins are in use: {others}" if others else reason(error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the causes of an error, first cause first, then the error, then what was being handled when it was
    raised."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    yield from reversed(causes)
    seen = list(causes)
    while (context := seen[-1].__context__) is not None and context not in seen:
        seen.append(context)
        yield context


def _places(error: BaseException) -> Iterator[FrameType | str]:
    """Yield where an error passed, innermost first: files named by a traceback in its text, if it has one, then
    frames."""
    if "Traceback (most recent call last)" in (text := describe(error, whole=True)):
        yield from reversed(_FILE_LINE.findall(text))
    yield from reversed([frame for frame, _ in traceback.walk_tb(error.__traceback__)])


def _owners(place: FrameType | str, roots: dict[PluginEntry, tuple[str, ...]]) -> list[PluginEntry]:
    """Return the plugins that a frame or a file may belong to."""
    if not isinstance(place, str):
        instance = _instance(place)
        for cls in type(instance).__mro__ if instance is not None else ():
            if cls in loaded():
                return [loaded()[cls]]
    file = str(Path(_file(place)).resolve())
    return [entry for entry, of in roots.items() if any(file == root or file.startswith(root + os.sep) for root in of)]


def _instance(frame: FrameType) -> object:
    """Return what a method's frame calls self: the first argument of a function."""
    code: CodeType = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _file(place: FrameType | str) -> str:
    return place if isinstance(place, str) else place.f_code.co_filename


def _roots() -> dict[PluginEntry, tuple[str, ...]]:
    """Return for each loaded plugin where its code is: the outermost package that is not a namespace, or a single
    file."""
    roots: dict[PluginEntry, tuple[str, ...]] = {}
    for cls, entry in loaded().items():
        modules = {entry.target.partition(":")[0], cls.__module__}
        roots[entry] = tuple(sorted({root for module in modules if (root := _root(module)) is not None}))
    return roots


def _root(module: str) -> str | None:
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        file = getattr(sys.modules.get(".".join(parts[:length])), "__file__", None)
        if file is not None and parts[0] != "soundomni":
            path = Path(file).resolve()
            return str(path.parent if path.stem == "__init__" else path)
    return None
