"""The distributions that timesteps of training clips are drawn from.

Shape letters: none; a timestep is one number for a clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.flow.timestep_schedule import check_shift, shift_timestep

Timesteps = Literal["logit-normal", "uniform", "truncated-logit-normal", "even-log-snr"]
CUT = 0.075
"""Where the truncated distribution begins, as stable-audio-tools has it."""
LOG_SNR = (-6.0, 5.0)
"""Range of the log signal-to-noise ratio of "even-log-snr", as Stable Audio 3 has it."""
MOST_LOG_SHIFT = 10.0
"""Largest logarithm of a shift; nearly all timesteps are 1 long before that."""
SHORT, LONG = 256, 4096
"""Frames of the clips for which `length_shift` gives its two values (Esser et al. 2024, section 5.3.2, as in stable-audio-tools)."""


@dataclass(frozen=True, kw_only=True)
class TimestepDistribution:
    """A distribution of timesteps in (0, 1], which may depend on the length of a clip.

    Args:
        kind: see `FlowMatching`.
        mean, std: of the logit, for the two logit-normal ones.
        shift: s in t ← s·t / (1 + (s − 1)·t).
        length_shift: log s for clips of 256 and 4096 frames, in place of `shift`; None for the same shift for all clips.

    Raises:
        SpecError: a setting is out of its range.
    """

    kind: Timesteps
    mean: float
    std: float
    shift: float
    length_shift: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check every setting."""
        known = get_args(Timesteps)
        if self.kind not in known:
            raise SpecError(f"timesteps is '{self.kind}'; expected one of {', '.join(known)}.{did_you_mean(self.kind, known)}")
        if not math.isfinite(self.mean):
            raise SpecError(f"mean is {self.mean}; expected a finite number")
        if not 0 < self.std < math.inf:
            raise SpecError(f"std is {self.std}; expected a finite number above 0")
        check_shift(self.shift)
        if self.length_shift is not None and not all(abs(shift) <= MOST_LOG_SHIFT for shift in self.length_shift):
            most = f"{MOST_LOG_SHIFT:g}"
            raise SpecError(
                f"length_shift is {list(self.length_shift)}; expected two numbers from -{most} to {most}, for short and for long clips"
            )
        if self.length_shift is not None and self.shift != 1.0:
            raise SpecError(f"shift is {self.shift:g} and length_shift is given too; expected only one of them")

    def draw(self, generator: torch.Generator, frames: int) -> float:
        """Draw the timestep of a clip of so many frames."""
        like = {"generator": generator, "device": generator.device}
        if self.kind == "uniform":
            drawn = 1.0 - torch.rand((), **like)  # type: ignore[call-overload]  # in (0, 1]: t = 0 means clean
        elif self.kind == "logit-normal":
            drawn = torch.sigmoid(self.mean + self.std * torch.randn((), **like))  # type: ignore[call-overload]
        else:
            drawn = self._quantile(1.0 - torch.rand((), dtype=torch.float64, **like))  # type: ignore[call-overload]
        return float(shift_timestep(drawn, self.shift_of(frames)))

    def at(self, quantile: float, frames: int) -> float:
        """Return the timestep at a quantile in (0, 1) for a clip of so many frames."""
        return float(shift_timestep(self._quantile(torch.tensor(quantile, dtype=torch.float64)), self.shift_of(frames)))

    def shift_of(self, frames: int) -> float:
        """Return s for a clip of so many frames."""
        if self.length_shift is None:
            return self.shift
        short, long = self.length_shift
        return math.exp(short + (long - short) * (min(max(frames, SHORT), LONG) - SHORT) / (LONG - SHORT))

    def _quantile(self, place: torch.Tensor) -> torch.Tensor:
        if self.kind == "uniform":
            return place
        if self.kind == "even-log-snr":
            least, most = LOG_SNR
            return torch.sigmoid(-most + (most - least) * place)
        if self.kind == "logit-normal":
            return torch.sigmoid(self.mean + self.std * torch.special.ndtri(place))
        lowest = torch.special.ndtr((torch.logit(torch.tensor(CUT, dtype=torch.float64)) - self.mean) / self.std)
        kept = torch.special.ndtri(lowest + (1.0 - lowest) * (1.0 - place).clamp_min(1e-12))
        return 1.0 - (torch.sigmoid(self.mean + self.std * kept) - CUT) / (1.0 - CUT)
