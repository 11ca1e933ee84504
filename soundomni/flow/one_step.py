"""Shared code of one-step solvers of the flow's differential equation: a schedule, and one step after another.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from soundomni.core.interfaces import Predict, Sampler
from soundomni.core.representation import Representation
from soundomni.flow.timestep_schedule import check_shift, check_steps, sampling_timesteps


class OneStepSampler(Sampler):
    """Solves dx/dt = v(x, t) down to t = 0 with `step`, which only looks at the current values.

    No step asks for a prediction at t = 0. There the model only knows clean context, and was never trained to predict.

    Args:
        num_steps: number of steps.
        shift: above 1, more of the steps are near the noise.

    Raises:
        SpecError: a number is out of range.
    """

    def __init__(self, *, num_steps: int = 50, shift: float = 1.0) -> None:
        self.num_steps = check_steps(num_steps)
        self.shift = check_shift(shift)

    @abstractmethod
    def step(self, predict: Predict, values: Tensor, timestep: float, next_timestep: float) -> Tensor:
        """Advance `values` `[B, D, T]` from `timestep` to the smaller `next_timestep`, which is 0 in the last step."""

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator] = (),
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Representation:
        """Integrate values `[B, D, T]` from t = `begin` to t = 0. Deterministic: `generators` are not used."""
        values = start.values
        for index, (timestep, next_timestep) in enumerate(pairwise(sampling_timesteps(self.num_steps, self.shift, begin))):
            values = self.step(predict, values, timestep, next_timestep)
            if on_step is not None:
                on_step(index, values)
        return start.with_values(values)
