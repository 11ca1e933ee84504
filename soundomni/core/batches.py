"""Cutting a sequence into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield `size` items at a time; the last batch may be smaller.

    >>> list(batches([3, 4, 5], 2))
    [[3, 4], [5]]
    """
    for first in range(0, len(items), size):
        yield items[first : first + size]
