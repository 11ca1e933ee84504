"""DPM-Solver++(2M) with the noise schedules of published models, as k-diffusion's sample_dpmpp_2m.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from soundomni.flow.data_sampler import DataSampler, Estimate
from soundomni.flow.dpmpp import second_order_step
from soundomni.flow.noise_schedules import EXPONENTIAL, NoiseSchedule


class DPMpp2MSampler(DataSampler):
    """`dpmpp` with any noise schedule: second order, one prediction per step, no noise of its own.

    With the spacing "exponential" it samples diffusion models as k-diffusion does, with "log-snr" rectified flows as
    stable-audio-tools does.

    Args:
        num_steps: number of steps.
        schedule: where the steps lie.

    Raises:
        SpecError: a number is out of range.
    """

    memory: ClassVar[int] = 2

    def __init__(self, *, num_steps: int = 100, schedule: NoiseSchedule = EXPONENTIAL) -> None:
        super().__init__(num_steps=num_steps, schedule=schedule)

    def step(self, values: Tensor, estimates: Sequence[Estimate], next_timestep: float) -> tuple[Tensor, float]:
        """Advance `values` `[B, D, T]` by one step, without fresh noise."""
        return second_order_step(values, estimates, next_timestep), 0.0
