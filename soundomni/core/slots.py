"""The plugin slots of a spec, wherever they are in its tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from soundomni.core.convert import join
from soundomni.core.schema import Slot, Spec

_Node = TypeVar("_Node")
Change = Callable[[str, str, Slot], Slot]
"""(dotted key, kind, slot) → the slot to put in its place."""


def map_slots(node: _Node, change: Change, key: str = "") -> _Node:
    """Returns a spec, or a part of one at `key`, with every slot replaced by `change(key, kind, slot)`."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        value, place = getattr(node, field.name), join(key, field.name)
        kind = field.metadata.get("kind")
        if kind is not None and isinstance(value, list):
            values[field.name] = [change(f"{place}[{i}]", kind, item) for i, item in enumerate(value)]
        elif kind is not None:
            values[field.name] = None if value is None else change(place, kind, value)
        elif isinstance(value, dict):
            parts = value.items()
            values[field.name] = {k: map_slots(v, change, join(place, k)) if dataclasses.is_dataclass(v) else v for k, v in parts}
        elif dataclasses.is_dataclass(value):
            values[field.name] = map_slots(value, change, place)
    changed: _Node = dataclasses.replace(node, **values)  # type: ignore[type-var]
    return changed


def slots(spec: Spec) -> tuple[tuple[str, str, Slot], ...]:
    """Returns (dotted key, kind, slot) of every plugin that a spec chooses, in the order of the schema."""
    found: list[tuple[str, str, Slot]] = []

    def note(key: str, kind: str, slot: Slot) -> Slot:
        found.append((key, kind, slot))
        return slot

    map_slots(spec, note)
    return tuple(found)
