"""Waveforms as numpy arrays `[C, S]`: sample rates and channel counts. The data package reads and writes files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import soxr

from soundomni.core.errors import DataError

RESAMPLER_QUALITY = "HQ"
"""Quality setting of soxr: rejected frequencies end up 100 dB lower."""

FEWEST_SAMPLES_FIRST = 8
"""With more channels than this, an array with more channels than samples is refused as one with the samples first."""

PEAK_LIMIT = 8.0
"""Samples beyond this are not the overshoot of a lossy decoder or a mix: the audio is not scaled to [-1, 1]."""

_INTEGER_SCALES = (2**7, 2**15, 2**23, 2**31)


@dataclass(frozen=True, eq=False)
class Audio:
    """A clip, checked once when it is created.

    Args:
        waveform: `[C, S]`, full scale at 1. Other floating-point types are converted to float32; float64 is rounded to
            it, with an error of at most 6e-8 per sample. An array with negative strides is copied, because torch does
            not accept it.
        sample_rate: in Hz. Numpy integers become int.

    Raise DataError if the waveform is not a numpy array `[C, S]` of floating-point numbers, is empty or not finite, or
    is too far beyond full scale, or if the rate is not a positive integer.
    """

    waveform: np.ndarray
    sample_rate: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "waveform", _checked_waveform(self.waveform))
        object.__setattr__(self, "sample_rate", _checked_rate(self.sample_rate))

    def __eq__(self, other: object) -> bool:
        """Return whether another clip has the same samples and the same rate."""
        if not isinstance(other, Audio):
            return NotImplemented
        return self.sample_rate == other.sample_rate and np.array_equal(self.waveform, other.waveform)

    __hash__ = None  # type: ignore[assignment]  # samples can change in place

    @classmethod
    def unchecked(cls, waveform: np.ndarray, sample_rate: int) -> Self:
        """Return a clip made by a model, which may have samples that are not finite, or a part of a checked clip."""
        clip = object.__new__(cls)
        object.__setattr__(clip, "waveform", waveform)
        object.__setattr__(clip, "sample_rate", sample_rate)
        return clip


def _checked_waveform(waveform: object) -> np.ndarray:
    expected = "expected a float32 numpy array [channels, samples]"
    if not isinstance(waveform, np.ndarray):
        way = "numpy.array(waveform, dtype='float32')" if isinstance(waveform, list | tuple) else "waveform.detach().cpu().numpy()"
        advice = f". Use {way}" if isinstance(waveform, list | tuple) or hasattr(waveform, "detach") else ""
        raise DataError(f"the waveform is of type {type(waveform).__name__}; {expected}{advice}")
    if waveform.dtype.kind in "iu":
        scale = 2 ** (8 * waveform.dtype.itemsize - 1)
        value = f"(waveform.astype('float32') - {scale})" if waveform.dtype.kind == "u" else "waveform.astype('float32')"
        raise DataError(f"the waveform has dtype {waveform.dtype}; {expected} within [-1, 1]. Divide by {scale}: use {value} / {scale}")
    if waveform.dtype.kind != "f":
        raise DataError(f"the waveform has dtype {waveform.dtype}; {expected}")
    if waveform.ndim != 2:
        advice = {1: ". Use waveform[None] for one channel", 3: ". Pass one clip at a time, such as waveform[0]"}.get(waveform.ndim, "")
        raise DataError(f"the waveform has shape {list(waveform.shape)}; {expected}{advice}")
    channels, samples = waveform.shape
    if waveform.size == 0:
        raise DataError(f"the waveform has shape {[channels, samples]}, so it is empty; {expected}")
    if channels > max(samples, FEWEST_SAMPLES_FIRST):
        raise DataError(f"the waveform has {channels} channels of {samples} samples; {expected}. Use waveform.T if the samples come first")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and are refused below
        waveform = waveform.astype(np.float32, copy=False)
    if not np.isfinite(waveform).all():
        raise DataError(f"the waveform has samples that are not finite (NaN or infinity); {expected} within [-1, 1]")
    peak = max(float(waveform.max()), -float(waveform.min()))
    if peak > PEAK_LIMIT:
        scale = next((scale for scale in _INTEGER_SCALES if peak <= scale), None)
        advice = f"Divide it by {scale} if it was made of integers, otherwise by its peak" if scale is not None else "Divide it by its peak"
        raise DataError(f"the waveform reaches {peak:.4g}; {expected} within [-1, 1]. {advice}")
    return np.ascontiguousarray(waveform) if any(stride < 0 for stride in waveform.strides) else waveform


def _checked_rate(rate: object) -> int:
    expected = "expected a positive integer, in Hz"
    if isinstance(rate, bool | np.bool_) or not isinstance(rate, int | np.integer):
        advice = f". Use {int(rate)}" if isinstance(rate, float | np.floating) and 1 <= rate < 1e9 else ""
        value = f"{rate!r} of" if isinstance(rate, bool | np.bool_ | float | np.floating | str) else "of"
        raise DataError(f"the sample rate is {value} type {type(rate).__name__}; {expected}{advice}")
    if rate < 1:
        raise DataError(f"the sample rate is {rate}; {expected}")
    return int(rate)


def resampled_length(num_samples: int, from_rate: int, to_rate: int) -> int:
    """Return the number of samples that `resample` gives: ceil(num_samples * to_rate / from_rate).

    Packing relies on it.
    """
    return math.ceil(num_samples * to_rate / from_rate)


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample float32 `[C, S]` with soxr at high quality to exactly `resampled_length` samples."""
    if from_rate == to_rate:
        return waveform
    wanted = resampled_length(waveform.shape[1], from_rate, to_rate)
    # soxr rounds its output length; silence worth one more output sample lets it compute the last one instead of setting it to zero
    padded = np.pad(waveform, ((0, 0), (0, math.ceil(from_rate / to_rate))))
    out = np.ascontiguousarray(soxr.resample(padded.T, from_rate, to_rate, quality=RESAMPLER_QUALITY).T, dtype=np.float32)
    return fit_length(out, wanted)


def fit_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut `[C, S]` at the end, or pad it with silence, to `num_samples`."""
    missing = num_samples - waveform.shape[1]
    return np.pad(waveform, ((0, 0), (0, missing))) if missing > 0 else waveform[:, :num_samples]


def convert(clip: Audio, *, channels: int, sample_rate: int) -> np.ndarray:
    """Return the waveform `[C, S]` of a clip with these channels and this rate.

    Raise DataError for channels as `match_channels`.
    """
    return resample(match_channels(clip.waveform, channels), clip.sample_rate, sample_rate)


def match_channels(waveform: np.ndarray, channels: int) -> np.ndarray:
    """Return `[C, S]` with `channels` channels: copies of a mono clip, or the mean of all channels.

    Raise DataError for anything else.
    """
    given = waveform.shape[0]
    if given == channels:
        return waveform
    if given == 1:
        return np.repeat(waveform, channels, axis=0)
    if channels == 1:
        mono: np.ndarray = waveform.mean(axis=0, keepdims=True, dtype=np.float32)
        return mono
    raise DataError(f"the clip has {given} channels; expected {channels}. Only mono can become any count, and any count mono")
