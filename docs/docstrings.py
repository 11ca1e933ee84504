"""Docstrings as the site reads them: a doctest becomes an "Examples" section, and names that share a line of "Args" a line each."""

from __future__ import annotations

import re
from typing import Any

import griffe

_DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^\S.*\n?)*)+", re.MULTILINE)
_SHARED = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed as Google style."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """Returns a docstring as Google style has it."""
    shared = _SHARED.sub(lambda match: "\n".join(f"    {name}: {match[2]}" for name in match[1].split(", ")), text)
    return _DOCTEST.sub(lambda match: "Examples:\n" + "\n".join(f"    {line}" for line in match[0].splitlines()) + "\n", shared)
