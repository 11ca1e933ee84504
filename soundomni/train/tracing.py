"""A trace of some steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")

WARMUP_STEPS = 3
"""Number of steps before the trace begins: the first ones allocate memory and compile."""


def traced(steps: Iterable[T], count: int, save: Callable[[profile], None]) -> Generator[T, None, None]:
    """Yield `steps`, and trace `count` of them after WARMUP_STEPS, with all that happens until the next is requested.

    Args:
        steps: the steps of a run.
        count: number of steps to trace; if the run ends sooner, closing this generator ends the trace.
        save: receives the profiler when it has stopped; not called if no step was traced.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    profiler, running = profile(activities=activities, acc_events=True), False
    try:
        for number, step in enumerate(steps):
            if number == WARMUP_STEPS:
                profiler.start()
                running = True
            if running and number == WARMUP_STEPS + count:
                running = False
                profiler.stop()
                save(profiler)
            yield step
    finally:
        if running:
            profiler.stop()
            save(profiler)
