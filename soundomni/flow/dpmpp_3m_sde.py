"""SDE-DPM-Solver++ with three predictions, as k-diffusion's sample_dpmpp_3m_sde, the sampler of Stable Audio Open 1.0.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from soundomni.flow.data_sampler import Estimate
from soundomni.flow.dpmpp import decay, fresh_noise
from soundomni.flow.noise_schedules import log_snr
from soundomni.flow.sde_sampler import SDESampler


class DPMpp3MSDESampler(SDESampler):
    """Extrapolates the data over λ from the last three predictions, and replaces part of the noise by fresh noise.

    The default of stable-audio-tools for diffusion models. Its defaults here are those of Stable Audio Open 1.0.
    """

    memory: ClassVar[int] = 3

    def step(self, values: Tensor, estimates: Sequence[Estimate], next_timestep: float) -> tuple[Tensor, float]:
        """Advance `values` `[B, D, T]` by one step, and return how much fresh noise to add."""
        timestep, data = estimates[0]
        if next_timestep == 0.0:
            return data, 0.0
        width = log_snr(next_timestep) - log_snr(timestep)
        grown = (1.0 + self.eta) * width  # how much the exponential solution decays in this step
        moved = decay(timestep, next_timestep, self.eta) * values - (1.0 - next_timestep) * math.expm1(-grown) * data
        if len(estimates) > 1:
            second = math.expm1(-grown) / grown + 1.0
            slope, bend = _derivatives(estimates)
            change = second * width * slope
            if bend is not None:
                change = change - (second / grown - 0.5) * width**2 * bend
            moved = moved + (1.0 - next_timestep) * change
        return moved, self.s_noise * fresh_noise(timestep, next_timestep, self.eta)


def _derivatives(estimates: Sequence[Estimate]) -> tuple[Tensor, Tensor | None]:
    """Return the slope `[B, D, T]` over λ of the data at the latest of two or three estimates, and with three their second
    divided difference. An estimate at t = 1 lies infinitely far back and does not change them.
    """
    places = [log_snr(estimate.timestep) for estimate in estimates]
    slope = (estimates[0].data - estimates[1].data) / (places[0] - places[1])
    if len(estimates) < 3:
        return slope, None
    before = (estimates[1].data - estimates[2].data) / (places[1] - places[2])
    bend = (slope - before) / (places[0] - places[2])
    return slope + bend * (places[0] - places[1]), bend
