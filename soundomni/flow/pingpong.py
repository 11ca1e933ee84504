"""Ping-pong sampling: multistep sampling of consistency models (Song et al. 2023, algorithm 1) on a rectified flow.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from soundomni.flow.data_sampler import DataSampler, Estimate
from soundomni.flow.noise_schedules import LOG_SNR, NoiseSchedule


class PingPongSampler(DataSampler):
    """Predicts the data x̂0 and mixes it with fresh noise ε in each step: x ← (1 − t')·x̂0 + t'·ε.

    It is meant for models distilled to predict the data well in a single step, such as Stable Audio Open Small; the defaults
    are those of stable-audio-tools for these. Models that are not distilled need many more steps.

    Args:
        num_steps: number of steps.
        schedule: where the steps lie.

    Raises:
        SpecError: a number is out of range.
    """

    def __init__(self, *, num_steps: int = 8, schedule: NoiseSchedule = LOG_SNR) -> None:
        super().__init__(num_steps=num_steps, schedule=schedule)

    def step(self, values: Tensor, estimates: Sequence[Estimate], next_timestep: float) -> tuple[Tensor, float]:
        """Advance `values` `[B, D, T]` by one step, and return how much fresh noise to add."""
        return (1.0 - next_timestep) * estimates[0].data, next_timestep
