"""One step of training: phases → micro-batches → losses as (sum, count) → backward → clip → optimizer step.

Every loss is divided by its count over all ranks and micro-batches before the backward pass, so that a step over many small
batches on many ranks is the step over one large batch. Counts follow from the batches and cost one small reduction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from soundomni.core.interfaces import LossTerms
from soundomni.core.spec.ranges import check_loss_weights
from soundomni.core.spec.schema import TrainSpec
from soundomni.train.gradient_clipping import clip_gradients
from soundomni.train.learning_rate import set_learning_rate
from soundomni.train.loss_weighting import loss_shares, weighted_loss, weighted_total
from soundomni.train.optimizers.skipping import step_unless
from soundomni.train.parallel import World, average_whole, computing_precision, reduce_gradients
from soundomni.train.phases import Phase, loss_weights, optimizer_of, phases_of
from soundomni.train.trainable import Trainable, as_trainable


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, on the host.

    Args:
        losses: mean of each loss over its elements.
        loss: weighted sum of the losses of the last phase.
        grad_norms: name of each phase → gradient norm before clipping.
    """

    losses: dict[str, float]
    loss: float
    grad_norms: dict[str, float]

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken, in every phase."""
        return all(map(math.isfinite, (*self.losses.values(), *self.grad_norms.values())))


@dataclass(frozen=True)
class Measured:
    """What the values of a StepResult are.

    Args:
        step: number of finished steps before it.
        phases: name of each phase → names of its losses, in order; each phase also has a gradient norm, after its losses.
    """

    step: int
    phases: Mapping[str, tuple[str, ...]]

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(len(names) + 1 for names in self.phases.values())

    def read(self, values: Sequence[float], train: TrainSpec) -> StepNumbers:
        """Return the numbers."""
        left = iter(values)
        losses: dict[str, float] = {}
        norms: dict[str, float] = {}
        loss = 0.0
        for phase, names in self.phases.items():
            own = dict(zip(names, islice(left, len(names)), strict=True))
            losses |= own
            norms[phase] = next(left)
            loss = weighted_total(own, loss_weights(train, self.step))
        return StepNumbers(losses, loss, norms)


@dataclass(frozen=True)
class StepResult:
    """What one step measured, on the device.

    Args:
        measured: what the values are.
        values: for each phase, the mean of each loss over its elements, and then the gradient norm before clipping.
        skipped: 0-dim; 1.0 if a value is not finite, so that a phase changed no weights, and 0.0 otherwise.
        parts: sum and count of each part of a loss, on this rank.
    """

    measured: Measured
    values: Tensor
    skipped: Tensor
    parts: LossTerms = field(default_factory=dict)

    def read(self, train: TrainSpec) -> StepNumbers:
        """Wait for the device and return the numbers."""
        return self.measured.read(self.values.tolist(), train)


def train_step(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    train: TrainSpec,
    optimizer: torch.optim.Optimizer,
    world: World,
    phases: Sequence[Phase] | None = None,
    step: int = 0,
) -> StepResult:
    """Make one optimizer step in each phase over `batches`; if anything in a phase is not finite, no rank changes its weights.

    It waits for the device only if the optimizer cannot skip a step on the device; see `step_unless`.

    Args:
        model: a Trainable, after `parallelize`.
        batches: the micro-batches of this rank.
        train: settings of the run.
        optimizer: that of `build_optimizers`, with its learning rate for a model without phases that gives none.
        world: the processes of the run.
        phases: those of `phases_of`, whose learning rates are set; None for one phase, whose learning rate is set already.
        step: number of finished steps; phases that have not started are left out.
    """
    trainable = as_trainable(model)
    counts, num_batches = global_counts(trainable, batches, world)
    parts: LossTerms = {}
    found: dict[str, _Taken] = {}
    for phase in phases_of(model, train) if phases is None else phases:
        if step < phase.starts:
            continue
        own = optimizer_of(optimizer, phase)
        if phases is not None:
            set_learning_rate(own, phase.rate(step, total_steps=train.steps))
        shares = _Shares(counts, num_batches, loss_weights(train, step), parts)
        found[phase.name] = _take_phase(model, batches, phase, own, shares, train=train, world=world, step=step)
    if (after_step := getattr(model, "after_step", None)) is not None:
        after_step(world)
    measured = Measured(step, {name: taken.names for name, taken in found.items()})
    values = torch.cat([taken.values for taken in found.values()])
    return StepResult(measured, values, torch.stack([taken.skipped for taken in found.values()]).amax(), parts)


class _Taken(NamedTuple):
    """What a phase measured: names of its losses, their means and then the gradient norm, and 1.0 if it was skipped."""

    names: tuple[str, ...]
    values: Tensor
    skipped: Tensor


def _take_phase(
    model: nn.Module,
    batches: Sequence[Any],
    phase: Phase,
    optimizer: torch.optim.Optimizer,
    shares: _Shares,
    *,
    train: TrainSpec,
    world: World,
    step: int,
) -> _Taken:
    """Make the optimizer step of one phase, unless something is not finite."""
    trainable = as_trainable(model)
    for index, batch in enumerate(batches):
        reduce_gradients(model, is_last=index == len(batches) - 1)
        with computing_precision(world, train):
            terms = _run(trainable, batch.to(world.device), phase, step, keep=len(batches) == 1)
        if not phase.name:
            check_loss_weights(train.loss_weights, [name for name in terms if "/" not in name])
        shares.backward(terms, world)
    average_whole(model, world)
    names, values = shares.means(world)
    norm = clip_gradients(phase.module.parameters(), phase.optimizer.clip)
    values = torch.cat([values, norm.reshape(1).to(values)])
    skipped = 1.0 - values.isfinite().all().to(values)
    step_unless(skipped, optimizer)
    model.zero_grad(set_to_none=True)  # of everything: a phase may leave gradients of parameters that it does not train
    return _Taken(names, values, skipped)


def _run(trainable: Trainable, batch: Any, phase: Phase, step: int, *, keep: bool) -> LossTerms:
    """Return the losses of a batch in a phase; a model without phases is only given the batch."""
    return cast(Any, trainable)(batch, phase.name, step=step, keep=keep) if phase.name else trainable(batch)


class _Shares:
    """Adds up what the batches of a phase contribute to its losses.

    Args:
        counts, num_batches: those of `global_counts`.
        weights: weights of the losses.
        parts: receives the parts of losses.
    """

    def __init__(self, counts: Mapping[str, float], num_batches: int, weights: Mapping[str, float], parts: LossTerms) -> None:
        self._counts, self._num_batches, self._weights, self._parts = counts, num_batches, weights, parts
        self._means: dict[str, Tensor] = {}

    def backward(self, terms: LossTerms, world: World) -> None:
        """Compute the gradients of a batch's losses, and add the losses."""
        terms = _take_parts(terms, self._parts)
        shares = loss_shares(terms, self._counts, self._num_batches)
        torch.autograd.backward(weighted_loss(shares, self._weights) * world.size)  # gradients are averaged over ranks: this undoes it
        for name, share in shares.items():
            self._means[name] = self._means.get(name, 0.0) + share.detach()

    def means(self, world: World) -> tuple[tuple[str, ...], Tensor]:
        """Return the names of the losses, and their means over all ranks, in the same order."""
        names = tuple(sorted(self._means))
        return names, world.sum(torch.stack([self._means[name] for name in names]))


