"""K-means (Lloyd 1982, "Least squares quantization in PCM") from a k-means++ start (Arthur and Vassilvitskii 2007),
over the frames of clips that several processes share.

Everything that a clip contributes is computed from that clip only, and random numbers name a clip and a frame in it. So
the result does not depend on which process holds which clip, but for the rounding of sums in float64.

Shape letters: N frames of a clip, D dimensions, M clusters, C clips of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from soundomni.core.errors import DataError, amount
from soundomni.core.interfaces import Ranks
from soundomni.core.limits import check_count, check_seed

DEFAULT_ITERATIONS, DEFAULT_TOLERANCE = 50, 1e-4


@dataclass(frozen=True)
class Clusters:
    """What k-means found.

    Args:
        centroids: float32 `[M, D]`.
        inertia: mean squared distance of a frame from the nearest centroid: at the start, and after each iteration.
    """

    centroids: Tensor
    inertia: tuple[float, ...]


def nearest_centroid(frames: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the centroid nearest to each frame, the first of equally near ones.

    Args:
        frames: `[N, D]`.
        centroids: `[M, D]`, in the same dtype.

    Returns:
        int64 `[N]`.
    """
    return (centroids.square().sum(dim=1) - 2 * frames @ centroids.T).argmin(dim=1)


@torch.no_grad()
def fit_kmeans(
    clips: Mapping[int, Tensor],
    *,
    num_clips: int,
    dim: int,
    num_clusters: int,
    seed: int,
    ranks: Ranks,
    device: torch.device,
    iterations: int = DEFAULT_ITERATIONS,
    tolerance: float = DEFAULT_TOLERANCE,
    on_iteration: Callable[[int, float], None] | None = None,
) -> Clusters:
    """Find centroids of the frames of all clips. Every rank calls it, and gets the same ones.

    An iteration moves each centroid to the mean of the frames that are nearest to it. A centroid without frames moves
    to the frame that is farthest from its own centroid. Iterations end when one improves the inertia by no more than
    the tolerance.

    Args:
        clips: number of a clip → its frames, float `[N, D]`: this rank's share of the clips 0 to C - 1.
        num_clips: C, the clips of all ranks; some may be missing.
        dim: D.
        num_clusters: M.
        seed: seed of the start.
        ranks: the processes.
        device: device of the frames, also on a rank without any.
        iterations: most iterations; 0 returns the start.
        tolerance: share of the inertia.
        on_iteration: called with the number of iterations so far, from 0, and the inertia.

    Raises:
        SpecError: a number is out of range.
        DataError: there are fewer frames than clusters.
    """
    check_count("the number of clusters", num_clusters)
    check_seed(seed)
    frames = _Frames(clips, num_clips=num_clips, dim=dim, ranks=ranks, device=device)
    if frames.total < num_clusters:
        expected = f"expected at least {num_clusters:,}, one for each cluster"
        raise DataError(f"the clips have {amount(frames.total, 'frame')}; {expected}")
    centroids = _start(frames, num_clusters, torch.Generator().manual_seed(seed))
    found = _assign(frames, centroids)
    inertia = [found.inertia]
    if on_iteration is not None:
        on_iteration(0, found.inertia)
    for iteration in range(1, iterations + 1):
        centroids = _moved(frames, centroids, found)
        found = _assign(frames, centroids)
        inertia.append(found.inertia)
        if on_iteration is not None:
            on_iteration(iteration, found.inertia)
        if inertia[-2] - inertia[-1] <= tolerance * inertia[-2]:
            break
    return Clusters(centroids, tuple(inertia))


