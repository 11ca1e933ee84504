"""Drawing codes from what a model predicts, so that neither the batch around a clip nor its padding matters.

Shape letters: B clips, V vocabulary of one level, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_codes(scores: Tensor, numbers: Tensor) -> Tensor:
    """Return a code `[B, T]` of each cell from log-probabilities `[B, V, T]` and one uniform number `[B, T]` each."""
    sums = scores.exp().cumsum(1)
    below = (sums <= numbers[:, None] * sums[:, -1:]).sum(1)
    return below.clamp_max(scores.shape[1] - 1)


def uniform(count: int, frames: Sequence[int], codes: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return float64 numbers in [0, 1), `[count, B, T]`, on the device of `codes` `[B, T]`: `count` for each frame of each clip, 0 in
    padding.
    """
    numbers = torch.zeros(count, *codes.shape, dtype=torch.float64)
    for i, (length, generator) in enumerate(zip(frames, generators, strict=True)):
        numbers[:, i, :length] = torch.rand(count, length, generator=generator, device=generator.device, dtype=torch.float64)
    return numbers.to(codes.device)
