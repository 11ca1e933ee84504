"""K-means against a reference in float64, and with any division of the clips among processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kmeans_ranks import SETTINGS, fit, frames_of
from two_processes import run_in_two_processes

from soundomni.core.errors import DataError, SpecError
from soundomni.vae import Clusters, nearest_centroid

PROGRAM = Path(__file__).with_name("kmeans_ranks.py")


def lloyd(frames: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, float]:
    """One iteration in float64: the centroids `[M, D]` after it, and the inertia of those before. No cluster may be
    empty."""
    distances = ((frames[:, None] - centroids[None]) ** 2).sum(-1)
    codes = distances.argmin(1)
    moved = np.stack([frames[codes == cluster].mean(0) for cluster in range(len(centroids))])
    return moved, float(distances.min(1).mean())


def test_iterations_are_those_of_a_reference() -> None:
    clips = frames_of(6, seed=0)
    start = fit(clips, num_clusters=7, iterations=0)
    frames = torch.cat([clips[number] for number in sorted(clips)]).double().numpy()
    centroids, inertia = start.centroids.double().numpy(), []
    for _ in range(5):
        centroids, before = lloyd(frames, centroids)
        inertia.append(before)
    found = fit(clips, num_clusters=7, iterations=5, tolerance=0.0)
    np.testing.assert_allclose(found.inertia[:5], inertia, rtol=1e-5)
    np.testing.assert_allclose(found.centroids.numpy(), centroids, atol=1e-5)


def test_the_nearest_centroid_is_that_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    frames, centroids = torch.randn(300, 5, generator=generator), torch.randn(20, 5, generator=generator)
    assert torch.equal(nearest_centroid(frames, centroids), torch.cdist(frames.double(), centroids.double()).argmin(1))
    assert nearest_centroid(torch.zeros(1, 2), torch.ones(3, 2)).tolist() == [0]


def test_clusters_that_lie_far_apart_are_found() -> None:
    """A start that prefers far frames has one in each group, so that the means are those of the groups."""
    generator = torch.Generator().manual_seed(1)
    groups = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [100.0, 100.0]])
    clips = {i: groups[torch.randint(4, (30,), generator=generator)] + 0.1 * torch.randn(30, 2, generator=generator) for i in range(5)}
    for seed in range(10):
        found = fit(clips, num_clusters=4, seed=seed)
        assert float(torch.cdist(found.centroids, groups).min(0).values.max()) < 0.2 and found.inertia[-1] < 0.1


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), clusters=st.integers(1, 12))
def test_inertia_never_grows(seed: int, clusters: int) -> None:
    frames = frames_of(3, seed=seed, most=15)
    assume(sum(map(len, frames.values())) >= clusters)  # fewer are refused
    found = fit(frames, num_clusters=clusters, seed=seed, tolerance=0.0, iterations=20)
    assert all(after <= before * (1 + 1e-6) for before, after in zip(found.inertia, found.inertia[1:], strict=False))
    assert bool(found.centroids.isfinite().all()) and found.centroids.shape == (clusters, 3)


def test_as_many_clusters_as_different_frames_leave_no_distance() -> None:
    clips = {0: torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0], [50.0]])}
    found = fit(clips, num_clusters=3, iterations=30, tolerance=0.0)
    assert sorted(found.centroids[:, 0].tolist()) == [0.0, 1.0, 50.0] and found.inertia[-1] == 0.0


def test_empty_clusters_move_to_the_farthest_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    from soundomni.vae import kmeans

    monkeypatch.setattr(kmeans, "_start", lambda frames, count, generator: torch.full((count, 1), 1000.0))
    clips = {0: torch.tensor([[0.0], [1.0], [2.0]]), 2: torch.tensor([[100.0], [101.0], [-70.0]])}
    found = fit(clips, num_clusters=3, iterations=30, tolerance=0.0)
    assert sorted(found.centroids[:, 0].tolist()) == [-70.0, 1.0, 100.5]


def test_fewer_different_frames_than_clusters_give_each_of_them_a_centroid() -> None:
    found = fit({0: torch.tensor([[3.0, 1.0], [3.0, 1.0], [3.0, 1.0], [7.0, 7.0]])}, num_clusters=4)
    assert found.inertia[-1] == 0.0 and {tuple(row) for row in found.centroids.tolist()} == {(3.0, 1.0), (7.0, 7.0)}


def test_a_seed_gives_the_same_centroids_again_and_another_one_others() -> None:
    clips = frames_of(6, seed=0)
    first, again, other = (fit(clips, num_clusters=9, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.centroids, again.centroids) and not torch.equal(first.centroids, other.centroids)


def test_iterations_are_reported_and_end_when_they_no_longer_help() -> None:
    told: list[tuple[int, float]] = []
    found = fit(frames_of(6, seed=0), num_clusters=5, iterations=200, on_iteration=lambda i, inertia: told.append((i, inertia)))
    assert told == list(enumerate(found.inertia)) and 2 < len(told) < 100
    assert found.inertia[-2] - found.inertia[-1] <= 1e-4 * found.inertia[-2]


def test_what_cannot_be_clustered_is_refused() -> None:
    clips = {0: torch.zeros(3, 2)}
    with pytest.raises(DataError, match="the clips have 3 frames; expected at least 4, one for each cluster"):
        fit(clips, num_clusters=4)
    with pytest.raises(SpecError, match="the number of clusters is 0"):
        fit(clips, num_clusters=0)
    with pytest.raises(SpecError, match="the seed is -1"):
        fit(clips, num_clusters=1, seed=-1)


@pytest.mark.long
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    run_in_two_processes(PROGRAM, str(tmp_path))
    seen: list[list[dict[str, Any]]] = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for place, (_, arguments) in enumerate(SETTINGS):
        expected: Clusters = fit(frames_of(7, seed=3), **arguments)
        for rank in seen:
            np.testing.assert_allclose(rank[place]["inertia"], expected.inertia, rtol=1e-9)
            np.testing.assert_allclose(rank[place]["centroids"], expected.centroids.numpy(), atol=1e-6)
