"""A codec without weights that stores the power of mel bands, and finds phases for it when it decodes.

In percussion and other noise, phases take up most of the capacity of a model of samples. The power of bands varies
slowly, so small models can learn it.

Shape letters: B clips, C audio channels, S samples, W samples per window, F frequency bins, M mel bands, T frames, H
samples per frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from soundomni.core.errors import SpecError, shown
from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.limits import check_count
from soundomni.core.mel_filters import mel_filters, mels_between
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.clips import at_least_float32, check_audio_format, check_band, check_latent, check_waveform
from soundomni.vae.griffin_lim import frames_around
from soundomni.vae.mel_synthesis import MelSynthesis
from soundomni.vae.padding import framed, zero_beyond

MOST_SAMPLES, MOST_OVERLAP, MOST_MELS, MOST_ROUNDS = 2**16, 64, 1024, 10_000
"""Limits for specs from strangers: samples of a window, frames that it spans, mel bands, and rounds of decoding."""
LOUDEST = 4.0
"""Highest power that is decoded, in bels; a sine of amplitude 1 is at about 0."""
CENTER, BELS_PER_UNIT = -7.0, 2.5
"""Latents are (bels - CENTER) / BELS_PER_UNIT: with the default floor, from -1.2 in silence to 2.8 at the peak of a
full sine. Over short recordings of drums, their mean is about 0 and their deviation about 1."""
FRAMES_PER_SECOND = 100
MELS_PER_BAND = 44.375
"""Width of a band by default: 64 bands at 16 kHz."""


class MelMagnitudeCodec(Codec):
    """The power of mel bands in each frame; decoding finds the phases by the algorithm of Griffin and Lim.

    Latents are `[B, C·M, T]` with T = ceil(S / H) + 1, channel by channel: (L + 7) / 2.5, where L is the logarithm to
    base 10 of `floor` plus the mean power of the bins of a band. Bins have power 1 at the peak of a sine of amplitude
    1. With the default floor, silence is −1.2, and recordings have a mean of about 0 and a deviation of about 1. Frame
    t is centered on sample t·H, under a Hann window.

    Decoding is not exact, but always gives the same samples: for a clip on its own, in a batch, and in chunks. There is
    nothing to learn. Phases are not kept, so SI-SDR does not apply; `soundomni reconstruct` measures spectra only.

    A sample depends on (W − 1) // H frames on either side for each round, about a second with the defaults. Chunks also
    begin at multiples of 512 frames. So in chunks of 3 s, decoding computes about 2.5 times as many frames as are kept.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C.
        frame_size: samples from frame to frame, H; null for 10 ms.
        window: samples W of the window, from 2·H to 64·H; null for the first of 2, 3, 4, 6, 8, 12, … that is at least 3·H.
        num_mels: number of bands M on the HTK mel scale; each covers at least one bin. Null for a band per 44 mel: 48
            at 8 kHz, 64 at 16 kHz, 74 at 24 kHz, 88 at 44.1 kHz.
        frequencies: lowest and highest frequency in Hz of the bands; null for 0 Hz and half the sample rate.
        floor: power that is added, below 1, so that silence has a finite level: 1e-10 is −100 dB.
        rounds: how often decoding improves the phases.

    Raises:
        SpecError: an argument is out of range.
    """

    keeps_waveform: ClassVar[bool] = False

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        channels: int = 1,
        frame_size: int | None = None,
        window: int | None = None,
        num_mels: int | None = None,
        frequencies: tuple[float, float] | None = None,
        floor: float = 1e-10,
        rounds: int = 32,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        band = check_band(frequencies, sample_rate)
        frame_size = max(1, round(sample_rate / FRAMES_PER_SECOND)) if frame_size is None else frame_size
        check_count("frame_size", frame_size, most=MOST_SAMPLES // 2)
        window = _default_window(frame_size) if window is None else window
        num_mels = _default_bands(band or (0.0, sample_rate / 2), window) if num_mels is None else num_mels
        _check_sizes(frame_size, window, num_mels)
        check_count("rounds", rounds, most=MOST_ROUNDS)
        if not 0 < floor < 1:
            raise SpecError(f"floor is {shown(floor)}; expected a power above 0 and below 1, that of the loudest sine")
        self.window, self.floor = window, floor
        self._spec = RepresentationSpec(
            kind="continuous",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=frame_size,
            latent_dim=channels * num_mels,
            extra_frames=1,
        )
        self._settings = (num_mels, window, sample_rate, band)
        self.synthesis = MelSynthesis(*_tables(*self._settings), hop=frame_size, rounds=rounds)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """The frames under whose windows a sample lies, and in decoding those that the phases depend on."""
        around = frames_around(self.window, self._spec.downsampling_ratio)
        return ReceptiveField(encode=around, decode=self.synthesis.reach, step=self.synthesis.step)

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence beyond each clip. Raise DataError."""
        check_waveform(waveform, lengths, self._spec)
        samples = _exact(zero_beyond(waveform, lengths)).flatten(0, 1)
        bands, window = (torch.from_numpy(table).to(samples) for table in _tables(*self._settings))
        hop, count = self._spec.downsampling_ratio, self._spec.num_frames(samples.shape[-1])
        frames = framed(samples, self.window, hop, count, before=self.window // 2)
        power = (torch.fft.rfft(frames * window).abs() * (2.0 / window.sum())).square() @ bands.T
        latents = ((power + self.floor).log10() - CENTER) / BELS_PER_UNIT
        values = rearrange(latents, "(b c) t m -> b (c m) t", c=self._spec.channels).to(at_least_float32(waveform))
        return Representation(values, self._spec.frame_lengths(lengths), self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, C·M, T]` to `[B, C, (T - 1)·H]`, zero beyond `spec.num_samples` of each clip's frames.

        Raise DataError.
        """
        check_latent(representation, self._spec)
        channels, values = self._spec.channels, representation.values
        levels = _exact(rearrange(values, "b (c m) t -> (b c) t m", c=channels)) * BELS_PER_UNIT + CENTER
        power = (10.0 ** levels.clamp(max=LOUDEST) - self.floor).clamp_min(0.0)
        samples = self.synthesis(power, representation.lengths.to(power.device).repeat_interleave(channels))
        waveform: Tensor = rearrange(samples, "(b c) s -> b c s", c=channels)
        return waveform.to(at_least_float32(values))


def _exact(values: Tensor) -> Tensor:
    """Return values in double precision, in which chunks give what the whole does.

    They go to the CPU if their device, such as mps, does not have it.
    """
    return (values.cpu() if values.device.type == "mps" else values).double()


def _default_window(frame_size: int) -> int:
    """Return the least power of two, or 1.5 times one, that is at least three frames. Such transforms are fast.

    >>> [_default_window(frame_size) for frame_size in (80, 160, 240, 441)]
    [256, 512, 768, 1536]
    """
    power = 1 << (max(2, 3 * frame_size) - 1).bit_length()
    between = power // 4 * 3
    return min(MOST_SAMPLES, between if between >= 3 * frame_size else power)


def _default_bands(band: tuple[float, float], window: int) -> int:
    """Return the number of bands between two frequencies in Hz."""
    return max(1, min(window // 2, MOST_MELS, round(mels_between(*band) / MELS_PER_BAND)))


def _check_sizes(frame_size: int, window: int, num_mels: int) -> None:
    check_count("window", window, most=MOST_SAMPLES)
    check_count("num_mels", num_mels, most=MOST_MELS)
    most = window // 2
    if frame_size > max(1, most):
        raise SpecError(f"frame_size is {frame_size}; expected at most {most}, half of the window. Set a larger window")
    if window > MOST_OVERLAP * frame_size:
        raise SpecError(f"window is {window}; expected at most {MOST_OVERLAP * frame_size}, {MOST_OVERLAP} frames. Set a smaller window")
    if num_mels > most:
        raise SpecError(f"num_mels is {num_mels}; expected at most {most}, half of the window. Set a larger window")


@lru_cache(maxsize=16)
def _tables(num_mels: int, window: int, sample_rate: int, band: tuple[float, float] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of bins in each band `[M, F]` and the window `[W]`, in double precision.

    They are arrays and not buffers, so that a module that is built without memory, or cast, keeps them exactly.
    """
    filters = mel_filters(
        num_mels=num_mels,
        n_fft=window,
        sample_rate=sample_rate,
        scale="htk",
        frequencies=band,
        at_least_a_bin=True,
    )
    return filters / filters.sum(1, keepdims=True), np.hanning(window + 1)[:-1]
