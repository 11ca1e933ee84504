"""Cutting a sequence into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def batches(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield `size` places at a time; the last batch may be smaller.

    >>> list(batches([3, 4, 5], 2))
    [[3, 4], [5]]
    """
    for first in range(0, len(places), size):
        yield places[first : first + size]
