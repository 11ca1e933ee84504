"""The config.json of transformers' MimiModel, as arguments of the codec `mimi`.

A file only states what differs from the defaults of transformers, which are repeated here. Anything that the codec
cannot do is refused. The rate of frames is not read: a network with another one has tensors of other shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soundomni.core.errors import SpecError
from soundomni.core.spec.values import convert
from soundomni.vae.checkpoints.config_values import check_fixed, check_implied
from soundomni.vae.sizes import check_strides

MODEL = "MimiModel"

_PARTS: Mapping[str, str] = {
    "encoder.layers.": "encoder.encoder_seanet.layers.",
    "encoder_transformer.": "encoder.encoder_transformer.",
    "downsample.": "encoder.downsample.",
    "upsample.": "decoder.upsample.",
    "decoder_transformer.": "decoder.decoder_transformer.",
    "decoder.layers.": "decoder.decoder_seanet.layers.",
}
"""Start of a tensor's name in transformers 5.0 and in published files → its start in versions that have an object for
each half of the network, such as 5.24."""
OTHER_NAMES: Mapping[str, str] = {
    rf"^{re.escape(start)}": other  # both ways
    for pair in _PARTS.items()
    for start, other in (pair, pair[::-1])
}
"""Both spellings of the parts, each with the other one: as a pattern → what replaces it."""

_FIXED: Mapping[str, Any] = {
    "num_residual_layers": 1,
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "use_conv_shortcut": False,
    "pad_mode": "constant",
    "compress": 2,
    "trim_right_ratio": 1.0,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "attention_bias": False,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "use_streaming": False,
}
"""What the codec does not vary."""


@dataclass(frozen=True, kw_only=True)
class _Mimi:
    sampling_rate: int = 24000
    audio_channels: int = 1
    num_filters: int = 64
    upsampling_ratios: tuple[int, ...] = (8, 6, 5, 4)
    hidden_size: int = 512
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int | None = None
    intermediate_size: int = 2048
    sliding_window: int = 250
    codebook_size: int = 2048
    codebook_dim: int = 256
    vector_quantization_hidden_dimension: int = 256
    num_quantizers: int = 32
    num_semantic_quantizers: int = 1
    upsample_groups: int = 512


KEYS = (*_FIXED, *_Mimi.__dataclass_fields__)


def read_mimi(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of MimiCodec for the config's values of KEYS.

    Raise SpecError if one is of a wrong type, contradicts another, or asks for what the codec cannot do.
    """
    check_fixed(values, _FIXED, "mimi")
    given = {name: value for name, value in values.items() if name in _Mimi.__dataclass_fields__}
    config: _Mimi = convert(given, _Mimi, "")
    check_strides(config.upsampling_ratios)
    if config.num_attention_heads < 1:
        raise SpecError(f"num_attention_heads is {config.num_attention_heads}; expected at least 1")
    implied = {
        "num_key_value_heads": (config.num_key_value_heads, config.num_attention_heads),
        "head_dim": (config.head_dim, config.hidden_size // config.num_attention_heads),
        "upsample_groups": (config.upsample_groups, config.hidden_size),
        "vector_quantization_hidden_dimension": (config.vector_quantization_hidden_dimension, config.codebook_dim),
    }
    check_implied(implied, "num_attention_heads, hidden_size and codebook_dim")
    return {
        "sample_rate": config.sampling_rate,
        "channels": config.audio_channels,
        "num_filters": config.num_filters,
        "strides": list(config.upsampling_ratios[::-1]),
        "transformer": {
            "hidden_dim": config.hidden_size,
            "num_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_dim": config.intermediate_size,
            "sliding_window": config.sliding_window,
        },
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "semantic_codebooks": config.num_semantic_quantizers,
        "total_codebooks": config.num_quantizers,
        "num_codebooks": config.num_quantizers,
    }
