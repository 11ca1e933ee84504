"""Residual vector quantization with codebooks that are moving averages (van den Oord et al. 2017, "Neural discrete
representation learning", appendix A.1; Zeghidour et al. 2021, "SoundStream", section III-C).

An entry is the average of the vectors that chose it. Entries that few vectors choose are replaced by vectors, as in
Mimi (Défossez et al. 2024, "Moshi", section 3.3). The choice does not depend on how clips were spread over ranks.

Shape letters: B clips, T frames, D latent dimensions, K levels, V entries of a level, N vectors.
"""

from __future__ import annotations

from itertools import chain
from operator import itemgetter
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from soundomni.core.interfaces import Ranks
from soundomni.vae.quantizers.nearest import nearest_by_distance, start_codebook
from soundomni.vae.quantizers.quantizer import Draws, Quantizer


class MovingAverageQuantizer(Quantizer):
    """K codebooks as buffers.

    The loss "commitment" is the squared distance of what is left over from its entry, times `commitment_weight`.

    Args:
        dim: D.
        num_levels: K.
        entries: V.
        commitment_weight: factor of the loss "commitment".
        decay: decay per step of codebooks and `usage`.
        dead_code_share: an entry is replaced if it is used less than this share of the mean over its level.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("commitment",)

    codebooks: Tensor
    sums: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_levels: int,
        entries: int,
        commitment_weight: float,
        decay: float,
        dead_code_share: float,
    ) -> None:
        super().__init__(num_levels=num_levels, entries=entries, decay=decay)
        self.commitment_weight = commitment_weight
        self.dead_code_share = dead_code_share
        self.register_buffer("codebooks", torch.randn(num_levels, entries, dim))
        self.register_buffer("sums", torch.zeros(num_levels, entries, dim), persistent=False)  # zero between steps
        self._candidates = self._no_candidates()
        """For each level, seeds of clips, and what one frame of each left over, `[B, D]`; only those of this step."""

    def find(self, level: int, residual: Tensor) -> Tensor:
        """Return the codes `[B, T]` of a level for what is left over, `[B, T, D]`."""
        return nearest_by_distance(residual.detach().flatten(0, 1), self.codebooks[level]).view(residual.shape[:2])

    def lookup(self, level: int, codes: Tensor) -> Tensor:
        """Return the entries `[B, T, D]` of codes `[B, T]` of a level."""
        return self.codebooks[level][codes]

    def learn(self, level: int, residual: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return codes `[B, T]`, entries `[B, T, D]`, and the loss `[B, T]`."""
        codes = self.find(level, residual)
        values = self.lookup(level, codes)
        return codes, values, (self.commitment_weight * (residual - values).square().mean(-1),)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Start each level from what the levels before it leave over of latents `[N, D]`, by k-means."""
        generator = torch.Generator().manual_seed(0)
        residual = vectors
        for level in range(self.num_levels):
            entries = start_codebook(residual, self.codebooks.shape[1], nearest_by_distance, generator)
            codes = nearest_by_distance(residual, entries)
            residual = residual - entries[codes]
            self.codebooks[level].copy_(entries)
            self.usage[level].copy_(torch.bincount(codes, minlength=len(entries)))

    @torch.no_grad()
    def observe(self, level: int, residual: Tensor, codes: Tensor, used: Tensor, draws: Draws) -> None:
        """Add frames `[B, T]` that are `used` and finite to the statistics of this step; see Quantizer."""
        super().observe(level, residual, codes, used, draws)
        self.sums[level].index_add_(0, codes.flatten(), residual.masked_fill(~used[..., None], 0.0).flatten(0, 1))
        clips = torch.arange(len(residual), device=residual.device)
        chosen = residual[clips, draws.frames.clamp_min(0)].masked_fill(draws.frames[:, None] < 0, torch.nan)
        self._candidates[level].append((draws.seeds, chosen))

    @torch.no_grad()
    def update(self, ranks: Ranks) -> None:
        """Move codebooks and `usage` towards what all ranks observed in this step, and replace unused entries."""
        counts, sums = ranks.sum(self.counts), ranks.sum(self.sums)
        self.track(counts)
        towards = sums - counts[..., None] * self.codebooks
        rate = torch.where(counts > 0, (1 - self.decay) / self.usage, 0.0)
        self.codebooks.add_(rate[..., None] * towards)
        self.counts.zero_()
        self.sums.zero_()
        dead = self.usage < self.dead_code_share * self.usage.mean(1, keepdim=True)
        if bool(dead.any()):
            self._replace(dead, ranks)
        self._candidates = self._no_candidates()

    def _replace(self, dead: Tensor, ranks: Ranks) -> None:
        """Set `dead` entries `[K, V]` to candidates, one each as far as there are some, and let them count as used."""
        levels = dead.any(1).nonzero().flatten().tolist()
        everyone = ranks.gather({level: self._finite_candidates(level) for level in levels})
        mean = self.usage.mean(1)
        for level in levels:
            found = sorted((each for theirs in everyone for each in theirs[level]), key=itemgetter(0))
            slots = dead[level].nonzero().flatten()[: len(found)]
            if len(slots):
                fresh = torch.from_numpy(np.stack([vector for _, vector in found[: len(slots)]]))
                self.codebooks[level, slots] = fresh.to(self.codebooks)
                self.usage[level, slots] = mean[level]

    def _finite_candidates(self, level: int) -> list[tuple[int, np.ndarray]]:
        """Return the seeds of this rank's clips, each with what its candidate left over at a level, `[D]`."""
        batches = [zip(seeds, rows.cpu().numpy(), strict=True) for seeds, rows in self._candidates[level]]
        return [(seed, vector) for seed, vector in chain.from_iterable(batches) if np.isfinite(vector).all()]

    def _no_candidates(self) -> list[list[tuple[tuple[int, ...], Tensor]]]:
        return [[] for _ in range(self.num_levels)]
