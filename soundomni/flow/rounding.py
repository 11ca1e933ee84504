"""Whole numbers of products: a product that is a whole number may miss it by its rounding."""

from __future__ import annotations

import math

ROUNDING = 1e-9
"""How far from a whole number a product may be, through rounding, and still count as that number."""


def share_of(share: float, count: int) -> int:
    """Return a share of a number, rounded up.

    >>> share_of(0.07, 100), share_of(0.071, 100)
    (7, 8)
    """
    return math.ceil(share * count - ROUNDING)
