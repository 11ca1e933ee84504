"""Learning rate by step: pure functions, so that a schedule has no state but the step."""

from __future__ import annotations

import math

import torch

from soundomni.core.spec.schema import ScheduleSpec

LONGEST_WARMUP, WARMUP_SHARE = 2000, 10
"""The warm-up of a schedule that names none: one step of this many, up to so many steps."""


def warmup_steps(schedule: ScheduleSpec, total_steps: int) -> int:
    """Return the steps of the warm-up in a run of `total_steps`."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return min(LONGEST_WARMUP, total_steps // WARMUP_SHARE)


def learning_rate(step: int, *, schedule: ScheduleSpec, peak: float, total_steps: int) -> float:
    """Returns the rate of the step that follows `step` finished ones.

    Linear warm-up to `peak`; then constant, half a cosine down to `min_lr` at `total_steps` (Loshchilov and Hutter 2017, eq. 5
    without restarts), or peak * sqrt(warmup steps / (step + 1)) (Vaswani et al. 2017, section 5.3).
    """
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "cosine":
        return cosine(step - warmup, total_steps - warmup, peak=peak, least=schedule.min_lr)
    if schedule.kind == "inverse":
        return peak * math.sqrt(max(1, warmup) / (step + 1))
    return peak


def cosine(step: int, steps: int, *, peak: float, least: float) -> float:
    """Returns half a cosine from `peak` at step 0 to `least` at `steps` and beyond."""
    share = min(1.0, step / max(1, steps))
    return least + (peak - least) * 0.5 * (1.0 + math.cos(math.pi * share))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
