"""How much of a sound lies above a frequency, and so is lost if only lower ones are kept.

Shape letters: C channels, S samples.
"""

from __future__ import annotations

import numpy as np

_FFT_SIZE = 2048
_HOP = _FFT_SIZE // 4  # squares of Hann windows at this hop add up to a constant, so every sample counts equally
_FRAMES = 256  # frames transformed at once, so that a long clip takes little memory


def energy_above(waveform: np.ndarray, sample_rate: int, cutoff_hz: float) -> float:
    """Return the share, from 0 to 1, of the energy of all channels that lies above a frequency.

    Args:
        waveform: float `[C, S]` or `[S]`, at least one sample.
        sample_rate: in Hz.
        cutoff_hz: the frequency in Hz; it is resolved to about sample_rate / 1000.

    Returns:
        the share; exactly 0 if the cutoff is not below the Nyquist frequency, or if the clip is silent.

    Raises:
        ValueError: the waveform has another shape, or the rate or cutoff is not positive.

    >>> time = np.arange(8000) / 8000
    >>> low, high = (np.sin(2 * np.pi * hertz * time) for hertz in (500, 3000))
    >>> round(energy_above(low + high, 8000, 2000), 3), round(energy_above(2 * low + high, 8000, 2000), 3)
    (0.5, 0.2)
    """
    channels = np.atleast_2d(waveform)
    if channels.ndim != 2 or channels.size == 0:
        raise ValueError(f"the waveform is {np.shape(waveform)}; expected [C, S] with at least one sample")
    if not (sample_rate > 0 and cutoff_hz > 0):
        raise ValueError(f"the rate is {sample_rate} and the cutoff {cutoff_hz}; expected frequencies above 0 Hz")
    above = np.fft.rfftfreq(_FFT_SIZE, 1.0 / sample_rate) > cutoff_hz
    if cutoff_hz >= sample_rate / 2:
        return 0.0
    spectrum = sum(_energies(channel) for channel in channels)
    total = float(np.sum(spectrum))
    return float(np.sum(spectrum * above)) / total if total > 0 else 0.0


def _energies(channel: np.ndarray) -> np.ndarray:
    """Return the energy of `[S]` in each bin of a spectrum, summed over frames that cover every sample equally."""
    window = np.hanning(_FFT_SIZE + 1)[:-1]
    both_sides = np.full(_FFT_SIZE // 2 + 1, 2.0)
    both_sides[[0, -1]] = 1.0  # frequencies between these ends also stand for negative ones
    padded = np.pad(channel, (_FFT_SIZE - _HOP, _FFT_SIZE))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT_SIZE)[::_HOP]
    total = np.zeros(_FFT_SIZE // 2 + 1)
    for first in range(0, len(frames), _FRAMES):
        block = frames[first : first + _FRAMES].astype(np.float64)
        total += (np.abs(np.fft.rfft(block * window)) ** 2).sum(axis=0)
    return np.asarray(total * both_sides)
