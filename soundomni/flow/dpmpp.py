"""DPM-Solver++(2M), second order with one prediction per step (Lu et al. 2022, algorithm 2), for a rectified flow.

With x_t = (1 − t)·x0 + t·ε the solver's α is 1 − t, its σ is t, half the log signal-to-noise ratio is λ = log((1 − t) /
t), and a velocity v predicts the data x − t·v.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from soundomni.flow.data_sampler import DataSampler, Estimate
from soundomni.flow.noise_schedules import NoiseSchedule, log_snr
from soundomni.flow.timestep_schedule import check_shift


class DPMppSampler(DataSampler):
    """Integrates the linear part exactly, and extrapolates the predicted data from the last two predictions, over λ.

    λ is infinite at both ends. From t = 1 the first two steps cannot look back and the last cannot look ahead, so these
    only use the latest prediction, which makes them Euler's steps. Steps near the ends are never small in λ: over N
    steps evenly spaced in t, the error falls as log(N) / N².

    Args:
        num_steps: number of steps.
        shift: above 1, more of the steps are near the noise.

    Raises:
        SpecError: a number is out of range.
    """

    memory: ClassVar[int] = 2

    def __init__(self, *, num_steps: int = 20, shift: float = 1.0) -> None:
        super().__init__(num_steps=num_steps, schedule=NoiseSchedule(spacing="even", shift=check_shift(shift)))
        self.shift = shift

    def step(self, values: Tensor, estimates: Sequence[Estimate], next_timestep: float) -> tuple[Tensor, float]:
        """Advance `values` `[B, D, T]` by one step, without fresh noise."""
        return second_order_step(values, estimates, next_timestep), 0.0


def second_order_step(values: Tensor, estimates: Sequence[Estimate], next_timestep: float, *, eta: float = 0.0) -> Tensor:
    """Return the values `[B, D, T]` after a step with up to two estimates, without the fresh noise of `fresh_noise`."""
    timestep, data = estimates[0]
    width = log_snr(next_timestep) - log_snr(timestep)
    if len(estimates) > 1 and next_timestep > 0.0:
        before = estimates[1]
        data = data + width / (2 * (log_snr(timestep) - log_snr(before.timestep))) * (data - before.data)
    return decay(timestep, next_timestep, eta) * values - (1.0 - next_timestep) * math.expm1(-width * (1.0 + eta)) * data


def decay(timestep: float, next_timestep: float, eta: float) -> float:
    """Return the share of the values that is left after a step; the rest is data, and noise if `eta` is above 0."""
    left = next_timestep / timestep
    return left * math.exp(eta * (log_snr(timestep) - log_snr(next_timestep))) if eta else left


def fresh_noise(timestep: float, next_timestep: float, eta: float) -> float:
    """Return the standard deviation of the fresh noise that replaces what `decay` took away with `eta`."""
    if not eta or not next_timestep:
        return 0.0
    return next_timestep * math.sqrt(-math.expm1(2.0 * eta * (log_snr(timestep) - log_snr(next_timestep))))
