"""Pitch by the normalized square difference function (McLeod and Wyvill, "A smarter way to find pitch", ICMC 2005).

n(lag) = 2 r(lag) / m(lag), with r the autocorrelation of a frame and m the energy of the two overlapping parts: 1 at
the period of a periodic signal, whatever its level. It needs no window and tolerates noise.

Shape letters: S samples, M frames, N samples of a frame, L lags.
"""

from __future__ import annotations

import numpy as np

FRAME_SECONDS = 0.032
_MIN_HZ, _MAX_HZ = 80.0, 1500.0
_KEY_MAXIMUM = 0.88  # the first peak this close to the highest one is the period; later ones are its multiples
_MAX_FRAMES = 400
_STEPS = 4  # steps of the lag per sample
_WORKING_RATE = 8000  # Hz; signals of at least twice this rate are averaged down


def pitch_track(signal: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the fundamental frequency over time.

    Args:
        signal: float `[S]`, at least FRAME_SECONDS long, otherwise it is padded to that.
        rate: in Hz.

    Returns:
        frequency in Hz `[M]`, between 80 and 1500, and clarity `[M]`, the height of the peak: 1 for a periodic frame,
        about 0.2 for white noise, 0 for silence (whose frequency is 0). M is at most 400.
    """
    factor = max(1, int(rate // _WORKING_RATE))
    if factor > 1:  # noise above the harmonics that matter only disturbs
        signal = signal[: len(signal) // factor * factor].reshape(-1, factor).mean(1)
        rate = rate / factor
    size = round(FRAME_SECONDS * rate)
    signal = np.pad(signal, (0, max(0, size - len(signal))))
    starts = np.unique(np.linspace(0, len(signal) - size, min(_MAX_FRAMES, 1 + (len(signal) - size) * 3 // size)).astype(int))
    frames = signal[starts[:, None] + np.arange(size)]
    function = _square_difference(frames - frames.mean(1, keepdims=True), int(rate / _MIN_HZ) + 2)
    tracks = [_first_peak(row, int(_STEPS * rate / _MAX_HZ)) for row in function]
    lag, clarity = np.array(tracks).T / [[_STEPS], [1.0]]
    return np.divide(rate, lag, out=np.zeros_like(lag), where=lag > 0), clarity


def _square_difference(frames: np.ndarray, num_lags: int) -> np.ndarray:
    """Return n(lag) `[M, L]` of frames `[M, N]`, for lags from 0 to below `num_lags` in steps of 1 / _STEPS samples; 0
    for silence.

    Between samples the autocorrelation is interpolated exactly, by a longer inverse transform of its spectrum.
    """
    size = frames.shape[1]
    length = 1 << (size + num_lags).bit_length()
    spectrum = np.fft.rfft(frames, length)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2, _STEPS * length)[:, : _STEPS * num_lags] * _STEPS
    energy = np.pad(np.cumsum(frames**2, axis=1), ((0, 0), (1, 0)))
    lags = np.arange(num_lags).repeat(_STEPS)  # the energy of the overlap hardly changes within a sample
    overlap = energy[:, size - lags] + energy[:, -1:] - energy[:, lags]
    return np.asarray(2.0 * np.divide(correlation, overlap, out=np.zeros_like(correlation), where=overlap > 1e-12))


def _first_peak(function: np.ndarray, min_lag: int) -> tuple[float, float]:
    """Return (lag in steps, height) of the first high peak of one row `[L]`, refined by a parabola; (0, 0) if there is
    none."""
    inner = function[1:-1]
    peaks = np.flatnonzero((inner > function[:-2]) & (inner >= function[2:]) & (inner > 0)) + 1
    peaks = peaks[peaks >= min_lag]
    if not len(peaks):
        return 0.0, 0.0
    lag = peaks[function[peaks] >= _KEY_MAXIMUM * function[peaks].max()][0]
    before, at, after = function[lag - 1 : lag + 2]
    shift = 0.5 * (before - after) / (before - 2.0 * at + after)
    return float(lag + shift), float(at - 0.25 * (before - after) * shift)
