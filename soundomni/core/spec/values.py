"""Values of a spec, checked against the annotations of dataclasses and constructors.

Containers, choices, paths, text, None and Any are converted here, exactly: a quoted "null" stays text, and nothing is
read twice. jsonargparse would read text again as YAML; tests/core/test_jsonargparse.py shows each difference. Other
scalars, including the restricted numbers of `jsonargparse.typing`, go through jsonargparse. Values can only be data: an
annotation that needs an imported class or function is refused (`not_data`), so only a plugin slot of a spec can name
code.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from soundomni.core.errors import SpecError, did_you_mean, listed, shown
from soundomni.core.spec import yaml_text
from soundomni.core.spec.schema import ModelSpec, Slot, Spec
from soundomni.core.spec.written import WrittenModel, WrittenSpec

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

LISTS = (list, collections.abc.Sequence)
DICTS = (dict, collections.abc.Mapping)
"""Annotations that YAML lists and mappings convert to, apart from tuples."""

WRITTEN: Mapping[type, type] = {Spec: WrittenSpec, ModelSpec: WrittenModel}
"""The shape in which these are written, whose keys errors name."""

LARGEST_WHOLE = 2**63 - 1
"""Largest whole number of a spec: YAML and JSON have longer ones, which neither torch nor a float can hold."""
_NULLS = ("null", "~", "Null", "NULL", "")
_EMPTY: Mapping[Any, str] = {list: "it to []", dict: "it to {}"}
"""How to switch off a key that holds a list or a mapping and is empty by default."""


class Text(str):
    """Text that was typed after `--key=`. The annotation decides its type later: `7` may be a number, or a name."""


def convert(value: Any, annotation: Any, key: str) -> Any:
    """Return `value` as the annotation says; mappings become dataclasses.

    Raise a SpecError that names the dotted `key`.
    """
    if isinstance(value, Text):
        return _convert_text(value, annotation, key)
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return settle(value)
    if is_union(annotation):
        return _convert_union(value, inner, annotation, key)
    if origin is Literal:
        return _convert_choice(value, inner, annotation, key)
    if annotation is Slot:
        return _convert_slot(value, key)
    if dataclasses.is_dataclass(annotation):
        return _convert_fields(value, cast(type, annotation), key)
    if annotation in LISTS or origin in LISTS:
        return [convert(v, inner[0] if inner else Any, f"{key}[{i}]") for i, v in enumerate(_expect(value, list, annotation, key))]
    if annotation is tuple or origin is tuple:
        return _convert_tuple(value, inner, annotation, key)
    if annotation in DICTS or origin in DICTS:
        of_key, of_value = inner or (str, Any)
        pairs = _expect(value, dict, annotation, key).items()
        return {convert(k, of_key, f"a key of {key}"): convert(v, of_value, join(key, str(k))) for k, v in pairs}
    if annotation is None or annotation is type(None):
        return _expect(value, type(None), annotation, key)
    return str(_expect(value, str, annotation, key)) if annotation is str else _convert_scalar(value, annotation, key)


def _convert_text(text: Text, annotation: Any, key: str) -> Any:
    try:
        value = yaml_text.parse(text, key)
    except SpecError:
        value = str(text)
    if isinstance(value, str):
        return convert(str(text), annotation, key)
    try:
        return convert(value, annotation, key)
    except SpecError as error:
        try:
            return convert(str(text), annotation, key)
        except SpecError:
            raise error from None


def _convert_union(value: Any, members: tuple[Any, ...], annotation: Any, key: str) -> Any:
    rest = [member for member in members if member is not type(None)]
    if value is None and len(rest) < len(members):
        return None
    if len(rest) == 1:
        return convert(value, rest[0], key) if value is not None else _expect(value, (), annotation, key)
    for member in rest:
        try:
            return convert(value, member, key)
        except SpecError:
            continue
    raise wrong(value, annotation, key)


def _convert_choice(value: Any, choices: tuple[Any, ...], annotation: Any, key: str) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:  # for Python, True is 1
            return choice
    raise wrong(value, annotation, key)


def _convert_slot(value: Any, key: str) -> Slot:
    """Return the slot of a short name or {class_path, init_args}; the arguments stay as they are until their plugin is
    known.
    """
    if isinstance(value, str):
        value = {"class_path": value}
    tree = _expect(value, dict, Slot, key)
    _check_keys(tree, Slot, key)
    arguments = tree.get("init_args")
    names = _expect({} if arguments is None else arguments, dict, dict[str, Any], join(key, "init_args"))
    for name in names:
        _expect(name, str, str, f"a key of {key}.init_args")
    return Slot(convert(tree["class_path"], str, join(key, "class_path")), dict(names))


def _convert_fields(value: Any, of: type, key: str) -> Any:
    tree = _expect(value, dict, of, key)
    _check_keys(tree, of, key)
    hints = field_types(of)
    fields = {field.name: field for field in dataclasses.fields(of)}
    return of(**{name: _convert_field(item, hints[name], join(key, name), fields[name]) for name, item in tree.items()})


def _convert_field(value: Any, annotation: Any, key: str, field: dataclasses.Field[Any]) -> Any:
    """Convert a value; if null is refused, the error says what switches the key off instead."""
    try:
        return convert(value, annotation, key)
    except SpecError as error:
        is_null = value is None or (isinstance(value, Text) and value in _NULLS)
        off = field.metadata.get("off") or _EMPTY.get(field.default_factory)
        if is_null and off is not None:
            raise SpecError(f"{error}. To switch it off, set {off}") from error
        raise


def _check_keys(tree: Mapping[Any, Any], of: type, key: str) -> None:
    known = field_types(of)
    for name in tree:
        if name not in known:
            raise unknown_key(str(name), field_types(WRITTEN.get(of, of)), key)
    fields = dataclasses.fields(cast(Any, of))
    required = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [join(key, name) for name in required if name not in tree]
    if missing:
        verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
        raise SpecError(f"{listed(missing)} {verb} missing. Add {them} to the spec")


def _convert_tuple(value: Any, inner: tuple[Any, ...], annotation: Any, key: str) -> tuple[Any, ...]:
    items = _expect(list(value) if isinstance(value, tuple) else value, list, annotation, key)
    each = inner or (Any, ...)
    if each[-1] is ...:
        each = (each[0],) * len(items)
    if len(items) != len(each):
        raise wrong(value, annotation, key)
    return tuple(convert(item, kind, f"{key}[{i}]") for i, (item, kind) in enumerate(zip(items, each, strict=True)))


def _convert_scalar(value: Any, annotation: Any, key: str) -> Any:
    if type(value) is int and annotation is int and abs(value) > LARGEST_WHOLE:
        raise SpecError(f"{key} is {shown(value)}; expected a whole number of at most {LARGEST_WHOLE:,}")
    if annotation in (bool, int, float) and type(value) is annotation:
        return value  # a list may hold a hundred thousand of them, and each would need a parser

    from jsonargparse import ArgumentError

    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return annotation(_expect(value, str, annotation, key))
    number = isinstance(annotation, type) and issubclass(annotation, (int, float)) and not issubclass(annotation, Enum)
    if value is None or isinstance(value, (dict, list)) or (number and isinstance(value, str)):
        raise wrong(value, annotation, key)
    try:
        return _scalar_parser(annotation).parse_object({"value": value}).value
    except (ArgumentError, OverflowError) as error:
        raise wrong(value, annotation, key) from error


@functools.cache
def _scalar_parser(annotation: Any) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    return parser


def settle(value: Any) -> Any:
    """Read typed text within plain data as YAML, as is done without an annotation."""
    if isinstance(value, Text):
        try:
            read = yaml_text.parse(value, "value")
        except SpecError:
            return str(value)
        return str(value) if isinstance(read, str) else read
    if isinstance(value, Mapping):
        return {name: settle(item) for name, item in value.items()}
    return [settle(item) for item in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Return a converted value as dicts, lists, text, numbers and None, from which `convert` makes the same value
    again.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    for base in (bool, int, float, str):
        if isinstance(value, base):
            return base(value)
    return value


def not_data(annotation: Any) -> str | None:
    """Return the part of an annotation that no YAML value can be, or None if all of it is data."""
    inner = [a for a in get_args(annotation) if a is not ...]
    origin = get_origin(annotation)
    if annotation in (Any, None) or origin is Literal:
        return None
    if is_union(annotation) or origin in (*LISTS, *DICTS, tuple):
        return next((bad for a in inner if (bad := not_data(a))), None)
    if not isinstance(annotation, type):
        return type_name(annotation)
    if dataclasses.is_dataclass(annotation):
        return next((bad for hint in field_types(annotation).values() if (bad := not_data(hint))), None)
    scalar = issubclass(annotation, (int, float, str, Enum, PurePath, type(None)))
    return None if scalar or annotation in (*LISTS, *DICTS, tuple) else type_name(annotation)


@functools.cache
def field_types(of: type) -> dict[str, Any]:
    """Return the annotations of a dataclass by field name."""
    hints = get_type_hints(of)
    return {field.name: hints[field.name] for field in dataclasses.fields(cast(Any, of))}


def is_union(annotation: Any) -> bool:
    """Return whether the annotation is `A | B` or Union[A, B]."""
    return get_origin(annotation) in (Union, types.UnionType)


def without_none(annotation: Any) -> Any:
    """Return T of `T | None`; other annotations as they are."""
    rest = [a for a in get_args(annotation) if a is not type(None)]
    return rest[0] if is_union(annotation) and len(rest) == 1 else annotation


def join(key: str, name: str) -> str:
    """Append a name to a dotted key."""
    return f"{key}.{name}" if key else name


_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    Slot: ("the name of a plugin, or class_path and init_args", "names of plugins, or class_path and init_args"),
}
"""Annotation → how an error names one value, and several."""


def type_name(annotation: Any) -> str:
    """Return an annotation in words that a user of YAML knows."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if is_union(annotation):
        return " or ".join(type_name(a) for a in inner)
    if origin is Literal:
        return f"one of {', '.join(str(a) for a in inner)}"
    if annotation is Slot:
        return "the name of a plugin, or class_path and init_args"
    if dataclasses.is_dataclass(annotation):
        return f"a mapping with {', '.join(field_types(cast(type, annotation)))}"
    if origin is tuple:
        each = type_name(inner[0]) if inner[-1] is ... else ", ".join(type_name(a) for a in inner)
        return f"a list of {each}"
    if origin in LISTS:
        return f"a list of {type_name(inner[0])}"
    if origin in DICTS:
        return f"a mapping of {type_name(inner[0])} to {type_name(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return f"one of {', '.join(annotation.__members__)}"
    known = {Any: "anything", None: "null", type(None): "null", list: "a list", tuple: "a list", dict: "a mapping"}
    return known.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _in_words(annotation: Any, *, many: bool = False) -> str:
    """Return an annotation as a sentence would name a value of it, or many values."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation][many]
    if is_union(annotation):
        return " or ".join(_in_words(member, many=many) for member in inner)
    if origin is tuple and inner[-1] is not ... and len(set(inner)) == 1:
        return f"{'lists' if many else 'a list'} of {len(inner)} {_in_words(inner[0], many=True)}"
    if origin in (tuple, *LISTS):
        return f"{'lists' if many else 'a list'} of {_in_words(inner[0], many=True)}"
    if origin in DICTS:
        of = "names" if inner[0] is str else _in_words(inner[0], many=True)
        return f"{'mappings' if many else 'a mapping'} of {of} to {_in_words(inner[1], many=True)}"
    return type_name(annotation)


def wrong(value: Any, annotation: Any, key: str) -> SpecError:
    """Return an error that says what was given and what was expected."""
    given = shown(plain(value))
    near = did_you_mean(value, map(str, get_args(annotation))) if isinstance(value, str) and get_origin(annotation) is Literal else ""
    return SpecError(f"{key or 'the spec'} is {given}; expected {_in_words(annotation)}{'.' + near if near else ''}")


def unknown_key(name: str, known: Sequence[str] | Mapping[str, Any], key: str) -> SpecError:
    """Return an error that says that a key does not exist, and which keys do."""
    near = did_you_mean(name, known)
    return SpecError(f"unknown key '{join(key, name)}'.{near} {f'Keys of {key!r}' if key else 'Keys'}: {', '.join(known)}")


def _expect(value: Any, of: type | tuple[type, ...], annotation: Any, key: str) -> Any:
    if not isinstance(value, of):
        raise wrong(value, annotation, key)
    return value
