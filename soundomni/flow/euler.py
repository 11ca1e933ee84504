"""Euler's method, first order: one prediction per step."""

from __future__ import annotations

from torch import Tensor

from soundomni.core.interfaces import Predict
from soundomni.core.representation import Representation
from soundomni.flow.one_step import OneStepSampler
from soundomni.flow.timestep_schedule import predict_at, sampling_timesteps


class EulerSampler(OneStepSampler):
    """Computes x ← x + (t' − t)·v(x, t) in each step."""

    def straight_steps(self) -> tuple[float, ...]:
        """Return the timesteps of all steps."""
        return sampling_timesteps(self.num_steps, self.shift)

    def num_evaluations(self, start: Representation) -> int:
        """One per step."""
        return self.num_steps

    def step(self, predict: Predict, values: Tensor, timestep: float, next_timestep: float) -> Tensor:
        """Advance `values` `[B, D, T]` by one step."""
        return values + (next_timestep - timestep) * predict_at(predict, values, timestep)
