"""Numbers that JSON and YAML can spell and no config needs, in every place of a config that holds a number."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from soundomni.core.errors import ConstructionError, SoundOmniError

HOSTILE: tuple[Any, ...] = (math.nan, math.inf, 1e300, 10**400, 10**18, 10**9, 0, -1)
LONGEST = 1000
"""Most characters of an error: each number is cut."""

Place = tuple[str | int, ...]


def numbers(tree: Any, path: Place = ()) -> Iterator[Place]:
    """Yield the place of every number in a tree of dicts and lists; one of each list is enough."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree[:1] if tree and not isinstance(tree[0], dict) else tree):
            yield from numbers(value, (*path, index))
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield path


def replaced(tree: Any, path: Place, value: Any) -> Any:
    """Return a copy of a tree with another value in one place."""
    changed = copy.deepcopy(tree)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def variants(tree: Any, values: Sequence[Any] = HOSTILE, *, lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield a text that says what was changed, and the changed tree: every number one of `values`, one at a time, and lists of numbers
    long."""
    for path in numbers(tree):
        name = ".".join(map(str, path))
        for value in values:
            yield f"{name} = {repr(value)[:30]}", replaced(tree, path, value)
        if lists and isinstance(path[-1], int):
            outer: Any = tree
            for key in path[:-1]:
                outer = outer[key]
            yield f"{name}: a long list", replaced(tree, path[:-1], outer * 5000)


def faults(tree: Any, read: Callable[[Any], object], values: Sequence[Any] = HOSTILE, *, lists: bool = True) -> list[str]:
    """Return what is wrong with how `read` takes the variants of a tree: it may return, or refuse them in one short line."""
    found = []
    for name, changed in variants(tree, values, lists=lists):
        try:
            read(changed)
        except ConstructionError as error:
            found.append(f"{name}: internal: {error}")
        except SoundOmniError as error:
            if "\n" in str(error) or len(str(error)) > LONGEST:
                found.append(f"{name}: {len(str(error))} characters: {str(error)[:200]}")
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    return found
