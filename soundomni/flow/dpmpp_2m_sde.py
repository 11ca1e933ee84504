"""SDE-DPM-Solver++(2M) (Lu et al. 2022, section 6), as k-diffusion's sample_dpmpp_2m_sde with its midpoint rule.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.representation import Representation
from soundomni.flow.brownian_noise import BrownianNoise, FreshNoise, check_noise
from soundomni.flow.data_sampler import DataSampler, Estimate, FreshDraws, check_noise_share
from soundomni.flow.dpmpp import fresh_noise, second_order_step
from soundomni.flow.noise_schedules import EXPONENTIAL, NoiseSchedule


class DPMpp2MSDESampler(DataSampler):
    """`dpmpp-2m` that replaces part of the noise by fresh noise in every step but the last.

    It solves the stochastic differential equation instead of the ordinary one, so that errors of early steps fade.

    Args:
        num_steps: number of steps.
        schedule: where the steps lie.
        eta: how fast noise is replaced; 0 makes it `dpmpp-2m`.
        s_noise: factor of the fresh noise.
        noise: "independent" for fresh noise of each step's own, or "brownian" for that of one path, which is the same for any number of
            steps: with more of them, the same clip is solved more exactly. For an eta of 0, or from 0.001 to 4.

    Raises:
        SpecError: a number is out of range.
    """

    memory: ClassVar[int] = 2

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
        moved = second_order_step(values, estimates, next_timestep, eta=self.eta)
        return moved, self.s_noise * fresh_noise(estimates[0].timestep, next_timestep, self.eta)
