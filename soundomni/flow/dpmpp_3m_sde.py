"""SDE-DPM-Solver++ with three predictions, as k-diffusion's sample_dpmpp_3m_sde, the sampler of Stable Audio Open 1.0.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.representation import Representation
from soundomni.flow.brownian_noise import BrownianNoise, FreshNoise, check_noise
from soundomni.flow.data_sampler import DataSampler, Estimate, FreshDraws, check_noise_share
from soundomni.flow.dpmpp import decay, fresh_noise
from soundomni.flow.noise_schedules import EXPONENTIAL, NoiseSchedule, log_snr


class DPMpp3MSDESampler(DataSampler):
    """Extrapolates the data over λ from the last three predictions, and replaces part of the noise by fresh noise.

    The default of stable-audio-tools for diffusion models. Its defaults here are those of Stable Audio Open 1.0.

    Args:
        num_steps: number of steps.
        schedule: where the steps lie.
        eta: how fast noise is replaced; 0 for no fresh noise.
        s_noise: factor of the fresh noise.
        noise: "independent" for fresh noise of each step's own, or "brownian" for that of one path, which is the same for any number of
            steps: with more of them, the same clip is solved more exactly. For an eta of 0, or from 0.001 to 4.

    Raises:
        SpecError: a number is out of range.
    """

    memory: ClassVar[int] = 3

    def __init__(
        self,
        *,
        num_steps: int = 100,
        schedule: NoiseSchedule = EXPONENTIAL,
        eta: float = 1.0,
        s_noise: float = 1.0,
        noise: FreshNoise = "independent",
    ) -> None:
        super().__init__(num_steps=num_steps, schedule=schedule)
        self.eta = check_noise_share("eta", eta)
        self.s_noise = check_noise_share("s_noise", s_noise)
        self.noise = check_noise(noise, eta)

    def draws(self, start: Representation, generators: Sequence[torch.Generator]) -> FreshDraws:
        """Return what draws the fresh noise of one run, shaped as `start`."""
        if self.noise == "independent":
            return super().draws(start, generators)
        return BrownianNoise(start.values, start.frame_counts, generators, eta=self.eta).between

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
