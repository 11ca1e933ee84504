"""DDIM (Song et al. 2021, equation 12), written so that it does not depend on the path.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from soundomni.flow.data_sampler import DataSampler, Estimate, check_noise_share
from soundomni.flow.noise_schedules import COSINE, NoiseSchedule


class DDIMSampler(DataSampler):
    """Mixes the predicted data and noise again for the next timestep, with a part of the noise fresh.

    With `eta` 0 it is Euler's method on the rectified-flow path, with any noise schedule. The defaults are those of v-ddim in
    stable-audio-tools.

    Args:
        num_steps: number of steps.
        schedule: where the steps lie.
        eta: from 0, no fresh noise, to 1, as much as in ancestral sampling.

    Raises:
        SpecError: a number is out of range.
    """

    def __init__(self, *, num_steps: int = 100, schedule: NoiseSchedule = COSINE, eta: float = 0.0) -> None:
        super().__init__(num_steps=num_steps, schedule=schedule)
        self.eta = check_noise_share("eta", eta, most=1.0)

    def straight_steps(self) -> tuple[float, ...] | None:
        """Return the timesteps of all steps; None if the steps add fresh noise."""
        return self.schedule.timesteps(self.num_steps) if self.eta == 0.0 else None

    def step(self, values: Tensor, estimates: Sequence[Estimate], next_timestep: float) -> tuple[Tensor, float]:
        """Advance `values` `[B, D, T]` by one step, and return how much fresh noise to add."""
        timestep, data = estimates[0]
        noise = (values - (1.0 - timestep) * data) / timestep
        shrunk = next_timestep * (1.0 - timestep) / (timestep * (1.0 - next_timestep))  # σ after the step by σ before it
        fresh = self.eta * math.sqrt(1.0 - shrunk**2)
        kept = math.sqrt(1.0 - fresh**2)
        return (1.0 - next_timestep) * data + next_timestep * kept * noise, next_timestep * fresh
