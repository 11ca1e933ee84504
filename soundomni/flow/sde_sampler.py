"""Shared code of samplers that solve the stochastic differential equation: how fast noise is replaced, and by which fresh noise.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soundomni.core.representation import Representation
from soundomni.flow.brownian_noise import BrownianNoise, FreshNoise, check_noise
from soundomni.flow.data_sampler import DataSampler, FreshDraws, check_noise_share
from soundomni.flow.noise_schedules import EXPONENTIAL, NoiseSchedule


class SDESampler(DataSampler):
    """Replaces part of the noise by fresh noise in every step but the last, so that errors of early steps fade.

    Args:
        num_steps: number of steps.
        schedule: where the steps lie.
        eta: how fast noise is replaced; 0 for no fresh noise.
        s_noise: factor of the fresh noise.
        noise: "independent" draws fresh noise for each step; "brownian" takes it from one path, which is the same for
            any number of steps, so more steps solve the same clip more exactly. "brownian" needs an eta of 0, or from 0.001 to 4.

    Raises:
        SpecError: a number is out of range.
    """

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
        """Return what draws the fresh noise of one run, shaped as `start`: `[B, D, T]` for each step."""
        if self.noise == "independent":
            return super().draws(start, generators)
        return BrownianNoise(start.values, start.frame_counts, generators, eta=self.eta).between
