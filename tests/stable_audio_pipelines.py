"""Tiny random pipelines with Stable Audio Open, made of the classes of diffusers and transformers, and checkpoints of the same weights.

The names of stable-audio-tools are spelled out here a second time, and not asked of the library.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from stable_audio_files import SIZES, audio_vae, diffusers, flat, tiny_codec
from torch import Tensor, nn

CONDITION_DIM, HEAD_DIM, FRAMES, HOP = 64, 64, 12, 8
LATENT_DIM, RATE = SIZES["latent_dim"], SIZES["sample_rate"]
SECONDS = FRAMES * HOP / RATE
WORDS = ("zero", "one", "two", "three", "four", "five")
TEXT_LENGTH, MOST_SECONDS = 6, 8


def random_weights(module: nn.Module, seed: int, *, scale: float = 0.3) -> nn.Module:
    """Make all parameters random, except the biases of norms, which are zero in Stable Audio."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not (".norm" in name and name.endswith("bias")):
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tiny_tokenizer() -> Any:
    """Whole words, an end token, and padding to TEXT_LENGTH."""
    from transformers import T5Tokenizer

    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*marks, *((f"▁{word}", -1.0) for word in WORDS), ("▁", -5.0)], extra_ids=0, model_max_length=TEXT_LENGTH)


