"""Tiny networks of transformers' HubertModel, WavLMModel and Wav2Vec2Model, for tests of semantic tokens."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from soundomni.vae import SpeechNetwork

RATE = 8000
HOP, WINDOW = 10, 22
"""Samples from frame to frame, and of the first frame: kernels 7 and 4 with strides 5 and 2 look at 7 + 3 · 5."""
CONVOLUTIONS: dict[str, Any] = {"conv_dims": (6, 6), "conv_kernels": (7, 4), "conv_strides": (5, 2)}
SIZES: dict[str, Any] = {**CONVOLUTIONS, "hidden_dim": 8, "num_heads": 2, "mlp_dim": 12, "position_kernel": 4, "position_groups": 2}
LAYERS = 3

VARIANTS: dict[str, dict[str, Any]] = {
    "hubert": {"family": "hubert"},
    "hubert-large": {"family": "hubert", "conv_norm": "layer", "conv_bias": True, "norm_first": True},
    "wavlm": {"family": "wavlm"},
    "wavlm-large": {"family": "wavlm", "conv_norm": "layer", "norm_first": True},
    "wav2vec2": {"family": "wav2vec2"},
    "wav2vec2-large": {"family": "wav2vec2", "conv_norm": "layer", "conv_bias": True, "norm_first": True},
}


def network_of(variant: str) -> SpeechNetwork:
    """Sizes of a variant."""
    return SpeechNetwork(**SIZES, **VARIANTS[variant])


def speech_model(variant: str, *, seed: int = 0, head: str = "Model") -> Any:
    """A whole model of transformers with LAYERS layers and random weights, which make a difference in every part."""
    sizes, of = network_of(variant), VARIANTS[variant]["family"]
    name = {"hubert": "Hubert", "wavlm": "WavLM", "wav2vec2": "Wav2Vec2"}[of]
    package = importlib.import_module("transformers")
    config = getattr(package, f"{name}Config")(
        hidden_size=sizes.hidden_dim,
        num_hidden_layers=LAYERS,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.mlp_dim,
        conv_dim=list(sizes.conv_dims),
        conv_kernel=list(sizes.conv_kernels),
        conv_stride=list(sizes.conv_strides),
        conv_bias=sizes.conv_bias,
        feat_extract_norm=sizes.conv_norm,
        num_conv_pos_embeddings=sizes.position_kernel,
        num_conv_pos_embedding_groups=sizes.position_groups,
        do_stable_layer_norm=sizes.norm_first,
    )
    torch.manual_seed(seed)
    model = getattr(package, f"{name}{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def save_speech(model: Any, folder: Path, *, normalize: bool = True) -> Path:
    """Write a model as transformers does, with the settings of its clips."""
    from transformers import Wav2Vec2FeatureExtractor

    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=normalize).save_pretrained(folder)
    return folder
