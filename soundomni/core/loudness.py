"""Loudness as ITU-R BS.1770-4 defines it: the power of K-weighted channels, in blocks of 0.4 s, without those that are quiet.

Shape letters: C audio channels, S samples, F frequency bins, N blocks.
"""

from __future__ import annotations

import numpy as np

_BLOCK, _STEPS = 0.4, 4
"""Seconds of a block, and steps in it: blocks overlap by three quarters."""
_ABSOLUTE_GATE, _RELATIVE_GATE, _OFFSET = -70.0, -10.0, -0.691
_SHELF = (1681.974450955533, 0.7071752369554196, 3.999843853973347)
"""Frequency in Hz, quality and gain in dB of the shelf that stands for the head."""
_HIGH_PASS = (38.13547087602444, 0.5003270373238773)
"""Frequency in Hz and quality of the high-pass filter."""
_TAIL = 0.5
"""Seconds after a clip in which the filters fade out, so that their end does not wrap around to the beginning."""


def loudness(waveform: np.ndarray, sample_rate: int) -> float:
    """Return the integrated loudness of float32 `[C, S]` in LUFS; minus infinity for silence.

    All channels count equally, as the standard has it for mono and stereo. A clip shorter than a block is one block.
    """
    power = _block_powers(waveform, sample_rate)
    loud = power[_decibels(power) > _ABSOLUTE_GATE]
    if not len(loud):
        return -np.inf
    loud = loud[_decibels(loud) > _decibels(loud.mean()) + _RELATIVE_GATE]
    return float(_decibels(loud.mean()))


def _decibels(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        decibels: np.ndarray = _OFFSET + 10.0 * np.log10(power)
    return decibels


def _block_powers(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the power `[N]` of each block, added up over the channels."""
    square = (_weighted(waveform, sample_rate) ** 2).sum(axis=0)
    size = max(1, round(_BLOCK * sample_rate))
    if len(square) <= size:
        return np.array([square.mean()])
    step = max(1, size // _STEPS)
    starts = np.arange(0, len(square) - size + 1, step)
    total = np.concatenate([[0.0], np.cumsum(square)])
    powers: np.ndarray = (total[starts + size] - total[starts]) / size
    return powers


def _weighted(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return `[C, S]` in float64 after both filters, which are applied to the spectrum."""
    samples = waveform.shape[1]
    padded = samples + round(_TAIL * sample_rate)
    spectrum = np.fft.rfft(waveform.astype(np.float64), padded) * _response(padded, sample_rate)
    return np.fft.irfft(spectrum, padded)[:, :samples]


def _response(length: int, sample_rate: int) -> np.ndarray:
    """Return the response of both filters, complex `[F]` with F = length // 2 + 1, of their bilinear transforms."""
    delay = np.exp(-2j * np.pi * np.arange(length // 2 + 1) / length)
    powers = np.stack([np.ones_like(delay), delay, delay**2])
    frequency, quality, gain = _SHELF
    k = _warped(frequency, sample_rate)
    high = 10.0 ** (gain / 20.0)
    middle = high**0.4996667741545416
    below = 1.0 + k / quality + k * k
    shelf_b = np.array([high + middle * k / quality + k * k, 2.0 * (k * k - high), high - middle * k / quality + k * k])
    shelf = (shelf_b @ powers) / (np.array([below, 2.0 * (k * k - 1.0), 1.0 - k / quality + k * k]) @ powers)
    frequency, quality = _HIGH_PASS
    k = _warped(frequency, sample_rate)
    below = 1.0 + k / quality + k * k
    cut = (np.array([1.0, -2.0, 1.0]) @ powers) / (
        np.array([1.0, 2.0 * (k * k - 1.0) / below, (1.0 - k / quality + k * k) / below]) @ powers
    )
    response: np.ndarray = shelf * cut
    return response


def _warped(frequency: float, sample_rate: int) -> float:
    return float(np.tan(np.pi * min(frequency / sample_rate, 0.45)))  # the shelf lies above what low rates have
