"""The arguments of a plugin's constructor, and the clauses of the contract that let a spec set them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Collection
from typing import Any, get_type_hints

from soundomni.core.errors import SpecError
from soundomni.core.spec.values import convert, not_data, plain

REQUIRED = inspect.Parameter.empty
"""Stands for the default of an argument that does not have one."""

_DESCRIBED = re.compile(r"^ {4}(\w[\w, ]*): (.*(?:\n {8,}.*)*)", re.MULTILINE)


class ClauseError(Exception):
    """A constructor breaks a clause of the contract. Plugin errors say whose constructor it is."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument that a spec may set.

    Args:
        name: keyword.
        annotation: its type, resolved.
        default: its default as plain data; REQUIRED without one.
    """

    name: str
    annotation: Any
    default: Any = REQUIRED

    @property
    def required(self) -> bool:
        """Whether a spec must set it."""
        return self.default is REQUIRED


def spec_arguments(cls: type, contract: type, runtime: Collection[str]) -> tuple[Argument, ...]:
    """Return the arguments of a plugin's constructor that a spec may set, in the order of its signature.

    Args:
        cls: the plugin.
        contract: the abstract class of its kind; a constructor inherited from it or its bases does not take arguments.
        runtime: names of the arguments that the assembly passes.

    Raise ClauseError if the constructor takes *args or **kwargs, if an argument has no annotation, a type that YAML
    cannot express or a default of another type, or if a runtime argument is missing.
    """
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    init: Any = vars(owner)["__init__"]
    parameters = [] if owner in contract.__mro__ else list(inspect.signature(init).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ClauseError(f"its constructor takes '{parameter}'; plugins declare every argument by name")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ClauseError(f"its constructor takes '{parameter.name}' by position only; plugins take arguments by keyword")
        if parameter.annotation is parameter.empty:
            raise ClauseError(f"its constructor's argument '{parameter.name}' has no type; plugins annotate every argument")
    absent = [name for name in runtime if name not in {p.name for p in parameters}]
    if absent:
        raise ClauseError(f"its constructor lacks '{absent[0]}', which the assembly passes to every plugin of this kind")
    return tuple(_argument(p, owner) for p in parameters if p.name not in runtime)


def argument_texts(cls: type) -> dict[str, str]:
    """Return what the Args section of a class's docstring says about each name; names that share a line share its text.

    Names that its own docstring does not mention are described by the nearest base that does.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("\nArgs:\n")
        described = _DESCRIBED.findall(section.partition("\n\n")[0])
        texts |= {name: " ".join(text.split()) for names, text in described for name in names.split(", ")}
    return texts


def _argument(parameter: inspect.Parameter, owner: type) -> Argument:
    name = parameter.name
    # The hints are resolved one by one: only type checkers may be able to import those of runtime arguments.
    holder = type("Hints", (), {"__annotations__": {name: parameter.annotation}})
    try:
        init: Any = vars(owner)["__init__"]
        annotation = get_type_hints(holder, globalns=getattr(inspect.unwrap(init), "__globals__", {}), include_extras=True)[name]
    except Exception as error:  # evaluating an annotation runs the plugin's own expression
        raise ClauseError(f"the type of its argument '{name}' cannot be resolved: {error}") from error
    bad = not_data(annotation)
    if bad is not None:
        raise ClauseError(f"its argument '{name}' has the type {bad}; expected plain data that YAML can hold")
    if parameter.default is parameter.empty:
        return Argument(name, annotation)
    default = plain(_default(parameter, owner))
    try:
        convert(default, annotation, "default")
    except SpecError as error:
        raise ClauseError(f"the default of its argument '{name}' is not of its type: {error}") from error
    return Argument(name, annotation, default)


def _default(parameter: inspect.Parameter, owner: type) -> Any:
    if dataclasses.is_dataclass(owner):
        field = {f.name: f for f in dataclasses.fields(owner)}.get(parameter.name)
        if field is not None and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
    return parameter.default
