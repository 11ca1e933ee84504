"""How close a clip comes back through a codec, in numbers that every command tells alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.waveform import Audio

MOST_DECIBELS = 100.0
"""Beyond the range of 16 bits, 98 dB."""

Measures = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a file came back through a codec.

    Args:
        codec_rate, file_rate: in Hz.
        at_codec: measures of what came back against what the codec was given, at the codec's rate.
        at_file: the same against the file at its own rate, so that what the codec's rate leaves out counts.
        energy_above: share of the file's energy, from 0 to 1, above what the codec's rate can keep.
    """

    codec_rate: int
    file_rate: int
    at_codec: Measures
    at_file: Measures
    energy_above: float

    @property
    def kept_hz(self) -> float:
        """Highest frequency that the codec can keep: half its rate."""
        return self.codec_rate / 2

    def scores(self) -> Measures:
        """Returns all measures by name; those at the file's own rate end in "_file"."""
        own = {f"{name}_file": value for name, value in self.at_file.items()}
        return {**self.at_codec, **own, "energy_above": self.energy_above}

    def to_json(self) -> dict[str, Any]:
        """Returns plain data with rounded measures."""
        rates = {"file_sample_rate": self.file_rate, "codec_sample_rate": self.codec_rate, "codec_keeps_hz": [0, self.kept_hz]}
        own = {f"{name}_file": value for name, value in rounded(self.at_file).items()}
        return {**rates, **rounded(self.at_codec), **own, "energy_above": round(self.energy_above, 6)}

    def told(self) -> str:
        """Writes all of it as a line."""
        here = f"codec at {self.codec_rate} Hz, keeps 0-{self.kept_hz:g} Hz: {told(rounded(self.at_codec))}"
        if self.codec_rate == self.file_rate:
            return f"{here}; the file has the same rate"
        lost = f"{100 * self.energy_above:.1f} % of its energy above {self.kept_hz:g} Hz"
        return f"{here}; file at {self.file_rate} Hz: {told(rounded(self.at_file))}, {lost}"


def compare(clip: Audio, made: Audio) -> Comparison:
    """Measures what came back through a codec, `made`, against the clip that it was made from.

    Both are compared with the codec's channels. At the codec's rate, the clip is resampled to it; at the clip's own, what came back is.
    """
    from soundomni.core.waveform import convert, fit_length, match_channels, resample
    from soundomni.metrics.bandwidth import energy_above

    channels = made.waveform.shape[0]
    reference = match_channels(clip.waveform, channels)
    given = convert(clip, channels=channels, sample_rate=made.sample_rate)
    at_codec = measure(given, made.waveform, made.sample_rate)
    at_file = at_codec
    if clip.sample_rate != made.sample_rate:
        returned = fit_length(resample(made.waveform, made.sample_rate, clip.sample_rate), reference.shape[1])
        at_file = measure(reference, returned, clip.sample_rate)
    return Comparison(
        codec_rate=made.sample_rate,
        file_rate=clip.sample_rate,
        at_codec=at_codec,
        at_file=at_file,
        energy_above=energy_above(clip.waveform, clip.sample_rate, made.sample_rate / 2),
    )


def measure(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> Measures:
    """Returns SI-SDR in dB, multi-resolution STFT distance and mel distance in dB of `[C, S]` at one rate.

    SI-SDR counts within ±MOST_DECIBELS: a clip that comes back exactly, or as silence, would be all of a mean otherwise. What is
    relative to silence is None: SI-SDR with a silent channel, the STFT distance of a silent clip.
    """
    from soundomni.metrics.waveform_distances import mel_distance, multi_resolution_stft_distance, si_sdr

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
