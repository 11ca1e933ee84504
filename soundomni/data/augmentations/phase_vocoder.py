"""Changing the length of clips at the same pitch: a phase vocoder with identity phase locking (Laroche and Dolson 1999,
"Improved Phase Vocoder Time-Scale Modification of Audio").

Without the locking, bins next to a peak drift apart in phase and cancel, so even a steady tone loses several decibels.

Shape letters: C audio channels, S samples, B frequency bins, L frames, N samples of a window.
"""

from __future__ import annotations

import math

import numpy as np

_WINDOW_SECONDS = 0.046
_SHORTEST_WINDOW = 64
_FRAMES_AT_ONCE = 128


def stretched(waveform: np.ndarray, ratio: float, sample_rate: int) -> np.ndarray:
    """Return float32 `[C, S]` at the same pitch and `ratio` times as long, `[C, round(S * ratio)]`, at least one sample."""
    size = max(_SHORTEST_WINDOW, 2 ** round(math.log2(_WINDOW_SECONDS * sample_rate)))
    hop, wanted = size // 4, max(1, round(waveform.shape[1] * ratio))
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    count = -(-wanted // hop) + 4  # frames that overlap the result
    starts = size + np.round((np.arange(count) * hop - size) / ratio).astype(np.int64)  # in the padded clip
    before = max(0, hop - int(starts.min()))
    padded = np.pad(waveform, ((0, 0), (size + before, 2 * size + int(starts.max()))))
    out, weight = np.zeros((len(waveform), count * hop + size), np.float32), np.zeros(count * hop + size, np.float32)
    made: np.ndarray | None = None
    for first in range(0, count, _FRAMES_AT_ONCE):
        block = starts[first : first + _FRAMES_AT_ONCE] + before
        frames, earlier = (_spectra(padded, block - shift, window) for shift in (0, hop))
        for i, (frame, previous) in enumerate(zip(frames, earlier, strict=True), start=first):
            made = frame if made is None else frame * _rotation(frame, made, previous)
            out[:, i * hop : i * hop + size] += np.fft.irfft(made, size).astype(np.float32) * window
            weight[i * hop : i * hop + size] += window**2
    result: np.ndarray = (out / np.maximum(weight, 1e-3))[:, size : size + wanted]
    return result


def _spectra(padded: np.ndarray, starts: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the spectra `[L, C, B]` of the frames that begin at `starts`."""
    places = starts[:, None] + np.arange(len(window))
    return np.fft.rfft(padded[:, places].transpose(1, 0, 2) * window)


def _rotation(frame: np.ndarray, made: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Return the phase factors `[B]` for a frame of the clip. All channels share them, which keeps phase differences.

    At a peak of the spectrum, it is the factor that turns the clip one hop before the frame into what was made one hop
    before. Bins around a peak use the factor of the peak.

    Args:
        frame: spectrum `[C, B]` of the clip.
        made: spectrum that was made one hop before.
        earlier: spectrum of the clip one hop before the frame.
    """
    power = (np.abs(frame) ** 2).sum(axis=0)
    around = np.pad(power, 2)
    highest = np.max([around[shift : shift + len(power)] for shift in (0, 1, 3, 4)], axis=0)
    peaks = np.flatnonzero(power > highest)
    turn = (made * earlier.conj()).sum(axis=0)[peaks]
    size = np.abs(turn)
    factors = np.where(size > 0, turn / np.where(size > 0, size, 1.0), 1.0)
    if not len(peaks):
        return np.ones(len(power), np.complex128)
    nearest = np.searchsorted((peaks[1:] + peaks[:-1]) / 2, np.arange(len(power)))
    chosen: np.ndarray = factors[nearest]
    return chosen
