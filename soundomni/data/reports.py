"""Reports of left-out items, each named once, without flooding the log, and the decision when too many are
unreadable, or none is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from soundomni.core.errors import DataError, none_of
from soundomni.core.interfaces import Skip

logger = logging.getLogger("soundomni.data")

MIN_SEEN = 20
"""Clips that must have been seen before those that are left out may stop a run: one broken file out of five is not a
pattern yet."""

_NAMED = 3  # items named in one line
_KEPT = 100  # items that are remembered


class Reports:
    """Warnings about single items, each key once and at most `limit` keys; all are counted.

    Args:
        what: what happened to them, such as "refused".
        limit: number of keys to name in the log; further ones are only counted.
        kind: kind of the items, see Skip.
        told: groups of items, see Skip, that have been reported already and are only counted.
    """

    def __init__(
        self, what: str, *, limit: int = 20, kind: Literal["unreadable", "unsuitable"] = "unsuitable", told: Collection[str] = ()
    ) -> None:
        self.count = 0
        self._named = 0
        self._told = frozenset(told)
        self._kind = kind
        self._what = what
        self._limit = limit
        self._skips: dict[str, Skip] = {}

    @property
    def skips(self) -> tuple[Skip, ...]:
        """The first 100 different items, in the order in which they were found."""
        return tuple(self._skips.values())

    def add(self, key: str, reason: Callable[[], str], *, group: str = "") -> None:
        """Count an item, and name it unless it was named or its group reported before; only then is its reason put into
        words."""
        self.count += 1
        if key in self._skips or len(self._skips) == _KEPT:
            return
        self._skips[key] = skip = Skip(key, reason(), self._kind, group)
        if group in self._told:
            return
        self._named += 1
        if self._named <= self._limit:
            logger.warning("%s '%s': %s", self._what, key, skip.reason)
        elif self._named == self._limit + 1:
            logger.warning("more items were %s; from here on they are only counted", self._what)


def name_first(skips: Sequence[Skip]) -> str:
    """Return the first three with their reasons, and how many others there are, in one line."""
    more = len(skips) - _NAMED
    return "; ".join(f"{skip.key}: {skip.reason}" for skip in skips[:_NAMED]) + (f"; and {more} more" if more > 0 else "")


def check_skip_limit(unreadable: float, seen: float, *, limit: float, skips: Sequence[Skip]) -> None:
    """Raise DataError if more than the share `limit` of at least MIN_SEEN clips could not be read; `skips` are some of
    them."""
    if unreadable and seen >= MIN_SEEN and unreadable > limit * seen:
        named = f": {name_first(skips)}" if skips else ""
        raise DataError(f"{unreadable:.0f} of {seen:.0f} clips could not be read, more than data.skip_limit = {limit:g} allows{named}")


def check_any_kept(counts: Mapping[str, float], *, skips: Sequence[Skip]) -> None:
    """Raise DataError if at least MIN_SEEN clips were tried, and each of them was rejected or unreadable.

    Args:
        counts: `seen`, `unreadable` and `rejected`, see Step.
        skips: some of the rejected clips.
    """
    seen, unreadable, rejected = (counts.get(name, 0.0) for name in ("seen", "unreadable", "rejected"))
    if rejected and seen >= MIN_SEEN and unreadable + rejected >= seen:
        first = f"; the first, '{skips[0].key}': {skips[0].reason}" if skips else ""
        raise DataError(f"the filters leave out all {rejected:,.0f} clips that were read{first}. Change data.datasets.NAME.filters")


def why_unusable(count: int, noun: str, where: str, skipped: Sequence[Skip]) -> str:
    """Return the error of a dataset without items: what was found, and the first reason."""
    if not count:
        return f"{where} has no {noun}s; expected one for each clip"
    mute = (
        bool(skipped)
        and all(skip.kind in ("no caption", "missing") for skip in skipped)
        and any(skip.kind == "no caption" for skip in skipped)
    )
    if mute:
        cure = "Name the column with captions in fields, or set captions to false to use clips without captions"
        return f"{none_of(count, noun)} in {where} has a caption. {cure}"
    first = f"; the first, '{skipped[0].key}': {skipped[0].reason}" if skipped else ""
    return f"{none_of(count, noun)} in {where} can be used{first}"
