"""Streaming packing over a lookahead pool: first in, first out, with the end of each batch filled exactly.

A batch starts with the oldest sample, so that none waits for more than `lookahead` batches. While there is much space,
samples follow in order of arrival. Then the batch is closed with the subset of the pool that leaves the least space: a
subset-sum problem, solved exactly by dynamic programming over sums (Bellman 1957), with all sums of one row held as the
bits of one integer. Samples that fit the budget are never dropped. Unlike best-fit decreasing, this uses up no sizes
first, so the pool stays as varied as the stream.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

CANDIDATES = 256
"""Number of samples, the oldest that fit, among which the closing subset is searched; limits the work per batch."""

_CLOSING = 16  # a batch is closed when about this many samples are missing, or when half of a smaller pool would fill it


class HasLength(Protocol):
    """Anything with a number of tokens."""

    @property
    def length(self) -> int:
        """Number of tokens, at least 1."""
        ...


Item = TypeVar("Item", bound=HasLength)


class StreamPacker(Generic[Item]):
    """Packs a stream into batches of at most `budget` tokens.

    Its whole state is `pool`: a packer made from it and fed with the rest of the stream goes on exactly.

    Args:
        budget: tokens per batch.
        lookahead: number of samples to choose from.
        pool: samples held by an earlier packer, oldest first.
    """

    def __init__(self, *, budget: int, lookahead: int, pool: Iterable[Item] = ()) -> None:
        if budget < 1 or lookahead < 1:
            raise ValueError(f"budget is {budget} and lookahead is {lookahead}; expected at least 1 of both")
        self.budget = budget
        self.lookahead = lookahead
        self._arrivals = 0
        self._tokens = 0
        self._pool: OrderedDict[int, Item] = OrderedDict()
        for item in pool:
            self._add(item)

    @property
    def pool(self) -> tuple[Item, ...]:
        """Samples held, oldest first."""
        return tuple(self._pool.values())

    def next_batch(self, stream: Iterator[Item]) -> list[Item]:
        """Return the next batch, or an empty list once the stream has ended and the pool is empty.

        Raise ValueError if the stream yields a sample that is empty or longer than the budget.
        """
        self._refill(stream)
        batch: list[Item] = []
        space = self.budget
        while self._pool:
            arrival, oldest = next(iter(self._pool.items()))
            if oldest.length > space or (batch and space * max(2.0, len(self._pool) / _CLOSING) <= self._tokens):
                break
            batch.append(self._take(arrival))
            space -= oldest.length
            self._refill(stream)
        fitting = [arrival for arrival, item in self._pool.items() if item.length <= space][:CANDIDATES]
        chosen = best_subset([self._pool[arrival].length for arrival in fitting], space)
        return batch + [self._take(fitting[i]) for i in chosen]

    def _refill(self, stream: Iterator[Item]) -> None:
        while len(self._pool) < self.lookahead and (item := next(stream, None)) is not None:
            self._add(item)

    def _add(self, item: Item) -> None:
        if not 1 <= item.length <= self.budget:
            raise ValueError(f"a sample of {item.length} tokens does not fit a budget of {self.budget}")
        self._pool[self._arrivals] = item
        self._tokens += item.length
        self._arrivals += 1

    def _take(self, arrival: int) -> Item:
        item = self._pool.pop(arrival)
        self._tokens -= item.length
        return item


def best_subset(lengths: Sequence[int], space: int) -> list[int]:
    """Return the ascending indices of a subset of `lengths` with the largest sum of at most `space`; the first ones on
    a tie."""
    within = (1 << (space + 1)) - 1
    sums = 1  # bit s is set if some subset has the sum s
    rows: list[int] = []
    for length in reversed(lengths):
        rows.append(sums)
        sums |= (sums << length) & within
    missing = sums.bit_length() - 1
    chosen: list[int] = []
    for i, length in enumerate(lengths):
        if length <= missing and rows[len(lengths) - 1 - i] >> (missing - length) & 1:
            chosen.append(i)
            missing -= length
    return chosen
