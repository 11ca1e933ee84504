"""How close a clip comes back through a codec, in numbers that every command tells alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST_DECIBELS = 100.0
"""Beyond the range of 16 bits, 98 dB."""

Measures = dict[str, float | None]


def measure(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> Measures:
    """Returns SI-SDR in dB, multi-resolution STFT distance and mel distance in dB of `[C, S]` at one rate.

    SI-SDR counts within ±MOST_DECIBELS: a clip that comes back exactly, or as silence, would be all of a mean otherwise. What is
    relative to silence is None: SI-SDR with a silent channel, the STFT distance of a silent clip.
    """
    from soundomni.metrics.waveform import mel_distance, multi_resolution_stft_distance, si_sdr

    sounding = reference.any(axis=1)
    return {
        "si_sdr": min(max(si_sdr(reference, estimate), -MOST_DECIBELS), MOST_DECIBELS) if sounding.all() else None,
        "stft_distance": multi_resolution_stft_distance(reference, estimate) if sounding.any() else None,
        "mel_distance": mel_distance(reference, estimate, sample_rate),
    }


def rounded(measures: Measures) -> Measures:
    """Returns the measures with the digits that are told of one file."""
    digits = {"si_sdr": 2, "stft_distance": 4, "mel_distance": 4}
    return {name: None if value is None else round(value, digits[name]) for name, value in measures.items()}


def told(measures: Mapping[str, float | None]) -> str:
    """Writes the measures of one file as a line.

    >>> told({"si_sdr": 21.04, "stft_distance": 0.1, "mel_distance": 0.5})
    'SI-SDR 21.04 dB  STFT 0.1  mel 0.5 dB'
    >>> told({"si_sdr": None, "stft_distance": None, "mel_distance": 0.0})
    'SI-SDR undefined (silence)  STFT undefined (silence)  mel 0.0 dB'
    """
    forms = {"si_sdr": ("SI-SDR", " dB"), "stft_distance": ("STFT", ""), "mel_distance": ("mel", " dB")}
    values = ((title, unit, measures[name]) for name, (title, unit) in forms.items())
    return "  ".join(f"{title} undefined (silence)" if value is None else f"{title} {value}{unit}" for title, unit, value in values)
