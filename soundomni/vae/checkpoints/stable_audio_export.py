"""The codec `oobleck` for other packages: in the layout of stable-audio-tools, or as a directory that diffusers loads.

| layout | files |
|---|---|
| stable-audio-vae | model.safetensors and audio_vae.json |
| diffusers-oobleck | diffusion_pytorch_model.safetensors and config.json |

Anything that the other package cannot compute is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.weights import write_tensors
from soundomni.vae.checkpoints.stable_audio_config import parse_config
from soundomni.vae.checkpoints.stable_audio_layouts import DIFFUSERS, to_layout
from soundomni.vae.checkpoints.stable_audio_prefixes import STABLE_AUDIO
from soundomni.vae.oobleck import OobleckCodec

FILES = {STABLE_AUDIO: ("model.safetensors", "audio_vae.json"), DIFFUSERS: ("diffusion_pytorch_model.safetensors", "config.json")}
"""Layout → file names of weights and config."""

SAMPLE_SIZE = 65536
"""Samples of a training clip, which stable-audio-tools requires in its config; the weights do not depend on it."""


def export_codec(codec: nn.Module, init_args: Mapping[str, Any], folder: Path, layout: str) -> None:
    """Write a codec into an empty folder.

    Args:
        codec: an OobleckCodec as built, with weight norm.
        init_args: every argument that it was built with.
        folder: the folder.
        layout: "stable-audio-vae" or "diffusers-oobleck".

    Raises:
        SpecError: it is another codec, or one that the layout's package cannot compute.
    """
    if not isinstance(codec, OobleckCodec):
        raise SpecError(f"only the codec oobleck can be written as {layout}, not {type(codec).__name__}. Choose another --format")
    state, config = _written(codec, init_args, layout)
    weights_file, config_file = FILES[layout]
    write_tensors(state, folder / weights_file)
    (folder / config_file).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def stable_audio_codec(codec: OobleckCodec, init_args: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a codec and its config as stable-audio-tools has them within a model. Errors are those of `export_codec`."""
    state, config = _written(codec, init_args, STABLE_AUDIO)
    return state, config["model"]


def diffusers_codec(codec: OobleckCodec, init_args: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a codec and its config as diffusers has them. Raise what `export_codec` raises."""
    return _written(codec, init_args, DIFFUSERS)


def _written(codec: OobleckCodec, init_args: Mapping[str, Any], layout: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and config of a codec in a layout. Raise SpecError if the layout's package cannot compute it."""
    config = (_diffusers if layout == DIFFUSERS else _stable_audio)(init_args)
    understood = parse_config(config).init_args  # reading the written config must give this codec
    different = [name for name, value in understood.items() if _plain(value) != _plain(init_args[name])]
    if different:
        raise SpecError(f"codec.{different[0]} is {init_args[different[0]]}, which {layout} cannot express")
    tensors = to_layout(codec.state_dict(), layout)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, config


def _stable_audio(args: Mapping[str, Any]) -> dict[str, Any]:
    coder = {
        "channels": args["base_channels"],
        "c_mults": list(args["channel_multiples"]),
        "strides": list(args["strides"]),
        "use_snake": args["use_snake"],
    }
    channels, latent_dim = args["channels"], args["latent_dim"]
    model = {
        "encoder": {"type": "oobleck", "config": {"in_channels": channels, **coder, "latent_dim": 2 * latent_dim}},
        "decoder": {
            "type": "oobleck",
            "config": {"out_channels": channels, **coder, "latent_dim": latent_dim, "final_tanh": args["final_tanh"]},
        },
        "bottleneck": {"type": "vae"},
        "latent_dim": latent_dim,
        "downsampling_ratio": math.prod(args["strides"]),
        "io_channels": channels,
    }
    top = {"model_type": "autoencoder", "sample_size": SAMPLE_SIZE, "sample_rate": args["sample_rate"], "audio_channels": channels}
    return {**top, "model": model}


def _diffusers(args: Mapping[str, Any]) -> dict[str, Any]:
    lacking = {"final_tanh": (args["final_tanh"], False), "use_snake": (args["use_snake"], True)}
    lacking["base_channels"] = (args["base_channels"], 2 * args["latent_dim"])
    for name, (given, possible) in lacking.items():
        if given != possible:
            raise SpecError(f"codec.{name} is {given}, but diffusers' autoencoder only has {possible}; write it as {STABLE_AUDIO}")
    return {
        "_class_name": "AutoencoderOobleck",
        "encoder_hidden_size": args["base_channels"],
        "downsampling_ratios": list(args["strides"]),
        "channel_multiples": list(args["channel_multiples"]),
        "decoder_channels": args["base_channels"],
        "decoder_input_channels": args["latent_dim"],
        "audio_channels": args["channels"],
        "sampling_rate": args["sample_rate"],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
