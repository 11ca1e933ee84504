"""Loudness of a frame as a latent number: decibels on a scale that ends at silence."""

from __future__ import annotations

from torch import Tensor

FLOOR_DB = -70.0
"""RMS below which every frame has the lowest level."""
CENTER_DB, DB_PER_UNIT = -40.0, 3.0
"""Levels are (decibels - CENTER_DB) / DB_PER_UNIT: from -10 in silence to 13 of white noise at full scale."""
FLOOR = 10.0 ** (FLOOR_DB / 20.0)
LOWEST = (FLOOR_DB - CENTER_DB) / DB_PER_UNIT
MARGIN = 1e-3
"""Levels this close to the lowest belong to frames that may be inaudible."""


def to_level(size: Tensor) -> Tensor:
    """Map RMS, with full scale at 1, to level, at least LOWEST."""
    return (20.0 * size.clamp_min(FLOOR).log10() - CENTER_DB) / DB_PER_UNIT


def from_level(level: Tensor) -> Tensor:
    """Map level to RMS."""
    size: Tensor = 10.0 ** ((level * DB_PER_UNIT + CENTER_DB) / 20.0)
    return size
