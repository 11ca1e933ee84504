"""Swapping left and right.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.data.augmentations.checks import check_probability

_STEREO = 2


class ChannelSwap(Augmentation):
    """Swaps the two channels of a stereo clip with some probability; other clips stay as they are.

    Args:
        probability: probability of changing a clip.

    Raise SpecError for a probability that is not from 0 to 1.
    """

    def __init__(self, *, probability: float = 0.5) -> None:
        check_probability("channel-swap", probability)
        self.probability = probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]`, perhaps with its channels swapped."""
        is_changed = draws.random() < self.probability
        return waveform[::-1].copy() if is_changed and len(waveform) == _STEREO else waveform
