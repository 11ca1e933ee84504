"""Shared code of samplers that move towards the data that a prediction stands for, and may add noise of their own.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Predict, Sampler
from soundomni.core.representation import Representation, frame_noise
from soundomni.flow.noise_schedules import NoiseSchedule
from soundomni.flow.timestep_schedule import check_steps, predict_at

FreshDraws = Callable[[float, float], Tensor]
"""(timestep, next timestep) → normal noise `[B, D, T]` for the step between them."""


class Estimate(NamedTuple):
    """The data x − t·v that a prediction at a timestep stands for, `[B, D, T]`."""

    timestep: float
    data: Tensor


class DataSampler(Sampler):
    """Takes steps with `step`, which looks at the last few estimates of the data.

    From pure noise, a schedule may start at a timestep below 1, as those of diffusion models do. The values are then the
    noise times that timestep: the data in them would be next to nothing, and is left out.

    Args:
        num_steps: number of steps, each with one prediction.
        schedule: where the steps lie.

    Raises:
        SpecError: a number is out of range.
    """

    memory: ClassVar[int] = 1
    """Number of estimates that `step` looks at."""

    def __init__(self, *, num_steps: int, schedule: NoiseSchedule) -> None:
        self.num_steps = check_steps(num_steps)
        self.schedule = schedule
        self.starts_at = schedule.starts_at

    def num_evaluations(self, start: Representation) -> int:
        """One per step."""
        return self.num_steps

    @abstractmethod
    def step(self, values: Tensor, estimates: Sequence[Estimate], next_timestep: float) -> tuple[Tensor, float]:
        """Move values `[B, D, T]` to the smaller `next_timestep`, which is 0 in the last step.

        Args:
            values: at the timestep of the first estimate.
            estimates: from 1 to `memory` of them, the latest first.
            next_timestep: where to.

        Returns:
            the values, and the standard deviation of the fresh noise that they still lack; 0 for none.
        """

    def draws(self, start: Representation, generators: Sequence[torch.Generator]) -> FreshDraws:
        """Return what draws the fresh noise of one run, shaped as `start`; by default, new noise for each step."""
        return lambda timestep, next_timestep: frame_noise(start.values, start.frame_counts, generators)

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator] = (),
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Representation:
        """Take values `[B, D, T]` from t = `begin` to t = 0. Fresh noise for clip b is drawn from `generators[b]`, if there is any."""
        timesteps = self.schedule.timesteps(self.num_steps, begin)
        values = start.values * (timesteps[0] / begin)
        estimates: list[Estimate] = []
        draw: FreshDraws | None = None
        for index, (timestep, next_timestep) in enumerate(pairwise(timesteps)):
            latest = Estimate(timestep, values - timestep * predict_at(predict, values, timestep))
            estimates = [latest, *estimates[: self.memory - 1]]
            values, deviation = self.step(values, estimates, next_timestep)
            if deviation:
                draw = draw or self.draws(start.with_values(values), generators)
                values = values + deviation * draw(timestep, next_timestep)
            if on_step is not None:
                on_step(index, values)
        return start.with_values(values)


def check_noise_share(key: str, share: float, *, most: float | None = None) -> float:
    """Return a factor of fresh noise. Raise SpecError, naming the argument, if it is below 0 or above `most`."""
    if not 0.0 <= share < float("inf") or (most is not None and share > most):
        expected = "a finite number from 0 up" if most is None else f"a number from 0 to {most:g}"
        raise SpecError(f"{key} is {share}; expected {expected}, with 0 for no fresh noise")
    return share
