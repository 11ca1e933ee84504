"""Frames as harmonics and a residual: a pitch, a level, a spectrum of harmonics, and the residual as MDCT coefficients.

A steady tone has a constant pitch, level and spectrum; only the phase of its fundamental turns, and the spectrum does
not depend on pitch or level. So what a model learns about one note's timbre holds for other notes. Sounds without
pitch, or without a fundamental, are entirely residual: the deterministic plus stochastic decomposition of Serra and
Smith 1990, but with a residual that keeps its phase, so that decoding is exact.

Shape letters: B clips, C audio channels, M samples per frame (hop), T frames, K harmonics, F frames of all clips and
channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Codec, ReceptiveField
from soundomni.core.representation import Representation, RepresentationSpec, length_mask
from soundomni.vae.clips import at_least_float32, check_latent, check_waveform
from soundomni.vae.harmonic_fit import find_pitch, fit, hann, mix, waves
from soundomni.vae.level import FLOOR, LOWEST, MARGIN, from_level, to_level
from soundomni.vae.mdct import MDCTCodec, compand, expand
from soundomni.vae.overlap import lapped, overlap_add
from soundomni.vae.padding import zero_beyond

TONAL = 0.7
"""Smallest share of its energy that harmonics must explain for a frame to have a pitch."""
SEMITONES = 12.0
FUNDAMENTAL = 0.05
"""Smallest share of the fundamental in the RMS of a frame with a pitch, because the other harmonics' phases are
relative to it."""
PERIODS = 3.0
"""Smallest number of periods of the lowest pitch in the 2M samples of a frame, so that its harmonics can be told
apart."""

_PERIODIC = 0.5  # a frame less periodic than this is not worth a fit: its harmonics would not reach TONAL
_BEYOND = 2.0 ** (1.0 / SEMITONES)  # a fit may end a semitone outside the range
_TINY = 1e-12


class HarmonicCodec(Codec):
    """Pitch, level and harmonics of each frame, and the MDCT of what they leave over.

    Latents are `[B, C·(2K + 2 + M), T]`: for each channel pitch, level and harmonics, then the MDCT coefficients of the
    residual.

    Pitch is in semitones from the middle of the range. Level is that of all harmonics together, in steps of 3 dB from
    −40 dB, and −10 if a frame has no pitch. Harmonics are K real, then K imaginary parts, at the middle of the frame:
    the first by its phase, each other by its phase relative to k times that of the first, all divided by their RMS.
    Decoding restores the samples to float precision. There is nothing to learn.

    Args:
        sample_rate, channels, frame_size: as in MDCTCodec.
        num_harmonics: number of harmonics, K; higher harmonics go into the residual.
        pitch_range: lowest and highest pitch to look for, in Hz.
        companding: exponent p in (0, 1] of |x|^p, for harmonics and for the residual's coefficients.

    Raises:
        SpecError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16000,
        channels: int = 1,
        frame_size: int = 256,
        num_harmonics: int = 16,
        pitch_range: tuple[float, float] = (100.0, 1000.0),
        companding: float = 1.0,
    ) -> None:
        super().__init__()
        self.residual = MDCTCodec(sample_rate=sample_rate, channels=channels, frame_size=frame_size, companding=companding)
        low, high = PERIODS * sample_rate / (2 * frame_size), sample_rate / 4.0
        if low >= high:
            raise SpecError(f"frame_size is {frame_size}; expected at least 7, so that two frames suffice to find a pitch")
        if len(pitch_range) != 2 or not low <= pitch_range[0] < pitch_range[1] <= high:
            raise SpecError(
                f"pitch_range is {list(pitch_range)}; with frame_size {frame_size} at {sample_rate} Hz "
                f"expected values within {low:g} to {high:g} Hz"
            )
        most = int(sample_rate / (2.0 * pitch_range[0]))
        if not 1 <= num_harmonics <= most:
            raise SpecError(
                f"num_harmonics is {num_harmonics}; with pitches from {pitch_range[0]:g} Hz at {sample_rate} Hz expected 1 to {most}"
            )
        self.frame_size, self.num_harmonics, self.companding = frame_size, num_harmonics, companding
        self.lowest, self.highest = pitch_range[0] / sample_rate, pitch_range[1] / sample_rate
        self._middle = math.sqrt(self.lowest * self.highest)
        self._least, self._most = self.lowest / _BEYOND, self.highest * _BEYOND
        self._tonal_dim = 2 * num_harmonics + 2
        self._spec = replace(self.residual.spec, latent_dim=channels * self._tonal_dim + self.residual.spec.token_dim)

    @property
    def spec(self) -> RepresentationSpec:
        """Spec of the latents; the last frame only closes the overlap."""
        return self._spec

    @property
    def receptive_field(self) -> ReceptiveField:
        """Two frames for encoding: the residual lacks the harmonics of its frames, and the last two may repeat those of
        the one before."""
        return ReceptiveField(encode=2, decode=0)

    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Encode `[B, C, S]`, clips of `lengths` `[B]` samples; tones are assumed to go on beyond a clip.

        Raise DataError.
        """
        check_waveform(waveform, lengths, self._spec)
        samples = zero_beyond(at_least_float32(waveform), lengths)
        num_samples = samples.shape[-1]
        frames = lapped(samples, self.frame_size, self._spec.num_frames(num_samples))
        tonal = self._extend(self._analyze(frames), lengths)
        harmonic = self._synthesize(tonal, self._spec.frame_lengths(lengths))
        rest = self.residual.encode(samples - harmonic[..., :num_samples], lengths)
        values = torch.cat([rearrange(tonal, "b c t d -> b (c d) t"), rest.values], dim=1)
        return Representation(values, rest.lengths, self._spec)

    def decode(self, representation: Representation) -> Tensor:
        """Decode `[B, D, T]` to `[B, C, (T - 1)·M]`, zero beyond `spec.num_samples` of each clip's frames.

        Raise DataError.
        """
        check_latent(representation, self._spec)
        values = at_least_float32(representation.values)
        tonal, rest = torch.split(values, [self._spec.channels * self._tonal_dim, self.residual.spec.token_dim], dim=1)
        harmonic = self._synthesize(rearrange(tonal, "b (c d) t -> b c t d", c=self._spec.channels), representation.lengths)
        return harmonic + self.residual.decode(Representation(rest, representation.lengths, self.residual.spec))

    def _analyze(self, frames: Tensor) -> Tensor:
        """Map `[B, C, T, 2M]` samples to `[B, C, T, 2K + 2]` pitch, level and harmonics."""
        flat = frames.flatten(end_dim=-2)
        tonal = flat.new_zeros(len(flat), self._tonal_dim)
        tonal[:, 1] = LOWEST
        pitch, periodic = find_pitch(flat, self.lowest, self.highest)
        loud = flat.square().mean(-1) > FLOOR**2
        chosen = ((periodic > _PERIODIC) & loud).nonzero().squeeze(-1)
        pitch, amplitudes, explained = fit(flat[chosen], pitch[chosen], self.num_harmonics)
        rms = amplitudes.abs().square().sum(-1).mul(0.5).sqrt()
        within = (pitch >= self._least) & (pitch <= self._most)
        sounds = (rms > FLOOR) & (amplitudes[:, 0].abs() > FUNDAMENTAL * rms)
        kept = ((explained >= TONAL) & within & sounds).nonzero().squeeze(-1)
        tonal[chosen[kept]] = self._pack(pitch[kept], rms[kept], amplitudes[kept])
        return tonal.reshape(*frames.shape[:-1], self._tonal_dim)

    def _extend(self, tonal: Tensor, lengths: Tensor) -> Tensor:
        """Continue frames `[B, C, T, 2K + 2]` that reach beyond a clip of `lengths` `[B]` like the nearest frame that
        does not.

        Otherwise the silence there would end or begin a tone that continues, and a continued clip would have a seam. A
        clip without a frame of its own, shorter than 2M samples, stays as it is.
        """
        last = lengths.to(tonal.device)[:, None] // self.frame_size - 1
        place = torch.arange(tonal.shape[2], device=tonal.device).expand(len(tonal), -1)
        source = torch.where(last > 0, torch.minimum(place.clamp_min(1), last), place)
        extended = tonal.gather(2, source[:, None, :, None].expand_as(tonal))
        pitch = self._middle * 2.0 ** (extended[..., 0] / SEMITONES)
        angle = 2.0 * math.pi * self.frame_size * pitch * (place - source)[:, None]
        imaginary = 2 + self.num_harmonics
        first = torch.polar(torch.ones_like(angle), angle) * torch.complex(extended[..., 2], extended[..., imaginary])
        parts = (
            extended[..., :2],
            first.real[..., None],
            extended[..., 3:imaginary],
            first.imag[..., None],
            extended[..., imaginary + 1 :],
        )
        return torch.cat(parts, dim=-1)

    def _pack(self, pitch: Tensor, rms: Tensor, amplitudes: Tensor) -> Tensor:
        """Map pitch in cycles per sample `[F]`, RMS `[F]` and amplitudes `[F, K]` to `[F, 2K + 2]`."""
        semitones = SEMITONES * (pitch / self._middle).log2()
        shape = amplitudes * self._turns(amplitudes[:, :1]).conj() / rms[:, None]
        shape = _resize(shape, compand(shape.abs(), self.companding))
        return torch.cat([semitones[:, None], to_level(rms)[:, None], shape.real, shape.imag], dim=1)

    def _unpack(self, tonal: Tensor) -> tuple[Tensor, Tensor]:
        """Map `[F, 2K + 2]` to pitch in cycles per sample `[F]` and amplitudes `[F, K]`."""
        semitones, level, real, imaginary = torch.split(tonal, [1, 1, self.num_harmonics, self.num_harmonics], dim=1)
        pitch = (self._middle * 2.0 ** (semitones.squeeze(1) / SEMITONES)).clamp(self._least, self._most)
        shape = torch.complex(real, imaginary)
        shape = _resize(shape, expand(shape.abs(), self.companding))
        # Predicted harmonics do not have unit size; only the frame's level determines how loud it is.
        own = shape.abs().square().sum(-1, keepdim=True).mul(0.5).clamp_min(_TINY**2).sqrt()
        return pitch, shape * self._turns(shape[:, :1]) * (from_level(level) / own)

    def _turns(self, first: Tensor) -> Tensor:
        """Return exp(i·k·phase) of the fundamental `[F, 1]` for harmonic k from the second on, and 1 for the first:
        `[F, K]`."""
        order = torch.arange(1, self.num_harmonics + 1, device=first.device, dtype=first.real.dtype)
        order[0] = 0.0
        angles = first.angle() * order
        return torch.polar(torch.ones_like(angles), angles)

    def _synthesize(self, tonal: Tensor, num_frames: Tensor) -> Tensor:
        """Map `[B, C, T, 2K + 2]`, of clips of `num_frames` `[B]`, to samples `[B, C, (T - 1)·M]`."""
        counted = length_mask(num_frames.to(tonal.device), tonal.shape[2])
        chosen = ((tonal[..., 1] > LOWEST + MARGIN) & counted[:, None]).flatten().nonzero().squeeze(-1)
        pitch, amplitudes = self._unpack(tonal.flatten(end_dim=2)[chosen])
        frames = tonal.new_zeros(tonal.shape[:3].numel(), 2 * self.frame_size)
        window = hann(self.frame_size, tonal)
        frames[chosen] = mix(amplitudes, waves(pitch, self.num_harmonics, self.frame_size)) * torch.cat([window.flip(0), window])
        return overlap_add(frames.reshape(*tonal.shape[:3], 2 * self.frame_size), num_frames)


def _resize(numbers: Tensor, size: Tensor) -> Tensor:
    """Return complex numbers with another size and the same phases."""
    return numbers * (size / numbers.abs().clamp_min(_TINY))
