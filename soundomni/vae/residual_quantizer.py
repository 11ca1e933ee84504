"""Residual vector quantization with codebooks that are measured on data, not trained (k-means; Lloyd 1982; Juang and Gray 1982).

Each level quantizes what the levels before it leave over, so that a few small codebooks stand for a large one.

Shape letters: N vectors, D their dimensions, K levels, V entries of a codebook.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from soundomni.core.errors import CheckpointError, DataError, SpecError

ROUNDS = 12
"""Rounds of k-means for each level."""
PART = 8192
"""Vectors that are compared with a codebook at once."""


class ResidualQuantizer(nn.Module):
    """K codebooks of V entries each, as buffers.

    Args:
        dim: D.
        num_codebooks: K.
        codebook_size: V.

    Raises:
        SpecError: a size is out of its range.
    """

    codebooks: Tensor
    fitted: Tensor

    def __init__(self, *, dim: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        if num_codebooks < 1:
            raise SpecError(f"num_codebooks is {num_codebooks}; expected at least 1")
        if codebook_size < 2:
            raise SpecError(f"codebook_size is {codebook_size}; expected at least 2")
        self.register_buffer("codebooks", torch.zeros(num_codebooks, codebook_size, dim))
        self.register_buffer("fitted", torch.tensor(False))
        self._seen_fitted = False  # looking at the buffer waits for the device

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Measure the codebooks on vectors `[N, D]`; the same vectors always give the same codebooks.

        Raises:
            DataError: there are fewer vectors than a codebook has entries.
        """
        size = self.codebooks.shape[1]
        if len(vectors) < size:
            raise DataError(f"codebooks of {size} entries are measured on at least as many frames, but there are only {len(vectors)}")
        generator = torch.Generator().manual_seed(0)
        left = vectors.to(self.codebooks)
        for codebook in self.codebooks:
            codebook.copy_(_kmeans(left, size, generator))
            left = left - codebook[_nearest(left, codebook)]
        self.fitted.fill_(True)

    def encode(self, vectors: Tensor) -> Tensor:
        """Return the ids `[N, K]` of vectors `[N, D]`. Raise CheckpointError before a fit."""
        self._check()
        left, ids = vectors, []
        for codebook in self.codebooks.to(vectors.dtype):
            ids.append(_nearest(left, codebook))
            left = left - codebook[ids[-1]]
        return torch.stack(ids, 1)

    def decode(self, ids: Tensor) -> Tensor:
        """Return the vectors `[N, D]` of ids `[N, k]`, of the first k levels. Raise CheckpointError before a fit."""
        self._check()
        levels = [codebook[ids[:, level]] for level, codebook in enumerate(self.codebooks[: ids.shape[1]])]
        return torch.stack(levels).sum(0)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._seen_fitted = False
        super()._load_from_state_dict(*args, **kwargs)

    def _check(self) -> None:
        self._seen_fitted = self._seen_fitted or bool(self.fitted)
        if not self._seen_fitted:
            raise CheckpointError("the codebooks have not been measured. Call fit() on clips, or load a trained model")


def _kmeans(vectors: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return `size` centers `[V, D]`; a center without vectors moves to one of them."""
    centers = vectors[torch.randperm(len(vectors), generator=generator)[:size].to(vectors.device)].clone()
    for _ in range(ROUNDS):
        nearest = _nearest(vectors, centers)
        sums = torch.zeros_like(centers).index_add_(0, nearest, vectors)
        counts = torch.bincount(nearest, minlength=size)
        others = vectors[torch.randint(0, len(vectors), (size,), generator=generator).to(vectors.device)]
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], others)
    return centers


def _nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the nearest center of each vector, `[N]`."""
    parts = [torch.cdist(part, centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(1) for part in torch.split(vectors, PART)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=vectors.device)
