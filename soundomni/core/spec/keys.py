"""The dotted keys of a spec, as options and their completion name them, without importing plugins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import DICTS, field_types, join, without_none
from soundomni.core.spec.written import WrittenSpec


@dataclasses.dataclass(frozen=True)
class Key:
    """A key that an override may set.

    Args:
        name: the dotted name, such as `model.codec`.
        annotation: type of the value.
        kind: kind of its plugins, if the value is a slot or a list of slots.
    """

    name: str
    annotation: Any
    kind: str | None = None

    @property
    def many(self) -> bool:
        """Whether it holds a list."""
        return get_origin(self.annotation) is list


def spec_keys() -> Iterator[Key]:
    """Yield every key of a spec, sections before their contents; entries of mappings, which may have any name, are left
    out.
    """
    yield from _keys(WrittenSpec, "")


def slot_at(key: str) -> Key | None:
    """Return the slot that a dotted key names; None if it names something else. Entries of a mapping may have any name.

    >>> slot_at("model.codec").kind, slot_at("data.datasets.mine.source").kind, slot_at("train.steps")
    ('codec', 'dataset', None)
    >>> slot_at("codec.critics.waves").kind, slot_at("codec.critics.waves.scales"), slot_at("codec.critics")
    ('critic', None, None)
    """
    of: Any = WrittenSpec
    kind: str | None = None
    for part in key.split("."):
        inner = without_none(of)
        if get_origin(inner) in DICTS:
            of = get_args(inner)[1]
        elif _is_section(inner) and part in (types := field_types(inner)):
            kind = next(field for field in dataclasses.fields(inner) if field.name == part).metadata.get("kind")
            of = types[part]
        else:
            return None
    return None if kind is None or get_origin(of) in DICTS else Key(key, of, kind)


def _keys(of: Any, key: str) -> Iterator[Key]:
    types = field_types(of)
    for field in dataclasses.fields(of):
        name, inner = join(key, field.name), without_none(types[field.name])
        yield Key(name, types[field.name], None if field.metadata.get("named") else field.metadata.get("kind"))
        if _is_section(inner):
            yield from _keys(inner, name)


def _is_section(annotation: Any) -> bool:
    return dataclasses.is_dataclass(annotation) and annotation is not Slot
