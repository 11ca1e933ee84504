"""Ralston's method, the two-stage second-order Runge-Kutta method with the smallest error bound (Ralston 1962).

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Predict, Sampler
from soundomni.core.representation import Representation
from torch import Tensor


class RalstonSampler(Sampler):
    """Combines a quarter of the slope at the start of a step and three quarters of the slope two thirds into it.

    Args:
        num_steps: number of steps from noise to values, evenly spaced.

    Raises:
        SpecError: num_steps is below 1.
    """

    def __init__(self, *, num_steps: int = 16) -> None:
        if num_steps < 1:
            raise SpecError(f"num_steps is {num_steps}; expected at least 1")
        self.num_steps = num_steps

    def num_evaluations(self, start: Representation) -> int:
        """Two per step."""
        return 2 * self.num_steps

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator],
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Representation:
        """Integrate values `[B, D, T]` from timestep `begin` to 0; draws nothing."""
        values, width = start.values, -begin / self.num_steps
        for step in range(self.num_steps):
            time = begin * (1.0 - step / self.num_steps)
            slope = predict(values, _times(values, time))
            late = predict(values + 2 / 3 * width * slope, _times(values, time + 2 / 3 * width))
            values = values + width * (slope / 4 + 3 / 4 * late)
            if on_step is not None:
                on_step(step, values)
        return start.with_values(values)


def _times(values: Tensor, time: float) -> Tensor:
    """Return one timestep for every clip, in at least float32 whatever the values are."""
    return torch.full((len(values),), time, dtype=torch.promote_types(values.dtype, torch.float32), device=values.device)
