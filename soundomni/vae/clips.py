"""Checks of what codecs are given.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.errors import DataError, SpecError
from soundomni.core.representation import Representation, RepresentationSpec


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
