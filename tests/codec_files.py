"""Tiny networks of transformers' DacModel, EncodecModel and MimiModel, for tests of the codecs that run them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soundomni.core.interfaces import Codec

RATE = 8000
DAC = {"sampling_rate": RATE, "encoder_hidden_size": 2, "decoder_hidden_size": 16, "downsampling_ratios": [2, 5], "codebook_size": 16}
DAC |= {"codebook_dim": 2, "n_codebooks": 4}
ENCODEC = {"sampling_rate": RATE, "num_filters": 2, "upsampling_ratios": [5, 2], "hidden_size": 4, "codebook_size": 16}
ENCODEC |= {"target_bandwidths": [3.2, 12.8]}  # 800 frames of 4 bits a second: 1 and 4 codebooks
MIMI = {"sampling_rate": RATE, "num_filters": 2, "upsampling_ratios": [5, 2], "hidden_size": 8, "upsample_groups": 8}
MIMI |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 6, "sliding_window": 7}
MIMI |= {"codebook_size": 16, "codebook_dim": 3, "vector_quantization_hidden_dimension": 3, "num_quantizers": 4}


def dac_model(seed: int = 0, **changes: Any) -> nn.Module:
    """A DacModel of random weights."""
    from transformers import DacConfig, DacModel

    torch.manual_seed(seed)
    return varied(DacModel(DacConfig(**(DAC | changes))).eval())


def encodec_model(seed: int = 0, **changes: Any) -> nn.Module:
    """An EncodecModel of random weights, whose codebooks fit what the encoder makes of noise."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(seed)
    return varied(EncodecModel(EncodecConfig(**(ENCODEC | changes))).eval())


@torch.no_grad()
def mimi_model(seed: int = 0, **changes: Any) -> nn.Module:
    """A MimiModel of random weights, whose transformers matter and whose codebooks fit what the encoder makes of noise."""
    from transformers import MimiConfig, MimiModel

    torch.manual_seed(seed)
    network = MimiModel(MimiConfig(**(MIMI | changes))).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("scale"):
            parameter.fill_(1.0)
        elif "_transformer." in name and name.endswith("weight") and parameter.dim() == 2:
            parameter.normal_(0, 0.5)
    for parameter in network.decoder.decoder_seanet.layers[-1].parameters():
        parameter.mul_(0.05)  # so that files hold the samples as they are
    latent = network.encoder(torch.randn(1, network.config.audio_channels, 1000)).latents
    quantizer = network.quantizer
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        for layer, entries in zip(part.layers, fitting(part.input_proj(latent), part.layers), strict=True):
            layer.codebook.cluster_usage.uniform_(0.5, 2.0)
            layer.codebook.embed_sum.copy_(entries * layer.codebook.cluster_usage[:, None])
    return network


@torch.no_grad()
def varied(network: Any) -> Any:
    """Change a network so that noise gets many different codes: biases off, codebooks as wide as what they are to divide."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.mul_(0.1)
    latent = network.encoder(torch.randn(1, getattr(network.config, "audio_channels", 1), 500))
    layers = getattr(network.quantizer, "layers", [])
    for layer, entries in zip(layers, fitting(latent, layers), strict=True):
        layer.codebook.embed.copy_(entries)
    return network


def fitting(latent: Tensor, layers: Any) -> Iterator[Tensor]:
    """Entries `[N, D]` for the codebook of each layer, as wide as what it is to divide: latents `[1, D, T]`, then ever less."""
    for layer in layers:
        yield latent.mean((0, 2)) + latent.std((0, 2)) * torch.randn(layer.codebook.codebook_size, latent.shape[1])
        latent = 0.5 * (latent - latent.mean(2, keepdim=True))


def ours(network: nn.Module, codec: Codec) -> Codec:
    """The codec with the weights of a network."""
    codec.network.load_state_dict(network.state_dict())
    return codec


def save(network: Any, folder: Path) -> Path:
    """Write a network as transformers does."""
    network.save_pretrained(folder)
    return folder
