"""Nearest entries of a codebook, and codebooks that start from data by k-means (Lloyd 1982).

Everything here is the same on every rank that has the same vectors in the same order.

Shape letters: N vectors, D their dimensions, V entries of a codebook.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Nearest = Callable[[Tensor, Tensor], Tensor]
"""Maps vectors `[N, D]` and entries `[V, D]` to the index of each vector's entry, `[N]`."""

ROUNDS = 10
"""Rounds of k-means."""
LEAST_PER_CENTER = 4
"""Vectors for each center: with fewer, a codebook would learn them by heart and leave nothing to the next level."""


def nearest_by_distance(vectors: Tensor, entries: Tensor) -> Tensor:
    """Return the index `[N]` of the entry of `[V, D]` that has the least Euclidean distance from each of `[N, D]`."""
    return torch.addmm(entries.square().sum(1), vectors, entries.T, beta=-0.5).argmax(1)


def nearest_by_angle(vectors: Tensor, entries: Tensor) -> Tensor:
    """Return the index `[N]` of the entry of `[V, D]` that has the least angle to each of `[N, D]`.

    As in Yu et al. 2022, "Vector-quantized image modeling with improved VQGAN", section 3.2.
    """
    return (vectors @ functional.normalize(entries, dim=1).T).argmax(1)


def start_codebook(vectors: Tensor, size: int, nearest: Nearest, generator: torch.Generator) -> Tensor:
    """Return `size` entries `[V, D]` for vectors `[N, D]`, N ≥ 1: centers of k-means.

    If there are fewer than LEAST_PER_CENTER vectors for each entry, there are fewer centers; the other entries lie
    around them, as far as the vectors do.
    """
    count = min(size, max(1, len(vectors) // LEAST_PER_CENTER))
    centers = vectors[torch.randperm(len(vectors), generator=generator)[:count]].clone()
    for _ in range(ROUNDS):
        ids = nearest(vectors, centers)
        sums = torch.zeros_like(centers).index_add_(0, ids, vectors)
        counts = torch.bincount(ids, minlength=count)
        others = vectors[torch.randint(len(vectors), (count,), generator=generator)]
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], others)
    spread = (vectors - centers[nearest(vectors, centers)]).square().mean(0).sqrt()
    around = centers[torch.randint(count, (size - count,), generator=generator)]
    return torch.cat([centers, around + spread * torch.randn(around.shape, generator=generator).to(around)])
