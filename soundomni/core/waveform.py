"""Waveforms as numpy arrays `[C, S]`: sample rates and channel counts. Reading and writing files is the data package's work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import soxr

from soundomni.core.errors import DataError

RESAMPLER_QUALITY = "HQ"
"""Of soxr: what is rejected lies 100 dB below."""


@dataclass(frozen=True)
class Audio:
    """A clip: float32 waveform `[C, S]` and its sample rate in Hz."""

    waveform: np.ndarray
    sample_rate: int


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Returns the samples that `resample` gives: ceil(num_samples * to_rate / from_rate). Packing relies on it."""
    return math.ceil(num_samples * to_rate / from_rate)


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples float32 `[C, S]` with soxr at high quality to exactly `resampled_length` samples."""
    if from_rate == to_rate:
        return waveform
    wanted = resampled_length(waveform.shape[1], from_rate, to_rate)
    # soxr rounds its output length; silence worth one more output sample lets the last one be computed instead of set to zero
    padded = np.pad(waveform, ((0, 0), (0, math.ceil(from_rate / to_rate))))
    out = np.ascontiguousarray(soxr.resample(padded.T, from_rate, to_rate, quality=RESAMPLER_QUALITY).T, dtype=np.float32)
    return fit_length(out, wanted)


def fit_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """Cuts `[C, S]` at the end, or pads it with silence, to `num_samples`."""
    missing = num_samples - waveform.shape[1]
    return np.pad(waveform, ((0, 0), (0, missing))) if missing > 0 else waveform[:, :num_samples]


def convert(clip: Audio, *, channels: int, sample_rate: int) -> np.ndarray:
    """Returns the waveform `[C, S]` of a clip with these channels and this rate. Raises DataError for channels as `match_channels`."""
    return resample(match_channels(clip.waveform, channels), clip.sample_rate, sample_rate)


def match_channels(waveform: np.ndarray, channels: int) -> np.ndarray:
    """Gives `[C, S]` the wanted channels: copies of a mono clip, or the mean of all channels. Raises DataError for anything else."""
    given = waveform.shape[0]
    if given == channels:
        return waveform
    if given == 1:
        return np.repeat(waveform, channels, axis=0)
    if channels == 1:
        mono: np.ndarray = waveform.mean(axis=0, keepdims=True, dtype=np.float32)
        return mono
    raise DataError(f"the clip has {given} channels, {channels} were expected; only 1 to any and any to 1 can be converted")
