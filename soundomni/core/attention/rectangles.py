"""Cut the allowed pairs of a batch into rectangles that a flash kernel computes exactly, without a mask.

A full or noise segment is one rectangle: its queries see the visible (that is, non-noise) tokens before it and itself.
Causal tokens with only causal or noise segments before them form one causal rectangle, because nothing sees the noise
between them. Causal tokens after a full segment need two: the causal one among themselves and a full one over
everything visible before. Only these are merged.

Shape letters: G segments, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from soundomni.core.sequence import Attend, SegmentTable


@dataclass(frozen=True)
class Rectangle:
    """Queries that all see the same keys, or, if causal, the keys up to themselves: the queries are then the last keys, and in
    `Rectangles` all of them.

    Args:
        query, key: int64, ascending tokens, or their places in stored tensors; never empty.
        causal: whether query i sees only the first i + 1 keys.
    """

    query: np.ndarray
    key: np.ndarray
    causal: bool = False


@dataclass
class Rectangles:
    """The rectangles of a batch.

    Args:
        first: every token is a query of exactly one of these, or, if it sees nothing, of none.
        second: a token may be a query of one more of these; none of them is causal.
    """

    first: list[Rectangle] = field(default_factory=list)
    second: list[Rectangle] = field(default_factory=list)

    def at(self, places: np.ndarray) -> Rectangles:
        """Return the same rectangles with the place of each token, of int64 `[N]`, instead of the token."""

        def moved(rectangles: list[Rectangle]) -> list[Rectangle]:
            return [Rectangle(places[one.query], places[one.key], one.causal) for one in rectangles]

        return Rectangles(moved(self.first), moved(self.second))


def cut_rectangles(table: SegmentTable) -> Rectangles:
    """Return rectangles that cover every allowed pair of the batch exactly once."""
    found = Rectangles()
    edges = np.flatnonzero(np.diff(table.document, prepend=-1, append=-1))
    for first, last in pairwise(edges):
        _cut_document(table, range(int(first), int(last)), found)
    return found


def _cut_document(table: SegmentTable, rows: range, found: Rectangles) -> None:
    context: list[np.ndarray] = []  # visible tokens before the current run of causal tokens
    run: list[np.ndarray] = []
    for row in rows:
        start, length = int(table.start[row]), int(table.length[row])
        if length == 0:
            continue
        tokens = np.arange(start, start + length)
        if table.attend[row] == Attend.CAUSAL:
            run.append(tokens)
            continue
        found.first.append(Rectangle(tokens, np.concatenate([*context, *run, tokens])))
        if table.attend[row] == Attend.FULL:
            _close_run(context, run, found)
            context += [*run, tokens]
            run = []
    _close_run(context, run, found)


def _close_run(context: list[np.ndarray], run: list[np.ndarray], found: Rectangles) -> None:
    if not run:
        return
    tokens = np.concatenate(run)
    found.first.append(Rectangle(tokens, tokens, causal=True))
    if context:
        found.second.append(Rectangle(tokens, np.concatenate(context)))
