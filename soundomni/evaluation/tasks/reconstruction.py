"""The task "reconstruct": how close a clip comes back through the codec, measured in the same way everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from soundomni.evaluation.observer import Observer, counted
from soundomni.evaluation.score import Score, Scores, mean

if TYPE_CHECKING:
    import numpy as np

    from soundomni.core.pretrained.omni import SoundOmni
    from soundomni.core.waveform import Audio

MOST_DECIBELS = 100.0
"""Limit of SI-SDR, beyond the range of 16 bits, 98 dB."""

Measures = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a file came back through a codec.

    Args:
        codec_rate, file_rate: rates of the codec and the file in Hz.
        at_codec: measures of the codec's output against its input, at the codec's rate.
        at_file: measures against the file at its own rate, so that frequencies beyond the codec's rate count.
        energy_above: share of the file's energy, from 0 to 1, above what the codec's rate can keep.
        bandwidth, file_bandwidth: frequency in Hz below which 99 % of the energy lies, of the codec's output and of the
            file; None for silence.
        keeps_waveform: whether the codec keeps the waveform itself. If not, SI-SDR does not apply, and is None.
    """

    codec_rate: int
    file_rate: int
    at_codec: Measures
    at_file: Measures
    energy_above: float
    bandwidth: float | None
    file_bandwidth: float | None
    keeps_waveform: bool = True

    @property
    def kept_hz(self) -> float:
        """Highest frequency that the codec can keep: half its rate."""
        return self.codec_rate / 2

    def scores(self) -> Measures:
        """Return all measures by name; those at the file's own rate end in "_file"."""
        own = {f"{name}_file": value for name, value in self.at_file.items()}
        return {**self.at_codec, **own, "energy_above": self.energy_above}

    def to_json(self) -> dict[str, Any]:
        """Return plain data with rounded measures."""
        rates = {"file_sample_rate": self.file_rate, "codec_sample_rate": self.codec_rate, "codec_keeps_hz": [0, self.kept_hz]}
        own = {f"{name}_file": value for name, value in rounded(self.at_file).items()}
        widths = {"bandwidth": self.bandwidth, "bandwidth_file": self.file_bandwidth}
        return {**rates, **rounded(self.at_codec), **own, "energy_above": round(self.energy_above, 6), **widths}


def reconstruct_clips(model: SoundOmni, clips: Sequence[Audio], *, of: str | None, observer: Observer) -> list[Comparison]:
    """Send every clip through the codec of a modality and back, and compare it with the result."""
    keeps = model.model.made(of).codec.keeps_waveform
    tracked = counted(clips, "reconstructing", total=len(clips), observer=observer)
    return [compare(clip, model.reconstruct(clip, of=of), keeps_waveform=keeps) for clip in tracked]


def compare(clip: Audio, made: Audio, *, keeps_waveform: bool = True) -> Comparison:
    """Measure what came back through a codec, `made`, against the clip that went in.

    Without the codec's `keeps_waveform`, there is no SI-SDR.

    Both get the codec's channels and are compared twice: at the codec's rate, to which the clip is resampled, and at
    the clip's own rate, to which `made` is resampled.
    """
    from soundomni.core.waveform import convert, match_channels
    from soundomni.metrics.bandwidth import energy_above

    channels = made.waveform.shape[0]
    reference = match_channels(clip.waveform, channels)
    given = convert(clip, channels=channels, sample_rate=made.sample_rate)
    at_codec = _measured(given, made.waveform, made.sample_rate, keeps_waveform=keeps_waveform)
    at_file = at_codec
    if clip.sample_rate != made.sample_rate:
        at_file = _measured(reference, at_rate_of(clip, made).waveform, clip.sample_rate, keeps_waveform=keeps_waveform)
    return Comparison(
        codec_rate=made.sample_rate,
        file_rate=clip.sample_rate,
        at_codec=at_codec,
        at_file=at_file,
        energy_above=energy_above(clip.waveform, clip.sample_rate, made.sample_rate / 2),
        bandwidth=_bandwidth(made.waveform, made.sample_rate),
        file_bandwidth=_bandwidth(reference, clip.sample_rate),
        keeps_waveform=keeps_waveform,
    )


def at_rate_of(clip: Audio, made: Audio) -> Audio:
    """Return what came back through a codec, `made`, at the rate of the clip that went in, with as many samples."""
    from soundomni.core.waveform import Audio, fit_length, resample

    waveform = resample(made.waveform, made.sample_rate, clip.sample_rate)
    return Audio.unchecked(fit_length(waveform, clip.waveform.shape[1]), clip.sample_rate)


def _bandwidth(waveform: np.ndarray, sample_rate: int) -> float | None:
    """Return the bandwidth of `[C, S]` in Hz, None for silence."""
    from soundomni.metrics.bandwidth import bandwidth

    return round(bandwidth(waveform, sample_rate), 1) if waveform.any() else None


def _measured(reference: np.ndarray, estimate: np.ndarray, sample_rate: int, *, keeps_waveform: bool) -> Measures:
    """Return SI-SDR in dB, multi-resolution STFT distance and mel distance in dB of `[C, S]` at one rate.

    SI-SDR is limited to ±MOST_DECIBELS, because one clip that comes back exactly, or as silence, would dominate a mean
    otherwise. Measures relative to silence are None: SI-SDR with a silent channel, and the STFT distance of a silent
    clip. Without `keeps_waveform`, SI-SDR is None too.
    """
    from soundomni.metrics.waveform_distances import mel_distance, multi_resolution_stft_distance, si_sdr

    sounding = reference.any(axis=1)
    has_ratio = keeps_waveform and sounding.all()
    return {
        "si_sdr": min(max(si_sdr(reference, estimate), -MOST_DECIBELS), MOST_DECIBELS) if has_ratio else None,
        "stft_distance": multi_resolution_stft_distance(reference, estimate) if sounding.any() else None,
        "mel_distance": mel_distance(reference, estimate, sample_rate),
    }


def rounded(measures: Measures) -> Measures:
    """Return the measures rounded to the digits that are shown for one file."""
    digits = {"si_sdr": 2, "stft_distance": 4, "mel_distance": 4}
    return {name: None if value is None else round(value, digits[name]) for name, value in measures.items()}


def reconstruction_scores(compared: Sequence[Comparison]) -> Scores:
    """Average measures over clips.

    Returns:
        the means of SI-SDR in dB, multi-resolution STFT distance and mel distance in dB, each over the clips for which
        it is defined. If a file has another rate than the codec, also the same measures against the files at their own
        rate, under names that end in "_file", and the mean share of their energy above what the codec's rate keeps.
    """
    rates_differ = any(one.file_rate != one.codec_rate for one in compared)
    rows = [one.scores() if rates_differ else one.at_codec for one in compared]
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in rows[0]}
    return {name: Score(mean(values), len(values)) for name, values in columns.items() if values}
