"""What residual quantizers share: the loop over levels (Zeghidour et al. 2021, "SoundStream", section III-C), and how
often each code is used.

Shape letters: B clips, T frames, D latent dimensions, E dimensions of what is quantized, K levels, V entries of a
level, N vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from soundomni.core.interfaces import Ranks

IN_USE = 0.1
"""A code is in use if it is used at least this share of the mean over the codes of its level."""


@dataclass(frozen=True)
class Draws:
    """What is drawn for each clip of a batch, from its own generator.

    Args:
        levels: int64 `[B]`, number of levels that the clip uses, from 1 to K.
        frames: int64 `[B]`, one frame of each clip, as a candidate for codes that are not used; -1 for an empty clip.
        seeds: seed of each clip's generator, by which the clips of all ranks have one order.
    """

    levels: Tensor
    frames: Tensor
    seeds: tuple[int, ...]


class Quantizer(nn.Module, ABC):
    """K levels of V entries each.

    Training calls `forward`, which leaves statistics in buffers, and after every step `update`, which uses them.

    Args:
        num_levels: K.
        entries: V.
        decay: decay per step of `usage`.
    """

    loss_names: ClassVar[tuple[str, ...]] = ()
    """Names of the losses that `forward` returns."""
    straight_through: ClassVar[bool] = True
    """Whether values pass their gradient on to the latents as a whole, instead of level by level in `learn`."""

    usage: Tensor
    counts: Tensor

    def __init__(self, *, num_levels: int, entries: int, decay: float) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.decay = decay
        self.register_buffer("usage", torch.zeros(num_levels, entries))
        self.register_buffer("counts", torch.zeros(num_levels, entries), persistent=False)  # zero between steps

    @abstractmethod
    def find(self, level: int, residual: Tensor) -> Tensor:
        """Return the codes `[B, T]` of a level for what is left over, `[B, T, E]`."""

    @abstractmethod
    def lookup(self, level: int, codes: Tensor) -> Tensor:
        """Return the values `[B, T, E]` of codes `[B, T]` of a level."""

    @abstractmethod
    def learn(self, level: int, residual: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return codes `[B, T]`, values `[B, T, E]`, and a loss `[B, T]` for each of `loss_names`."""

    def start(self, vectors: Tensor) -> None:
        """Start codebooks from latents `[N, D]` on the CPU, N ≥ 1. The default does nothing."""

    def enter(self, latents: Tensor) -> Tensor:
        """Map latents `[B, T, D]` to what is quantized, `[B, T, E]`; by default the latents themselves."""
        return latents

    def leave(self, values: Tensor) -> Tensor:
        """Map quantized values `[B, T, E]` to latents `[B, T, D]`."""
        return values

    def encode(self, latents: Tensor) -> Tensor:
        """Return the codes `[B, K, T]` of latents `[B, T, D]`."""
        residual, codes = self.enter(latents), []
        for level in range(self.num_levels):
            codes.append(self.find(level, residual))
            residual = residual - self.lookup(level, codes[-1])
        return torch.stack(codes, dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the latents `[B, T, D]` of codes `[B, k, T]` of the first k levels, k ≥ 1."""
        values = [self.lookup(level, of_level) for level, of_level in enumerate(codes.unbind(1))]
        return self.leave(torch.stack(values).sum(0))

    def forward(self, latents: Tensor, valid: Tensor, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """Quantize latents for training.

        Args:
            latents: `[B, T, D]`.
            valid: bool `[B, T]`, frames that belong to a clip.
            draws: what is drawn for each clip.

        Returns:
            Quantized latents `[B, T, D]`, and each loss, summed over valid frames and the levels that their clip uses.
        """
        residual = inner = self.enter(latents)
        total = torch.zeros_like(inner)
        finite = latents.isfinite().all(-1)
        losses = dict.fromkeys(self.loss_names, latents.new_zeros(()))
        for level in range(self.num_levels):
            used = valid & (level < draws.levels)[:, None]
            codes, values, distances = self.learn(level, residual)
            for name, distance in zip(self.loss_names, distances, strict=True):
                losses[name] = losses[name] + distance.masked_fill(~used, 0.0).sum()
            if self.training and torch.is_grad_enabled():
                self.observe(level, residual.detach(), codes, used & finite, draws)
            total = total + values * used[..., None]
            residual = residual - values
        return self.leave(inner + (total - inner).detach() if self.straight_through else total), losses

    @torch.no_grad()
    def observe(self, level: int, residual: Tensor, codes: Tensor, used: Tensor, draws: Draws) -> None:
        """Add frames `[B, T]` that are `used` and finite to the statistics of this step.

        Args:
            level: which level.
            residual: `[B, T, E]`, what the level was given.
            codes: `[B, T]`, what it made of that.
            used: bool `[B, T]`.
            draws: what is drawn for each clip.
        """
        self.counts[level].index_add_(0, codes.flatten(), used.flatten().to(self.counts))

    @torch.no_grad()
    def update(self, ranks: Ranks) -> None:
        """Update `usage` from the frames that all ranks observed in this step."""
        self.track(ranks.sum(self.counts))
        self.counts.zero_()

    def track(self, counts: Tensor) -> None:
        """Move `usage` towards counts `[K, V]`; levels that no clip used stay as they are."""
        seen = counts.sum(1, keepdim=True) > 0
        self.usage.copy_(torch.where(seen, torch.lerp(counts, self.usage, self.decay), self.usage))

    def shares(self) -> Tensor:
        """Return the share `[K]` of the codes of each level that are in use."""
        return ((self.usage >= IN_USE * self.usage.mean(1, keepdim=True)) & (self.usage > 0)).to(self.usage).mean(1)
