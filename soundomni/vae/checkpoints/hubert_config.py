"""The config.json and preprocessor_config.json of transformers' HuBERT, WavLM and wav2vec 2.0, as arguments of the
codec `hubert-kmeans`.

A file only states what differs from the defaults of transformers, which are repeated here. Anything that the codec
cannot do is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from soundomni.core.errors import SpecError, shown
from soundomni.core.spec.values import convert
from soundomni.vae.checkpoints.config_values import check_fixed
from soundomni.vae.speech_network import Family, SpeechNetwork

_FIXED: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
    "num_buckets": 320,
    "max_bucket_distance": 800,
}
"""What the codec does not vary."""
_FIXED_PREPROCESSOR: Mapping[str, Any] = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1}


@dataclass(frozen=True, kw_only=True)
class _Speech:
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    feat_extract_norm: Literal["group", "layer"] = "group"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    do_stable_layer_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class _Preprocessor:
    sampling_rate: int = 16000
    do_normalize: bool = True


KEYS = (*_FIXED, *_Speech.__dataclass_fields__)


def read_speech(values: Mapping[str, Any], family: Family) -> tuple[SpeechNetwork, int]:
    """Return the sizes of a network and the number of its layers, for the config's values of KEYS.

    Raise SpecError if one is of a wrong type, or asks for what the codec cannot do.
    """
    check_fixed(values, _FIXED, "hubert-kmeans")
    config = cast(_Speech, _converted(values, _Speech))
    network = SpeechNetwork(
        family=family,
        conv_dims=config.conv_dim,
        conv_kernels=config.conv_kernel,
        conv_strides=config.conv_stride,
        conv_bias=config.conv_bias,
        conv_norm=config.feat_extract_norm,
        hidden_dim=config.hidden_size,
        num_heads=config.num_attention_heads,
        mlp_dim=config.intermediate_size,
        position_kernel=config.num_conv_pos_embeddings,
        position_groups=config.num_conv_pos_embedding_groups,
        norm_first=config.do_stable_layer_norm,
    )
    network.check()
    return network, config.num_hidden_layers


def read_preprocessor(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the codec's `sample_rate` and `normalize` for a preprocessor_config.json. Raise as `read_speech`."""
    check_fixed(values, _FIXED_PREPROCESSOR, "hubert-kmeans")
    config = cast(_Preprocessor, _converted(values, _Preprocessor))
    return {"sample_rate": config.sampling_rate, "normalize": config.do_normalize}


def check_layer(layer: int, num_layers: int) -> None:
    """Raise SpecError unless a network has this layer."""
    if not 1 <= layer <= num_layers:
        raise SpecError(f"the layer is {shown(layer)}; expected 1 to {shown(num_layers)}, the layers of this network")


def _converted(values: Mapping[str, Any], of: Any) -> Any:
    return convert({name: value for name, value in values.items() if name in of.__dataclass_fields__}, of, "")
