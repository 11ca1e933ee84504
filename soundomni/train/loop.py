"""The training loop, read from top to bottom.

step (see step.py) → EMA → measure held-out losses → log, save, validate.

Measuring comes before saving, so that a checkpoint knows which step is the best. Making samples comes after it, so that
an error there costs no training.

What a step measures stays on the device until the loop logs, validates or saves. The host then reads all of these steps at
once, counts those that were skipped, and warns of each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from soundomni.core.errors import SoundOmniError
from soundomni.core.spec.schema import TrainSpec
from soundomni.train.best import CLIPS, Best
from soundomni.train.ema import EMA
from soundomni.train.parallel import World
from soundomni.train.phases import Phase, phases_of
from soundomni.train.step import Measured, StepNumbers, StepResult, part_means, train_step
from soundomni.train.trainable import Step

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


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What happens around the steps. Each is called on every rank at the same step.

    Args:
        measure: returns the held-out losses at a step, the same on every rank: before the first step, every
            `validation.every` steps, and at the end; not when stopping, when it may also return nothing. None if nothing
            is held out.
        usage: returns further metrics about the machine at a logged step, from the step's metrics.
        guard: receives the metrics of a logged step, before anything is saved; raises SoundOmniError if training has failed.
        log: receives the step and its metrics every `log_every` steps, and held-out losses after every measurement.
        should_stop: called after every step; must return the same on every rank.
        save: every `save_every` and `keep_every` steps, at the best step so far, at the end, and before stopping.
        validate: every `validation.every` steps, after saving; not when stopping.
    """

    measure: Callable[[int], Mapping[str, float]] | None = None
    usage: Callable[[Mapping[str, float]], Mapping[str, float]] = lambda metrics: {}
    guard: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None
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
        optimizer: that of `build_optimizers`.
        progress: kept up to date in place.

    Returns:
        True if the run is finished, False if it was asked to stop before; it has saved in both cases.

    Raises:
        SoundOmniError: ten steps in a row were not finite, `validation.best` is not measured, or a guard says so.
    """
    clock, unread, phases = _Clock(progress), _Unread(progress, train), phases_of(model, train)
    if _catch_up(train, progress, hooks, clock):
        return True
    for step in islice(loader, max(0, train.steps - progress.step)):
        result = train_step(model, step.batches, train=train, optimizer=optimizer, world=world, phases=phases, step=progress.step)
        if ema is not None:
            ema.update(model, skipped=result.skipped)
        _advance(progress, step.state, world.sum_counts(step.counts))
        unread.add(result)
        logs, done = is_log_step(progress.step, train), progress.step >= train.steps
        saves, validates = _is_due(progress, train.save_every, train.keep_every), _is_due(progress, train.validating.every)
        if logs or saves or validates:
            unread.read()
        progress.seconds = clock.seconds()
        parts = part_means(result, world) if logs else {}
        measured, is_best = _measure(train, progress, hooks, clock)
        over = progress.best.is_over(train.validating)
        if logs or over:
            ended = {"stopped_early": 1.0} if over and not done else {}
            metrics = _metrics(unread.read(), phases, train, progress) | parts | clock.rates(progress)
            hooks.log(progress.step, {**metrics, **hooks.usage(metrics), **measured, **ended})
            hooks.guard(progress.step, metrics)
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


def _advance(progress: Progress, data: Mapping[str, Any], counts: Mapping[str, float]) -> None:
    progress.step += 1
    progress.data = data
    for name, count in counts.items():
        progress.totals[name] = progress.totals.get(name, 0.0) + count


class _Unread:
    """Steps whose numbers are still on the device, and which are not yet counted as taken or skipped.

    Args:
        progress: receives the counts.
        train: settings of the run.
    """

    def __init__(self, progress: Progress, train: TrainSpec) -> None:
        self._progress, self._train = progress, train
        self._steps: list[Measured] = []
        self._values: list[Tensor] = []
        self._last = StepNumbers(losses={}, loss=0.0, grad_norms={})

    def add(self, result: StepResult) -> None:
        """Add the step that `progress` has just counted, and read all steps if there are MAX_UNREAD."""
        self._steps.append(result.measured)
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
            for measured in steps:
                self._last = measured.read(list(islice(values, measured.size)), self._train)
                _count(self._progress, measured.step + 1, self._last)
        return self._last


def _count(progress: Progress, step: int, numbers: StepNumbers) -> None:
    """Count a step as taken or skipped, and warn of a skipped one. Raise SoundOmniError at the tenth in a row."""
    if numbers.is_finite:
        progress.skipped_in_a_row = 0
        return
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    norms = {f"gradient norm of {phase}" if phase else "gradient norm": norm for phase, norm in numbers.grad_norms.items()}
    found = ", ".join(f"{name} {value:g}" for name, value in {**numbers.losses, **norms}.items())
    logger.warning("step %d was skipped: not finite (%s)", step, found)
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise SoundOmniError(
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row were not finite, the last at step {step} ({found}). "
            "Resume from the last "
            "checkpoint with a lower train.optimizer.lr or train.optimizer.clip, or train.precision: fp32"
        )


def _metrics(numbers: StepNumbers, phases: Sequence[Phase], train: TrainSpec, progress: Progress) -> dict[str, float]:
    """Return the metrics of the last step; the last phase has the plain names."""
    metrics = {"loss": numbers.loss, **{f"loss/{name}": value for name, value in numbers.losses.items()}}
    for phase in phases:
        if phase.name in numbers.grad_norms:
            suffix = "" if phase is phases[-1] else f"/{phase.name}"
            metrics[f"lr{suffix}"] = phase.rate(progress.step - 1, total_steps=train.steps)
            metrics[f"grad_norm{suffix}"] = numbers.grad_norms[phase.name]
    return {**metrics, **progress.totals, "skipped_steps": float(progress.skipped_steps)}


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
