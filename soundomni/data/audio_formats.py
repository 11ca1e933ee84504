"""The formats in which audio files are written. Importing this module imports nothing heavy: the help of commands names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from soundomni.core.errors import DataError, did_you_mean

DEFAULT_FORMAT = "wav"


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """A format for audio files.

    Args:
        suffix: suffix of its files.
        container, subtype: their names in libsndfile.
        described: its name for people.
        bits: bits of an integer sample, 32 for a float; None for lossy formats, whose encoders take floats.
        rates: the only sample rates in Hz that it supports, or () for any from `lowest_rate` to `highest_rate`.
        lowest_rate, highest_rate: limits of the sample rate in Hz.
        most_channels: largest number of channels.
    """

    suffix: str
    container: str
    subtype: str
    described: str
    bits: int | None
    rates: Sequence[int] = ()
    lowest_rate: int = 1
    highest_rate: int = 2**31 - 1
    most_channels: int = 1024


FORMATS = {
    "wav": AudioFormat(suffix=".wav", container="WAV", subtype="PCM_16", described="16-bit WAV", bits=16),
    "wav24": AudioFormat(suffix=".wav", container="WAV", subtype="PCM_24", described="24-bit WAV", bits=24),
    "wav32f": AudioFormat(suffix=".wav", container="WAV", subtype="FLOAT", described="32-bit float WAV", bits=32),
    "flac": AudioFormat(
        suffix=".flac", container="FLAC", subtype="PCM_16", described="16-bit FLAC", bits=16, highest_rate=655_350, most_channels=8
    ),
    "mp3": AudioFormat(
        suffix=".mp3",
        container="MP3",
        subtype="MPEG_LAYER_III",
        described="MP3",
        bits=None,
        rates=(8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
        most_channels=2,
    ),
    # above 200 kHz, the encoder of libsndfile crashes the process
    "ogg": AudioFormat(
        suffix=".ogg", container="OGG", subtype="VORBIS", described="Ogg Vorbis", bits=None, highest_rate=200_000, most_channels=8
    ),
}
"""Format → how it is stored. FLAC has the samples of a 16-bit WAV; MP3 and Ogg are lossy, at their best quality."""


def find_format(name: str) -> AudioFormat:
    """Return the format with a name in FORMATS. Raise DataError, which suggests the nearest name, if there is none."""
    if name not in FORMATS:
        raise DataError(f"the audio format is {name!r}; expected one of {', '.join(FORMATS)}.{did_you_mean(str(name).lower(), FORMATS)}")
    return FORMATS[name]


def check_format(name: str, *, sample_rate: int, channels: int) -> None:
    """Raise DataError if a format does not support this rate or number of channels: neither is changed to fit."""
    kind = find_format(name)
    possible = (
        sample_rate in kind.rates
        if kind.rates
        else kind.lowest_rate <= sample_rate <= kind.highest_rate
        and (name != "flac" or sample_rate <= 65535 or sample_rate % 10 == 0)  # how FLAC writes its rates
    )
    if not possible:
        rates = ", ".join(map(str, kind.rates)) if kind.rates else f"{kind.lowest_rate} to {kind.highest_rate}"
        others = ", ".join(other for other in ("wav", "flac", "ogg") if other != name)
        raise DataError(f"{kind.described} does not support {sample_rate} Hz, only {rates} Hz. Use another format, such as {others}")
    if channels > kind.most_channels:
        raise DataError(f"{kind.described} does not support {channels} channels, only up to {kind.most_channels}. Use wav")
