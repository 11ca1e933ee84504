"""Tiny checkpoints in the layouts of BAGEL and of the original SoundOmni research code, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from qwen2_audio_files import tokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig
from transformers.models.qwen2_audio.modeling_qwen2_audio import Qwen2AudioEncoder

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER, GEN_INNER, ROWS, LATENT_DIM = 32, 2, 4, 2, 8, 36, 20, 330, 16
TEXT = {
    "model_type": "qwen2",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
    "vocab_size": 300,  # fewer than there are: the original adds special tokens and keeps the config
    "max_position_embeddings": 512,
}
AUDIO = {
    "d_model": 16,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 16,
    "encoder_layers": 2,
    "num_mel_bins": 80,
    "max_source_positions": 50,
}
CODEC = [("model.codec", "mdct"), ("model.codec.sample_rate", "8000"), ("model.codec.frame_size", str(LATENT_DIM))]
"""Overrides for a codec of as many dimensions as the checkpoints have."""


def language(seed: int, *, qk_norm: str = "none", gen_inner: int = GEN_INNER) -> dict[str, Tensor]:
    """Both experts of a language model, every weight of which matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, mean: float = 0.0, std: float = 0.2) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    root = "language_model.model."
    tensors = {f"{root}embed_tokens.weight": draw(ROWS, HIDDEN, std=1.0), "language_model.lm_head.weight": draw(ROWS, HIDDEN)}
    for end, inner in (("", INNER), ("_moe_gen", gen_inner)):
        tensors[f"{root}norm{end}.weight"] = draw(HIDDEN, mean=1.0)
        for layer in range(LAYERS):
            at = f"{root}layers.{layer}."
            for name, rows in (("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)):
                tensors[f"{at}self_attn.{name}_proj{end}.weight"] = draw(rows, HIDDEN)
                tensors[f"{at}self_attn.{name}_proj{end}.bias"] = draw(rows)
            tensors[f"{at}self_attn.o_proj{end}.weight"] = draw(HIDDEN, HEADS * HEAD_DIM)
            if qk_norm == "all" or (qk_norm == "gen" and end):
                tensors |= {f"{at}self_attn.{x}_norm{end}.weight": draw(HEAD_DIM, mean=1.0) for x in "qk"}
            tensors |= {f"{at}{name}{end}.weight": draw(HIDDEN, mean=1.0) for name in ("input_layernorm", "post_attention_layernorm")}
            tensors |= {f"{at}mlp{end}.{name}_proj.weight": draw(inner, HIDDEN) for name in ("gate", "up")}
            tensors[f"{at}mlp{end}.down_proj.weight"] = draw(HIDDEN, inner)
    return tensors


def linear(generator: torch.Generator, rows: int, columns: int) -> dict[str, Tensor]:
    return {"weight": 0.2 * torch.randn(rows, columns, generator=generator), "bias": 0.2 * torch.randn(rows, generator=generator)}


def places() -> Tensor:
    """The table of the original, [sin | cos], as numpy makes it there: in float64."""
    omega = 10000.0 ** -(torch.arange(HIDDEN // 2, dtype=torch.float64) / (HIDDEN // 2))
    angles = torch.arange(2048, dtype=torch.float64)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def original(seed: int = 0, *, hears: bool = True, **given: Any) -> dict[str, Tensor]:
    """A checkpoint of the original SoundOmni."""
    generator = torch.Generator().manual_seed(seed + 1)
    parts = {"audiovae2llm": (HIDDEN, LATENT_DIM), "llm2audiovae": (LATENT_DIM, HIDDEN)}
    parts |= {"time_embedder.mlp.0": (HIDDEN, 256), "time_embedder.mlp.2": (HIDDEN, HIDDEN)}
    tensors = language(seed, **given) | {"gen_pos_embed": places()}
    if hears:
        parts["audio_projector"] = (HIDDEN, AUDIO["d_model"])
        torch.manual_seed(seed)
        tower = Qwen2AudioEncoder(Qwen2AudioEncoderConfig(**AUDIO))
        tensors |= {f"audio_encoder.{name}": tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tower.state_dict().items()}
    for name, shape in parts.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in linear(generator, *shape).items()}
    return tensors


def bagel(seed: int = 0, **given: Any) -> dict[str, Tensor]:
    """A checkpoint of BAGEL, with a tensor or two of each of its parts for images."""
    images = ("vae2llm.weight", "llm2vae.bias", "time_embedder.mlp.0.weight", "latent_pos_embed.pos_embed", "vit_model.embed.weight")
    images += ("connector.fc1.weight", "vit_pos_embed.pos_embed")
    return language(seed, **({"qk_norm": "all", "gen_inner": INNER} | given)) | {name: torch.ones(2, 2) for name in images}


def write(folder: Path, tensors: dict[str, Tensor], *, name: str, config: dict[str, Any] | None, config_name: str) -> Path:
    """Writes weights, config and tokenizer."""
    folder.mkdir(parents=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    if config is not None:
        (folder / config_name).write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def write_original(folder: Path, tensors: dict[str, Tensor], *, prefix: str = "") -> Path:
    """Weights beside the config of Qwen2-Audio."""
    config = {"model_type": "qwen2_audio", "text_config": TEXT, "audio_config": {"model_type": "qwen2_audio_encoder", **AUDIO}}
    named = {prefix + key: tensor for key, tensor in tensors.items()}
    return write(folder, named, name="model.safetensors", config=config, config_name="config.json")


def write_bagel(folder: Path, tensors: dict[str, Tensor]) -> Path:
    """The averaged weights beside those of the VAE for images."""
    write(folder, tensors, name="ema.safetensors", config=TEXT, config_name="llm_config.json")
    save_file({"encoder.conv_in.weight": torch.ones(2)}, folder / "ae.safetensors")
    return folder
