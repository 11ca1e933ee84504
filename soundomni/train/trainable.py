"""What the loop needs from a model, a batch and a loader. Any module with these few members can be trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, cast, runtime_checkable

import torch
from torch import nn

from soundomni.core.interfaces import LossTerms


class Batch(Protocol):
    """One micro-batch."""

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on `device`."""
        ...


class Step(Protocol):
    """The data of one optimizer step.

    Args:
        batches: this rank's micro-batches; the same number on every rank.
        state: what the loader needs to continue after this step; plain JSON data, the same on every rank.
        counts: what this rank's batches contain, such as {"tokens": 4096, "samples": 12}; the same names on every rank.
    """

    @property
    def batches(self) -> Sequence[Any]: ...

    @property
    def state(self) -> Mapping[str, Any]: ...

    @property
    def counts(self) -> Mapping[str, float]: ...


@runtime_checkable
class Trainable(Protocol):
    """An nn.Module that the loop can train.

    Calling it with a batch returns `{name: (sum, count)}`, 0-dim tensors, with the same names on every rank and at
    every step. A name with a slash, such as `ce/mine/describe`, is a part of a loss: it is only logged, has no
    gradient, and may be missing. Every trained parameter takes part in every call, whatever the batch contains, to keep
    the ranks in step.

    More members are used if they exist: `FORWARD_METHODS`, names of other methods that run sub-modules;
    `replicated_modules`, modules whose frozen parameters every rank keeps whole; `whole`, modules whose trained
    parameters every rank keeps whole; `kept`, the part that is averaged; `timed_losses`, names of the losses that can
    also be measured with all clips of a batch at one timestep (`batch.at_timestep`); and `after_step(ranks)`, called
    after every step.

    With `phases`, name → the module that is trained, each step runs them in order, and calls the module with `(batch, phase,
    step=finished steps, keep=whether the next phase gets the same batch next)`.
    """

    @property
    def units(self) -> Iterable[nn.Module]:
        """Repeated layers: the units of sharding, activation checkpointing and compilation. May be empty."""
        ...

    def count_terms(self, batch: Any) -> Mapping[str, float]:
        """Return the count of each loss of a batch, on the host, without running the model.

        A loss named here is divided by its count over all ranks and micro-batches, so that each element weighs the same. A loss
        that is not named is averaged: each batch contributes its own sum / count, divided by the number of batches.
        """
        ...

    def __call__(self, batch: Any) -> LossTerms: ...


def as_trainable(model: nn.Module) -> Trainable:
    """Return `model` as a Trainable. Raise TypeError, which names the missing members, if it is not one."""
    missing = [name for name in ("units", "count_terms") if not hasattr(model, name)]
    if missing:
        raise TypeError(f"{type(model).__name__} cannot be trained: it does not have {', '.join(missing)} (see train/trainable.py)")
    return cast(Trainable, model)