class _Frames:
    """The frames of all clips, of which each rank holds some."""

    def __init__(
        self,
        clips: Mapping[int, Tensor],
        *,
        num_clips: int,
        dim: int,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.dim = dim
        self.device = device
        self.ranks = ranks
        self._num_clips = num_clips
        self._clips = {number: clips[number] for number in sorted(clips) if len(clips[number])}
        self.counts = self.by_clip({number: float(len(own)) for number, own in self._clips.items()})
        """Frames of each clip, float64 `[C]` on the CPU."""
        self.total = int(self.counts.sum())

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the number and the frames of this rank's clips, in ascending order."""
        yield from self._clips.items()

    def by_clip(self, values: Mapping[int, float]) -> Tensor:
        """Return a value of each clip of all ranks, float64 `[C]` on the CPU; 0 for clips that no rank has."""
        own = torch.zeros(self._num_clips, dtype=torch.float64)
        for number, value in values.items():
            own[number] = value
        return self.sum(own.to(self.device)).cpu()

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        return self.ranks.sum(values)

    def pick(self, number: int, choose: Callable[[Tensor], int]) -> Tensor:
        """Return the frame `[D]` of a clip that `choose` points to, given the clip's frames on the rank that has it."""
        frame = torch.zeros(self.dim, device=self.device)
        own = self._clips.get(number)
        if own is not None:
            frame.copy_(own[choose(own)])
        return self.sum(frame)


def _start(frames: _Frames, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Draw centroids `[M, D]`: the chance of a frame is in proportion to its squared distance from those before."""
    distances = {number: torch.full((len(own),), torch.inf, device=frames.device) for number, own in frames}
    weights = frames.counts
    drawn: list[Tensor] = []
    while len(drawn) < num_clusters:
        by_clip, within = torch.rand(2, dtype=torch.float64, generator=generator).tolist()
        uniform = not drawn or not float(weights.sum()) > 0  # all frames are centroids already
        number = _draw(frames.counts if uniform else weights, by_clip)

        def choose(own: Tensor, number: int = number, within: float = within, uniform: bool = uniform) -> int:
            chances = torch.ones(len(own)) if uniform else distances[number].cpu()
            return _draw(chances.double(), within)

        drawn.append(frames.pick(number, choose))
        for place, own in frames:
            torch.minimum(distances[place], _distances(own, drawn[-1]), out=distances[place])
        weights = frames.by_clip({place: float(distance.double().sum()) for place, distance in distances.items()})
    return torch.stack(drawn)


def _distances(frames: Tensor, centroid: Tensor) -> Tensor:
    """Return the squared distance `[N]` of each frame from one centroid `[D]`; 0 if they are equal."""
    return torch.cdist(frames, centroid[None], compute_mode="donot_use_mm_for_euclid_dist")[:, 0].square()


def _draw(weights: Tensor, share: float) -> int:
    """Return the index at a share in [0, 1) of weights float64 `[N]`, not all 0; never one without weight."""
    sums = weights.cumsum(dim=0)
    index = int(torch.searchsorted(sums, share * sums[-1], right=True))
    return min(index, int(weights.nonzero()[-1]))


@dataclass(frozen=True)
class _Assigned:
    """Frames by their nearest centroid.

    Args:
        sums, sizes: sums of the frames of each cluster, float64 `[M, D]`, and their number `[M]`, over all ranks.
        distances: clip → squared distance of each of its frames, `[N]`.
        inertia: mean squared distance over all ranks.
    """

    sums: Tensor
    sizes: Tensor
    distances: Mapping[int, Tensor]
    inertia: float


def _assign(frames: _Frames, centroids: Tensor) -> _Assigned:
    sums = torch.zeros(centroids.shape, dtype=torch.float64, device=frames.device)
    sizes = torch.zeros(len(centroids), dtype=torch.float64, device=frames.device)
    distances = {}
    for number, own in frames:
        codes = nearest_centroid(own, centroids)
        distances[number] = (own - centroids[codes]).square().sum(dim=1)
        sums.index_add_(0, codes, own.double())
        sizes += torch.bincount(codes, minlength=len(centroids))
    by_clip = frames.by_clip({number: float(distance.double().sum()) for number, distance in distances.items()})
    return _Assigned(frames.sum(sums), frames.sum(sizes), distances, float(by_clip.sum()) / frames.total)


def _moved(frames: _Frames, centroids: Tensor, found: _Assigned) -> Tensor:
    """Return each cluster's mean `[M, D]`; an empty one moves to a frame that is far from its centroid."""
    means = (found.sums / found.sizes.clamp_min(1)[:, None]).to(centroids)
    moved = torch.where(found.sizes[:, None] > 0, means, centroids)
    empty = (found.sizes == 0).nonzero()[:, 0].tolist()
    for cluster, (number, frame) in zip(empty, _farthest(frames, found, len(empty)), strict=False):
        moved[cluster] = frames.pick(number, lambda _, frame=frame: frame)  # type: ignore[misc]
    return moved


def _farthest(frames: _Frames, found: _Assigned, count: int) -> list[tuple[int, int]]:
    """Return clip and frame of the `count` largest distances above 0 of all ranks, the largest first."""
    if not count:
        return []
    own = []
    for number, distance in found.distances.items():
        values, places = distance.sort(descending=True, stable=True)
        pairs = zip(values[:count].tolist(), places[:count].tolist(), strict=True)
        own += [(-value, number, place) for value, place in pairs if value]
    every = sorted(entry for gathered in frames.ranks.gather(sorted(own)[:count]) for entry in gathered)
    return [(number, place) for _, number, place in every[:count]]
