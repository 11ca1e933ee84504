"""Making clips louder or quieter.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.data.augmentations.checks import check_probability, check_range


class Gain(Augmentation):
    """Multiplies a clip by a random gain, uniform in decibels.

    A gain that would push a clip above full scale is lowered so that the clip's peak just reaches full scale. Clips
    that already exceed it are never made louder.

    Args:
        decibels: range of the gain in dB.
        probability: probability of changing a clip.

    Raise SpecError for a range that is out of order or beyond 60 dB, or a probability that is not from 0 to 1.
    """

    def __init__(self, *, decibels: tuple[float, float] = (-6.0, 0.0), probability: float = 1.0) -> None:
        check_range("gain", "decibels", decibels, least=-60.0, most=60.0)
        check_probability("gain", probability)
        self.decibels, self.probability = decibels, probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]` times 10^(dB / 20)."""
        is_changed, gain = draws.random() < self.probability, 10.0 ** (draws.uniform(*self.decibels) / 20.0)
        if not is_changed:
            return waveform
        peak = float(np.abs(waveform).max(initial=0.0))
        if gain > 1.0 and gain * peak > 1.0:
            gain = max(1.0, 1.0 / peak)
        return waveform * np.float32(gain)
