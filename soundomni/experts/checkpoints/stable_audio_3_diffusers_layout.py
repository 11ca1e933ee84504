"""Where a diffusers pipeline and Stable Audio 3 keep the tensors of Stable Audio 3.

| folder | prefix here | what is in it |
|---|---|---|
| transformer | `transformer.` | the diffusion transformer, and the embedding of the padding after texts |
| duration_embedder | `duration_embedder.` | the encoder of seconds_total |
| vae | `vae.` | the codec, see soundomni/vae/checkpoints |

diffusers has other names for a few modules and another order of the rows of differential attention. It also stores the
frequencies of lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from soundomni.experts.checkpoints.stable_audio_3_config import T5GEMMA
from soundomni.experts.checkpoints.stable_audio_diffusers_layout import TRANSFORMER, Piece, Places, linear
from soundomni.experts.checkpoints.stable_audio_layout import CONDITIONERS, DIT, Shape
from soundomni.experts.checkpoints.stable_audio_model_config import NUM_FREQUENCIES, ModelConfig
from soundomni.experts.dit_network import MLP_RATIO, NUM_TIME_FEATURES, ROPE_THETA
from soundomni.experts.number import fixed_frequencies

DURATION = "duration_embedder."
SECONDS = "seconds_total"
"""The only number of a pipeline."""
NUM_MODULATIONS = 6
"""Scale, shift and gate of attention, and those of the network after it."""


def third_places(config: ModelConfig) -> Places:
    """Return where the tensors of a model with the backbone `dit-3` are."""
    backbone = config.backbone
    rotated = backbone["hidden_dim"] // backbone["num_heads"] // 2
    rates = 1.0 / ROPE_THETA ** (torch.arange(0, rotated, 2).float() / rotated)
    constants: dict[str, Tensor] = {
        f"{TRANSFORMER}rotary_pos_emb.inv_freq": rates,
        f"{DURATION}freqs": fixed_frequencies(NUM_FREQUENCIES, torch.device("cpu")),
    }
    return Places((TRANSFORMER, DURATION), list(_pieces(config)), constants, "follows from the sizes")


def _pieces(config: ModelConfig) -> Iterator[Piece]:
    """Yield the tensors of a model, without those of its codec and without frequencies."""
    backbone, latent_dim, condition_dim = config.backbone, config.latent_dim, config.condition_dim
    hidden_dim: int = backbone["hidden_dim"]
    square, modulations = (hidden_dim, hidden_dim), (NUM_MODULATIONS * hidden_dim, hidden_dim)
    yield from linear("to_timestep_embed.0", "to_timestep_embed.0", (hidden_dim, NUM_TIME_FEATURES), bias=True)
    yield from linear("to_timestep_embed.2", "to_timestep_embed.2", square, bias=True)
    for name in ("to_cond_embed", "to_global_embed"):
        yield from linear(f"{name}.0", f"{name}.0", (hidden_dim, condition_dim))
        yield from linear(f"{name}.2", f"{name}.2", square)
    yield from linear("transformer.global_cond_embedder.0", "global_cond_embedder.0", square, bias=True)
    yield from linear("transformer.global_cond_embedder.2", "global_cond_embedder.2", modulations, bias=True)
    for name in ("preprocess_conv", "postprocess_conv"):
        yield from linear(name, name, (latent_dim, latent_dim, 1))
    yield from linear("transformer.project_in", "proj_in", (hidden_dim, latent_dim))
    yield from linear("transformer.project_out", "proj_out", (latent_dim, hidden_dim))
    if backbone["num_memory"]:
        yield _same("transformer.memory_tokens", "memory_tokens", (backbone["num_memory"], hidden_dim))
    for layer in range(backbone["num_layers"]):
        yield from _layer(layer, config)
    prompt = next(one.id for one in config.conditions if one.kind == T5GEMMA)
    padding = f"{TRANSFORMER}prompt_padding_embedding"
    yield Piece(f"{CONDITIONERS}{prompt}.padding_embedding", (padding,), (condition_dim,))
    number = f"{CONDITIONERS}{SECONDS}.embedder.embedding.1."
    yield Piece(f"{number}weight", (f"{DURATION}linear.weight",), (condition_dim, 2 * NUM_FREQUENCIES))
    yield Piece(f"{number}bias", (f"{DURATION}linear.bias",), (condition_dim,))


def _layer(layer: int, config: ModelConfig) -> Iterator[Piece]:
    hidden_dim, is_differential = config.backbone["hidden_dim"], config.backbone["differential"]
    square, head_dim = (hidden_dim, hidden_dim), hidden_dim // config.backbone["num_heads"]
    rows = {"qkv": 5, "q": 2, "kv": 3} if is_differential else {"qkv": 3, "q": 1, "kv": 2}
    ours, theirs = f"transformer.layers.{layer}", f"transformer_blocks.{layer}"
    for norm in ("pre_norm", "cross_attend_norm", "ff_norm"):
        yield _same(f"{ours}.{norm}.gamma", f"{theirs}.{norm}.gamma", (hidden_dim,))
    joint = "self_attn.to_qkv.weight"
    yield Piece(
        f"{DIT}{ours}.{joint}",
        (f"{TRANSFORMER}{theirs}.{joint}",),
        (rows["qkv"] * hidden_dim, hidden_dim),
        reordered=is_differential,
    )
    for name in ("q", "kv"):
        module = f"cross_attn.to_{name}"
        yield from linear(f"{ours}.{module}", f"{theirs}.{module}", (rows[name] * hidden_dim, hidden_dim))
    for kind in ("self_attn", "cross_attn"):
        yield from linear(f"{ours}.{kind}.to_out", f"{theirs}.{kind}.to_out", square)
        for norm in ("q_norm", "k_norm"):
            yield _same(f"{ours}.{kind}.{norm}.gamma", f"{theirs}.{kind}.{norm}.gamma", (head_dim,))
    yield _same(f"{ours}.to_scale_shift_gate", f"{theirs}.to_scale_shift_gate", (NUM_MODULATIONS * hidden_dim,))
    hints = (hidden_dim, config.latent_dim + 1)
    yield from linear(f"{ours}.to_local_embed.0", f"{theirs}.to_local_embed.0", hints, bias=True)
    yield from linear(f"{ours}.to_local_embed.2", f"{theirs}.to_local_embed.2", square, bias=True)
    inner = MLP_RATIO * hidden_dim
    yield from linear(f"{ours}.ff.ff.0.proj", f"{theirs}.ff.proj_in", (2 * inner, hidden_dim), bias=True)
    yield from linear(f"{ours}.ff.ff.2", f"{theirs}.ff.proj_out", (hidden_dim, inner), bias=True)


def _same(ours: str, theirs: str, shape: Shape) -> Piece:
    """Return a tensor of the transformer that is the same in both."""
    return Piece(f"{DIT}{ours}", (f"{TRANSFORMER}{theirs}",), shape)
