"""Guidance that keeps only part of what it would change (APG; Sadat et al. 2024, "Eliminating oversaturation and artifacts of high
guidance scales"), in the space of the clean data, as Stable Audio 3 applies it.

With D = x̂_cond − x̂_uncond, guidance is x̂_cond + (scale − 1)·D. The part of D that is parallel to x̂_cond only makes the clip
louder; the part that is orthogonal to it changes what it is. With momentum, each D has those of earlier steps added to it.

Shape letters: B clips, D latent dimensions, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.spec.schema import GuidanceSpec

_SMALLEST = 1e-4
"""Smallest divisor, used in place of smaller timesteps: known frames have timestep 0, and do not move anyway."""


def projects(guidance: GuidanceSpec) -> bool:
    """Return whether this guidance differs from plain guidance."""
    return guidance.parallel != 1.0 or guidance.norm_threshold > 0.0 or guidance.momentum != 0.0


class Momentum:
    """The changes D of one run of a sampler so far: each is added to `factor` times the ones before (Sadat et al. 2024,
    algorithm 1).

    Args:
        factor: `momentum` of the guidance.
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._sum: Tensor | None = None

    def add(self, change: Tensor, within: Tensor | None) -> Tensor:
        """Return a change `[B, D, T]` with those before it.

        Clips that are not `within` the interval of guidance, bool `[B, 1, 1]` or `[B, 1, T]`, do not remember it.
        None if all are.
        """
        before = torch.zeros_like(change) if self._sum is None else self._sum
        total = change + self._factor * before
        self._sum = total if within is None else torch.where(within, total, before)
        return total


def projected(
    conditional: Tensor,
    unconditional: Tensor,
    values: Tensor,
    timesteps: Tensor,
    guidance: GuidanceSpec,
    *,
    valid: Tensor | None,
    momentum: Momentum | None = None,
    within: Tensor | None = None,
) -> Tensor:
    """Return the guided velocity `[B, D, T]`. No clip's result depends on another.

    Args:
        conditional, unconditional: velocities `[B, D, T]`.
        values: `[B, D, T]`, on the path x_t = (1 − t)·x0 + t·ε.
        timesteps: `[B]` or `[B, T]`.
        guidance: the scale, the share of the parallel part that stays, and the largest norm of D.
        valid: bool `[B, T]`, the frames over which norms and products are taken; None for all.
        momentum: the changes of the run so far; None for none.
        within: as in `Momentum.add`.
    """
    dtype = torch.promote_types(conditional.dtype, torch.float32)
    times = timesteps.reshape(len(values), 1, -1).to(dtype).clamp_min(_SMALLEST)
    clean = values.to(dtype) - times * conditional.to(dtype)
    change = times * (unconditional - conditional).to(dtype)
    if momentum is not None:
        change = momentum.add(change, within)
    own_clean, own_change = (x if valid is None else x.masked_fill(~valid[:, None], 0.0) for x in (clean, change))
    kept = change
    if guidance.parallel != 1.0:
        square = own_clean.square().sum((1, 2), keepdim=True).clamp_min(torch.finfo(dtype).tiny)
        share = (own_change * own_clean).sum((1, 2), keepdim=True) / square
        kept = change - (1.0 - guidance.parallel) * share * clean
    if guidance.norm_threshold > 0.0:
        kept = kept * (guidance.norm_threshold / torch.linalg.vector_norm(own_change, dim=(1, 2), keepdim=True)).clamp_max(1.0)
    return (conditional.to(dtype) - (guidance.scale - 1.0) * kept / times).to(conditional.dtype)
