"""Leaving out silent clips.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import math

import numpy as np

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Filter, Item


class Silence(Filter):
    """Leaves out clips that are silent or nearly silent in the part that a sample uses.

    Args:
        threshold: leave out clips whose RMS level is below this, in dB relative to full scale.

    Raise SpecError for a threshold above 0.
    """

    def __init__(self, *, threshold: float = -60.0) -> None:
        if not threshold <= 0.0:
            raise SpecError(f"silence: threshold is {threshold:g}; expected a level in dB of 0 or less")
        self.threshold = threshold

    def reject(self, item: Item, waveform: np.ndarray, sample_rate: int) -> str | None:
        """Return the reason to leave out a clip that is below the threshold, or None."""
        power = float(np.square(waveform, dtype=np.float64).mean())
        if power == 0.0:
            return "it is silent"
        level = 10.0 * math.log10(power)
        return f"its level is {level:.1f} dB; expected at least {self.threshold:g} dB" if level < self.threshold else None
