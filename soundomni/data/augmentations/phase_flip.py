"""Inverting the polarity of clips.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.data.augmentations.checks import check_probability


class PhaseFlip(Augmentation):
    """Flips the sign of all samples with some probability; the clip sounds the same.

    Args:
        probability: probability of changing a clip.

    Raise SpecError for a probability that is not from 0 to 1.
    """

    def __init__(self, *, probability: float = 0.5) -> None:
        check_probability("phase-flip", probability)
        self.probability = probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]`, or its negative."""
        return -waveform if draws.random() < self.probability else waveform
