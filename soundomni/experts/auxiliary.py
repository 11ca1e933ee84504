"""Losses that feed-forward networks add, such as load balance."""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import LossTerms

AuxiliaryLoss = tuple[Tensor, Tensor]
"""(sum, count) of such a loss."""


def add_losses(losses: list[AuxiliaryLoss | None]) -> AuxiliaryLoss | None:
    """Add up sums and counts of the losses that are present; None if there are none."""
    present = [loss for loss in losses if loss is not None]
    if not present:
        return None
    sums, counts = zip(*present, strict=True)
    return torch.stack(sums).sum(), torch.stack(counts).sum()


def check_names(backbone: str, names: tuple[str, ...]) -> None:
    """Raise SpecError if a router names several losses, which could not be told apart."""
    if len(names) > 1:
        raise SpecError(f"{backbone}: the router names {len(names)} losses ({', '.join(names)}); expected at most one")


def named_loss(backbone: str, names: tuple[str, ...], losses: list[AuxiliaryLoss | None], *, all_ran: bool) -> LossTerms:
    """Return the sum of the layers' losses under the router's name.

    Raise SpecError if all networks ran, and they add a loss without a name or none for a name.
    """
    added = add_losses(losses)
    if all_ran and (added is None) == bool(names):
        named = f"names the loss '{names[0]}'" if names else "names no loss"
        raise SpecError(f"{backbone}: the router {named}, but its networks add {'none' if added is None else 'one'}")
    return {} if added is None else dict.fromkeys(names, added)
