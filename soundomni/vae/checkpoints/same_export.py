"""Writes the codec `same` for other packages: in the layout of Stability's package stable-audio-3, or as a directory
that diffusers loads.

| layout | files |
|---|---|
| same | model.safetensors and model_config.json |
| diffusers-same | diffusion_pytorch_model.safetensors and config.json |

Anything that the other package cannot compute is refused. The config turns off the noise
of the original, because the codec does not have it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from soundomni.core.errors import SpecError
from soundomni.core.pretrained.weights import write_tensors
from soundomni.vae.checkpoints.same_config import parse_config
from soundomni.vae.checkpoints.same_layouts import to_layout
from soundomni.vae.checkpoints.same_names import DIFFUSERS, SAME
from soundomni.vae.same import SameCodec
from soundomni.vae.same_network import SameTransformer

FILES = {
    SAME: ("model.safetensors", "model_config.json"),
    DIFFUSERS: ("diffusion_pytorch_model.safetensors", "config.json"),
}
"""Layout → file names of weights and config."""

SAMPLE_SIZE = 2**19
"""Clip length in training, in samples, which Stability's configs state; the weights do not depend on it."""


def export_same(codec: nn.Module, init_args: Mapping[str, Any], folder: Path, layout: str) -> None:
    """Write a codec into an empty folder.

    Args:
        codec: a SameCodec, with weight norm.
        init_args: all arguments that it was built with.
        folder: the folder.
        layout: "same" or "diffusers-same".

    Raises:
        SpecError: it is a different codec, or one that the layout's package cannot compute.
    """
    if not isinstance(codec, SameCodec):
        raise SpecError(f"only the codec same can be written as {layout}, not {type(codec).__name__}. Choose another --format")
    state, config = _written(codec, init_args, layout)
    weights_file, config_file = FILES[layout]
    write_tensors(state, folder / weights_file)
    (folder / config_file).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def same_codec(codec: SameCodec, init_args: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a codec and its config as they are in a Stable Audio 3 model. Raise what `export_same`
    raises."""
    state, config = _written(codec, init_args, SAME)
    return state, config["model"]


def diffusers_same_codec(codec: SameCodec, init_args: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a codec and its config as they are in a diffusers pipeline of Stable Audio 3. Raise what
    `export_same` raises."""
    return _written(codec, init_args, DIFFUSERS, instead="stable-audio-3")


def _written(
    codec: SameCodec, init_args: Mapping[str, Any], layout: str, *, instead: str = SAME
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and config of a codec in a layout.

    Raise SpecError if the layout's package cannot compute it; `instead` is the layout that the error suggests.
    """
    args = _plain({**init_args, "transformer": _sizes(init_args["transformer"])})
    config = _diffusers(args, instead) if layout == DIFFUSERS else _stable_audio(args)
    understood = _flat(_plain(parse_config(config).init_args))  # reading the written config must give this codec
    given = _flat(args)
    different = [name for name, value in understood.items() if value != given[name]]
    if different:
        raise SpecError(f"codec.{different[0]} is {given[different[0]]}, which {layout} cannot express")
    tensors = to_layout(codec.state_dict(), args, layout)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, config


def _stable_audio(args: Mapping[str, Any]) -> dict[str, Any]:
    sizes = args["transformer"]
    window = sizes["window"]
    scope = {"chunk_size": sizes["chunk_size"], "chunk_midpoint_shift": True} if window is None else {"sliding_window": window}
    coder = {
        "channels": args["base_channels"],
        "c_mults": args["channel_multiples"],
        "strides": args["strides"],
        "latent_dim": args["latent_dim"],
        "transformer_depths": sizes["num_layers"],
        "dim_heads": sizes["head_dim"],
        "ff_mult": sizes["mlp_multiple"],
        "differential": sizes["differential"],
        "dyt": True,
        "variable_stride": True,
        "mask_noise": 0.0,
        **scope,
    }
    channels, width = args["channels"], args["channels"] * args["patch_size"]
    sines = {"sinusoidal_blocks": _sinusoidal(sizes["sine_layers"]), "conv_mapping": args["decoder_kernel"] == 3}
    bottleneck = {
        "dim": args["latent_dim"],
        "noise_augment_dim": 0,
        "noise_regularize": False,
        "auto_scale": True,
        "freeze": True,
    }
    model = {
        "encoder": {"type": "same", "config": {"in_channels": width, **coder}},
        "decoder": {"type": "same", "config": {"out_channels": width, **coder, **sines}},
        "bottleneck": {"type": "softnorm", "config": bottleneck},
        "pretransform": {"type": "patched", "config": {"channels": channels, "patch_size": args["patch_size"]}},
        "latent_dim": args["latent_dim"],
        "downsampling_ratio": args["patch_size"] * math.prod(args["strides"]),
        "io_channels": channels,
    }
    top = {
        "model_type": "autoencoder",
        "sample_size": SAMPLE_SIZE,
        "sample_rate": args["sample_rate"],
        "audio_channels": channels,
    }
    return {**top, "model": model}


def _diffusers(args: Mapping[str, Any], instead: str) -> dict[str, Any]:
    sizes = args["transformer"]
    window = sizes["window"]
    if window is None or window[0] != window[1]:
        shown = "null" if window is None else window
        told = "diffusers' autoencoder only has windows as long on either side"
        raise SpecError(f"codec.transformer.window is {shown}, but {told}; write it as {instead}")
    if args["decoder_kernel"] != 1:
        raise SpecError(f"codec.decoder_kernel is {args['decoder_kernel']}, but diffusers' autoencoder only has 1; write it as {instead}")
    return {
        "_class_name": "AutoencoderSAME",
        "audio_channels": args["channels"],
        "patch_size": args["patch_size"],
        "encoder_channels": args["base_channels"],
        "encoder_c_mults": args["channel_multiples"],
        "encoder_strides": args["strides"],
        "encoder_transformer_depths": sizes["num_layers"],
        "latent_dim": args["latent_dim"],
        "use_differential_attention": sizes["differential"],
        "dim_heads": sizes["head_dim"],
        "ff_mult": sizes["mlp_multiple"],
        "sliding_window": window[0],
        "encoder_sinusoidal_blocks": [0] * len(args["strides"]),
        "decoder_sinusoidal_blocks": _sinusoidal(sizes["sine_layers"]),
        "sampling_rate": args["sample_rate"],
    }


def _sinusoidal(sine_layers: list[int]) -> list[int]:
    """Return the number that both packages write for the layers with a sine gate: one more than there are."""
    return [count + 1 if count else 0 for count in sine_layers]


def _sizes(transformer: SameTransformer | Mapping[str, Any]) -> dict[str, Any]:
    """Return all sizes of the transformers, defaults filled in."""
    given = transformer if isinstance(transformer, SameTransformer) else SameTransformer(**transformer)
    return asdict(given)


def _flat(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments, with the transformers' arguments under their full keys."""
    inner = {f"transformer.{name}": value for name, value in args["transformer"].items()}
    return {name: value for name, value in args.items() if name != "transformer"} | inner


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
