"""What a velocity says about the clean values, on the path of any objective that mixes a clip and noise.

Shape letters: R rows, D latent dimensions, T frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from soundomni.core.interfaces import Objective

_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class PathPoint:
    """A point of a path: x_t = a·x0 + b·ε, with the velocity a'·x0 + b'·ε.

    Args:
        a, b: shares of the clean values and of the noise.
        a_slope, b_slope: change of both with the timestep.
    """

    a: float
    b: float
    a_slope: float
    b_slope: float

    def clean(self, values: Tensor, velocity: Tensor) -> Tensor:
        """Return the clean values, shaped as `values`, that a velocity there stands for: two equations give x0."""
        return (self.b_slope * values - self.b * velocity) / self._determinant

    def velocity_change(self, clean_change: Tensor) -> Tensor:
        """Return how much the velocity changes, at the same values, if the clean values that it stands for change by
        `clean_change`.
        """
        return clean_change * (-self._determinant / self.b)

    @property
    def _determinant(self) -> float:
        return self.a * self.b_slope - self.b * self.a_slope


def path_point(objective: Objective, timestep: float) -> PathPoint:
    """Return the point of an objective's own path, `noised`, at a timestep above 0 and at most 1."""
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)

    def shares(at: float) -> tuple[float, float]:
        return float(objective.noised(one, zero, at)), float(objective.noised(zero, one, at))

    before, after = max(0.0, timestep - _DIFFERENCE), min(1.0, timestep + _DIFFERENCE)
    (a, b), (a_before, b_before), (a_after, b_after) = shares(timestep), shares(before), shares(after)
    width = after - before
    return PathPoint(a, b, (a_after - a_before) / width, (b_after - b_before) / width)


def clean_estimate(objective: Objective, values: Tensor, velocity: Tensor, timestep: float) -> Tensor:
    """Return the clean values that a velocity at x_t stands for, all `[R, D, T]`."""
    return path_point(objective, timestep).clean(values, velocity)
