"""Shared code for codecs: batches of clips of different lengths.

Shape letters: B clips, C channels (of audio or of a layer), L positions (samples or frames).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from soundomni.core.errors import DataError, SpecError
from soundomni.core.representation import Representation, RepresentationSpec, length_mask


def zero_beyond(values: Tensor, lengths: Tensor) -> Tensor:
    """Map `[B, C, L]` to the same values, but zero beyond the `lengths` `[B]`."""
    within = length_mask(lengths.to(values.device), values.shape[-1])
    return values.masked_fill(~within[:, None], 0.0)


def lapped(samples: Tensor, hop: int, num_frames: int) -> Tensor:
    """Map `[B, C, S]` to frames `[B, C, T, 2M]` with M = `hop`: frame t spans (t - 1)·M to (t + 1)·M, zeros beyond the
    samples."""
    padded = functional.pad(samples, (hop, num_frames * hop - samples.shape[-1]))
    return padded.unfold(-1, 2 * hop, hop)


def overlap_add(frames: Tensor, num_frames: Tensor) -> Tensor:
    """Map frames `[B, C, T, 2M]`, of clips of `num_frames` `[B]`, to their sum `[B, C, (T - 1)·M]`, zero beyond each
    clip's frames."""
    first, second = frames.chunk(2, dim=-1)
    waveform = rearrange(first[:, :, 1:] + second[:, :, :-1], "b c t m -> b c (t m)")
    return zero_beyond(waveform, (num_frames - 1).clamp_min(0) * first.shape[-1])


def at_least_float32(values: Tensor) -> Tensor:
    """Return half-precision values as float32, others unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_waveform(waveform: Tensor, lengths: Tensor, spec: RepresentationSpec) -> None:
    """Raise DataError unless `waveform` is float `[B, C, S]` with the codec's channels and `lengths` is `[B]`."""
    if waveform.dim() != 3 or waveform.shape[1] != spec.channels or not waveform.is_floating_point():
        raise DataError(
            f"the waveform is {waveform.dtype} {list(waveform.shape)}; expected float [B, {spec.channels}, S] at {spec.sample_rate} Hz"
        )
    if lengths.shape != waveform.shape[:1]:
        raise DataError(f"lengths is {list(lengths.shape)}; expected [{len(waveform)}], one per clip")


def check_latent(representation: Representation, spec: RepresentationSpec) -> None:
    """Raise DataError unless the values are float `[B, D, T]` with the codec's D."""
    values = representation.values
    if values.dim() != 3 or values.shape[1] != spec.latent_dim or not values.is_floating_point():
        raise DataError(f"the latents are {values.dtype} {list(values.shape)}; expected float [B, {spec.latent_dim}, T]")


def check_audio_format(sample_rate: int, channels: int) -> None:
    """Raise SpecError unless both are positive."""
    if sample_rate < 1 or channels < 1:
        raise SpecError(f"sample_rate is {sample_rate} and channels is {channels}; expected at least 1 of both")
