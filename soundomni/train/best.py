"""Which step is the best by a measured number, and when a run has waited long enough for a better one."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from soundomni.core.errors import SpecError, amount, did_you_mean
from soundomni.core.spec.schema import ValidationSpec

logger = logging.getLogger(__name__)

LOSS, CLIPS = "validation/loss", "validation/clips"
"""Names of two numbers: the weighted sum of all held-out losses, whose name starts those of its parts; the clips."""


def at_timestep(name: str, timestep: float) -> str:
    """Return the name of a held-out loss with all clips at one timestep."""
    return f"{LOSS}/{name}@{timestep:g}"


def timestep_of(key: str) -> tuple[str, float] | None:
    """Return the name and the timestep of a number that `at_timestep` named; None for any other number.

    Names of losses have no "/". Those of datasets, which follow one, may have an "@".
    """
    name, _, timestep = key.removeprefix(f"{LOSS}/").rpartition("@")
    if not key.startswith(f"{LOSS}/") or not name or "/" in name:
        return None
    try:
        return name, float(timestep)
    except ValueError:
        return None


@dataclass
class Best:
    """The best step so far; a checkpoint stores it, so a resumed run judges as if it had never stopped.

    Args:
        judged_by: how steps are compared, such as "lower validation/loss"; None if they are not.
        value: the number at the best step; None before the first one.
        step: the best step; None before the first one. Step 0 is not judged, as it has no checkpoint.
        waited: number of validations since then; none was better.
        clips: number of clips that the best step was measured on; None if unknown.

    Raises:
        SpecError: a number is out of its range, as in a checkpoint that something else wrote.
    """

    judged_by: str | None = None
    value: float | None = None
    step: int | None = None
    waited: int = 0
    clips: float | None = None

    def __post_init__(self) -> None:
        known = (("step", self.step, 1), ("waited", self.waited, 0), ("clips", self.clips, 1))
        for name, number, least in known:
            if number is not None and not number >= least:
                raise SpecError(f"{name} of the best step is {number}; expected at least {least}")
        if self.value is not None and not math.isfinite(self.value):
            raise SpecError(f"value of the best step is {self.value}; expected a finite number")

    def judge(self, step: int, measured: Mapping[str, float], spec: ValidationSpec) -> bool:
        """Record what was measured at a step, and return whether it is the best one so far.

        A step whose number is not finite is never the best. A step without the number is not judged if it was measured before:
        this time, none of its clips could be read. Steps that were measured on different clips do not compare: one with
        fewer clips than the best step, because some could not be read, is left out, and one with more becomes the best.

        Raises:
            SpecError: `validation.best` is not among the numbers that are measured.
        """
        self.start_over_if_changed(spec)
        if spec.best is None or not measured:
            return False
        if spec.best not in measured:
            if self.value is None and not self.waited:
                raise _unknown(spec.best, list(measured))
            logger.warning("step %d is not compared with the best step: %s was not measured", step, spec.best)
            return False
        if step == 0:
            return False
        value, clips = measured[spec.best], measured.get(CLIPS)
        if self.has_fewer_clips(measured):
            return False
        has_more = None not in (clips, self.clips) and clips != self.clips
        is_better = has_more or self.value is None or (value > self.value if spec.better == "higher" else value < self.value)
        if not (is_better and math.isfinite(value)):
            self.waited += 1
            return False
        self.value, self.step, self.waited, self.clips = value, step, 0, clips
        return True

    def has_fewer_clips(self, measured: Mapping[str, float]) -> bool:
        """Return whether fewer clips were measured than at the best step, with which they then do not compare."""
        return self.clips is not None and measured.get(CLIPS, self.clips) < self.clips

    def start_over_if_changed(self, spec: ValidationSpec) -> bool:
        """Forget the best step if the spec now compares steps differently, and return whether it does."""
        judged_by = criterion(spec)
        if judged_by == self.judged_by:
            return False
        self.judged_by, self.value, self.step, self.waited, self.clips = judged_by, None, None, 0, None
        return True

    def is_over(self, spec: ValidationSpec) -> bool:
        """Return whether the run should end early: `validation.patience` validations in a row were not better."""
        return 0 < spec.patience <= self.waited and self.judged_by == criterion(spec)

    def describe_end(self, step: int, spec: ValidationSpec) -> str:
        """Return one line that says why the run ended early."""
        if self.value is None:
            missed = f"was not a finite number in any of {amount(self.waited, 'validation')}"
        else:
            worse = f"has not been {spec.better} than {self.value:.6g} since step {self.step}"
            missed = f"{worse}, for {amount(self.waited, 'validation')}"
        return f"stopped early after step {step}: {spec.best} {missed} (train.validation.patience)"


def check_best(spec: ValidationSpec, losses: Collection[str], *, timed: Collection[str] = ()) -> None:
    """Raise SpecError if a model with these losses, some of them (`timed`) also at single timesteps, never measures
    `validation.best`.

    Whether this run measures it depends on what is held out; that shows at the first measurement.
    """
    named = [f"{LOSS}/{name}" for name in losses]
    known = [LOSS, *named, *(at_timestep(name, timestep) for name in timed for timestep in spec.timesteps), CLIPS]
    if spec.best is not None and spec.best not in known and not spec.best.startswith(tuple(f"{name}/" for name in named)):
        raise _unknown(spec.best, known)


def _unknown(best: str, known: Collection[str]) -> SpecError:
    return SpecError(f"train.validation.best is '{best}'; expected one of {', '.join(known)}.{did_you_mean(best, known)}")


def criterion(spec: ValidationSpec) -> str | None:
    """Return in words how steps are compared; None if they are not."""
    return None if spec.best is None else f"{spec.better} {spec.best}"
