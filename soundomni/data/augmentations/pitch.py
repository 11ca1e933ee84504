"""Shifting clips up or down in pitch.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.core.waveform import fit_length
from soundomni.data.augmentations.bandlimited import resampled_by
from soundomni.data.augmentations.checks import check_probability, check_range
from soundomni.data.augmentations.phase_vocoder import stretched


class Pitch(Augmentation):
    """Shifts a clip up or down in pitch without changing its length.

    A phase vocoder makes the clip longer or shorter, and resampling takes it back to its length. This smears attacks a
    little. `speed` does not, but it changes the length too.

    Args:
        semitones: range of the shift in semitones, drawn uniformly.
        probability: probability of changing a clip.

    Raise SpecError for a range that is out of order or beyond two octaves, or a probability that is not from 0 to 1.
    """

    def __init__(self, *, semitones: tuple[float, float] = (-2.0, 2.0), probability: float = 1.0) -> None:
        check_range("pitch", "semitones", semitones, least=-24.0, most=24.0)
        check_probability("pitch", probability)
        self.semitones, self.probability = semitones, probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]` with its frequencies multiplied by 2^(semitones / 12)."""
        is_changed, ratio = draws.random() < self.probability, 2.0 ** (float(draws.uniform(*self.semitones)) / 12.0)
        if not is_changed or ratio == 1.0:
            return waveform
        return fit_length(resampled_by(stretched(waveform, ratio, sample_rate), ratio), waveform.shape[1])
