"""Filters that combine the bins of a spectrum into mel bins.

Shape letters: M mel bins, F frequency bins.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

MelScale = Literal["slaney", "htk"]
"""The scale of Slaney (1998, Auditory Toolbox, version 2) with triangles of area 1 in Hz, or that of HTK (Young et al.
2006, The HTK book, section 5.4) with triangles of height 1."""

_BREAK_HERTZ, _BREAK_MELS, _LOG_STEP = 1000.0, 15.0, math.log(6.4) / 27.0
"""Where the Slaney scale turns from linear to logarithmic, and the logarithm of a frequency ratio of one mel above."""
_HTK_MELS, _HTK_HERTZ = 1127.0, 700.0


def mel_filters(
    *,
    num_mels: int,
    n_fft: int,
    sample_rate: int,
    scale: MelScale,
    frequencies: tuple[float, float] | None = None,
    at_least_a_bin: bool = False,
) -> np.ndarray:
    """Return triangles, float64 `[M, F]` with F = n_fft // 2 + 1, that are spaced evenly in mel between two frequencies in Hz:
    from 0 Hz to half the sample rate if there are none.

    They are computed here because importing transformers, which has them too, takes longer than a small model's first
    step. A filter that lies between two bins is zero. With `at_least_a_bin`, each triangle extends at least one
    bin to both sides, so no filter is zero.
    """
    to_mels, to_hertz = (_slaney_mels, _slaney_hertz) if scale == "slaney" else (_htk_mels, _htk_hertz)
    low, high = (0.0, sample_rate / 2) if frequencies is None else frequencies
    edges = to_hertz(np.linspace(to_mels(low), to_mels(high), num_mels + 2))
    bins = np.linspace(0.0, sample_rate / 2, n_fft // 2 + 1)
    lower, center, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    if at_least_a_bin:
        lower, upper = np.minimum(lower, center - bins[1]), np.maximum(upper, center + bins[1])
    rising, falling = (bins - lower) / (center - lower), (upper - bins) / (upper - center)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (upper - lower)) if scale == "slaney" else triangles)


def mels_between(low: float, high: float) -> float:
    """Return the distance of two frequencies in Hz on the HTK scale, in mel.

    >>> round(mels_between(0.0, 8000.0))
    2840
    """
    return _htk_mels(high) - _htk_mels(low)


def _slaney_mels(hertz: float) -> float:
    """Return the Slaney mels of a frequency: linear up to 1 kHz, logarithmic above."""
    if hertz < _BREAK_HERTZ:
        return _BREAK_MELS * hertz / _BREAK_HERTZ
    return _BREAK_MELS + math.log(hertz / _BREAK_HERTZ) / _LOG_STEP


def _slaney_hertz(mels: np.ndarray) -> np.ndarray:
    """Return the frequencies of Slaney mels."""
    linear, logarithmic = _BREAK_HERTZ * mels / _BREAK_MELS, _BREAK_HERTZ * np.exp(_LOG_STEP * (mels - _BREAK_MELS))
    return np.where(mels < _BREAK_MELS, linear, logarithmic)


def _htk_mels(hertz: float) -> float:
    """Return the HTK mels of a frequency."""
    return _HTK_MELS * math.log1p(hertz / _HTK_HERTZ)


def _htk_hertz(mels: np.ndarray) -> np.ndarray:
    """Return the frequencies of HTK mels."""
    return np.asarray(_HTK_HERTZ * np.expm1(mels / _HTK_MELS))
