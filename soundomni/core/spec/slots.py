"""The plugin slots of a spec, wherever they are in its tree."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast, get_args, get_origin

from soundomni.core.spec.schema import Slot, Spec
from soundomni.core.spec.shorthand import short_keys
from soundomni.core.spec.values import DICTS, field_types, join, without_none
from soundomni.core.spec.written import WrittenSpec

_Node = TypeVar("_Node")
Change = Callable[[str, str, Slot], Slot]
"""(dotted key, kind, slot) → the slot to put in its place."""


def map_slots(node: _Node, change: Change, key: str = "") -> _Node:
    """Return a spec, or a part of one at `key`, with every slot replaced by `change(key, kind, slot)`.

    The keys of a whole spec are short if it is written in short keys.
    """
    if isinstance(node, Spec):
        change = _with_short_keys(change, short_keys(node.model))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        value, place = getattr(node, field.name), join(key, field.name)
        kind = field.metadata.get("kind")
        if kind is not None and isinstance(value, dict):
            values[field.name] = {k: None if v is None else change(join(place, k), kind, v) for k, v in value.items()}
        elif kind is not None and isinstance(value, list):
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


def _with_short_keys(change: Change, short: Mapping[str, str]) -> Change:
    return lambda key, kind, slot: change(short.get(key, key), kind, slot)


def map_names(tree: Mapping[str, Any], change: Callable[[str, str, str], str], of: type = WrittenSpec, key: str = "") -> dict[str, Any]:
    """Return plain data of a spec, or of a layer of one, with the name of each plugin replaced by `change(key, kind,
    name)`.

    Anything that does not have the shape of a spec is kept as it is, to be reported by the conversion.
    """
    changed, types = dict(tree), field_types(of)
    for field in dataclasses.fields(of):
        value, place, kind = tree.get(field.name), join(key, field.name), field.metadata.get("kind")
        inner = without_none(types[field.name])
        if kind is not None and field.metadata["named"] and isinstance(value, Mapping):
            changed[field.name] = {k: _renamed(item, change, join(place, str(k)), kind) for k, item in value.items()}
        elif kind is not None and isinstance(value, list):
            changed[field.name] = [_renamed(item, change, f"{place}[{i}]", kind) for i, item in enumerate(value)]
        elif kind is not None and value is not None:
            changed[field.name] = _renamed(value, change, place, kind)
        elif dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            changed[field.name] = map_names(value, change, cast(type, inner), place)
        elif get_origin(inner) in DICTS and isinstance(value, Mapping):
            below = without_none(get_args(inner)[1])
            if dataclasses.is_dataclass(below):
                parts = value.items()
                found = {k: map_names(v, change, cast(type, below), join(place, k)) if isinstance(v, Mapping) else v for k, v in parts}
                changed[field.name] = found
    return changed


def _renamed(value: Any, change: Callable[[str, str, str], str], key: str, kind: str) -> Any:
    if isinstance(value, str):
        return change(key, kind, value)
    if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
        return {**value, "class_path": change(key, kind, value["class_path"])}
    return value


def slots(spec: Spec) -> tuple[tuple[str, str, Slot], ...]:
    """Return (dotted key, kind, slot) of every plugin that a spec chooses, in the order of the schema."""
    found: list[tuple[str, str, Slot]] = []

    def note(key: str, kind: str, slot: Slot) -> Slot:
        found.append((key, kind, slot))
        return slot

    map_slots(spec, note)
    return tuple(found)
