"""Absolute error of samples.

Shape letters: B clips, C audio channels, S samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from soundomni.core.interfaces import Critic, LossTerms


class L1Critic(Critic):
    """Mean absolute error per sample and channel."""

    judged: ClassVar[tuple[str, ...]] = ("distance",)

    def __init__(self, *, sample_rate: int, channels: int) -> None:
        super().__init__()

    def judge(self, target: Tensor, estimate: Tensor) -> LossTerms:
        """Return the absolute error of `[B, C, S]`, and the number of samples."""
        error = (target.detach() - estimate).abs()
        return {"distance": (error.sum(), torch.tensor(float(error.numel()), device=error.device))}
