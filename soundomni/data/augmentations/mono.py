"""Mixing clips down to mono.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.core.waveform import match_channels
from soundomni.data.augmentations.checks import check_probability


class Mono(Augmentation):
    """Replaces every channel by the mean of all channels with some probability, so that a stereo model also learns mono
    clips.

    Args:
        probability: probability of changing a clip.

    Raise SpecError for a probability that is not from 0 to 1.
    """

    def __init__(self, *, probability: float = 0.1) -> None:
        check_probability("mono", probability)
        self.probability = probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]`, or C copies of the mean of its channels."""
        is_changed = draws.random() < self.probability
        return match_channels(match_channels(waveform, 1), len(waveform)) if is_changed else waveform
