"""SDE-DPM-Solver++(2M) (Lu et al. 2022, section 6), as k-diffusion's sample_dpmpp_2m_sde with its midpoint rule.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from soundomni.flow.data_sampler import Estimate
from soundomni.flow.dpmpp import fresh_noise, second_order_step
from soundomni.flow.sde_sampler import SDESampler


class DPMpp2MSDESampler(SDESampler):
    """`dpmpp-2m` that replaces part of the noise by fresh noise in every step but the last.

    It solves the stochastic differential equation instead of the ordinary one, so that errors of early steps fade.
    With `eta` 0 it is `dpmpp-2m`.
    """

    memory: ClassVar[int] = 2

    def step(self, values: Tensor, estimates: Sequence[Estimate], next_timestep: float) -> tuple[Tensor, float]:
        """Advance `values` `[B, D, T]` by one step, and return how much fresh noise to add."""
        moved = second_order_step(values, estimates, next_timestep, eta=self.eta)
        return moved, self.s_noise * fresh_noise(estimates[0].timestep, next_timestep, self.eta)
