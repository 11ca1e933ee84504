"""A spec as JSON schema (draft 2020-12), so that editors complete keys and mark mistakes, including plugins'
arguments."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any, Literal, cast, get_args, get_origin

from soundomni.core.errors import PluginError
from soundomni.core.spec import registry
from soundomni.core.spec.arguments import Argument, argument_texts
from soundomni.core.spec.values import DICTS, LISTS, field_types, is_union, plain
from soundomni.core.spec.written import WrittenSpec


def spec_schema() -> dict[str, Any]:
    """Return the JSON schema of a spec with the installed plugins.

    Imports every plugin; one that fails is listed without arguments.
    """
    definitions = {kind: _slot_schema(kind) for kind in registry.KINDS}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "SoundOmni spec",
        **_fields_schema(WrittenSpec),
        "$defs": definitions,
    }


def schema_of(annotation: Any) -> dict[str, Any]:
    """Return the JSON schema of the YAML values that an annotation accepts."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if is_union(annotation):
        return {"anyOf": [schema_of(member) for member in inner]}
    if origin is Literal:
        return {"enum": list(inner)}
    if dataclasses.is_dataclass(annotation):
        return _fields_schema(cast(type, annotation))
    if annotation is tuple or origin is tuple:
        if not inner or inner[-1] is ...:
            return {"type": "array", "items": schema_of(inner[0]) if inner else {}}
        return {"type": "array", "prefixItems": [schema_of(a) for a in inner], "minItems": len(inner), "maxItems": len(inner)}
    if annotation in DICTS or origin in DICTS:
        return {"type": "object", "additionalProperties": schema_of(inner[1]) if inner else {}}
    if annotation in LISTS or origin in LISTS:
        return {"type": "array", "items": schema_of(inner[0]) if inner else {}}
    return _scalar_schema(annotation)


def _scalar_schema(annotation: Any) -> dict[str, Any]:
    if annotation is Any or not isinstance(annotation, type):
        return {"type": "null"} if annotation is None else {}
    if issubclass(annotation, Enum):
        return {"enum": list(annotation.__members__)}
    if annotation is type(None):
        return {"type": "null"}
    for base, name in ((bool, "boolean"), (int, "integer"), (float, "number")):
        if issubclass(annotation, base):
            return {"type": name}
    return {"type": "string"}


def _fields_schema(of: type) -> dict[str, Any]:
    types, texts = field_types(of), argument_texts(of)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for field in dataclasses.fields(cast(Any, of)):
        schema = _slot_field_schema(field) if "kind" in field.metadata else schema_of(types[field.name])
        if field.name in texts:
            schema = {"description": texts[field.name], **schema}
        if field.default is not dataclasses.MISSING:
            schema = {**schema, "default": plain(field.default)}
        elif field.default_factory is not dataclasses.MISSING:
            schema = {**schema, "default": plain(field.default_factory())}
        else:
            required.append(field.name)
        properties[field.name] = schema
    summary = (of.__doc__ or "").strip().splitlines()[0]
    return {
        "type": "object",
        "description": summary,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _slot_field_schema(field: dataclasses.Field[Any]) -> dict[str, Any]:
    slot: dict[str, Any] = {"$ref": f"#/$defs/{field.metadata['kind']}"}
    if field.metadata["many"]:
        return {"type": "array", "items": slot}
    if field.metadata["named"]:
        return {"type": "object", "additionalProperties": {"anyOf": [slot, {"type": "null"}]}}
    return {"anyOf": [slot, {"type": "null"}]} if field.metadata["optional"] else slot


def _slot_schema(kind: str) -> dict[str, Any]:
    """Return the schema of a slot: a registered name with its arguments, or a name with a dot or colon and any
    arguments.

    The latter are import paths and names of the form `dist:name`.
    """
    other = {"type": "string", "pattern": "[.:]"}
    choices: list[dict[str, Any]] = [other, _choice({"class_path": other}, schema_of(dict[str, Any]), required=False)]
    names: list[str] = []
    for name in dict.fromkeys(entry.name for entry in registry.entries(kind)):
        try:
            cls = registry.load(kind, name)
        except PluginError as error:
            choices.append(_choice({"class_path": {"const": name, "description": str(error)}}, schema_of(dict[str, Any]), required=False))
            continue
        arguments = registry.arguments(kind, cls)
        required = [argument.name for argument in arguments if argument.required]
        texts = argument_texts(cls)
        properties = {argument.name: _argument_schema(argument, texts.get(argument.name)) for argument in arguments}
        takes = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        choices.append(_choice({"class_path": {"const": name}}, takes, required=bool(required)))
        if not required:
            names.append(name)
    return {"anyOf": [{"enum": names}, *choices]} if names else {"anyOf": choices}


def _argument_schema(argument: Argument, text: str | None) -> dict[str, Any]:
    schema = {"description": text, **schema_of(argument.annotation)} if text else schema_of(argument.annotation)
    return schema if argument.required else {**schema, "default": argument.default}


def _choice(name: dict[str, Any], init_args: dict[str, Any], *, required: bool) -> dict[str, Any]:
    keys = ["class_path", "init_args"] if required else ["class_path"]
    return {"type": "object", "properties": {**name, "init_args": init_args}, "required": keys, "additionalProperties": False}
