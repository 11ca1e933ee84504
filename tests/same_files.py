"""Checkpoints of SAME at tiny sizes, named as Stability's package names them: tensors are made here, and not by the
library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LATENT, PATCH, WIDTH, STRIDE, HEAD, RATE = 6, 4, 16, 4, 8, 8000
RATIO = PATCH * STRIDE


def config(large: bool = False, **changes: Any) -> dict[str, Any]:
    """The config of a tiny SAME, as Stability's package reads it; `changes` are dotted keys with __ for the dots."""
    coder: dict[str, Any] = {
        "channels": 8,
        "c_mults": [2],
        "strides": [STRIDE],
        "latent_dim": LATENT,
        "transformer_depths": [4],
        "dim_heads": HEAD,
        "differential": True,
        "variable_stride": True,
        "checkpointing": False,
    }
    coder |= {"sliding_window": [1, 1]} if large else {"dyt": True, "chunk_size": 2 * STRIDE, "chunk_midpoint_shift": True}
    own = {"out_channels": 2 * PATCH, "sinusoidal_blocks": [3 if large else 0], "mask_noise": 0.01}
    bottleneck = {"dim": LATENT, "noise_augment_dim": 0, "noise_regularize": True, "auto_scale": True, "freeze": True}
    tree = {
        "model_type": "autoencoder",
        "sample_size": 65536,
        "sample_rate": RATE,
        "audio_channels": 2,
        "model": {
            "encoder": {"type": "same", "config": {"in_channels": 2 * PATCH, **coder}},
            "decoder": {"type": "same", "config": {**coder, **own} | ({} if large else {"conv_mapping": True})},
            "bottleneck": {"type": "softnorm", "config": bottleneck},
            "pretransform": {"type": "patched", "config": {"channels": 2, "patch_size": PATCH}},
            "latent_dim": LATENT,
            "downsampling_ratio": RATIO,
            "io_channels": 2,
        },
    }
    return changed(tree, changes)


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Set `a__b` to a value, or take it out for the value `...`."""
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = tree
        for name in path:
            inner = inner[name]
        if value is ...:
            del inner[last]
        else:
            inner[last] = value
    return tree


def whole_model(large: bool = False) -> dict[str, Any]:
    """The config of a diffusion model over that autoencoder."""
    top = config(large)
    pretransform = {"type": "autoencoder", "iterate_batch": True, "config": top["model"]}
    return {
        **top,
        "model_type": "diffusion_cond_inpaint",
        "model": {"pretransform": pretransform, "diffusion": {"type": "dit"}},
    }


def tensors(large: bool = False, *, seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of such a model, away from where training starts."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 0.3, mean: float = 0.0) -> Tensor:
        return mean + std * torch.randn(*shape, generator=generator)

    def norm(name: str, dim: int) -> dict[str, Tensor]:
        return {f"{name}.alpha": draw(1, mean=1.0), f"{name}.gamma": draw(dim, mean=1.0), f"{name}.beta": draw(dim)}

    found = {
        "bottleneck.scaling_factor": draw(1, LATENT, 1, mean=1.0),
        "bottleneck.bias": draw(1, LATENT, 1),
        "bottleneck.noise_scaling_factor": torch.ones(1, 0, 1),
        "bottleneck.running_std": torch.tensor([1.7]),
        "encoder.layers.2.weight": draw(LATENT, WIDTH),
        "encoder.layers.2.bias": draw(LATENT),
        "decoder.layers.1.weight": draw(WIDTH, LATENT),
        "decoder.layers.1.bias": draw(WIDTH),
    }
    mappings = (("encoder.layers.0", WIDTH, 2 * PATCH, 1), ("decoder.layers.3", 2 * PATCH, WIDTH, 1 if large else 3))
    for block, outputs, inputs, kernel in mappings:
        found |= {
            f"{block}.mapping.weight_g": draw(outputs, 1, 1, mean=1.0),
            f"{block}.mapping.weight_v": draw(outputs, inputs, kernel),
            f"{block}.mapping.bias": draw(outputs),
            f"{block}.new_tokens": draw(1, 1, WIDTH),
        }
        for i in range(4):
            layer = f"{block}.transformers.{i}"
            found |= norm(f"{layer}.pre_norm", WIDTH) | norm(f"{layer}.ff_norm", WIDTH)
            found |= norm(f"{layer}.self_attn.q_norm", HEAD) | norm(f"{layer}.self_attn.k_norm", HEAD)
            found |= {
                f"{layer}.self_attn.to_qkv.weight": draw(5 * WIDTH, WIDTH),
                f"{layer}.self_attn.to_out.weight": draw(WIDTH, WIDTH),
                f"{layer}.ff.ff.0.proj.weight": draw(6 * WIDTH, WIDTH),
                f"{layer}.ff.ff.0.proj.bias": draw(6 * WIDTH),
                f"{layer}.ff.ff.2.weight": draw(WIDTH, 3 * WIDTH, std=0.1),
                f"{layer}.ff.ff.2.bias": draw(WIDTH),
                f"{layer}.rope.inv_freq": 1.0 / (10000 ** (torch.arange(0, HEAD // 2, 2).float() / (HEAD // 2))),
            }
    return {f"{prefix}{name}": tensor for name, tensor in found.items()}


def write(folder: Path, stored: dict[str, Tensor], tree: dict[str, Any]) -> Path:
    """Write a checkpoint with its config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors")
    (folder / "model_config.json").write_text(json.dumps(tree))
    return folder


def write_whole(folder: Path, *, large: bool = False, seed: int = 0) -> Path:
    """Write the autoencoder as a part of a diffusion model."""
    others = {
        "model.model.to_cond_embed.0.weight": torch.ones(2, 2),
        "conditioner.conditioners.prompt.padding_embedding": torch.ones(3),
    }
    return write(folder, {**others, **tensors(large, seed=seed, prefix="pretransform.model.")}, whole_model(large))
