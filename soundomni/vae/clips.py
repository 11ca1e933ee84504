"""Checks of what codecs are given.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, T frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.errors import DataError, SpecError
from soundomni.core.representation import Representation, RepresentationSpec


def at_least_float32(values: Tensor) -> Tensor:
    """Returns values of half precision as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_waveform(waveform: Tensor, lengths: Tensor, spec: RepresentationSpec) -> None:
    """Raises DataError unless `waveform` is float `[B, C, S]` with the codec's channels and `lengths` is `[B]`."""
    if waveform.dim() != 3 or waveform.shape[1] != spec.channels or not waveform.is_floating_point():
        raise DataError(
            f"the codec takes a float waveform [B, {spec.channels}, S] at {spec.sample_rate} Hz, "
            f"{waveform.dtype} {list(waveform.shape)} was given"
        )
    if lengths.shape != waveform.shape[:1]:
        raise DataError(f"lengths must be [{len(waveform)}], one per clip, {list(lengths.shape)} was given")


def check_latent(representation: Representation, spec: RepresentationSpec) -> None:
    """Raises DataError unless the values are float `[B, D, T]` with the codec's D."""
    values = representation.values
    if values.dim() != 3 or values.shape[1] != spec.latent_dim or not values.is_floating_point():
        raise DataError(f"the codec takes float latents [B, {spec.latent_dim}, T], {values.dtype} {list(values.shape)} was given")


def check_audio_format(sample_rate: int, channels: int) -> None:
    """Raises SpecError unless both are positive."""
    if sample_rate < 1 or channels < 1:
        raise SpecError(f"sample_rate and channels must be at least 1, {sample_rate} and {channels} were given")
