"""Diffusion along a quarter circle with a network that predicts v (Salimans and Ho 2022, section 4 and appendix D).

On that path x = α·x0 + σ·ε with α = cos(π·u/2) and σ = sin(π·u/2). It is a rectified flow in other units: x_t = x / (α + σ) with t = σ / (α
+ σ). So samplers see x_t and t, as with every other objective, and only the network sees x and u.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from soundomni.core.interfaces import First, LossTerms, Query
from soundomni.flow.flow_matching import FlowMatching


class VPrediction(FlowMatching):
    """The network predicts v = α·ε − σ·x0 from x and u. The loss, named "velocity", is the mean squared error of v.

    Stable Audio Open 1.0 is trained in this way, with uniform timesteps. The arguments are those of `FlowMatching`; its timesteps are the u
    of the circle.

    Args:
        timesteps, mean, std, shift, length_shift, shows_known: as in `FlowMatching`, for u.

    Raises:
        SpecError: an argument is out of range.
    """

    def shown(self, values: Tensor, timesteps: Tensor) -> Tensor:
        """Return x `[B, D, T]` for x_t, computed in at least float32."""
        return (_precise(values) / _radius(timesteps)[:, None]).to(values.dtype)

    def shown_times(self, timesteps: Tensor) -> Tensor:
        """Return u for t, both `[B, T]`."""
        times = _precise(timesteps)
        return torch.atan2(times, 1.0 - times) * (2 / math.pi)

    def predicted(self, output: Tensor, inputs: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return the velocity ε − x0 `[B, D, T]` for v = `output` and x_t = `inputs`, in at least float32."""
        radius = _radius(timesteps)[:, None]
        return _precise(output) / radius + _slope(timesteps)[:, None] * _precise(inputs)

    def native(self, prediction: Tensor, inputs: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return v `[B, D, T]` for a velocity and x_t = `inputs`, in at least float32."""
        return (_precise(prediction) - _slope(timesteps)[:, None] * _precise(inputs)) * _radius(timesteps)[:, None]

    def loss(self, prediction: Tensor, query: Query) -> LossTerms:
        """Return the loss of FlowMatching with each error of a frame scaled to one of v."""
        radius = _radius(query.timesteps)[:, None]
        return super().loss(_precise(prediction) * radius, replace(query, targets=_precise(query.targets) * radius))

    def _draw_timestep(self, generator: torch.Generator, frames: int) -> float:
        return _flow_time(super()._draw_timestep(generator, frames))

    def _timestep_at(self, quantile: float, generator: torch.Generator, frames: int) -> float:
        return _flow_time(super()._timestep_at(quantile, generator, frames))

    def _timestep_of(self, timestep: float, generator: torch.Generator, frames: int) -> float:
        return _flow_time(timestep)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _radius(timesteps: Tensor) -> Tensor:
    """Return 1 / (α + σ) of t, which is the length of (1 − t, t)."""
    times = _precise(timesteps)
    return torch.hypot(1.0 - times, times)


def _slope(timesteps: Tensor) -> Tensor:
    """Return (σ − α)·(α + σ) of t: the part of x_t in the velocity."""
    times = _precise(timesteps)
    return (2.0 * times - 1.0) / ((1.0 - times).square() + times.square())


def _flow_time(time: float) -> float:
    """Return t for u."""
    sigma, alpha = math.sin(math.pi / 2 * time), math.cos(math.pi / 2 * time)
    return sigma / (alpha + sigma)
