"""A-weighting (IEC 61672-1:2013, annex E): how loud frequencies sound at low levels, as a filter of waveforms.

The filter has linear phase, and 101 taps that fit the curve in the sense of least squares. Wright and Välimäki (2020,
"Perceptual loss function for neural modeling of audio systems") put such a filter before a loss. Frequencies below about a
hundredth of the sample rate are attenuated less than by the curve: 101 taps cannot tell them apart.

Shape letters: B clips, C audio channels, S samples, N = 101 taps.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

NUM_TAPS = 101
_POLES = (20.598997, 107.65265, 737.86223, 12194.217)
"""Frequencies in Hz of the poles of the curve; the first and the last one are double."""
_GRID = 2048
"""Frequencies, evenly spaced from 0 Hz to half the sample rate, where the filter is compared with the curve."""


def a_weighted(waveform: Tensor, sample_rate: int) -> Tensor:
    """Filter `[B, C, S]` at `sample_rate` in Hz, with silence around each clip, to the same shape."""
    taps = _constant(sample_rate, waveform.device, waveform.dtype)
    rows = waveform.reshape(-1, 1, waveform.shape[-1])
    with torch.autocast(waveform.device.type, enabled=False):
        return functional.conv1d(rows, taps[None, None], padding=NUM_TAPS // 2).reshape(waveform.shape)


def a_weighting(hertz: np.ndarray) -> np.ndarray:
    """Return the gain of the curve at frequencies in Hz, 1 at 1 kHz."""
    return np.asarray(_unscaled(hertz) / _unscaled(np.array(1000.0)))


def _unscaled(hertz: np.ndarray) -> np.ndarray:
    squared = hertz**2
    first, second, third, last = (pole**2 for pole in _POLES)
    single = np.sqrt((squared + second) * (squared + third))
    return np.asarray(squared**2 / ((squared + first) * single * (squared + last)))


def a_weighting_taps(sample_rate: int) -> np.ndarray:
    """Return the symmetric filter `[N]`, float64, whose response fits the curve best."""
    frequencies = np.linspace(0.0, sample_rate / 2, _GRID)
    cosines = np.cos(2.0 * np.pi * frequencies[:, None] / sample_rate * np.arange(NUM_TAPS // 2 + 1))
    amplitudes = np.linalg.lstsq(cosines, a_weighting(frequencies), rcond=None)[0]
    half = amplitudes[1:] / 2.0
    return np.concatenate([half[::-1], amplitudes[:1], half])


@lru_cache(maxsize=8)
def _constant(sample_rate: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # the filter outlives the call, and a later one may be recorded for backward
        return torch.tensor(a_weighting_taps(sample_rate), device=device, dtype=dtype)
