"""What a strength of variation means for one model and one clip: the timestep to start from.

The same timestep hides little of a clip in one latent space and nearly all of it in another. So strength is measured on the model
itself: with no prompt, how far is its estimate of a clip from the clip, when it is shown the clip noised to a timestep? At timestep 1 it
knows nothing of the clip, and that distance (the root of the mean squared error) counts as 1. A strength of 0.2 starts where the distance
is 0.2, a slight change, and one of 0.8 where little but the prompt says what to make.

Shape letters: R rows, D latent dimensions, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.inference.sampling import AudioSlots, make_cache
from soundomni.core.interfaces import Objective
from soundomni.core.sequence import Segment

TIMESTEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.95, 0.97, 0.985, 1.0)
"""Where the loss of a clip is measured; between them it is interpolated."""
NUM_DRAWS = 1
"""Draws of noise, each used with both signs, over which the loss is averaged."""

_DIFFERENCE = 1e-3


def beginnings(model: UnifiedModel, strength: float, *, slot: Segment, batch_size: int = 16) -> Callable[[Tensor | None], float]:
    """Return a function from a clip's values `[D, T]` to `begin_timestep`, 1 for None. A clip that returns is measured only once."""
    measured: list[tuple[Tensor, float]] = []

    def begin(clip: Tensor | None) -> float:
        if clip is None:
            return 1.0
        for seen, timestep in measured:
            if seen.shape == clip.shape and torch.equal(seen, clip):
                return timestep
        timestep = begin_timestep(model, clip, strength, slot=slot, batch_size=batch_size)
        measured.append((clip, timestep))
        return timestep

    return begin


def begin_timestep(model: UnifiedModel, clip: Tensor, strength: float, *, slot: Segment, batch_size: int = 16) -> float:
    """Return the timestep above 0 and at most 1 at which a clip is lost to the model as far as `strength` says.

    It depends on the model and the clip only, never on the prompt or the seed.

    Args:
        model: the model.
        clip: normalized values `[D, T]`.
        strength: above 0 and at most 1.
        slot: the segment of the clip, as a target is written.
        batch_size: rows that go through the model at once.
    """
    if strength == 1.0:
        return 1.0
    return timestep_of_share(strength**2, lost_shares(model, clip, slot=slot, batch_size=batch_size))


def timestep_of_share(share: float, lost: Sequence[float]) -> float:
    """Return the timestep at which `share` is lost, given the rising `lost` at each of TIMESTEPS.

    >>> lost = [timestep**2 for timestep in TIMESTEPS]
    >>> round(timestep_of_share(0.25, lost), 6), round(timestep_of_share(1.0, lost), 6)
    (0.5, 1.0)
    """
    known = [(0.0, 0.0), *zip(lost, TIMESTEPS, strict=True)]
    for (low, before), (high, after) in pairwise(known):
        if share <= high:
            return before + (after - before) * (share - low) / (high - low)
    return 1.0


@torch.no_grad()
def lost_shares(model: UnifiedModel, clip: Tensor, *, slot: Segment, batch_size: int = 16) -> list[float]:
    """Return the share of the power of a clip `[D, T]` that is lost at each of TIMESTEPS, never falling, 1 at the last."""
    clip = clip.to(model.device)
    rows = [(timestep, noise) for timestep in TIMESTEPS for noise in _noises(clip)]
    errors: list[float] = []
    for first in range(0, len(rows), batch_size):
        errors += _errors(model, clip, rows[first : first + batch_size], slot=slot)
    means = torch.tensor(errors, dtype=torch.float64).reshape(len(TIMESTEPS), -1).mean(1)
    if means[-1] == 0.0:  # the clip is just what the model expects without any
        return list(TIMESTEPS)
    shares: list[float] = (means / means[-1]).clamp_max(1.0).cummax(0).values.tolist()
    return shares


def clean_estimate(objective: Objective, values: Tensor, velocity: Tensor, timestep: float) -> Tensor:
    """Return the clean values that a velocity at x_t stands for, all `[R, D, T]`.

    On a path x_t = a·x0 + b·ε, the velocity is a'·x0 + b'·ε; two equations give x0. The path is the objective's own, `noised`.
    """
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)

    def path(at: float) -> tuple[float, float]:
        return float(objective.noised(one, zero, at)), float(objective.noised(zero, one, at))

    (a, b), before, after = path(timestep), max(0.0, timestep - _DIFFERENCE), min(1.0, timestep + _DIFFERENCE)
    (a_before, b_before), (a_after, b_after) = path(before), path(after)
    a_slope, b_slope = (a_after - a_before) / (after - before), (b_after - b_before) / (after - before)
    return (b_slope * values - b * velocity) / (a * b_slope - b * a_slope)


def _noises(clip: Tensor) -> list[Tensor]:
    """Return draws of noise `[D, T]` that are the same for every clip of this shape, each with both signs."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(clip.shape[1], clip.shape[0], generator=generator).T.to(clip) for _ in range(NUM_DRAWS)]
    return [sign * noise for noise in drawn for sign in (1.0, -1.0)]


def _errors(model: UnifiedModel, clip: Tensor, rows: Sequence[tuple[float, Tensor]], *, slot: Segment) -> list[float]:
    """Return the mean squared error of the estimate for each (timestep, noise), with no prompt."""
    frames = clip.shape[1]
    cache = make_cache(model, [()] * len(rows), room=frames + 2)
    slots = AudioSlots(model, cache, [slot] * len(rows), positions=[0] * len(rows))
    noised = torch.cat([model.objective.noised(clip[None], noise[None], timestep) for timestep, noise in rows])
    timesteps = torch.tensor([timestep for timestep, _ in rows], device=clip.device)
    velocity = slots.predict(noised, timesteps[:, None].expand(-1, frames))
    return [
        float((clean_estimate(model.objective, noised[i], velocity[i].to(noised), timestep) - clip).square().mean())
        for i, (timestep, _) in enumerate(rows)
    ]
