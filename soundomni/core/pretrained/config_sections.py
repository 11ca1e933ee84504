"""Configs of other packages, read section by section: every value is checked, and keys that were never read are reported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from soundomni.core.errors import SpecError, shown
from soundomni.core.limits import check_count
from soundomni.core.spec.values import convert, join, unknown_key

_MISSING = object()


@dataclass(frozen=True)
class Translation:
    """Another package's config, translated into a layer of a spec.

    Args:
        layer: plain data.
        notes: what was assumed or ignored, or works differently here; one sentence each.
    """

    layer: dict[str, Any]
    notes: tuple[str, ...] = ()


class Section:
    """One mapping of a config: returns checked values, and keeps track of keys that were never read."""

    def __init__(self, value: Any, key: str) -> None:
        self.key = key
        self._values: dict[str, Any] = convert(value, dict[str, Any], key)
        self._left = dict.fromkeys(self._values)
        self._asked: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def take(self, name: str, annotation: Any, default: Any = _MISSING) -> Any:
        """Return a value; null counts as absent.

        Raise SpecError if it has another type or a number that is not finite, or is absent and has no default.
        """
        value = self._take(name, annotation, default)
        if name in self:
            _check_finite(value, join(self.key, name))
        return value

    def take_whole(self, name: str, default: Any = _MISSING, *, least: int = 1, most: int, hint: str = "") -> int:
        """Return a whole number. Raise SpecError if it is out of range, with a hint what to do, or as `take` does."""
        try:
            value: int = self._take(name, int, default)
            check_count(join(self.key, name), value, least=least, most=most)
        except SpecError as error:
            raise SpecError(f"{error}. {hint}" if hint else str(error)) from error
        return value

    def _take(self, name: str, annotation: Any, default: Any) -> Any:
        self._left.pop(name, None)
        self._asked[name] = None
        if name in self:
            return convert(self._values[name], annotation, join(self.key, name))
        if default is _MISSING:
            raise SpecError(f"{join(self.key, name)}: missing; it is needed to build the model")
        return default

    def section(self, name: str) -> Section:
        """Return a mapping within this one, or an empty one if it is absent."""
        return Section(self.take(name, dict[str, Any], {}), join(self.key, name))

    def fields(self, of: type) -> Any:
        """Return a dataclass of the values; none may be left over. Raise SpecError as `take` does."""
        for name in self._values:
            self._left.pop(name)
        found = convert(self._values, of, self.key)
        _check_finite(found, self.key)
        return found

    def expect(self, name: str, expected: Any, *, by: str, default: Any = _MISSING) -> None:
        """Raise SpecError unless a value is `expected`, which is all that there is here; `by` says in what."""
        given = self.take(name, type(expected), default)
        if given != expected:
            raise SpecError(f"{join(self.key, name)} is {shown(given)}; expected {expected!r}, the only one that {by} has")

    def ignore(self, reasons: Mapping[str, str]) -> list[str]:
        """Return a sentence about each of these keys that is present; a reason says why the key does not matter
        here."""
        given = [name for name in reasons if name in self]
        for name in reasons:
            self._left.pop(name, None)
            self._asked[name] = None
        return [f"{join(self.key, name)} is ignored: {reasons[name]}" for name in given]

    def close(self, *, unused: Collection[str] = (), others: bool = False) -> list[str]:
        """Return the keys that were never read.

        Raise SpecError for one that is not in `unused`, unless `others` are allowed.
        """
        for name in self._left:
            if name not in unused and not others:
                raise unknown_key(name, [*self._asked, *unused], self.key)
        return [join(self.key, name) for name in self._left]


def _check_finite(value: Any, key: str) -> None:
    """Raise SpecError for a number that is not finite, also in lists and dataclasses; mappings are read as sections."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{key} is {shown(value)}; expected a finite number")
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _check_finite(item, f"{key}[{i}]")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _check_finite(getattr(value, field.name), join(key, field.name))
