"""A score: a number that says how many clips or verdicts it sums up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """A number.

    Args:
        value: a share from 0 to 1, or the value of the metric of this name.
        of: how many clips, answers or attributes it sums up.
        low, high: ends of the 95 % Wilson interval of a share of independent verdicts, one per clip. Shares that take several
            verdicts from one clip have no interval, because those depend on each other.
    """

    value: float
    of: int
    low: float | None = None
    high: float | None = None


Scores = dict[str, Score]
"""Scores by name."""


def share(verdicts: Sequence[bool]) -> Score:
    """Return the share of True among independent verdicts, with its interval."""
    from soundomni.metrics.shares import wilson_interval

    low, high = wilson_interval(sum(verdicts), len(verdicts))
    return Score(mean(verdicts), len(verdicts), low, high)


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    return float(sum(values) / len(values))
