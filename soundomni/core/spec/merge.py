"""Layers of a spec: files, then overrides, each laid over the layers before it.

Mappings merge key by key. Lists and values are replaced, and so are mappings whose field says so (`schema.replaced`),
unless a dotted override reaches into them. A layer that names another plugin replaces the whole plugin slot, so that
arguments of one class never leak into another; a layer that names the same plugin, or only arguments, merges its
arguments.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast, get_args, get_origin

from soundomni.core.errors import SpecError
from soundomni.core.spec import yaml_text
from soundomni.core.spec.schema import Slot
from soundomni.core.spec.values import DICTS, Text, field_types, join, type_name, unknown_key, without_none


class Entries(dict[str, Any]):
    """Entries of a mapping that dotted overrides name one by one: they merge even if a whole mapping would replace."""


def merge(base: Any, layer: Any, annotation: Any, key: str = "") -> Any:
    """Lay `layer` over `base` (None if there is nothing below). Unknown keys are kept, to be reported later."""
    of = without_none(annotation)
    if of is Slot:
        return _merge_slot(base, layer, key)
    if get_origin(of) is list and get_args(of) == (Slot,) and isinstance(layer, list):
        return [_merge_slot(None, item, f"{key}[{i}]") for i, item in enumerate(layer)]
    if not isinstance(layer, dict):
        return layer
    if dataclasses.is_dataclass(of):
        types = field_types(cast(type, of))
    elif of is Any or get_origin(of) in DICTS:
        types = dict.fromkeys(layer, (get_args(of) or (str, Any))[1])
    else:
        return layer
    below = _below(base, layer, of)
    return {**below, **{k: merge(below.get(k), v, types.get(k, Any), join(key, str(k))) for k, v in layer.items()}}


def _below(base: Any, layer: dict[str, Any], of: Any) -> dict[str, Any]:
    """Return `base` without mappings that the layer replaces whole; those whose entries it sets start from their
    default.
    """
    below = dict(base) if isinstance(base, dict) else {}
    for field in dataclasses.fields(of) if dataclasses.is_dataclass(of) else ():
        if field.metadata.get("replace") and field.name in layer:
            if not isinstance(layer[field.name], Entries):
                below.pop(field.name, None)
            elif field.default_factory is not dataclasses.MISSING:
                below.setdefault(field.name, field.default_factory())
    return below


def _merge_slot(base: Any, layer: Any, key: str) -> Any:
    if isinstance(layer, str):
        layer = {"class_path": layer}
    if not isinstance(layer, dict) or not set(layer) <= {"class_path", "init_args"}:
        return layer
    below = base if isinstance(base, dict) else {}
    name = layer.get("class_path", below.get("class_path"))
    if name is None:
        raise SpecError(f"{key}: arguments are given, but no plugin. Name it first with {key}=NAME")
    if name != below.get("class_path"):
        return layer
    return {"class_path": name, "init_args": merge(below.get("init_args") or {}, layer.get("init_args") or {}, Any)}


def override_layer(key: str, text: str, annotation: Any) -> dict[str, Any]:
    """Return the layer that `--key=text` stands for. Raise SpecError if the spec has no such key."""
    layer: dict[str, Any] = _nest(annotation, key.split("."), text, "")
    return layer


def _nest(annotation: Any, parts: list[str], text: str, key: str) -> Any:
    of = without_none(annotation)
    if of is Slot:
        return _nest_slot(parts, text, key)
    is_fields = dataclasses.is_dataclass(of)
    if not parts:
        return _structure(text, key) if is_fields or get_origin(of) in DICTS else Text(text)
    name, rest = parts[0], parts[1:]
    if is_fields:
        types = field_types(cast(type, of))
        if name not in types:
            raise unknown_key(name, types, key)
        return {name: _nest(types[name], rest, text, join(key, name))}
    if get_origin(of) in DICTS:
        below = without_none(get_args(of)[1])
        if not (below in (Slot, Any) or dataclasses.is_dataclass(below) or get_origin(below) in DICTS):
            name, rest = ".".join(parts), []  # a value has no keys: the dots belong to the name, as in waves.adversarial
        return Entries({name: _nest(get_args(of)[1], rest, text, join(key, name))})
    raise SpecError(f"unknown key '{join(key, name)}'. '{key}' holds {type_name(annotation)}, which has no keys")


def _nest_slot(parts: list[str], text: str, key: str) -> Any:
    if not parts:
        value = _structure(text, key)
        return text if isinstance(value, (str, int, float)) else value
    if parts == ["class_path"]:
        return {"class_path": text}
    names = parts[1:] if parts[0] == "init_args" else parts
    if not names:
        return {"init_args": _structure(text, join(key, "init_args"))}
    layer: Any = Text(text)
    for name in reversed(names):
        layer = {name: layer}
    return {"init_args": layer}


def _structure(text: str, key: str) -> Any:
    try:
        return yaml_text.parse(text, key)
    except SpecError as error:
        raise SpecError(f"{key} is {text!r}; expected valid YAML") from error
