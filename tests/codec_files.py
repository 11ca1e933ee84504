"""Tiny networks of transformers' DacModel and EncodecModel, for tests of the codecs that run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from soundomni.core.interfaces import Codec

RATE = 8000
DAC = {"sampling_rate": RATE, "encoder_hidden_size": 2, "decoder_hidden_size": 16, "downsampling_ratios": [2, 5], "codebook_size": 16}
DAC |= {"codebook_dim": 2, "n_codebooks": 4}
ENCODEC = {"sampling_rate": RATE, "num_filters": 2, "upsampling_ratios": [5, 2], "hidden_size": 4, "codebook_size": 16}
ENCODEC |= {"target_bandwidths": [3.2, 12.8]}  # 800 frames of 4 bits a second: 1 and 4 codebooks


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
def varied(network: Any) -> Any:
    """Change a network so that noise gets many different codes: biases off, codebooks as wide as what they are to divide."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.mul_(0.1)
    latent = network.encoder(torch.randn(1, getattr(network.config, "audio_channels", 1), 500))
    for layer in getattr(network.quantizer, "layers", []):
        layer.codebook.embed.copy_(latent.mean((0, 2)) + latent.std((0, 2)) * torch.randn_like(layer.codebook.embed))
        latent = 0.5 * (latent - latent.mean(2, keepdim=True))
    return network


def ours(network: nn.Module, codec: Codec) -> Codec:
    """The codec with the weights of a network."""
    codec.network.load_state_dict(network.state_dict())
    return codec


def save(network: Any, folder: Path) -> Path:
    """Write a network as transformers does."""
    network.save_pretrained(folder)
    return folder
