"""Log-mel spectra of clips: what a judge that knows only the training clips compares.

Shape letters: C channels, S samples, T frames, M mel bands, P pooled frames, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from soundomni.core.mel_filters import mel_filters
from soundomni.core.waveform import fit_length, match_channels, resample
from soundomni.metrics.waveform_distances import magnitudes

WINDOW_SECONDS = 0.064
HOP_SECONDS = 0.02
BANDS = 40
LOWEST_HZ = 30.0
FLOOR_DB = -80.0
"""Level below which a band counts as silent, relative to a sine at the clip's peak; recording noise is mostly lower."""
RANGE_DB = 60.0
"""How far below the loudest band of the whole clip a relative level can go."""
MOST_FRAMES = 100
"""Frames of `LogMel.levels`; those of longer clips are pooled, because whole clips are compared, not details."""
SEGMENTS = ((0.0, 0.06), (0.04, 0.12), (0.1, 0.3), (0.3, 1.0), (1.0, 3.0), (3.0, 10.0))
"""Parts in seconds that `LogMel.summary` averages: finer at the beginning, where percussion differs most."""


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """Log-mel spectra of the beginning of clips, after conversion to mono, one rate, one length and one peak level.

    Args:
        sample_rate: rate in Hz at which clips are compared.
        seconds: length that is compared; shorter clips are followed by silence.

    Raises:
        ValueError: the rate is too low for the lowest band, or the length is not positive.
    """

    sample_rate: int
    seconds: float

    def __post_init__(self) -> None:
        if self.sample_rate <= 4 * LOWEST_HZ or not self.seconds > 0:
            raise ValueError(f"{self.sample_rate} Hz and {self.seconds} s; expected above {4 * LOWEST_HZ:g} Hz and above 0 s")

    def power(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        """Return the power of mel bands, float64 `[T, M]`, of float `[C, S]` at a rate in Hz; zeros for silence.

        1 is the power of a sine at the clip's peak. Raise ValueError for a clip that is empty or not finite.
        """
        if waveform.ndim != 2 or waveform.size == 0 or not np.isfinite(waveform).all():
            raise ValueError(f"the waveform is {np.shape(waveform)}; expected [C, S] with at least one sample, all finite")
        mono = match_channels(waveform[:, : math.ceil(self.seconds * rate)].astype(np.float32), 1)
        cut = fit_length(resample(mono, rate, self.sample_rate), max(1, round(self.seconds * self.sample_rate)))
        peak = float(np.abs(cut).max())
        if peak == 0.0:
            return np.zeros((self._frames(cut.shape[1]), BANDS))
        spectra = magnitudes(cut / peak, self._fft_size, self._hop)[0]
        return np.asarray((spectra**2).T @ _filters(self.sample_rate, self._fft_size))

    def levels(self, power: np.ndarray) -> np.ndarray:
        """Return levels in dB, float32 `[P * M]`, of `power` pooled to at most MOST_FRAMES, from FLOOR_DB up."""
        size = math.ceil(len(power) / MOST_FRAMES)
        pooled = np.add.reduceat(power, np.arange(0, len(power), size)) / size
        return _decibels(pooled, FLOOR_DB).ravel().astype(np.float32)

    def summary(self, power: np.ndarray) -> np.ndarray:
        """Return float64 `[F]`: means over SEGMENTS, the mean and the deviation over time of each band's level in dB,
        relative to the loudest band, so that they do not depend on how far the clip's peak stands out.
        """
        loudest = float(power.max())
        relative = _decibels(power / loudest if loudest > 0.0 else power, -RANGE_DB)
        parts = [relative[round(start / HOP_SECONDS) : round(end / HOP_SECONDS)] for start, end in SEGMENTS]
        means = [part.mean(axis=0) for part in parts if len(part)]
        return np.concatenate([*means, relative.mean(axis=0), relative.std(axis=0)])

    @property
    def _fft_size(self) -> int:
        return 2 * max(1, round(WINDOW_SECONDS * self.sample_rate / 2))

    @property
    def _hop(self) -> int:
        return max(1, round(HOP_SECONDS * self.sample_rate))

    def _frames(self, samples: int) -> int:
        """Return how many frames `magnitudes` gives."""
        return samples // self._hop + 1


def _decibels(power: np.ndarray, floor: float) -> np.ndarray:
    return np.asarray(10.0 * np.log10(np.maximum(power, 10.0 ** (floor / 10.0))))


@cache
def _filters(sample_rate: int, fft_size: int) -> np.ndarray:
    """Return triangles `[F, M]` from LOWEST_HZ to half the rate."""
    span = (LOWEST_HZ, sample_rate / 2)
    filters = mel_filters(num_mels=BANDS, n_fft=fft_size, sample_rate=sample_rate, scale="htk", frequencies=span, at_least_a_bin=True)
    return filters.T
