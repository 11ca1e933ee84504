"""K-means of random frames; as a program, one of two processes that writes what it found to `OUT/RANK.json`.

Run as `python kmeans_ranks.py OUT` with torchrun's environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soundomni.core.spec.schema import ParallelSpec
from soundomni.train.parallel import World, open_world
from soundomni.vae import Clusters, fit_kmeans

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, device=CPU)

SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("every second clip", {"num_clusters": 5}),
    ("all clips on the second rank", {"num_clusters": 5, "seed": 4}),
    ("every second clip", {"num_clusters": 60, "iterations": 10, "tolerance": 0.0}),
]
"""Which clips the ranks hold, and arguments of `fit`."""


def frames_of(clips: int, *, seed: int, most: int = 40) -> dict[int, Tensor]:
    """Frames `[N, 3]` of clips of different lengths; the second clip has none."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(5, most, (clips,), generator=generator).tolist()
    return {i: torch.randn(0 if i == 1 else count, 3, generator=generator) + i for i, count in enumerate(counts)}


def fit(clips: Mapping[int, Tensor], *, world: World = ALONE, num_clips: int | None = None, seed: int = 0, **arguments: Any) -> Clusters:
    """K-means of this process's clips."""
    number = max(clips) + 1 if num_clips is None else num_clips
    dim = 3 if not clips else next(iter(clips.values())).shape[1]
    return fit_kmeans(clips, num_clips=number, dim=dim, seed=seed, ranks=world, device=CPU, **arguments)


def main(out: Path) -> None:
    """Fit with each of SETTINGS."""
    found = []
    clips = frames_of(7, seed=3)
    with open_world(ParallelSpec()) as world:
        for share, arguments in SETTINGS:
            mine = {i: own for i, own in clips.items() if (world.rank == 1 if share.startswith("all") else i % 2 == world.rank)}
            clusters = fit(mine, world=world, num_clips=len(clips), **arguments)
            found.append({"inertia": clusters.inertia, "centroids": clusters.centroids.tolist()})
    (out / f"{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
