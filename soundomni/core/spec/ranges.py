"""Checks of the numbers in the `train` section of a spec.

No torch here: a spec is checked before anything heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.limits import LARGEST_SEED, LONGEST_SECONDS, MOST_STEPS, check_count
from soundomni.core.spec.schema import LoRASpec, TrainSpec

_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda x: x >= 1, ("steps", "batches_per_step", "log_every", "keep_checkpoints", "parallel.replicate")),
    (
        "at least 0",
        lambda x: x >= 0,
        (
            "save_every",
            "keep_every",
            "threads",
            "schedule.warmup_steps",
            "validation.every",
            "validation.num_describe",
            "validation.patience",
        ),
    ),
    ("at least 0, or -1 for all", lambda x: x >= -1, ("validation.num_held_out",)),
    ("at least 1, or -1 for all processes that are left", lambda x: x == -1 or x >= 1, ("parallel.shard",)),
    ("at least 0, which turns it off, and below 1", lambda x: 0 <= x < 1, ("ema_decay",)),
    ("at least 0, which only measures", lambda x: x >= 0, ("optimizer.clip",)),
    ("finite and at least 0", lambda x: 0 <= x < math.inf, ("optimizer.lr", "optimizer.weight_decay", "schedule.min_lr")),
    ("finite and above 0", lambda x: 0 < x < math.inf, ("optimizer.eps", "schedule.gamma", "schedule.power")),
    ("at least 0 and below 1", lambda x: 0 <= x < 1, ("schedule.warmup_decay",)),
    (f"above 0 and at most {LONGEST_SECONDS:,.0f}, or null", lambda x: 0 < x <= LONGEST_SECONDS, ("validation.seconds",)),
    (f"from 0 to {LARGEST_SEED}", lambda x: 0 <= x <= LARGEST_SEED, ("seed",)),
)
"""(expected values, whether a number is one, keys below `train`). Comparisons with nan are False, so nan is refused."""

MOST_THREADS = 1024
"""With more threads than the system allows, the process may end without an error message."""


def check_train(train: TrainSpec) -> None:
    """Raise SpecError, which names the dotted key, for the first number of a training section that is out of range."""
    if not train.run_dir.strip() or "\0" in train.run_dir:
        raise SpecError(f"train.run_dir is {repr(train.run_dir) if train.run_dir else 'empty'}; expected the name of a directory")
    if train.run_dir.startswith("~"):  # reading a spec expands those that it can
        raise SpecError(
            f"train.run_dir is '{train.run_dir}', but there is no such home directory; write './{train.run_dir}' for a folder here"
        )
    _expect(lambda x: x <= MOST_THREADS, "train.threads", train.threads, f"at most {MOST_THREADS}")
    train = replace(train, validation=train.validating)
    for expected, holds, keys in _RANGES:
        for key in keys:
            value = attrgetter(key)(train)
            if value is not None:  # null leaves it to the run
                _expect(holds, f"train.{key}", value, expected)
    for i, beta in enumerate(train.optimizer.betas):
        _expect(lambda x: 0 <= x < 1, f"train.optimizer.betas[{i}]", beta, "at least 0 and below 1")
    for name, weight in train.loss_weights.items():
        _expect(lambda x: 0 <= x < math.inf, f"train.loss_weights.{name}", weight, "finite and at least 0")
    if train.validating.patience and train.validating.best is None:
        raise SpecError("train.validation.patience is set, but train.validation.best is not. Set it, for example to validation/loss")
    for i, timestep in enumerate(train.validating.timesteps):
        _expect(lambda x: 0 < x < 1, f"train.validation.timesteps[{i}]", timestep, "above 0 and below 1")
    _check_distinct(train.validating.timesteps)
    for name, phase in train.set_phases.items():
        _expect(lambda x: x >= 0, f"train.phases.{name}.starts", phase.starts, "at least 0")
        if phase.optimizer is not None or phase.schedule is not None:
            own = replace(train, optimizer=phase.optimizer or train.optimizer, schedule=phase.schedule or train.schedule, phases={})
            try:
                check_train(own)
            except SpecError as error:
                raise SpecError(str(error).replace("train.", f"train.phases.{name}.", 1)) from error
    for name, starts in train.loss_starts.items():
        _expect(lambda x: x >= 0, f"train.loss_starts.{name}", starts, "at least 0")
    if train.lora is not None:
        _check_lora(train.lora)
    if train.teacher is not None:
        check_count("train.teacher.steps", train.teacher.steps, most=MOST_STEPS)


def _check_distinct(timesteps: Sequence[float]) -> None:
    """Raise SpecError if two timesteps give the numbers that are measured at them the same name."""
    first: dict[str, int] = {}
    for i, timestep in enumerate(timesteps):
        other = first.setdefault(f"{timestep:g}", i)  # as numbers are named
        if other != i:
            raise SpecError(
                f"train.validation.timesteps[{i}] is {timestep}; expected a timestep that differs from the others in its first six digits, "
                f"but timesteps[{other}] is {timesteps[other]}. Remove one of them"
            )


def _check_lora(lora: LoRASpec) -> None:
    _expect(lambda x: x >= 1, "train.lora.rank", lora.rank, "at least 1")
    _expect(lambda x: 0 < x < math.inf, "train.lora.alpha", lora.alpha, "finite and above 0")
    _expect(lambda x: 0 <= x < 1, "train.lora.dropout", lora.dropout, "at least 0 and below 1")
    if lora.interval is not None and not 0 <= lora.interval[0] < lora.interval[1] <= 1:
        raise SpecError(f"train.lora.interval is {list(lora.interval)}; expected two numbers from 0 to 1, the lower one first")
    for key, names in (("streams", lora.streams), ("targets", lora.targets)):
        if not names:
            raise SpecError(f"train.lora.{key} is empty; name at least one, or leave train.lora out")


def check_loss_starts(starts: Mapping[str, int], losses: Collection[str]) -> None:
    """Raise SpecError if `train.loss_starts` names a loss that there is not."""
    for name in starts:
        if name not in losses:
            known = ", ".join(losses)
            raise SpecError(f"train.loss_starts names '{name}'; the losses are {known}.{did_you_mean(name, losses)} Remove it")


def check_loss_weights(weights: Mapping[str, float], losses: Collection[str]) -> None:
    """Raise SpecError if `train.loss_weights` names a loss that the model does not have."""
    unknown = [name for name in weights if name not in losses]
    if not unknown:
        return
    unnamed = [name for name in losses if name not in weights]
    carried = weights[unknown[0]] if len(unknown) == len(unnamed) == 1 else 1.0
    cure = ", ".join(f"{name}: {weights.get(name, carried):g}" for name in losses)
    raise SpecError(
        f"train.loss_weights names '{unknown[0]}'; the losses are {', '.join(sorted(losses))}.{did_you_mean(unknown[0], unnamed)} "
        f"Set train.loss_weights to {{{cure}}}"
    )


def _expect(holds: Callable[[float], bool], key: str, value: float, expected: str) -> None:
    if not holds(value):
        raise SpecError(f"{key} is {value}; expected {expected}")
