"""How certain a share is: the score interval of a binomial proportion."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""Quantile of the normal distribution with 2.5 % above it."""


def wilson_interval(successes: int, count: int, *, z: float = Z_95) -> tuple[float, float]:
    """Return the interval of the share behind `successes` of `count` independent trials (Wilson, JASA 1927); 95 % by
    default.

    Unlike the normal approximation it stays within [0, 1] and keeps its coverage near both ends.

    Raises:
        ValueError: `count` is below 1, or `successes` is not between 0 and `count`.

    >>> [round(end, 3) for end in wilson_interval(190, 200)]
    [0.91, 0.973]
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"{successes} of {count} is not a share; expected 0 to the count, which is at least 1")
    share = successes / count
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low, high = center - half, center + half
    return 0.0 if successes == 0 else low, 1.0 if successes == count else high  # exact there, and rounded past the share otherwise
