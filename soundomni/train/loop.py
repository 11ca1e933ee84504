"""The training loop, read from top to bottom.

step → micro-batches → losses as (sum, count) → backward → clip → step → EMA → measure held-out losses → log, save, validate.

Measuring comes before saving, so that a checkpoint knows which step is the best. Making samples comes after it, so that
an error there costs no training.

Every loss is divided by its count over all ranks and micro-batches before the backward pass, so that a step over many small
batches on many ranks is the step over one large batch. Counts follow from the batches and cost one small reduction.

What a step measures stays on the device until the loop logs, validates or saves. The host then reads all of these steps at
once, counts those that were skipped, and warns of each.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from soundomni.core.errors import SoundOmniError
from soundomni.core.interfaces import LossTerms
from soundomni.core.spec.ranges import check_loss_weights
from soundomni.core.spec.schema import TrainSpec
from soundomni.train.best import CLIPS, Best
from soundomni.train.ema import EMA
from soundomni.train.gradient_clipping import clip_gradients
from soundomni.train.learning_rate import learning_rate, set_learning_rate
from soundomni.train.loss_weighting import loss_shares, weighted_loss, weighted_total
from soundomni.train.optimizers.skipping import step_unless
from soundomni.train.parallel import World, computing_precision, reduce_gradients
from soundomni.train.trainable import Step, Trainable, as_trainable

T = TypeVar("T")

MAX_SKIPPED_IN_A_ROW = 10
MAX_UNREAD = 1000
"""Steps after which the host reads what they measured even if none of them is logged: the device keeps it until then."""

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Progress of a run: the part of a checkpoint that is not tensors.

    Skipped steps are counted when the loop reads what steps measured; it always does so before it saves.

    Args:
        step: number of finished steps.
        data: state of the loader after the last step; None before the first.
        totals: what the run has trained on, summed over steps: tokens, samples.
        skipped_steps: number of steps whose loss or gradient was not finite.
        skipped_in_a_row: number of consecutive skipped steps up to now.
        seconds: seconds that the run has taken, including those before it was resumed.
        measured: the last step at which held-out losses were measured; -1 for none.
        best: the best step by these losses.
    """

    step: int = 0
    data: Any = None
    totals: dict[str, float] = field(default_factory=dict)
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    measured: int = -1
    best: Best = field(default_factory=Best)


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step, on the host.

    Args:
        losses: mean of each loss over its elements.
        loss: weighted sum of the losses.
        grad_norm: gradient norm before clipping.
    """

    losses: dict[str, float]
    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the step was taken."""
        return all(map(math.isfinite, (*self.losses.values(), self.grad_norm)))


