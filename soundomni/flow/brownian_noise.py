"""Noise of a Brownian path, which is the same path for any number of steps: a virtual Brownian tree (Li et al. 2020,
"Scalable gradients for stochastic differential equations").

k-diffusion has such a tree too, over σ in place of τ below. The stochastic DPM-Solvers add up the increments of a Brownian
motion B(τ) over τ = exp(2·eta·λ), with λ = log((1 − t) / t). With increments of one path, runs with more and with fewer steps
solve the same equation, more and less exactly.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.flow.noise_schedules import log_snr

FreshNoise = Literal["independent", "brownian"]
DEPTH, RANGE = 24, 40.0
"""Halvings of the path, which lies over λ from −RANGE to RANGE: straight between points about 5e-6 apart."""
LEAST_ETA, MOST_ETA = 1e-3, 4.0
"""The etas whose τ, and its differences between points of the path, have room in a number of double precision."""


class BrownianNoise:
    """A Brownian path for each clip of one run.

    Args:
        like: `[B, D, T]`; the noise has its shape, type and place.
        frames: frames of each clip; beyond them, the noise is zero.
        generators: one for each clip, from which a number is drawn that decides its path, frame by frame, so that a
            longer clip has the path of a shorter one.
        eta: as in the samplers, from LEAST_ETA to MOST_ETA.
    """

    def __init__(self, like: Tensor, frames: Sequence[int], generators: Sequence[torch.Generator], *, eta: float) -> None:
        self._like, self._eta = like, eta
        entropy = [int(torch.randint(2**62, (), generator=one, device=one.device)) for one in generators]
        self._paths = [_Path((count, like.shape[1]), seed, eta) for count, seed in zip(frames, entropy, strict=True)]

    def between(self, timestep: float, next_timestep: float) -> Tensor:
        """Return the increments of the paths between two timesteps, falling and above 0, as normal noise `[B, D, T]`."""
        places = _within(log_snr(timestep)), _within(log_snr(next_timestep))
        width = _time(places[1], self._eta) - _time(places[0], self._eta)
        noise = torch.zeros_like(self._like)
        if width == 0.0:  # both lie beyond the range
            return noise
        for row, path in zip(noise, self._paths, strict=True):
            before = path.at(places[0])
            increment = (path.at(places[1]) - before) / math.sqrt(width)
            row[:, : len(increment)] = torch.from_numpy(increment.T).to(row)
        return noise


class _Path:
    """B(τ(λ)) of one clip, float64 `[T, D]`."""

    def __init__(self, shape: tuple[int, int], seed: int, eta: float) -> None:
        self._shape, self._seed, self._eta = shape, seed, eta
        self._known: dict[tuple[int, int], np.ndarray] = {}
        self._last = math.nan, np.zeros(shape)

    def at(self, place: float) -> np.ndarray:
        """Return the path at λ, found by halving its range; the points on the way there are kept for the next call.

        It is 0 at −∞.
        """
        if place == -math.inf:
            return np.zeros(self._shape)
        if place == self._last[0]:
            return self._last[1]
        index, low, high = 0, -RANGE, RANGE
        before, kept = self._known, {}

        def point(key: tuple[int, int], mean: np.ndarray | float, variance: float) -> np.ndarray:
            kept[key] = before[key] if key in before else mean + math.sqrt(variance) * self._drawn(key)
            return kept[key]

        times = _time(low, self._eta), _time(high, self._eta)
        first = point((0, 0), 0.0, times[0])
        last = point((0, 1), first, times[1] - times[0])
        for depth in range(1, DEPTH + 1):
            middle = (low + high) / 2
            time, width = _time(middle, self._eta), times[1] - times[0]
            share = (time - times[0]) / width
            new = point((depth, index), first + share * (last - first), (time - times[0]) * (times[1] - time) / width)
            if place < middle:
                index, high, last, times = 2 * index, middle, new, (times[0], time)
            else:
                index, low, first, times = 2 * index + 1, middle, new, (time, times[1])
        self._known = kept
        share = (_time(place, self._eta) - times[0]) / (times[1] - times[0])
        self._last = place, first + share * (last - first)
        return self._last[1]

    def _drawn(self, key: tuple[int, int]) -> np.ndarray:
        return np.random.default_rng([self._seed, *key]).standard_normal(self._shape)


def _within(place: float) -> float:
    """Return a place as it is, or the nearer end of the range: beyond it, there is next to no data, or next to no noise to add."""
    return place if place == -math.inf else min(max(place, -RANGE), RANGE)


def _time(place: float, eta: float) -> float:
    return math.exp(2.0 * eta * place)


def check_noise(noise: str, eta: float) -> FreshNoise:
    """Return the kind of fresh noise. Raise SpecError if there is no such kind, or none for this eta."""
    known = get_args(FreshNoise)
    if noise not in known:
        raise SpecError(f"noise is '{noise}'; expected {' or '.join(known)}.{did_you_mean(noise, known)}")
    if noise == "brownian" and eta != 0 and not LEAST_ETA <= eta <= MOST_ETA:
        raise SpecError(f"eta is {eta:g}; expected 0, or from {LEAST_ETA:g} to {MOST_ETA:g}, with brownian noise. Set noise to independent")
    return "brownian" if noise == "brownian" else "independent"
