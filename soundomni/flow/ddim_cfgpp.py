"""CFG++ (Chung et al. 2024, "CFG++: manifold-constrained classifier free guidance for diffusion models", algorithm 2) with the steps of
DDIM, written so that it does not depend on the path.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import Predict, Sampler
from soundomni.core.representation import Representation
from soundomni.flow.noise_schedules import COSINE, NoiseSchedule
from soundomni.flow.timestep_schedule import check_steps, predict_at


class DDIMCFGppSampler(Sampler):
    """`ddim` that takes the data from the guided prediction, and the noise from the one that guidance steers away from.

    Guidance then does not change how much noise is left, so high scales exaggerate clips less. Without guidance it is
    `ddim`. The defaults are those of v-ddim-cfgpp in stable-audio-tools.

    Args:
        num_steps: number of steps.
        schedule: where the steps lie.

    Raises:
        SpecError: a number is out of range.
    """

    compares: ClassVar[bool] = True

    def __init__(self, *, num_steps: int = 100, schedule: NoiseSchedule = COSINE) -> None:
        self.num_steps = check_steps(num_steps)
        self.schedule = schedule
        self.starts_at = schedule.starts_at

    def num_evaluations(self, start: Representation) -> int:
        """One per step."""
        return self.num_steps

    def sample(
        self,
        predict: Predict,
        start: Representation,
        *,
        generators: Sequence[torch.Generator] = (),
        begin: float = 1.0,
        on_step: Callable[[int, Tensor], None] | None = None,
        compare: Predict | None = None,
    ) -> Representation:
        """Take values `[B, D, T]` from t = `begin` to t = 0. Nothing is drawn, and only `compare` is asked.

        Raise ValueError if there is no `compare`, which gives both predictions `[2, B, D, T]`.
        """
        if compare is None:
            raise ValueError("compare is None; expected the guided prediction and the one that it steers away from")
        timesteps = self.schedule.timesteps(self.num_steps, begin)
        values = start.values * (timesteps[0] / begin)
        for index, (timestep, next_timestep) in enumerate(pairwise(timesteps)):
            guided, unguided = predict_at(compare, values, timestep)
            data, noise = values - timestep * guided, values + (1.0 - timestep) * unguided
            values = (1.0 - next_timestep) * data + next_timestep * noise
            if on_step is not None:
                on_step(index, values)
        return start.with_values(values)
