"""Heun's method, second order: Euler's step, corrected by the slope at its end (Karras et al. 2022, algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from soundomni.core.interfaces import Predict
from soundomni.core.representation import Representation
from soundomni.flow.one_step import OneStepSampler
from soundomni.flow.timestep_schedule import predict_at


class HeunSampler(OneStepSampler):
    """Heun's method: the mean of the slopes at both ends of a step.

    The last step, which ends at t = 0, is Euler's; the order is still two.
    """

    def num_evaluations(self, start: Representation) -> int:
        """Two per step, one in the last."""
        return 2 * self.num_steps - 1

    def step(self, predict: Predict, values: Tensor, timestep: float, next_timestep: float) -> Tensor:
        """Advance `values` `[B, D, T]` by one step."""
        width = next_timestep - timestep
        slope = predict_at(predict, values, timestep)
        end = values + width * slope
        if next_timestep == 0.0:
            return end
        return values + width / 2 * (slope + predict_at(predict, end, next_timestep))
