"""Residual finite scalar quantization (Mentzer et al. 2023, "Finite scalar quantization: VQ-VAE made simple"): a few
numbers are bounded and rounded, so that there is no codebook to learn.

The numbers are bounded once, by tanh, to (-1, 1). A level has L values of a number, evenly spaced and with both ends
included. What it leaves over is L - 1 times smaller, and is the range of the next level: with K levels a number has an
error of at most Π 1 / (L - 1).

Shape letters: B clips, T frames, D latent dimensions, E numbers that are rounded, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from soundomni.vae.quantizers.quantizer import Quantizer


class FiniteScalarQuantizer(Quantizer):
    """K levels that round E numbers each. There is no loss.

    A code counts the values of its numbers with the first number fastest.

    Args:
        dim: D.
        num_levels: K.
        steps: L of each of the E numbers, at least 3.
        decay: decay per step of `usage`.
    """

    steps: Tensor
    places: Tensor

    def __init__(self, *, dim: int, num_levels: int, steps: Sequence[int], decay: float) -> None:
        super().__init__(num_levels=num_levels, entries=math.prod(steps), decay=decay)
        self.inward, self.outward = nn.Linear(dim, len(steps)), nn.Linear(len(steps), dim)
        self.register_buffer("steps", torch.tensor(steps), persistent=False)
        places = [math.prod(steps[:index]) for index in range(len(steps))]
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def enter(self, latents: Tensor) -> Tensor:
        """Map latents `[B, T, D]` to numbers `[B, T, E]` in (-1, 1)."""
        return torch.tanh(self.inward(latents))

    def leave(self, values: Tensor) -> Tensor:
        """Map numbers `[B, T, E]` to latents `[B, T, D]`."""
        latents: Tensor = self.outward(values)
        return latents

    def find(self, level: int, residual: Tensor) -> Tensor:
        """Return the codes `[B, T]` of a level for what is left over, `[B, T, E]`."""
        most = self.steps - 1
        digits = ((residual.detach() / self._range(level) + 1) * most / 2).round().long()
        digits = torch.minimum(digits.clamp_min(0), most)  # the range of a late level may be below float precision
        return (digits * self.places).sum(-1)

    def lookup(self, level: int, codes: Tensor) -> Tensor:
        """Return the numbers `[B, T, E]` of codes `[B, T]` of a level."""
        digits = codes[..., None] // self.places % self.steps
        return (2 * digits / (self.steps - 1) - 1).to(self.usage.dtype) * self._range(level)

    def learn(self, level: int, residual: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return codes `[B, T]` and numbers `[B, T, E]`, without a loss."""
        codes = self.find(level, residual)
        return codes, self.lookup(level, codes), ()

    def _range(self, level: int) -> Tensor:
        """Return the largest magnitude `[E]` that a level is given."""
        return (self.steps - 1).to(self.usage.dtype) ** -level
