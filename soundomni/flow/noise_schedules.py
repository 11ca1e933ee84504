"""The noise schedules that models were published with, as timesteps of the path x_t = (1 − t)·x0 + t·ε.

Other projects count in σ, the standard deviation of the noise in x0 + σ·ε. On this path σ = t / (1 − t), from 0 at t = 0 to
infinity at t = 1, and the log signal-to-noise ratio that schedules and solvers use is λ = −log σ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.flow.timestep_schedule import check_begin, check_shift, check_steps, sampling_timesteps

Spacing = Literal["even", "cosine", "log-snr", "exponential"]

_ONLY: dict[str, Spacing] = {
    "shift": "even",
    "log_snr": "log-snr",
    "sigma_min": "exponential",
    "sigma_max": "exponential",
    "rho": "exponential",
}
"""Setting → the spacing that uses it."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """Where the steps of a sampler lie between noise and data.

    Published schedules count in the noise level σ = t / (1 − t), or in λ = −log σ, the log signal-to-noise ratio.

    A variation begins at a lower timestep, and takes as many steps from there. If that is already below the range of a
    "log-snr" or "exponential" schedule, the steps are even in t instead.

    Args:
        spacing: "even" in t; "cosine", even in the time of the cosine path of v-prediction (Salimans and Ho 2022); "log-snr",
            even in λ, as stable-audio-tools samples rectified flows; "exponential", from `sigma_max` to `sigma_min`, even in λ unless
            `rho` says otherwise, and then to 0, as k-diffusion samples.
        shift: for "even"; above 1, more of the steps are near the noise.
        log_snr: for "log-snr", λ from (noise, data); both ends are then replaced by t = 1 and t = 0.
        sigma_min: for "exponential", σ of the last step but one: the last one leads from there to 0.
        sigma_max: for "exponential", σ at which sampling starts.
        rho: for "exponential"; above 1, more of the steps are near the data. λ is even at 1.

    Raises:
        SpecError: a setting is out of its range, or the spacing does not use it.
    """

    spacing: Spacing
    shift: float = 1.0
    log_snr: tuple[float, float] = (-6.0, 2.0)
    sigma_min: float = 0.3
    sigma_max: float = 500.0
    rho: float = 1.0

    def __post_init__(self) -> None:
        """Check every setting."""
        known = get_args(Spacing)
        if self.spacing not in known:
            near = did_you_mean(self.spacing, known)
            raise SpecError(f"schedule.spacing is '{self.spacing}'; expected even, cosine, log-snr or exponential.{near}")
        for field in fields(self):
            value, spacing = getattr(self, field.name), _ONLY.get(field.name, self.spacing)
            if spacing != self.spacing and value != field.default:
                given = f"schedule.{field.name} is {value}, but the spacing '{self.spacing}' does not use it"
                raise SpecError(f"{given}. Remove it, or set schedule.spacing to {spacing}")
        check_shift(self.shift, key="schedule.shift")
        low, high = self.log_snr
        if not -math.inf < low < high < math.inf:
            raise SpecError(f"schedule.log_snr is {list(self.log_snr)}; expected two finite numbers, the lower one first")
        if not 0 < self.sigma_min < math.inf:
            raise SpecError(f"schedule.sigma_min is {self.sigma_min}; expected a finite number above 0")
        if not self.sigma_min < self.sigma_max < math.inf:
            raise SpecError(f"schedule.sigma_max is {self.sigma_max}; expected a finite number above sigma_min, {self.sigma_min}")
        if not 0 < self.rho < math.inf:
            raise SpecError(f"schedule.rho is {self.rho}; expected a finite number above 0")

    @property
    def starts_at(self) -> float:
        """Timestep at which sampling from pure noise starts."""
        return self.sigma_max / (1.0 + self.sigma_max) if self.spacing == "exponential" else 1.0

    def timesteps(self, num_steps: int, begin: float = 1.0) -> tuple[float, ...]:
        """Return the `num_steps + 1` timesteps, falling from `begin`, or from `starts_at` if that is 1, to 0, both exact.

        >>> NoiseSchedule(spacing="exponential", sigma_min=1.0, sigma_max=4.0).timesteps(2)
        (0.8, 0.5, 0.0)

        Raises:
            SpecError: `num_steps` or `begin` is out of its range.
        """
        check_steps(num_steps)
        first = self.starts_at if check_begin(begin) == 1.0 else begin
        if self.spacing == "even":
            return sampling_timesteps(num_steps, self.shift, begin)
        if self.spacing == "cosine":
            turn = math.atan2(first, 1.0 - first)
            return (first, *(_on_cosine(turn * (1.0 - step / num_steps)) for step in range(1, num_steps)), 0.0)
        last = self.log_snr[1] if self.spacing == "log-snr" else -math.log(self.sigma_min)
        steps = num_steps if self.spacing == "log-snr" else num_steps - 1  # to λ = `last`; it is replaced, or one more follows
        start = self.log_snr[0] if first == 1.0 else log_snr(first)
        if start >= last:
            return sampling_timesteps(num_steps, 1.0, begin)
        places = [1.0 - (1.0 - step / steps) ** self.rho for step in range(1, num_steps)]
        return (first, *(1.0 / (1.0 + math.exp(start + place * (last - start))) for place in places), 0.0)


def log_snr(timestep: float) -> float:
    """Return λ = log((1 − t) / t), infinite at both ends."""
    if timestep in (0.0, 1.0):
        return math.inf if timestep == 0.0 else -math.inf
    return math.log1p(-timestep) - math.log(timestep)


def _on_cosine(angle: float) -> float:
    """Return t of the point of the cosine path with data and noise in the ratio of the angle's cosine to its sine."""
    return math.sin(angle) / (math.sin(angle) + math.cos(angle))


EXPONENTIAL = NoiseSchedule(spacing="exponential")
"""The schedule that Stable Audio Open 1.0 is meant for."""
COSINE = NoiseSchedule(spacing="cosine")
LOG_SNR = NoiseSchedule(spacing="log-snr")
"""The schedule with which stable-audio-tools samples rectified flows."""