def _take_parts(terms: LossTerms, parts: LossTerms) -> LossTerms:
    """Return the losses to train on; what is only logged is added to `parts`."""
    for name in [name for name in terms if "/" in name]:
        total, count = terms.pop(name)
        before = parts.get(name, (0.0, 0.0))
        parts[name] = (before[0] + total.detach(), before[1] + count)
    return terms


def part_means(result: StepResult, world: World) -> dict[str, float]:
    """Return the mean over all ranks of each part of a loss, and of what else is only logged, by its name in the log.

    Every rank must call this.
    """
    parts, losses = result.parts, {name for names in result.measured.phases.values() for name in names}
    names = list(parts)
    pairs = torch.stack([torch.stack(parts[name]) for name in names]).tolist() if names else []
    sums: dict[str, list[float]] = {}
    for found in world.gather(dict(zip(names, pairs, strict=True))):
        for name, (total, count) in found.items():
            before = sums.setdefault(name, [0.0, 0.0])
            before[0] += total
            before[1] += count
    prefixes = {name: "loss/" if name.partition("/")[0] in losses else "" for name in sums}
    return {f"{prefixes[name]}{name}": total / count for name, (total, count) in sorted(sums.items()) if count}


def global_counts(trainable: Trainable, batches: Sequence[Any], world: World) -> tuple[dict[str, float], int]:
    """Return the count of each loss, and the number of batches, over all ranks and micro-batches of a step."""
    local: dict[str, float] = {}
    for batch in batches:
        for name, count in trainable.count_terms(batch).items():
            local[name] = local.get(name, 0.0) + count
    return world.sum_counts(local), len(batches) * world.size
