"""Exchanging left and right.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.data.augmentations.checks import check_probability

_STEREO = 2


class ChannelSwap(Augmentation):
    """Exchanges the two channels of a stereo clip with some probability; clips with other numbers of channels stay.

    Args:
        probability: probability of changing a clip.

    Raise SpecError for a probability that is not from 0 to 1.
    """

    def __init__(self, *, probability: float = 0.5) -> None:
        check_probability("channel-swap", probability)
        self.probability = probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]`, or the same with its channels exchanged."""
        is_changed = draws.random() < self.probability
        return waveform[::-1].copy() if is_changed and len(waveform) == _STEREO else waveform
