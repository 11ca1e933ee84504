"""The explicit midpoint method, second order (Hairer, Nørsett and Wanner 1993, section II.1, Runge 1895)."""

from __future__ import annotations

from torch import Tensor

from soundomni.core.interfaces import Predict
from soundomni.core.representation import Representation
from soundomni.flow.one_step import OneStepSampler
from soundomni.flow.timestep_schedule import predict_at


class MidpointSampler(OneStepSampler):
    """Uses the slope in the middle of a step, where Euler's half step leads."""

    def num_evaluations(self, start: Representation) -> int:
        """Two per step."""
        return 2 * self.num_steps

    def step(self, predict: Predict, values: Tensor, timestep: float, next_timestep: float) -> Tensor:
        """Advance `values` `[B, D, T]` by one step."""
        width = next_timestep - timestep
        middle = values + width / 2 * predict_at(predict, values, timestep)
        return values + width * predict_at(predict, middle, timestep + width / 2)
