"""Learning rate by step: pure functions, so the only state of a schedule is the step."""

from __future__ import annotations

import math

import torch

from soundomni.core.spec.schema import ScheduleSpec

LONGEST_WARMUP, WARMUP_SHARE = 2000, 10
"""Warm-up of a schedule that does not set one: at most LONGEST_WARMUP steps, or one in WARMUP_SHARE if that is less."""


def warmup_steps(schedule: ScheduleSpec, total_steps: int) -> int:
    """Return the number of warm-up steps in a run of `total_steps`."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return min(LONGEST_WARMUP, total_steps // WARMUP_SHARE)


def learning_rate(step: int, *, schedule: ScheduleSpec, peak: float, total_steps: int) -> float:
    """Return the learning rate of the step after `step` finished ones.

    "inverse-power" is stable-audio-tools' InverseLR. All others begin with a linear warm-up to `peak`; then constant, half a cosine
    down to `min_lr` at `total_steps` (Loshchilov and Hutter 2017, eq. 5 without restarts), or peak * sqrt(warmup steps / (step + 1))
    (Vaswani et al. 2017, section 5.3).
    """
    if schedule.kind == "inverse-power":
        return float(peak * (1.0 - schedule.warmup_decay ** (step + 1)) * (1.0 + step / schedule.gamma) ** -schedule.power)
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "cosine":
        return cosine(step - warmup, total_steps - warmup, peak=peak, least=schedule.min_lr)
    if schedule.kind == "inverse":
        return peak * math.sqrt(max(1, warmup) / (step + 1))
    return peak


def cosine(step: int, steps: int, *, peak: float, least: float) -> float:
    """Return half a cosine from `peak` at step 0 to `least` at `steps` and beyond."""
    share = min(1.0, step / max(1, steps))
    return least + (peak - least) * 0.5 * (1.0 + math.cos(math.pi * share))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
