"""The classical Runge-Kutta method, fourth order (Hairer, Nørsett and Wanner 1993, section II.1, Kutta 1901)."""

from __future__ import annotations

from torch import Tensor

from soundomni.core.interfaces import Predict
from soundomni.core.representation import Representation
from soundomni.flow.one_step import OneStepSampler
from soundomni.flow.timestep_schedule import predict_at


class RK4Sampler(OneStepSampler):
    """Uses four slopes per step. The last step, which ends at t = 0, uses Heun's third-order method, whose three slopes
    all lie before its end: its error in that one step is of fourth order, so the order of the whole method is still
    four."""

    def num_evaluations(self, start: Representation) -> int:
        """Four per step, three in the last."""
        return 4 * self.num_steps - 1

    def step(self, predict: Predict, values: Tensor, timestep: float, next_timestep: float) -> Tensor:
        """Advance `values` `[B, D, T]` by one step."""
        width = next_timestep - timestep
        first = predict_at(predict, values, timestep)
        if next_timestep == 0.0:
            second = predict_at(predict, values + width / 3 * first, timestep + width / 3)
            third = predict_at(predict, values + width * 2 / 3 * second, timestep + width * 2 / 3)
            return values + width / 4 * (first + 3 * third)
        second = predict_at(predict, values + width / 2 * first, timestep + width / 2)
        third = predict_at(predict, values + width / 2 * second, timestep + width / 2)
        fourth = predict_at(predict, values + width * third, next_timestep)
        return values + width / 6 * (first + 2 * second + 2 * third + fourth)
