"""The timesteps of a sampler, and the shift that moves training and sampling toward noise.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Predict

Number = TypeVar("Number", float, Tensor)


def shift_timestep(timestep: Number, shift: float) -> Number:
    """Return s·t / (1 + (s − 1)·t) (Esser et al. 2024, section 5.3.2); s = 1 changes nothing.

    Written so that 0 and 1 stay exact.
    """
    return timestep / (timestep + (1.0 - timestep) / shift)


def check_shift(shift: float, *, key: str = "shift") -> float:
    """Return `shift`. Raise SpecError, naming its key, unless it is above 0."""
    if not shift > 0:
        raise SpecError(f"{key} is {shift}; expected a number above 0 (1 changes nothing)")
    return shift


def check_steps(num_steps: int) -> int:
    """Return `num_steps`. Raise SpecError unless it is at least 1."""
    if num_steps < 1:
        raise SpecError(f"num_steps is {num_steps}; expected at least 1")
    return num_steps


def check_begin(begin: float) -> float:
    """Return `begin`. Raise SpecError unless it is above 0 and at most 1."""
    if not 0.0 < begin <= 1.0:
        raise SpecError(f"begin is {begin}; expected a timestep above 0 and at most 1")
    return begin


def sampling_timesteps(num_steps: int, shift: float = 1.0, begin: float = 1.0) -> tuple[float, ...]:
    """Return the `num_steps + 1` timesteps from `begin` to 0, both exact, evenly spaced before the shift.

    >>> sampling_timesteps(4)
    (1.0, 0.75, 0.5, 0.25, 0.0)
    """
    first = shift_timestep(check_begin(begin), 1.0 / shift)  # the shift maps it to `begin`
    return (begin, *(shift_timestep(first * (1.0 - step / num_steps), shift) for step in range(1, num_steps + 1)))


def predict_at(predict: Predict, values: Tensor, timestep: float) -> Tensor:
    """Ask for the prediction `[B, D, T]` with every clip at one timestep, which is at least float32 whatever the values
    are."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return predict(values, torch.full((len(values),), timestep, dtype=dtype, device=values.device))
