"""DPM-Solver++(2M), second order with one prediction per step (Lu et al. 2022, algorithm 2), for a rectified flow.

With x_t = (1 − t)·x0 + t·ε the solver's α is 1 − t, its σ is t, half the log signal-to-noise ratio is λ = log((1 − t) /
t), and a velocity v predicts the data x − t·v.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from soundomni.core.interfaces import Predict, Sampler
from soundomni.core.representation import Representation
from soundomni.flow.timestep_schedule import check_shift, check_steps, predict_at, sampling_timesteps


class DPMppSampler(Sampler):
    """Integrates the linear part exactly, and extrapolates the predicted data from the last two predictions, over λ.

    λ is infinite at both ends. From t = 1 the first two steps cannot look back and the last cannot look ahead, so these
    only use the latest prediction, which makes them Euler's steps. Steps near the ends are never small in λ: over N
    steps evenly spaced in t, the error falls as log(N) / N².

    Args:
        num_steps: number of steps.
        shift: above 1, more of the steps are near the noise.

    Raises:
        SpecError: a number is out of range.
    """

    def __init__(self, *, num_steps: int = 20, shift: float = 1.0) -> None:
        self.num_steps = check_steps(num_steps)
        self.shift = check_shift(shift)

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
    ) -> Representation:
        """Integrate values `[B, D, T]` from t = `begin` to t = 0. Deterministic: `generators` are not used."""
        values = start.values
        before: Tensor | None = None
        width_before = math.inf
        for index, (timestep, next_timestep) in enumerate(pairwise(sampling_timesteps(self.num_steps, self.shift, begin))):
            width = _log_snr(next_timestep) - _log_snr(timestep)
            data = values - timestep * predict_at(predict, values, timestep)
            expected = data
            if before is not None and next_timestep > 0.0:
                expected = data + width / (2 * width_before) * (data - before)
            values = next_timestep / timestep * values - (1.0 - next_timestep) * math.expm1(-width) * expected
            before, width_before = data, width
            if on_step is not None:
                on_step(index, values)
        return start.with_values(values)


def _log_snr(timestep: float) -> float:
    if timestep in (0.0, 1.0):
        return math.inf if timestep == 0.0 else -math.inf
    return math.log1p(-timestep) - math.log(timestep)
