"""Errors of argparse, in the form that all errors have: what was given, what was expected, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable

from soundomni.core.errors import did_you_mean, listed

_KINDS = {"int": "a whole number", "float": "a number"}


def in_our_form(message: str) -> str:
    """Return an error of argparse in our form; one that is not known, as it is.

    >>> in_our_form("argument --batch: invalid int value: 'two'")
    "--batch is 'two'; expected a whole number"
    >>> in_our_form("argument --dtype: invalid choice: 'float' (choose from 'float32', 'float16')")
    "--dtype is 'float'; expected one of float32, float16. Did you mean 'float32'?"
    """
    for pattern, rewritten in _FORMS:
        found = re.fullmatch(pattern, message, flags=re.DOTALL)
        if found is not None:
            return rewritten(found)
    return message


def _wrong_type(found: re.Match[str]) -> str:
    return f"{found['name']} is {found['value']}; expected {_KINDS.get(found['kind'], found['kind'])}"


def _wrong_choice(found: re.Match[str]) -> str:
    choices = [choice.strip("'\"") for choice in found["choices"].split(", ")]
    name = "the action" if _is_placeholder(found["name"]) else found["name"]
    near = did_you_mean(found["value"].strip("'\""), choices)
    return f"{name} is {found['value']}; expected one of {', '.join(choices)}" + (f".{near}" if near else "")


def _missing(found: re.Match[str]) -> str:
    names = found["names"]
    if _is_placeholder(names):
        return f"the action is missing; expected one of {', '.join(names.split('|'))}"
    return f"{listed(names.split(', '))} {'are' if ', ' in names else 'is'} missing"


def _is_placeholder(name: str) -> bool:
    """Return whether a name lists the actions of a command, as `validate|print`."""
    return "|" in name


_FORMS: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"argument (?P<name>.+?): invalid (?P<kind>\w+) value: (?P<value>.+)", _wrong_type),
    (r"argument (?P<name>.+?): invalid choice: (?P<value>.+?) \(choose from (?P<choices>.+)\)", _wrong_choice),
    (r"the following arguments are required: (?P<names>.+)", _missing),
    (r"one of the arguments (?P<names>.+) is required", lambda found: f"{' or '.join(found['names'].split())} is missing"),
    (
        r"argument (?P<name>.+?): not allowed with argument (?P<other>.+)",
        lambda found: f"{found['name']} and {found['other']} exclude each other. Give only one of them",
    ),
    (r"argument (?P<name>.+?): expected one argument", lambda found: f"{found['name']} needs a value"),
    (r"argument (?P<name>.+?): expected at least one argument", lambda found: f"{found['name']} needs at least one value"),
    (
        r"unrecognized arguments: (?P<names>.+)",
        lambda found: f"unexpected argument{'s' if ' ' in found['names'] else ''} '{found['names']}'",
    ),
    (r"argument (?P<name>.+?): (?P<message>.+; expected .+)", lambda found: f"{found['name']} is {found['message']}"),
)
"""Pattern of argparse → our form. The last one is for the project's own converters, which raise `VALUE; expected …`."""
