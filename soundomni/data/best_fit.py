"""Exact best-fit-decreasing packing of a known list of lengths, fast.

Best-fit decreasing (Johnson 1973): longest first, each into the bin with the least space that still fits it. Two facts
let one step place a whole run of equal lengths. A bin of space r that takes one sample of length x is then the best bin
for the next, as long as x fits, so it takes floor(r / x) of them; and all bins of equal space do the same. Each step at
least halves the space of the bins that it changes, so there are O(U log L) steps for U distinct lengths and a budget of
L, however many samples there are.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


class _Bins:
    """Open bins, grouped by their remaining space."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.count = 0
        self._spaces: list[int] = []
        self._bins: dict[int, list[np.ndarray]] = {}

    def put(self, space: int, bins: np.ndarray) -> None:
        """Add bins with `space` left, or drop them if they are full."""
        if space == 0 or not len(bins):
            return
        if space not in self._bins:
            insort(self._spaces, space)
            self._bins[space] = []
        self._bins[space].append(bins)

    def take(self, length: int, num_samples: int) -> tuple[int, np.ndarray]:
        """Remove and return the bins of least space that fits `length`; if none fits, open enough for `num_samples`."""
        place = bisect_left(self._spaces, length)
        if place == len(self._spaces):
            opened = -(-num_samples // (self.budget // length))
            self.count += opened
            return self.budget, np.arange(self.count - opened, self.count)
        space = self._spaces.pop(place)
        return space, np.concatenate(self._bins.pop(space))


def pack_offline(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Pack samples of `lengths`, int `[n]`, and return the bin of each, int64 `[n]`, numbered from 0 as opened.

    Raise ValueError if a length is below 1 or above `budget`.
    """
    lengths = np.asarray(lengths)
    bin_of = np.empty(len(lengths), dtype=np.int64)
    if not len(lengths):
        return bin_of
    if lengths.min() < 1 or lengths.max() > budget:
        raise ValueError(f"lengths are {lengths.min()} to {lengths.max()}; expected 1 to the budget, {budget}")
    # 16-bit keys are sorted by radix
    order = np.argsort((budget - lengths).astype(np.uint16 if budget < 2**16 else np.int64), kind="stable")
    counts = np.bincount(lengths)
    bins, start = _Bins(budget), 0
    placed = np.empty(len(lengths), dtype=np.int64)
    for length in np.flatnonzero(counts)[::-1].tolist():
        end = start + int(counts[length])
        while start < end:
            space, group = bins.take(length, end - start)
            each = space // length
            whole, rest = divmod(min(end - start, each * len(group)), each)
            placed[start : start + whole * each] = np.repeat(group[:whole], each)
            start += whole * each
            placed[start : start + rest] = group[whole : whole + 1]
            start += rest
            bins.put(space - each * length, group[:whole])
            bins.put(space - rest * length, group[whole : whole + 1] if rest else group[:0])
            bins.put(space, group[whole + (rest > 0) :])
    bin_of[order] = placed
    return bin_of