def tiny_pipeline(*, layers: int = 2, heads: int = 2, seen_dim: int = CONDITION_DIM, **scheduler: Any) -> Any:
    """A StableAudioPipeline; `seen_dim` says whether conditions are projected to the transformer's size, and the rest is its scheduler."""
    from diffusers import (
        AutoencoderOobleck,
        CosineDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import T5Config, T5EncoderModel

    _use_no_kornia()
    text = T5Config(vocab_size=len(WORDS) + 4, d_model=CONDITION_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = StableAudioDiTModel(
        sample_size=FRAMES,
        in_channels=LATENT_DIM,
        out_channels=LATENT_DIM,
        num_layers=layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=heads,
        num_key_value_attention_heads=seen_dim // HEAD_DIM,
        cross_attention_dim=seen_dim,
        cross_attention_input_dim=CONDITION_DIM,
        global_states_input_dim=2 * CONDITION_DIM,
    )
    vae = AutoencoderOobleck(
        encoder_hidden_size=SIZES["base_channels"],
        downsampling_ratios=SIZES["strides"],
        channel_multiples=SIZES["channel_multiples"],
        decoder_channels=SIZES["base_channels"],
        decoder_input_channels=LATENT_DIM,
        audio_channels=SIZES["channels"],
        sampling_rate=RATE,
    )
    vae.load_state_dict(diffusers(tiny_codec()))
    return StableAudioPipeline(
        vae=vae,
        text_encoder=random_weights(T5EncoderModel(text), 2),
        projection_model=random_weights(StableAudioProjectionModel(CONDITION_DIM, CONDITION_DIM, 0, MOST_SECONDS), 3),
        tokenizer=tiny_tokenizer(),
        transformer=random_weights(transformer, 4, scale=0.1),
        scheduler=CosineDPMSolverMultistepScheduler(**scheduler),
    )


def loaded(folder: Path) -> Any:
    """The pipeline of a folder."""
    from diffusers import StableAudioPipeline

    _use_no_kornia()
    pipeline = StableAudioPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _use_no_kornia() -> None:
    """Saving and loading import all of diffusers; requirements/ has kornia for stable-audio-tools, without what it needs itself."""
    from diffusers.utils import import_utils

    import_utils._kornia_available = False


def saved(folder: Path, **arguments: Any) -> Path:
    """Write a tiny pipeline."""
    tiny_pipeline(**arguments).save_pretrained(folder)
    return folder


def checkpoint(pipeline: Any, folder: Path, *, global_ids: Sequence[str] = ("seconds_start", "seconds_total")) -> Path:
    """Write the checkpoint and the config of stable-audio-tools of a pipeline; `global_ids` is the order of its global conditions."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint_tensors(pipeline, global_ids), folder / "model.safetensors")
    transformer, vae = pipeline.transformer.config, audio_vae()
    ids = ["seconds_start", "seconds_total"]
    configs: list[dict[str, Any]] = [{"id": "prompt", "type": "t5", "config": {"t5_model_name": "t5-base", "max_length": TEXT_LENGTH}}]
    configs += [{"id": name, "type": "number", "config": {"min_val": 0, "max_val": MOST_SECONDS}} for name in ids]
    hidden_dim = transformer.num_attention_heads * HEAD_DIM
    sizes = {
        "io_channels": LATENT_DIM,
        "embed_dim": hidden_dim,
        "depth": transformer.num_layers,
        "num_heads": transformer.num_attention_heads,
        "cond_token_dim": CONDITION_DIM,
        "global_cond_dim": 2 * CONDITION_DIM,
        "project_cond_tokens": transformer.cross_attention_dim == hidden_dim,
        "transformer_type": "continuous_transformer",
    }
    diffusion = {
        "cross_attention_cond_ids": ["prompt", *ids],
        "global_cond_ids": list(global_ids),
        "diffusion_objective": "v",
        "type": "dit",
        "config": sizes,
    }
    model = {
        "pretransform": {"type": "autoencoder", "iterate_batch": True, "config": vae["model"]},
        "conditioning": {"configs": configs, "cond_dim": CONDITION_DIM},
        "diffusion": diffusion,
        "io_channels": LATENT_DIM,
    }
    top = {"sample_size": FRAMES * HOP, "sample_rate": RATE, "audio_channels": SIZES["channels"]}
    (folder / "model_config.json").write_text(json.dumps({"model_type": "diffusion_cond", **top, "model": model}))
    return folder


def checkpoint_tensors(pipeline: Any, global_ids: Sequence[str] = ("seconds_start", "seconds_total")) -> dict[str, Tensor]:
    """The tensors of a pipeline as stable-audio-tools has them."""
    theirs = {name: tensor.detach().clone() for name, tensor in pipeline.transformer.state_dict().items()}
    numbers = pipeline.projection_model.state_dict()
    found = {"timestep_features.weight": theirs["time_proj.weight"][:, None]}
    for ours, name in {
        "to_timestep_embed": "timestep_proj",
        "to_global_embed": "global_proj",
        "to_cond_embed": "cross_attention_proj",
    }.items():
        found |= {key.replace(name, ours): tensor for key, tensor in theirs.items() if key.startswith(f"{name}.")}
    if global_ids[0] == "seconds_total":
        found["to_global_embed.0.weight"] = torch.cat(found["to_global_embed.0.weight"].chunk(2, dim=1)[::-1], dim=1)
    found |= {f"{name}.weight": theirs[f"{name}.weight"] for name in ("preprocess_conv", "postprocess_conv")}
    found |= {f"transformer.project_{way}.weight": theirs[f"proj_{way}.weight"] for way in ("in", "out")}
    rotated = HEAD_DIM // 2
    found["transformer.rotary_pos_emb.inv_freq"] = 1.0 / 10000 ** (torch.arange(0, rotated, 2).float() / rotated)
    for layer in range(pipeline.transformer.config.num_layers):
        own = {
            key.removeprefix(f"transformer_blocks.{layer}."): one for key, one in theirs.items() if f"transformer_blocks.{layer}." in key
        }
        into = f"transformer.layers.{layer}."
        for ours, name in {"pre_norm": "norm1", "cross_attend_norm": "norm2", "ff_norm": "norm3"}.items():
            found |= {f"{into}{ours}.gamma": own[f"{name}.weight"], f"{into}{ours}.beta": own[f"{name}.bias"]}
        found[f"{into}self_attn.to_qkv.weight"] = torch.cat([own[f"attn1.to_{kind}.weight"] for kind in "qkv"])
        found[f"{into}cross_attn.to_kv.weight"] = torch.cat([own[f"attn2.to_{kind}.weight"] for kind in "kv"])
        found[f"{into}cross_attn.to_q.weight"] = own["attn2.to_q.weight"]
        found[f"{into}self_attn.to_out.weight"], found[f"{into}cross_attn.to_out.weight"] = (
            own[f"attn{i}.to_out.0.weight"] for i in (1, 2)
        )
        found |= {f"{into}{key.replace('ff.net', 'ff.ff')}": tensor for key, tensor in own.items() if key.startswith("ff.net")}
    tensors = {f"model.model.{name}": tensor.contiguous() for name, tensor in found.items()}
    for ours, name in {"seconds_start": "start_number_conditioner", "seconds_total": "end_number_conditioner"}.items():
        given = {key.split(".", 2)[2]: tensor for key, tensor in numbers.items() if key.startswith(name)}
        tensors |= {f"conditioner.conditioners.{ours}.embedder.embedding.{key}": tensor.clone() for key, tensor in given.items()}
    return tensors | flat(tiny_codec(), prefix="pretransform.model.")