@dataclass(frozen=True)
class StepResult:
    """What one step measured, on the device.

    Args:
        names: names of the losses.
        values: mean of each loss over its elements, in the order of `names`; then the gradient norm before clipping.
        skipped: 0-dim; 1.0 if a value is not finite, so that no weight was changed, and 0.0 otherwise.
        parts: sum and count of each part of a loss, on this rank.
    """

    names: tuple[str, ...]
    values: Tensor
    skipped: Tensor
    parts: LossTerms = field(default_factory=dict)

    def read(self, weights: Mapping[str, float]) -> StepNumbers:
        """Wait for the device and return the numbers; `weights` are those of the losses."""
        return _numbers(self.names, self.values.tolist(), weights)


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What happens around the steps. Each is called on every rank at the same step.

    Args:
        measure: returns the held-out losses at a step, the same on every rank: before the first step, every
            `validation.every` steps, and at the end; not when stopping, when it may also return nothing. None if nothing
            is held out.
        usage: returns further metrics about the machine at a logged step, from the step's metrics.
        log: receives the step and its metrics every `log_every` steps, and held-out losses after every measurement.
        should_stop: called after every step; must return the same on every rank.
        save: every `save_every` and `keep_every` steps, at the best step so far, at the end, and before stopping.
        validate: every `validation.every` steps, after saving; not when stopping.
    """

    measure: Callable[[int], Mapping[str, float]] | None = None
    usage: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda metrics: {}
    log: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
    should_stop: Callable[[], bool] = lambda: False
    save: Callable[[Progress], None] = lambda progress: None
    validate: Callable[[int], None] = lambda step: None


def fit(
    model: nn.Module,
    loader: Iterable[Step],
    *,
    train: TrainSpec,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    world: World,
    progress: Progress,
    hooks: Hooks,
) -> bool:
    """Train until `train.steps` steps are finished, or until patience runs out (see Best.is_over).

    Args:
        model: a Trainable, after `parallelize`.
        loader: steps that follow `progress.data`.
        progress: kept up to date in place.

    Returns:
        True if the run is finished, False if it was asked to stop before; it has saved in both cases.

    Raises:
        SoundOmniError: ten steps in a row were not finite, or `validation.best` is not measured.
    """
    clock, unread = _Clock(progress), _Unread(progress, train.loss_weights)
    if _catch_up(train, progress, hooks, clock):
        return True
    for step in islice(loader, max(0, train.steps - progress.step)):
        rate = learning_rate(progress.step, schedule=train.schedule, peak=train.optimizer.lr, total_steps=train.steps)
        set_learning_rate(optimizer, rate)
        result = train_step(model, step.batches, train=train, optimizer=optimizer, world=world)
        if ema is not None:
            ema.update(model, skipped=result.skipped)
        _advance(progress, step.state, world.sum_counts(step.counts))
        unread.add(result)
        logs, done = is_log_step(progress.step, train), progress.step >= train.steps
        saves, validates = _is_due(progress, train.save_every, train.keep_every), _is_due(progress, train.validating.every)
        if logs or saves or validates:
            unread.read()
        progress.seconds = clock.seconds()
        parts = part_means(result.parts, world) if logs else {}
        measured, is_best = _measure(train, progress, hooks, clock)
        over = progress.best.is_over(train.validating)
        if logs or over:
            ended = {"stopped_early": 1.0} if over and not done else {}
            metrics = _metrics(unread.read(), rate, progress) | parts | clock.rates(progress)
            hooks.log(progress.step, {**metrics, **hooks.usage(metrics), **measured, **ended})
        elif measured:
            hooks.log(progress.step, measured)
        if (stop := hooks.should_stop()) or done or over or is_best or saves:
            unread.read()
            hooks.save(progress)
        if stop:
            return done
        if validates:
            clock.pause_for(hooks.validate, progress.step)
        if over:
            break
    unread.read()
    return True


def is_log_step(step: int, train: TrainSpec) -> bool:
    """Return whether the metrics of a step are logged; only then are losses computed by group."""
    return step % train.log_every == 0 or step >= train.steps


def _is_due(progress: Progress, *intervals: int) -> bool:
    return any(every > 0 and progress.step % every == 0 for every in intervals)


def _measure(train: TrainSpec, progress: Progress, hooks: Hooks, clock: _Clock) -> tuple[Mapping[str, float], bool]:
    """Return the measured numbers of this step, if it needs measuring, and whether the step is the best so far."""
    due = _is_due(progress, train.validating.every) or (train.validating.every > 0 and progress.step >= train.steps)
    changed = progress.best.start_over_if_changed(train.validating)
    if hooks.measure is None or not ((due and progress.measured < progress.step) or changed):
        return {}, False
    if hooks.should_stop():  # a run that resumes measures first
        return {}, False
    measured = clock.pause_for(hooks.measure, progress.step)
    if not measured and hooks.should_stop():  # it may have been asked to stop while it measured
        return {}, False
    progress.measured = progress.step
    if progress.best.has_fewer_clips(measured):
        logger.warning(
            "step %d was measured on %d held-out clips, fewer than the %d of the best step, because some could not be read; "
            "it is not compared with other steps",
            progress.step,
            measured[CLIPS],
            progress.best.clips,
        )
    return measured, progress.best.judge(progress.step, measured, train.validating)


def _catch_up(train: TrainSpec, progress: Progress, hooks: Hooks, clock: _Clock) -> bool:
    """Measure before the first step, or at the step where the run stopped before measuring; save that step again.

    Return whether patience has run out.
    """
    measured, _ = _measure(train, progress, hooks, clock)
    if measured:
        hooks.log(progress.step, measured)
        if progress.step > 0:
            hooks.save(progress)
    return progress.best.is_over(train.validating)


def train_step(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    train: TrainSpec,
    optimizer: torch.optim.Optimizer,
    world: World,
) -> StepResult:
    """Make one optimizer step over `batches`; if anything is not finite, no rank changes its weights.

    It waits for the device only if the optimizer cannot skip a step on the device; see `step_unless`.
    """
    trainable = as_trainable(model)
    counts, num_batches = global_counts(trainable, batches, world)
    means: dict[str, Tensor] = {}
    parts: LossTerms = {}
    for index, batch in enumerate(batches):
        reduce_gradients(model, index == len(batches) - 1)
        with computing_precision(world, train):
            terms = _take_parts(trainable(batch.to(world.device)), parts)
        check_loss_weights(train.loss_weights, terms)
        shares = loss_shares(terms, counts, num_batches)
        torch.autograd.backward(weighted_loss(shares, train.loss_weights) * world.size)  # gradients are averaged over ranks: this undoes it
        for name, share in shares.items():
            means[name] = means.get(name, 0.0) + share.detach()
    names = sorted(means)
    values = world.sum(torch.stack([means[name] for name in names]))
    norm = clip_gradients(model.parameters(), train.optimizer.clip)
    values = torch.cat([values, norm.reshape(1).to(values)])
    skipped = 1.0 - values.isfinite().all().to(values)
    step_unless(skipped, optimizer)
    optimizer.zero_grad(set_to_none=True)
    return StepResult(names=tuple(names), values=values, skipped=skipped, parts=parts)


def _take_parts(terms: LossTerms, parts: LossTerms) -> LossTerms:
    """Return the losses to train on; losses that are parts of another are added to `parts`."""
    for name in [name for name in terms if "/" in name]:
        total, count = terms.pop(name)
        before = parts.get(name, (0.0, 0.0))
        parts[name] = (before[0] + total, before[1] + count)
    return terms


def part_means(parts: LossTerms, world: World) -> dict[str, float]:
    """Return the mean of each part of a loss over all ranks, by its name in the log. Every rank must call this."""
    names = list(parts)
    pairs = torch.stack([torch.stack(parts[name]) for name in names]).tolist() if names else []
    sums: dict[str, list[float]] = {}
    for found in world.gather(dict(zip(names, pairs, strict=True))):
        for name, (total, count) in found.items():
            before = sums.setdefault(name, [0.0, 0.0])
            before[0] += total
            before[1] += count
    return {f"loss/{name}": total / count for name, (total, count) in sorted(sums.items()) if count}


def global_counts(trainable: Trainable, batches: Sequence[Any], world: World) -> tuple[dict[str, float], int]:
    """Return the count of each loss, and the number of batches, over all ranks and micro-batches of a step."""
    local: dict[str, float] = {}
    for batch in batches:
        for name, count in trainable.count_terms(batch).items():
            local[name] = local.get(name, 0.0) + count
    return world.sum_counts(local), len(batches) * world.size


def _advance(progress: Progress, data: Mapping[str, Any], counts: Mapping[str, float]) -> None:
    progress.step += 1
    progress.data = data
    for name, count in counts.items():
        progress.totals[name] = progress.totals.get(name, 0.0) + count


class _Unread:
    """Steps whose numbers are still on the device, and which are not yet counted as taken or skipped.

    Args:
        progress: receives the counts.
        weights: weights of the losses.
    """

    def __init__(self, progress: Progress, weights: Mapping[str, float]) -> None:
        self._progress, self._weights = progress, weights
        self._steps: list[tuple[int, tuple[str, ...]]] = []
        self._values: list[Tensor] = []
        self._last = StepNumbers(losses={}, loss=0.0, grad_norm=0.0)

    def add(self, result: StepResult) -> None:
        """Add the step that `progress` has just counted, and read all steps if there are MAX_UNREAD."""
        self._steps.append((self._progress.step, result.names))
        self._values.append(result.values)
        if len(self._steps) >= MAX_UNREAD:
            self.read()

    def read(self) -> StepNumbers:
        """Wait for the device once, unless everything is read; count the steps, and return the numbers of the last one.

        Raise SoundOmniError if ten steps in a row were skipped; the steps after them are not counted.
        """
        if self._steps:
            steps, values = self._steps, iter(torch.cat(self._values).tolist())
            self._steps, self._values = [], []
            for step, names in steps:
                self._last = _numbers(names, list(islice(values, len(names) + 1)), self._weights)
                _count(self._progress, step, self._last)
        return self._last


def _numbers(names: Sequence[str], values: Sequence[float], weights: Mapping[str, float]) -> StepNumbers:
    *found, grad_norm = values
    losses = dict(zip(names, found, strict=True))
    return StepNumbers(losses=losses, loss=weighted_total(losses, weights), grad_norm=grad_norm)


def _count(progress: Progress, step: int, numbers: StepNumbers) -> None:
    """Count a step as taken or skipped, and warn of a skipped one. Raise SoundOmniError at the tenth in a row."""
    if numbers.is_finite:
        progress.skipped_in_a_row = 0
        return
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    found = ", ".join(f"{name} {value:g}" for name, value in {**numbers.losses, "gradient norm": numbers.grad_norm}.items())
    logger.warning("step %d was skipped: not finite (%s)", step, found)
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise SoundOmniError(
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row were not finite, the last at step {step} ({found}). "
            "Resume from the last "
            "checkpoint with a lower train.optimizer.lr or train.optimizer.clip, or train.precision: fp32"
        )


def _metrics(numbers: StepNumbers, rate: float, progress: Progress) -> dict[str, float]:
    named = {f"loss/{name}": value for name, value in numbers.losses.items()}
    skipped = float(progress.skipped_steps)
    return {"loss": numbers.loss, **named, "lr": rate, "grad_norm": numbers.grad_norm, **progress.totals, "skipped_steps": skipped}


class _Clock:
    """Measures rates since the previous call."""

    def __init__(self, progress: Progress) -> None:
        self._start = self._last = time.perf_counter()
        self._tokens, self._step = progress.totals.get("tokens", 0.0), progress.step
        self._before = progress.seconds

    def seconds(self) -> float:
        """Return the seconds of the whole run, including those before it was resumed."""
        return self._before + time.perf_counter() - self._start

    def pause_for(self, hook: Callable[[int], T], step: int) -> T:
        """Call a hook with the step and return its result; the time that it takes stays out of the rates."""
        begun = time.perf_counter()
        result = hook(step)
        self._last += time.perf_counter() - begun
        return result

    def rates(self, progress: Progress) -> dict[str, float]:
        """Return tokens and steps per second since the last call, and the seconds of the whole run."""
        now, tokens = time.perf_counter(), progress.totals.get("tokens", 0.0)
        passed = max(now - self._last, 1e-9)
        rates = {
            "tokens_per_second": (tokens - self._tokens) / passed,
            "steps_per_second": (progress.step - self._step) / passed,
            "seconds": progress.seconds,
        }
        self._last, self._tokens, self._step = now, tokens, progress.step
        return rates
