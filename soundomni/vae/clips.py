"""Checks of what codecs are given.

Shape letters: B clips, C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from soundomni.core.errors import DataError, SpecError
from soundomni.core.limits import HIGHEST_RATE, MOST_CHANNELS, check_count
from soundomni.core.representation import Representation, RepresentationSpec, length_mask


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


def check_codes(representation: Representation, spec: RepresentationSpec) -> None:
    """Raise DataError unless the values are int64 `[B, K, T]` of at most the codec's K levels, each code within its codebook.

    Codes beyond a clip's length may be anything.
    """
    values, sizes = representation.values, spec.codebook_sizes
    if values.dim() != 3 or not 1 <= values.shape[1] <= len(sizes) or values.dtype != torch.int64:
        raise DataError(
            f"the codes are {values.dtype} {list(values.shape)}; expected int64 [B, K, T], with K from 1 to {len(sizes)} codebooks"
        )
    within = length_mask(representation.lengths.to(values.device), values.shape[-1])[:, None]
    most = torch.tensor(sizes[: values.shape[1]], device=values.device)[:, None]
    wrong = within & ((values < 0) | (values >= most))
    if bool(wrong.any()):
        clip, level, frame = wrong.nonzero()[0].tolist()
        code = int(values[clip, level, frame])
        raise DataError(f"clip {clip} has the code {code} in frame {frame} of level {level}; expected a code from 0 to {sizes[level] - 1}")


def check_audio_format(sample_rate: int, channels: int) -> None:
    """Raise SpecError unless both are positive and at most HIGHEST_RATE and MOST_CHANNELS."""
    check_count("sample_rate", sample_rate, most=HIGHEST_RATE)
    check_count("channels", channels, most=MOST_CHANNELS)


def check_band(frequencies: Sequence[float] | None, sample_rate: int) -> tuple[float, float] | None:
    """Return the lowest and the highest frequency in Hz of mel bands; None stands for 0 Hz and half the sample rate.

    Raise SpecError if there is nothing between them.
    """
    if frequencies is None:
        return None
    if len(frequencies) != 2 or not 0 <= frequencies[0] < frequencies[1] <= sample_rate / 2:
        raise SpecError(
            f"frequencies is {list(frequencies)}; expected the lowest and the highest one, from 0 to {sample_rate / 2:g} Hz, or null"
        )
    return float(frequencies[0]), float(frequencies[1])
