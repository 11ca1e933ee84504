"""Joint projections of differential attention, whose rows other packages have in another order.

Shape letters: C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FROM_DIFFUSERS = (0, 2, 4, 1, 3)
"""Places of the parts q, k, v, q2, k2 in diffusers' order, which is q, q2, k, k2, v."""
_TO_DIFFUSERS = tuple(_FROM_DIFFUSERS.index(part) for part in range(5))


def from_diffusers(weight: Tensor) -> Tensor:
    """Return a joint projection `[5·C, C]` of diffusers with its parts in the order q, k, v, q2, k2."""
    return _in_order(weight, _FROM_DIFFUSERS)


def to_diffusers(weight: Tensor) -> Tensor:
    """Return a joint projection `[5·C, C]` with its parts in diffusers' order: the inverse of `from_diffusers`."""
    return _in_order(weight, _TO_DIFFUSERS)


def _in_order(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    parts = weight.chunk(len(order))
    return torch.cat([parts[part] for part in order])
