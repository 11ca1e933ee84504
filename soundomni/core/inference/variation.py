"""What a strength of variation means for one model and one clip: the timestep to start from, and the most that may change.

The same timestep hides little of a clip in one latent space and nearly all of it in another. So strength is measured on
the model itself: with no prompt, how far is its estimate of a clip from the clip, when it is shown the clip with noise
added up to a timestep? At timestep 1 it knows nothing about the clip, and that distance (the root of the mean squared
error) counts as 1. A strength of 0.2 starts where the distance is 0.2, a slight change, and one of 0.8 where little but
the prompt says what to make.

A prompt that contradicts the clip pulls the estimate further away. Some models still follow the clip if little of it is hidden; others
follow the prompt from any timestep. So the distance is bounded too, on the same scale and with any prompt: what may change is to what
stays as s to 1 − s. This allows a distance of 0.25 at a strength of 0.2, of 1 at 0.5, and of 4 at 0.8. Unrelated clips are about 1.2 to
1.4 apart, so the bound holds a slight change back, stops a moderate one on the way to the other clip, and does not hinder a strong one.

For codes, neither is needed. A strength of 0.2 hides a fifth of a clip's frames, and the others never change: the share that is lost is
the same in every clip, and so is the share that may change.

Shape letters: R rows, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.batches import batches
from soundomni.core.inference.bounded_change import most_change
from soundomni.core.inference.clean_estimate import clean_estimate
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.sampling import AudioSlots
from soundomni.core.sequence import Context, Segment

TIMESTEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.95, 0.97, 0.985, 1.0)
"""Timesteps at which the loss of a clip is measured; it is interpolated between them."""
LEAST_STRENGTH = 1e-6
"""Lower strengths count as this one: float32 does not show so slight a change, and divisions by yet smaller timesteps fail."""
NUM_DRAWS = 1
"""Draws of noise that the loss is averaged over; each is used with both signs."""


@dataclass(frozen=True)
class Beginning:
    """Where a variation begins, and how far it may go.

    Args:
        timestep: above 0 and at most 1.
        most_change: how far the estimate of the clip may go from the clip, as the root of the mean squared change of a value.
    """

    timestep: float = 1.0
    most_change: float = math.inf


def beginnings(
    model: UnifiedModel, strength: float, *, slot: Segment, context: Context = (), batch_size: int = 16
) -> Callable[[Tensor | None], Beginning]:
    """Return a function from a clip's values `[D, T]` to its `beginning`; None begins with noise.

    Each clip is measured only once.
    """
    measured: list[tuple[Tensor, Beginning]] = []

    def begin(clip: Tensor | None) -> Beginning:
        if clip is None:
            return Beginning()
        for seen, found in measured:
            if seen.shape == clip.shape and torch.equal(seen, clip):
                return found
        found = beginning(model, clip, strength, slot=slot, context=context, batch_size=batch_size)
        measured.append((clip, found))
        return found

    return begin


def beginning(
    model: UnifiedModel, clip: Tensor, strength: float, *, slot: Segment, context: Context = (), batch_size: int = 16
) -> Beginning:
    """Return the timestep at which the model has lost as much of a clip as `strength` says, and how far a variation may
    go from it.

    Both only depend on the model and the clip, never on the prompt or the seed. At a strength of 1 there is no bound. For codes, the
    timestep is the strength, and there is no bound either.

    Args:
        model: the model.
        clip: normalized values `[D, T]`.
        strength: above 0 and at most 1.
        slot: the segment of the clip, as a target is written.
        context: the segments before the clip: the conditions that remain without a prompt.
        batch_size: rows that go through the model at once.
    """
    if strength == 1.0:
        return Beginning()
    strength = max(strength, LEAST_STRENGTH)
    if model.made(slot.modality).objective.predicts != "velocity":
        return Beginning(strength)
    errors = estimate_errors(model, clip, slot=slot, context=context, batch_size=batch_size)
    timestep = timestep_of_share(strength**2, lost_shares(errors))
    if errors[-1] == 0.0:  # nothing to measure a change by
        return Beginning(timestep)
    return Beginning(timestep, most_change(strength, unknown=math.sqrt(errors[-1])))


def timestep_of_share(share: float, lost: Sequence[float]) -> float:
    """Return the timestep at which `share` is lost, given the rising shares `lost` at each of TIMESTEPS.

    >>> lost = [timestep**2 for timestep in TIMESTEPS]
    >>> round(timestep_of_share(0.25, lost), 6), round(timestep_of_share(1.0, lost), 6)
    (0.5, 1.0)
    """
    known = [(0.0, 0.0), *zip(lost, TIMESTEPS, strict=True)]
    for (low, before), (high, after) in pairwise(known):
        if share <= high:
            return before + (after - before) * (share - low) / (high - low)
    return 1.0


def lost_shares(errors: Sequence[float]) -> list[float]:
    """Return the share of a clip's power that is lost at each of TIMESTEPS, given `estimate_errors`: never falling, 1
    at the last.
    """
    if errors[-1] == 0.0:  # the model expects exactly this clip without seeing it
        return list(TIMESTEPS)
    shares = torch.tensor(errors, dtype=torch.float64) / errors[-1]
    rising: list[float] = shares.clamp_max(1.0).cummax(0).values.tolist()
    return rising


@torch.no_grad()
def estimate_errors(model: UnifiedModel, clip: Tensor, *, slot: Segment, context: Context = (), batch_size: int = 16) -> list[float]:
    """Return the mean squared error of the model's estimate of a clip `[D, T]`, with no prompt, at each of TIMESTEPS.

    The arguments are those of `beginning`.
    """
    clip = clip.to(model.device)
    rows = [(timestep, noise) for timestep in TIMESTEPS for noise in _noises(clip)]
    errors: list[float] = []
    for batch in batches(rows, batch_size):
        errors += _errors(model, clip, batch, slot=slot, context=context)
    means: list[float] = torch.tensor(errors, dtype=torch.float64).reshape(len(TIMESTEPS), -1).mean(1).tolist()
    return means


def _noises(clip: Tensor) -> list[Tensor]:
    """Return draws of noise `[D, T]` that are the same for every clip of this shape, each with both signs."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(clip.shape[1], clip.shape[0], generator=generator).T.to(clip) for _ in range(NUM_DRAWS)]
    return [sign * noise for noise in drawn for sign in (1.0, -1.0)]


def _errors(model: UnifiedModel, clip: Tensor, rows: Sequence[tuple[float, Tensor]], *, slot: Segment, context: Context) -> list[float]:
    """Return the mean squared error of the estimate for each (timestep, noise), with no prompt."""
    frames, objective = clip.shape[1], model.made(slot.modality).objective
    contexts = [context] * len(rows)
    cache = make_cache(model, contexts, room=slot.length)
    unknown = torch.zeros(len(rows), frames, dtype=torch.bool, device=clip.device)
    slots = AudioSlots(
        model,
        cache,
        [slot] * len(rows),
        positions=[0] * len(rows),
        conditions=model.conditions(contexts),
        hints=objective.hints(clip.expand(len(rows), -1, -1), unknown),
    )
    noised = torch.cat([objective.noised(clip[None], noise[None], timestep) for timestep, noise in rows])
    timesteps = torch.tensor([timestep for timestep, _ in rows], device=clip.device)
    velocity = slots.predict(noised, timesteps[:, None].expand(-1, frames))
    return [
        float((clean_estimate(objective, noised[i], velocity[i].to(noised), timestep) - clip).square().mean())
        for i, (timestep, _) in enumerate(rows)
    ]
