"""Leaving out clips that are too short or too long."""

from __future__ import annotations

import math

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Filter, Item


class Length(Filter):
    """Leaves out clips outside a range of lengths.

    `max_seconds` of a dataset cuts long clips instead.

    Args:
        least: shortest clip in seconds.
        most: longest clip in seconds; null for no limit.

    Raise SpecError for a range that is out of order or below 0.
    """

    def __init__(self, *, least: float = 0.0, most: float | None = None) -> None:
        if not 0.0 <= least < math.inf or (most is not None and not least <= most < math.inf):
            highest = "null" if most is None else f"{most:g}"
            raise SpecError(f"length: least is {least:g} and most is {highest}; expected seconds of 0 or more, least not above most")
        self.least, self.most = least, most

    def describe(self, item: Item) -> Item | str:
        """Return the item, or the reason that it is too short or too long."""
        seconds = item.num_samples / item.sample_rate
        if seconds < self.least:
            return f"it lasts {seconds:.4g} s; expected at least {self.least:g} s"
        if self.most is not None and seconds > self.most:
            return f"it lasts {seconds:.4g} s; expected at most {self.most:g} s"
        return item
