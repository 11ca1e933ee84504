"""Sinusoidal embeddings of timesteps and of places in a clip, computed for any value.

Shape letters: N tokens, H hidden dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from soundomni.core.errors import SpecError

Places = Callable[[Tensor, int], Tensor]
"""Embeds frame indices `[N]` in a given number of dimensions: float32 `[N, dim]`."""

TIME_DIM = 256
MAX_PERIOD = 1e4


def sinusoids(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return sines and cosines, float32 `[N, dim/2]` each, of `values` `[N]` at frequencies 10000^(−i / (dim/2))."""
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=values.device, dtype=torch.float32) * (-math.log(MAX_PERIOD) / half))
    angles = values[:, None].float() * frequencies
    return angles.sin(), angles.cos()


def place_embedding(frames: Tensor, dim: int) -> Tensor:
    """Embed frame indices `[N]` as `[sin | cos]`, float32 `[N, dim]` (Vaswani et al. 2017, section 3.5, halves not
    interleaved).

    Because there is no table, clips may have any length.
    """
    return torch.cat(sinusoids(frames, dim), dim=-1)


def check_even(hidden_dim: int) -> None:
    """Raise SpecError unless `hidden_dim` is even."""
    if hidden_dim % 2:
        raise SpecError(f"connector: hidden_dim is {hidden_dim}; expected an even number, which sin-cos places need")


def fourier_places(frames: Tensor, dim: int) -> Tensor:
    """Embed frame indices `[N]` as `[sin | cos]` at frequencies 2π·i / dim, i = 1 … dim/2, float32 `[N, dim]`.

    Frequencies are evenly spaced, up to half a cycle per frame: any function of `dim` frames, except for its mean, is a
    sum of these (Tancik et al. 2020, section 5, on why fine detail is learned slowly from low frequencies only). Places
    repeat after `dim` frames.
    """
    half = dim // 2
    steps = torch.arange(1, half + 1, device=frames.device, dtype=torch.float32)
    angles = (frames % dim)[:, None].float() * (steps * (math.pi / half))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """Embeds timesteps as hidden tokens: 256 numbers `[cos | sin]`, then Linear–SiLU–Linear (DiT, Peebles and Xie 2023,
    section 3.2).

    Args:
        hidden_dim: H.
        time_scale: factor of timesteps in [0, 1]; 1 as in BAGEL, 1000 as in most diffusion models.
    """

    def __init__(self, *, hidden_dim: int, time_scale: float = 1.0) -> None:
        super().__init__()
        self.time_scale = time_scale
        self.first = nn.Linear(TIME_DIM, hidden_dim)
        self.second = nn.Linear(hidden_dim, hidden_dim)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Map `[N]` to `[N, H]`."""
        sines, cosines = sinusoids(timesteps.float() * self.time_scale, TIME_DIM)
        waves = torch.cat([cosines, sines], dim=-1).to(self.first.weight.dtype)
        out: Tensor = self.second(nn.functional.silu(self.first(waves)))
        return out


class TimeAndPlace(nn.Module):
    """Embedding that is added to a generated token: its timestep and its frame index within the clip."""

    def __init__(self, *, hidden_dim: int, time_scale: float = 1.0, places: Places = place_embedding) -> None:
        super().__init__()
        check_even(hidden_dim)
        self.hidden_dim = hidden_dim
        self.places = places
        self.time = TimeEmbedding(hidden_dim=hidden_dim, time_scale=time_scale)

    def forward(self, timesteps: Tensor, frames: Tensor) -> Tensor:
        """Map timesteps `[N]` in [0, 1] and frames `[N]` to `[N, H]`, to be added to the tokens."""
        time: Tensor = self.time(timesteps)
        return time + self.places(frames, self.hidden_dim).to(time.dtype)
