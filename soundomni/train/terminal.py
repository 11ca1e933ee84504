"""What a run shows on stderr while it trains: a bar on a terminal, otherwise a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Protocol

from tqdm import tqdm

from soundomni.train.best import timestep_of

LINE_SHARE, LINE_SECONDS = 0.1, 30.0
"""Share of all steps and number of seconds between two plain lines; both have to pass."""


def tell(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class ProgressDisplay(Protocol):
    """Shows the progress of a run."""

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move to `step`."""
        ...

    def close(self) -> None:
        """Leave what is shown as it is."""
        ...


def open_display(*, total: int, initial: int) -> ProgressDisplay:
    """Return the right display for stderr, for `total` steps of which `initial` are finished."""
    return ProgressBar(total=total, initial=initial) if sys.stderr.isatty() else ProgressLines(total=total, initial=initial)


class ProgressBar:
    """Steps and losses in one line of a terminal."""

    def __init__(self, *, total: int, initial: int) -> None:
        self._bar = tqdm(total=total, initial=initial, unit="step", dynamic_ncols=True)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move to `step`."""
        self._bar.set_postfix(_losses(metrics), refresh=False)
        self._bar.update(step - self._bar.n)
        for line in by_timestep(step, metrics):
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the last line as it is."""
        self._bar.close()


class ProgressLines:
    """Steps, losses, speed and the remaining time, one line at a time.

    A line is written after a tenth of all steps or after 30 seconds, whichever is later, and always for the last step.

    Args:
        total: number of steps of the run.
        initial: number of steps that were finished before.
        clock: returns the time in seconds.
    """

    def __init__(self, *, total: int, initial: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._step, self._time = initial, clock()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line for `step` if it is time for one, and the losses at single timesteps whenever they are measured."""
        for line in by_timestep(step, metrics):
            tell(line)
        steps, seconds = step - self._step, self._clock() - self._time
        if step < self._total and (steps < LINE_SHARE * self._total or seconds < LINE_SECONDS):
            return
        self._step, self._time = step, self._time + seconds
        rate = steps / max(seconds, 1e-9)
        left = timedelta(seconds=round((self._total - step) / max(rate, 1e-9)))
        losses = ", ".join(f"{name} {value}" for name, value in _losses(metrics).items())
        tell(f"step {step} of {self._total} ({step / self._total:.0%}): {losses}, {rate:.3g} steps/s, {left} left")

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


def by_timestep(step: int, metrics: Mapping[str, float]) -> list[str]:
    """Return a line for each held-out loss that was measured at single timesteps."""
    found: dict[str, list[str]] = {}
    for key, value in metrics.items():
        if (named := timestep_of(key)) is not None:
            name, timestep = named
            found.setdefault(name, []).append(f"{timestep:g}: {value:.4f}")
    return [f"step {step}: held-out {name} at timestep {', '.join(values)}" for name, values in found.items()]


def _losses(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the loss, its terms and the held-out loss, as text by short name."""
    shown = {name: name.removeprefix("loss/") for name in metrics if name.startswith("loss") and name.count("/") <= 1}
    shown |= {name: name.replace("/", " ") for name in metrics if name == "validation/loss"}
    return {short: f"{metrics[name]:.4f}" for name, short in shown.items()}
