"""Checks of a config.json's values that a codec cannot vary, or that follow from others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from soundomni.core.errors import SpecError, shown


def check_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any], codec: str) -> None:
    """Raise SpecError if one of `values` differs from that in `fixed`, the only one that the codec has."""
    for name, expected in fixed.items():
        if values.get(name, expected) != expected:
            raise SpecError(f"{name} is {shown(values[name])}; expected {expected!r}, the only value that the codec {codec} has")


def check_implied(implied: Mapping[str, tuple[Any, Any]], sources: str) -> None:
    """Raise SpecError if a value is given that does not follow from its sources.

    Args:
        implied: name → what is given, or None, and what is expected.
        sources: names of the values that the expected ones follow from, for the error.
    """
    for name, (given, expected) in implied.items():
        if given is not None and given != expected:
            raise SpecError(f"{name} is {shown(given)}; expected {shown(expected)}, to agree with {sources}")
