"""Residual vector quantization in few dimensions, learned by gradient (Kumar et al. 2023, "High-fidelity audio
compression with improved RVQGAN", section 3.2).

Each level projects what is left over to a few dimensions, takes the entry with the least angle to it, and projects that
back. The gradient goes straight through the entry, and, as in the authors' code, through what is left over too.

Shape letters: B clips, T frames, D latent dimensions, E dimensions of an entry, K levels, V entries of a level, N
vectors.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.vae.quantizers.nearest import nearest_by_angle, start_codebook
from soundomni.vae.quantizers.quantizer import Quantizer


class FactorizedQuantizer(Quantizer):
    """K levels with a projection and a codebook each, all of them parameters.

    The loss "codebook" is the squared distance of entries from what they stand for, "commitment" that of the projected
    latents from their entries, times `commitment_weight`.

    Args:
        dim: D.
        num_levels: K.
        entries: V.
        codebook_dim: E, at most D.
        commitment_weight: factor of the loss "commitment".
        decay: decay per step of `usage`.

    Raises:
        SpecError: E is larger than D.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("commitment", "codebook")
    straight_through: ClassVar[bool] = False

    def __init__(
        self,
        *,
        dim: int,
        num_levels: int,
        entries: int,
        codebook_dim: int,
        commitment_weight: float,
        decay: float,
    ) -> None:
        super().__init__(num_levels=num_levels, entries=entries, decay=decay)
        if codebook_dim > dim:
            expected = f"at most {dim}, the dimensions of a group"
            raise SpecError(f"quantizer.codebook_dim is {codebook_dim}; expected {expected}")
        self.commitment_weight = commitment_weight
        self.inward = nn.ModuleList(nn.Linear(dim, codebook_dim) for _ in range(num_levels))
        self.outward = nn.ModuleList(nn.Linear(codebook_dim, dim) for _ in range(num_levels))
        self.codebooks = nn.Parameter(torch.randn(num_levels, entries, codebook_dim))

    def find(self, level: int, residual: Tensor) -> Tensor:
        """Return the codes `[B, T]` of a level for what is left over, `[B, T, D]`."""
        return self._nearest(level, self.inward[level](residual))

    def lookup(self, level: int, codes: Tensor) -> Tensor:
        """Return the values `[B, T, D]` of codes `[B, T]` of a level."""
        values: Tensor = self.outward[level](self.codebooks[level][codes])
        return values

    def learn(self, level: int, residual: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return codes `[B, T]`, values `[B, T, D]`, and the losses `[B, T]`."""
        projected = self.inward[level](residual)
        codes = self._nearest(level, projected)
        entries = self.codebooks[level][codes]
        commitment = self.commitment_weight * (projected - entries.detach()).square().mean(-1)
        codebook = (entries - projected.detach()).square().mean(-1)
        values = self.outward[level](projected + (entries - projected).detach())
        return codes, values, (commitment, codebook)

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Start each level from latents `[N, D]`: principal components as projections, and k-means within them."""
        generator = torch.Generator().manual_seed(0)
        residual = vectors
        for level, (inward, outward) in enumerate(zip(self.inward, self.outward, strict=True)):
            mean = residual.mean(0)
            centered = residual - mean
            components = torch.linalg.eigh(centered.T @ centered).eigenvectors[:, -self.codebooks.shape[-1] :]
            entries = start_codebook(centered @ components, self.codebooks.shape[1], nearest_by_angle, generator)
            residual = centered - entries[nearest_by_angle(centered @ components, entries)] @ components.T
            self.codebooks[level].copy_(entries)
            for layer, weight, bias in ((inward, components.T, -mean @ components), (outward, components, mean)):
                layer.get_parameter("weight").copy_(weight)
                layer.get_parameter("bias").copy_(bias)

    @torch.no_grad()
    def _nearest(self, level: int, projected: Tensor) -> Tensor:
        return nearest_by_angle(projected.flatten(0, 1), self.codebooks[level]).view(projected.shape[:2])
