"""Learning rate by step: pure functions, so that a schedule has no state but the step."""

from __future__ import annotations

import math

from soundomni.core.schema import ScheduleSpec


def learning_rate(step: int, *, schedule: ScheduleSpec, peak: float, total_steps: int) -> float:
    """Returns the rate of the step that follows `step` finished ones.

    Linear warm-up to `peak` over `warmup_steps`; then constant, half a cosine down to `min_lr` at `total_steps` (Loshchilov and
    Hutter 2017, eq. 5 without restarts), or peak * sqrt(warmup_steps / (step + 1)) (Vaswani et al. 2017, section 5.3).
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "cosine":
        return cosine(step - schedule.warmup_steps, total_steps - schedule.warmup_steps, peak=peak, least=schedule.min_lr)
    if schedule.kind == "inverse":
        return peak * math.sqrt(max(1, schedule.warmup_steps) / (step + 1))
    return peak


def cosine(step: int, steps: int, *, peak: float, least: float) -> float:
    """Returns half a cosine from `peak` at step 0 to `least` at `steps` and beyond."""
    share = min(1.0, step / max(1, steps))
    return least + (peak - least) * 0.5 * (1.0 + math.cos(math.pi * share))
