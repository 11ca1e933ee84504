"""Tiny random pipelines with Stable Audio Open, made of the classes of diffusers and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

CONDITION_DIM, HEAD_DIM, LATENT_DIM, RATE, HOP, FRAMES = 64, 64, 2, 8000, 8, 12
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
        encoder_hidden_size=2 * LATENT_DIM,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=2 * LATENT_DIM,
        decoder_input_channels=LATENT_DIM,
        audio_channels=2,
        sampling_rate=RATE,
    )
    return StableAudioPipeline(
        vae=random_weights(vae, 1),
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
