"""How the losses of a step become one: each is a mean over all ranks and micro-batches, times its weight in the spec."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from soundomni.core.interfaces import LossTerms


def loss_shares(terms: LossTerms, counts: Mapping[str, float], num_batches: int) -> dict[str, Tensor]:
    """Return what one batch contributes to the mean of each loss; see Trainable.count_terms for the two rules."""
    shares = {}
    for name, (total, count) in terms.items():
        scale = max(1.0, counts[name]) if name in counts else count.clamp(min=1e-12) * num_batches
        shares[name] = total.float() / scale
    return shares


def weighted_loss(shares: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the sum of the losses, each times its weight, 1 if it has none: 0-dim, to compute gradients from."""
    return torch.stack([weights.get(name, 1.0) * share for name, share in shares.items()]).sum()


def weighted_total(losses: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the same sum of numbers, for the log."""
    return sum(weights.get(name, 1.0) * value for name, value in losses.items())
