"""The config.json of transformers' EncodecModel, as arguments of the codec `encodec`.

A file only states what differs from the defaults of transformers, which are repeated here. Anything that the codec
cannot do is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soundomni.core.errors import SpecError, shown
from soundomni.core.spec.values import convert
from soundomni.vae.checkpoints.config_values import check_fixed
from soundomni.vae.sizes import check_strides

MODEL = "EncodecModel"
MOST_KBIT = 1e6
"""Bandwidth of a codec in kbit/s; more is a damaged config."""

_FIXED: Mapping[str, Any] = {
    "num_residual_layers": 1,
    "norm_type": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "pad_mode": "reflect",
    "compress": 2,
    "num_lstm_layers": 2,
    "trim_right_ratio": 1.0,
}
"""What all models without loudness normalization have in common."""


@dataclass(frozen=True, kw_only=True)
class _Encodec:
    sampling_rate: int = 24000
    audio_channels: int = 1
    num_filters: int = 32
    upsampling_ratios: tuple[int, ...] = (8, 5, 4, 2)
    hidden_size: int = 128
    codebook_size: int = 1024
    codebook_dim: int | None = None
    target_bandwidths: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
    use_causal_conv: bool = True
    use_conv_shortcut: bool = True


_LOUDNESS: Mapping[str, Any] = {"normalize": False, "chunk_length_s": None}
KEYS = (*_LOUDNESS, *_FIXED, *_Encodec.__dataclass_fields__)


def read_encodec(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of EncodecCodec for the config's values of KEYS.

    Raise SpecError if one is of a wrong type, contradicts another, or asks for what the codec cannot do.
    """
    for name, expected in _LOUDNESS.items():
        if values.get(name, expected) != expected:
            raise SpecError(
                f"{name} is {shown(values[name])}: such a model divides overlapping chunks by their loudness, which codes do not "
                "hold. Import a model without it, such as facebook/encodec_24khz or facebook/encodec_32khz"
            )
    check_fixed(values, _FIXED, "encodec")
    config: _Encodec = convert({name: value for name, value in values.items() if name in _Encodec.__dataclass_fields__}, _Encodec, "")
    if config.codebook_dim not in (None, config.hidden_size):
        raise SpecError(f"codebook_dim is {shown(config.codebook_dim)}; expected {shown(config.hidden_size)}, which is hidden_size")
    check_strides(config.upsampling_ratios)
    codebooks = _count_codebooks(config)
    return {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "num_filters": config.num_filters,
        "strides": list(config.upsampling_ratios[::-1]),
        "hidden_dim": config.hidden_size,
        "causal": config.use_causal_conv,
        "conv_shortcut": config.use_conv_shortcut,
        "codebook_size": config.codebook_size,
        "total_codebooks": codebooks,
        "num_codebooks": codebooks,
    }


def _count_codebooks(config: _Encodec) -> int:
    """Return the codebooks of the network: as many as the last bandwidth, in kbit/s, has room for."""
    ratio, bits = math.prod(config.upsampling_ratios), max(0, config.codebook_size - 1).bit_length()
    if config.sampling_rate < 1 or bits < 1:
        given = f"sampling_rate is {shown(config.sampling_rate)} and codebook_size is {shown(config.codebook_size)}"
        raise SpecError(f"{given}; expected at least 1 and at least 2")
    frame_rate = -(-config.sampling_rate // ratio)
    kbit = config.target_bandwidths[-1] if config.target_bandwidths else math.nan
    if not 0 < kbit <= MOST_KBIT or frame_rate * bits > kbit * 1000:
        raise SpecError(
            f"target_bandwidths is {shown(list(config.target_bandwidths))}; expected its last entry, in kbit/s, to be "
            f"enough for a codebook of {shown(frame_rate * bits)} bit/s, and at most {MOST_KBIT:g}"
        )
    return int(1000 * kbit // (frame_rate * bits))
