"""A codec without weights that stores the power of mel bands, and finds phases for it when it decodes.

In percussion and other noise, phases take up most of the capacity of a model of samples. The power of bands varies slowly, so small models
can learn it.

Shape letters: B clips, C audio channels, S samples, W samples per window, F frequency bins, M mel bands, T frames, H samples per frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Codec
from soundomni.core.limits import check_count
from soundomni.core.mel_filters import mel_filters
from soundomni.core.representation import Representation, RepresentationSpec
from soundomni.vae.clips import at_least_float32, check_audio_format, check_band, check_latent, check_waveform
from soundomni.vae.griffin_lim import griffin_lim
from soundomni.vae.padding import framed, zero_beyond

MOST_SAMPLES, MOST_MELS, MOST_ROUNDS = 2**16, 1024, 10_000
"""Limits for specs from strangers: samples of a window, mel bands, and rounds of decoding."""
LOUDEST = 4.0
"""Highest power that is decoded, in bels; a sine of amplitude 1 is at about 0."""


class MelMagnitudeCodec(Codec):
    """The power of mel bands in each frame; decoding finds the phases by the algorithm of Griffin and Lim.

    Latents are `[B, C·M, T]` with T = ceil(S / H) + 1, channel by channel: the mean power of the bins of a band in bels, the logarithm
    to base 10, with `floor` added before. A sine of amplitude 1 has bins of power 1. Frame t is centered on sample t·H, under a Hann
    window.

    Decoding is not exact, but always gives the same samples. There is nothing to learn. A clip is always decoded as a whole, because
    each phase depends on all of it.

    Args:
        sample_rate: sample rate in Hz.
        channels: number of audio channels C.
        frame_size: samples from frame to frame, H.
        window: samples W of the window, at least 2·H.
        num_mels: number of bands M on the HTK mel scale; each covers at least one bin.
        frequencies: lowest and highest frequency in Hz of the bands; null for 0 Hz and half the sample rate.
        floor: power that is added, so that silence has a finite level: 1e-6 is −60 dB.
        rounds: how often decoding improves the phases.

    Raises:
        SpecError: an argument is out of range.
    """

    _bands: Tensor
    _bins: Tensor
    _window: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        channels: int = 1,
        frame_size: int = 160,
        window: int = 512,
        num_mels: int = 64,
        frequencies: tuple[float, float] | None = None,
        floor: float = 1e-6,
        rounds: int = 32,
    ) -> None:
        super().__init__()
        check_audio_format(sample_rate, channels)
        check_count("window", window, most=MOST_SAMPLES)
        check_count("num_mels", num_mels, most=min(MOST_MELS, window // 2))
        check_count("frame_size", frame_size, most=max(1, window // 2))
        check_count("rounds", rounds, most=MOST_ROUNDS)
        band = check_band(frequencies, sample_rate)
        if not 0 < floor < math.inf:
            raise SpecError(f"floor is {floor}; expected a power above 0")
        self.floor, self.rounds = floor, rounds
        self._spec = RepresentationSpec(
            kind="continuous",
            sample_rate=sample_rate,
            channels=channels,
            downsampling_ratio=frame_size,
            latent_dim=channels * num_mels,
            extra_frames=1,
        )
        weights = torch.from_numpy(
            mel_filters(num_mels=num_mels, n_fft=window, sample_rate=sample_rate, scale="htk", frequencies=band, at_least_a_bin=True)
        )
        self.register_buffer("_bands", (weights / weights.sum(1, keepdim=True)).float(), persistent=False)  # [M, F]
        self.register_buffer("_bins", (weights / weights.sum(0).clamp_min(1e-9)).T.float().contiguous(), persistent=False)  # [F, M]
        self.register_buffer("_window", torch.hann_window(window), persistent=False)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents."""
        return self._spec

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples, with silence beyond each clip. Raise DataError."""
        check_waveform(waveform, lengths, self._spec)
        samples = zero_beyond(at_least_float32(waveform), lengths).flatten(0, 1)
        bands, window = self._bands.to(samples.dtype), self._window.to(samples.dtype)
        with torch.autocast(samples.device.type, enabled=False):
            hop, count = self._spec.downsampling_ratio, self._spec.num_frames(samples.shape[-1])
            frames = framed(samples, len(window), hop, count, before=len(window) // 2)
            power = (torch.fft.rfft(frames * window).abs() * (2.0 / window.sum())).square()
            levels = (power @ bands.T + self.floor).log10()
        values = rearrange(levels, "(b c) t m -> b (c m) t", c=self._spec.channels)
        return Representation(values, self._spec.frame_lengths(lengths), self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, C·M, T]` to `[B, C, (T - 1)·H]`, zero beyond `spec.num_samples` of each clip's frames. Raise DataError."""
        check_latent(representation, self._spec)
        channels = self._spec.channels
        levels = rearrange(at_least_float32(representation.values), "b (c m) t -> (b c) t m", c=channels).clamp(max=LOUDEST)
        bins, window = self._bins.to(levels.dtype), self._window.to(levels.dtype)
        with torch.autocast(levels.device.type, enabled=False):
            power = (10.0**levels - self.floor).clamp_min(0.0) @ bins.T
            frames = representation.lengths.repeat_interleave(channels)
            magnitudes = power.sqrt() * (window.sum() / 2.0)
            samples = griffin_lim(magnitudes, frames, window, hop=self._spec.downsampling_ratio, rounds=self.rounds)
        return rearrange(samples, "(b c) s -> b c s", c=channels)
