"""Residual lookup-free quantization (Yu et al. 2023, "Language model beats diffusion: tokenizer is key to visual
generation", section 3.1): a code is the signs of a few numbers, so that there is no codebook to learn.

Level k has the values ±2^-k. The loss "entropy" is the entropy of each number's sign, which makes the choice sure,
minus that of the signs of all frames, which makes all codes used. The second is not a sum over frames. It is replaced
by the line with its slope at the signs of the last steps, so that ranks and micro-batches add up exactly.

Shape letters: B clips, T frames, D latent dimensions, E numbers of a code, K levels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.vae.quantizers.quantizer import Quantizer

SHARPNESS = 4.0
"""The sign of a number r at a level of range s is positive with the probability sigmoid(4·r / s)."""
RAREST = 1e-3
"""Least share of a sign that the slope of the entropy is measured at."""


class LookupFreeQuantizer(Quantizer):
    """K levels that take the signs of E numbers each.

    The first number is the lowest bit of a code; a bit is set if its number is positive.

    Args:
        dim: D.
        num_levels: K.
        bits: E.
        commitment_weight: factor of the loss "commitment", the squared distance of numbers from their values.
        entropy_weight: factor of the loss "entropy".
        decay: decay per step of `usage`.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("commitment", "entropy")

    bits: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_levels: int,
        bits: int,
        commitment_weight: float,
        entropy_weight: float,
        decay: float,
    ) -> None:
        super().__init__(num_levels=num_levels, entries=2**bits, decay=decay)
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        self.inward, self.outward = nn.Linear(dim, bits), nn.Linear(bits, dim)
        self.register_buffer("bits", torch.arange(bits), persistent=False)

    def enter(self, latents: Tensor) -> Tensor:
        """Map latents `[B, T, D]` to numbers `[B, T, E]`."""
        numbers: Tensor = self.inward(latents)
        return numbers

    def leave(self, values: Tensor) -> Tensor:
        """Map numbers `[B, T, E]` to latents `[B, T, D]`."""
        latents: Tensor = self.outward(values)
        return latents

    def find(self, level: int, residual: Tensor) -> Tensor:
        """Return the codes `[B, T]` of a level for what is left over, `[B, T, E]`."""
        return ((residual > 0).long() << self.bits).sum(-1)

    def lookup(self, level: int, codes: Tensor) -> Tensor:
        """Return the values `[B, T, E]` of codes `[B, T]` of a level."""
        return (2 * self._signs(codes) - 1).to(self.usage.dtype) * 2.0**-level

    def learn(self, level: int, residual: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return codes `[B, T]`, values `[B, T, E]`, and the losses `[B, T]`."""
        codes = self.find(level, residual)
        values = self.lookup(level, codes)
        commitment = self.commitment_weight * (residual - values).square().mean(-1)
        scores = SHARPNESS * 2.0**level * residual
        positive = torch.sigmoid(scores)
        unsure = positive * functional.softplus(-scores) + (1 - positive) * functional.softplus(scores)
        entropy = self.entropy_weight * (unsure - positive * self._slope(level)).sum(-1)
        return codes, values, (commitment, entropy)

    def _slope(self, level: int) -> Tensor:
        """Return the derivative `[E]` of the entropy of each sign by its share of positive ones in the last steps."""
        usage = self.usage[level]
        codes = torch.arange(len(usage), device=usage.device)
        share = usage @ self._signs(codes).to(usage) / usage.sum().clamp_min(RAREST)
        share = torch.where(usage.sum() > 0, share, 0.5).clamp(RAREST, 1 - RAREST)
        return torch.log((1 - share) / share)

    def _signs(self, codes: Tensor) -> Tensor:
        """Map codes `[...]` to bits `[..., E]`."""
        return codes[..., None] >> self.bits & 1
