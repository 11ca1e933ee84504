"""Resampling by any ratio.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import math

import numpy as np
import soxr

from soundomni.core.waveform import RESAMPLER_QUALITY, fit_length


def resampled_by(waveform: np.ndarray, ratio: float) -> np.ndarray:
    """Resample float32 `[C, S]` to one sample for every `ratio` samples, `[C, round(S / ratio)]`, at least one.

    Frequencies that the new samples cannot represent are removed.
    """
    wanted = max(1, round(waveform.shape[1] / ratio))
    padded = np.pad(waveform, ((0, 0), (0, math.ceil(ratio) + 1)))  # soxr rounds its output length
    out = soxr.resample(padded.T, ratio, 1.0, quality=RESAMPLER_QUALITY)
    return fit_length(np.ascontiguousarray(out.T, dtype=np.float32), wanted)
