"""The config.json of transformers' DacModel, as arguments of the codec `dac`.

A file only states what differs from the defaults of transformers, which are repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from soundomni.core.spec.values import convert
from soundomni.vae.checkpoints.config_values import check_implied
from soundomni.vae.sizes import check_strides

MODEL = "DacModel"


@dataclass(frozen=True, kw_only=True)
class _Dac:
    encoder_hidden_size: int = 64
    decoder_hidden_size: int = 1536
    downsampling_ratios: tuple[int, ...] = (2, 4, 8, 8)
    n_codebooks: int = 9
    codebook_size: int = 1024
    codebook_dim: int = 8
    sampling_rate: int = 16000
    upsampling_ratios: tuple[int, ...] | None = None
    hidden_size: int | None = None
    hop_length: int | None = None


KEYS = tuple(_Dac.__dataclass_fields__)


def read_dac(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of DacCodec for the config's values of KEYS.

    Raise SpecError if one is of a wrong type, or contradicts another.
    """
    config: _Dac = convert(dict(values), _Dac, "")
    ratios = config.downsampling_ratios
    check_strides(ratios)
    implied = {
        "upsampling_ratios": (config.upsampling_ratios, ratios[::-1]),
        "hidden_size": (config.hidden_size, config.encoder_hidden_size << len(ratios)),
        "hop_length": (config.hop_length, math.prod(ratios)),
    }
    check_implied(implied, "downsampling_ratios and encoder_hidden_size")
    return {
        "sample_rate": config.sampling_rate,
        "encoder_dim": config.encoder_hidden_size,
        "decoder_dim": config.decoder_hidden_size,
        "strides": list(ratios),
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "total_codebooks": config.n_codebooks,
        "num_codebooks": config.n_codebooks,
    }
