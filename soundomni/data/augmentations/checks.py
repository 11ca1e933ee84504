"""Checks of the probabilities and ranges that augmentations draw from."""

from __future__ import annotations

import math

from soundomni.core.errors import SpecError


def check_probability(name: str, probability: float) -> None:
    """Raise SpecError unless the probability is from 0 to 1."""
    if not 0.0 <= probability <= 1.0:
        raise SpecError(f"{name}: probability is {probability:g}; expected a number from 0 to 1")


def check_range(name: str, argument: str, bounds: tuple[float, float], *, least: float, most: float) -> None:
    """Raise SpecError unless both bounds are from `least` to `most`, the smaller one first."""
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and least <= low <= high <= most):
        raise SpecError(
            f"{name}: {argument} is [{low:g}, {high:g}]; expected two numbers from {least:g} to {most:g}, the smaller one first"
        )
