"""Playing clips faster or slower (Ko et al. 2015, "Audio Augmentation for Speech Recognition").

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.data.augmentations.bandlimited import resampled_by
from soundomni.data.augmentations.checks import check_probability, check_range


class Speed(Augmentation):
    """Plays a clip faster or slower, as a tape does: pitch and length change together.

    Texts about the length of a clip, such as `{seconds}`, give the length after the change.

    Args:
        factors: range of the speed, drawn uniformly; at 2, a clip lasts half as long and sounds an octave higher.
        probability: probability of changing a clip.

    Raise SpecError for factors that are out of order or not from 0.25 to 4, or a probability that is not from 0 to 1.
    """

    def __init__(self, *, factors: tuple[float, float] = (0.9, 1.1), probability: float = 1.0) -> None:
        check_range("speed", "factors", factors, least=0.25, most=4.0)
        check_probability("speed", probability)
        self.factors, self.probability = factors, probability

    def tempo(self, draws: np.random.Generator) -> float:
        """Return the drawn factor, or 1 for a clip that stays as it is."""
        is_changed, factor = draws.random() < self.probability, float(draws.uniform(*self.factors))
        return factor if is_changed else 1.0

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]` at its new speed, `[C, round(S / factor)]`."""
        factor = self.tempo(draws)
        return waveform if factor == 1.0 else resampled_by(waveform, factor)
