"""Taking clips to a lower sample rate and back, which makes them sound like recordings from cheaper equipment.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import numpy as np

from soundomni.core.interfaces import Augmentation
from soundomni.core.waveform import fit_length
from soundomni.data.augmentations.bandlimited import resampled_by
from soundomni.data.augmentations.checks import check_probability, check_range


class Resample(Augmentation):
    """Removes everything above half of a random sample rate, uniform on a logarithmic scale. The clip keeps its own
    rate.

    A clip whose own rate is not above the random one stays as it is.

    Args:
        rates: range of the sample rate in Hz.
        probability: probability of changing a clip.

    Raise SpecError for rates that are out of order or not from 1000 to 1,000,000, or a probability that is not from 0
    to 1.
    """

    def __init__(self, *, rates: tuple[float, float] = (8000.0, 44100.0), probability: float = 0.5) -> None:
        check_range("resample", "rates", rates, least=1000.0, most=1_000_000.0)
        check_probability("resample", probability)
        self.rates, self.probability = rates, probability

    def change(self, waveform: np.ndarray, sample_rate: int, draws: np.random.Generator) -> np.ndarray:
        """Return the clip `[C, S]` without its high frequencies."""
        is_changed, rate = draws.random() < self.probability, float(np.exp(draws.uniform(*np.log(self.rates))))
        if not is_changed or rate >= sample_rate:
            return waveform
        return fit_length(resampled_by(resampled_by(waveform, sample_rate / rate), rate / sample_rate), waveform.shape[1])
