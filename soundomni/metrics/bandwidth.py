"""Where the energy of a sound lies: its bandwidth, and how much is lost if only lower frequencies are kept.

Shape letters: C channels, S samples.
"""

from __future__ import annotations

import numpy as np

_FFT_SIZE = 2048
_HOP = _FFT_SIZE // 4  # squares of Hann windows at this hop add up to a constant, so every sample counts equally
_FRAMES = 256  # frames transformed at once, so that a long clip takes little memory


def bandwidth(waveform: np.ndarray, sample_rate: int, *, share: float = 0.99) -> float:
    """Return the frequency in Hz below which a share of the energy of all channels lies (spectral roll-off: Scheirer and
    Slaney, "Construction and evaluation of a robust multifeature speech/music discriminator", 1997, section 2.1).

    Args:
        waveform: float `[C, S]` or `[S]`, at least one sample.
        sample_rate: in Hz.
        share: above 0, at most 1.

    Returns:
        the frequency, resolved to about sample_rate / 500; nan if the clip is silent.

    Raises:
        ValueError: the waveform has another shape, or the rate or the share is out of range.

    >>> time = np.arange(8000) / 8000
    >>> low, high = (np.sin(2 * np.pi * hertz * time) for hertz in (500, 3000))
    >>> round(bandwidth(low, 8000), -1), round(bandwidth(low + high, 8000), -1)
    (500.0, 3000.0)
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share is {share}; expected a number above 0 and at most 1")
    below = np.cumsum(_energies(_channels(waveform, sample_rate)))
    place = int(np.searchsorted(below, share * below[-1]))
    return place * sample_rate / _FFT_SIZE if below[-1] > 0 else float("nan")


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
    if not cutoff_hz > 0:
        raise ValueError(f"the cutoff is {cutoff_hz}; expected a frequency above 0 Hz")
    channels = _channels(waveform, sample_rate)
    if cutoff_hz >= sample_rate / 2:
        return 0.0
    energies = _energies(channels)
    above = np.fft.rfftfreq(_FFT_SIZE, 1.0 / sample_rate) > cutoff_hz
    total = float(energies.sum())
    return float((energies * above).sum()) / total if total > 0 else 0.0


def _channels(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return `[C, S]`."""
    channels = np.atleast_2d(waveform)
    if channels.ndim != 2 or channels.size == 0:
        raise ValueError(f"the waveform is {np.shape(waveform)}; expected [C, S] with at least one sample")
    if not sample_rate > 0:
        raise ValueError(f"the rate is {sample_rate}; expected a frequency above 0 Hz")
    return channels


def _energies(channels: np.ndarray) -> np.ndarray:
    """Return the energy of `[C, S]` in each bin of a spectrum, summed over frames that cover every sample equally."""
    window = np.hanning(_FFT_SIZE + 1)[:-1]
    both_sides = np.full(_FFT_SIZE // 2 + 1, 2.0)
    both_sides[[0, -1]] = 1.0  # frequencies between these ends also stand for negative ones
    total = np.zeros(_FFT_SIZE // 2 + 1)
    for channel in channels:
        padded = np.pad(channel, (_FFT_SIZE - _HOP, _FFT_SIZE))
        frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT_SIZE)[::_HOP]
        for first in range(0, len(frames), _FRAMES):
            block = frames[first : first + _FRAMES].astype(np.float64)
            total += (np.abs(np.fft.rfft(block * window)) ** 2).sum(axis=0)
    return np.asarray(total * both_sides)
