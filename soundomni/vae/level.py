"""How loud a frame is, as a number of a latent: decibels on a scale that silence ends."""

from __future__ import annotations

from torch import Tensor

FLOOR_DB = -70.0
"""Below this RMS everything has the lowest level."""
CENTRE_DB, DB_PER_UNIT = -40.0, 3.0
"""Levels are (decibels - CENTRE_DB) / DB_PER_UNIT: from -10 in silence to 13 of white noise at full scale."""
FLOOR = 10.0 ** (FLOOR_DB / 20.0)
LOWEST = (FLOOR_DB - CENTRE_DB) / DB_PER_UNIT
MARGIN = 1e-3
"""Levels within this of the lowest are of frames that may have nothing to hear."""


def to_level(size: Tensor) -> Tensor:
    """Map RMS, full scale being 1, to level, at least LOWEST."""
    return (20.0 * size.clamp_min(FLOOR).log10() - CENTRE_DB) / DB_PER_UNIT


def from_level(level: Tensor) -> Tensor:
    """Map level to RMS."""
    size: Tensor = 10.0 ** ((level * DB_PER_UNIT + CENTRE_DB) / 20.0)
    return size
