"""Distances of an estimated waveform from its reference: scale-invariant SDR and spectral distances.

Shape letters: C channels, S samples, F frequencies, M mel bins, T frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from soundomni.core.mel_filters import mel_filters

_FLOOR = 1e-5  # magnitude below which a spectrum counts as silent: -100 dB of full scale
_FRAMES = 512  # frames transformed at once


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB (Le Roux et al., "SDR - half-baked or well done?",
    2019, eq. 4).

    Args:
        reference, estimate: float `[C, S]` or `[S]`, of the same shape.

    Returns:
        the mean over channels; inf for an estimate that is a multiple of the reference, -inf for one that contains
        nothing of it, such as silence, nan if a reference channel is silent.

    Raises:
        ValueError: the shapes differ.
    """
    reference, estimate = _pair(reference, estimate)
    energy = (reference**2).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        target = ((reference * estimate).sum(-1) / energy)[:, None] * reference
        ratio = (target**2).sum(-1) / ((estimate - target) ** 2).sum(-1)
        ratio = np.where((estimate == 0.0).all(-1) & (energy > 0.0), 0.0, ratio)
        return float(np.mean(10.0 * np.log10(ratio)))


def multi_resolution_stft_distance(
    reference: np.ndarray, estimate: np.ndarray, *, fft_sizes: Sequence[int] = (256, 512, 1024, 2048)
) -> float:
    """Return spectral convergence plus mean absolute log-magnitude difference, averaged over resolutions.

    As in Yamamoto et al., "Parallel WaveGAN" (ICASSP 2020), eqs. 4 to 6, with Hann windows of the FFT's size and a hop
    of a quarter.

    Args:
        reference, estimate: float `[C, S]` or `[S]`, of the same shape.
        fft_sizes: FFT sizes in samples.

    Returns:
        0 for equal waveforms; an estimate of silence has the spectral convergence 1; nan if the reference is silent in
        all channels, because convergence is relative to it.

    Raises:
        ValueError: the shapes differ.
    """
    reference, estimate = _pair(reference, estimate)
    if not reference.any():
        return float("nan")
    total = 0.0
    for size in fft_sizes:
        error = power = log_difference = count = 0.0
        for true, other in zip(*(_blocks(signal, size, size // 4) for signal in (reference, estimate)), strict=True):
            error += float(((true - other) ** 2).sum())
            power += float((true**2).sum())
            log_difference += float(np.abs(np.log(np.maximum(true, _FLOOR)) - np.log(np.maximum(other, _FLOOR))).sum())
            count += true.size
        total += float(np.sqrt(error / power)) + log_difference / count
    return total / len(fft_sizes)


def spectral_convergence(reference: np.ndarray, estimate: np.ndarray, *, fft_size: int = 1024) -> float:
    """Return how far the magnitude spectrum is off, relative to the reference (Arik et al. 2018, "Fast spectrogram
    inversion using multi-head convolutional neural networks", section 3.2).

    Args:
        reference, estimate: float `[C, S]` or `[S]`, of the same shape.
        fft_size: in samples; the hop is a quarter.

    Returns:
        0 for equal spectra, 1 for an estimate of silence, more for one with as much of something else; nan if the
        reference is silent.

    Raises:
        ValueError: the shapes differ.
    """
    reference, estimate = _pair(reference, estimate)
    if not reference.any():
        return float("nan")
    true, other = (magnitudes(signal, fft_size, fft_size // 4) for signal in (reference, estimate))
    return float(np.linalg.norm(true - other) / np.linalg.norm(true))


def mel_distance(reference: np.ndarray, estimate: np.ndarray, rate: int, *, num_mels: int = 64, fft_size: int = 1024) -> float:
    """Return the mean absolute difference of log-mel spectra, in dB (HTK mel scale, floor at -100 dB of full scale).

    Args:
        reference, estimate: float `[C, S]` or `[S]`, of the same shape.
        rate: in Hz.
        num_mels: bands between 0 Hz and the Nyquist frequency.
        fft_size: in samples; the hop is a quarter.

    Raises:
        ValueError: the shapes differ.
    """
    reference, estimate = _pair(reference, estimate)
    filters = mel_filters(num_mels=num_mels, n_fft=fft_size, sample_rate=rate, scale="htk")
    difference = count = 0.0
    for pair in zip(*(_blocks(signal, fft_size, fft_size // 4) for signal in (reference, estimate)), strict=True):
        true, other = (10.0 * np.log10(np.maximum(np.einsum("cft,mf->cmt", level**2, filters), _FLOOR**2)) for level in pair)
        difference += float(np.abs(true - other).sum())
        count += true.size
    return difference / count


def magnitudes(signal: np.ndarray, fft_size: int, hop: int) -> np.ndarray:
    """Return magnitude spectra `[C, F, T]` of `[C, S]`: periodic Hann window, frames centered on multiples of `hop`,
    zeros beyond.

    They are scaled so that a sine of amplitude a peaks at a.
    """
    return np.concatenate(list(_blocks(signal, fft_size, hop)), axis=-1)


def _blocks(signal: np.ndarray, fft_size: int, hop: int) -> Iterator[np.ndarray]:
    """Yield `magnitudes` a few frames at a time, so that memory does not grow with the clip."""
    window = np.hanning(fft_size + 1)[:-1]
    padded = np.pad(signal, ((0, 0), (fft_size // 2, fft_size - fft_size // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, fft_size, axis=-1)[:, ::hop]
    for first in range(0, frames.shape[1], _FRAMES):
        spectra = np.fft.rfft(frames[:, first : first + _FRAMES] * window)
        yield np.asarray(np.abs(spectra).swapaxes(-1, -2) * 2.0 / window.sum())


def _pair(reference: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float64 `[C, S]`."""
    if np.shape(reference) != np.shape(estimate) or np.size(reference) == 0:
        raise ValueError(f"reference is {np.shape(reference)} and estimate is {np.shape(estimate)}; expected the same non-empty shape")
    return np.atleast_2d(np.asarray(reference, dtype=np.float64)), np.atleast_2d(np.asarray(estimate, dtype=np.float64))
