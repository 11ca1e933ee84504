"""Tiny random pipelines with Stable Audio 3, made of the classes of diffusers and transformers.

diffusers only has the codec of the medium model; with `differential=False`, the transformer is that of the small models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

COND, HEAD_DIM, LATENT, PATCH, STRIDE, RATE = 8, 64, 6, 4, 4, 8000
RATIO = PATCH * STRIDE
MEMORY, TEXT_LENGTH, MOST_SECONDS = 3, 12, 8
LETTERS = "▁abcdefghijklmnopqrstuvwxyz"
EPS = 1e-5
"""What Stable Audio 3 has in front of the branches, where diffusers has 1e-6."""


def random_weights(module: nn.Module, seed: int, *, scale: float = 0.3) -> nn.Module:
    """Make all parameters random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def tiny_tokenizer() -> Any:
    """One token for each letter, <bos> in front of a text, and padding to TEXT_LENGTH in front of that, as Gemma's tokenizer has it."""
    from transformers import GemmaTokenizer

    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return GemmaTokenizer(
        vocab={name: i for i, name in enumerate([*marks, *LETTERS])}, merges=[], add_bos_token=True, model_max_length=TEXT_LENGTH
    )


def tiny_text_encoder() -> Any:
    """A T5Gemma without its decoder, whose window is shorter than a text."""
    from transformers import T5GemmaConfig, T5GemmaEncoderModel

    sizes = {"vocab_size": 5 + len(LETTERS), "hidden_size": COND, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 6, "query_pre_attn_scalar": 6, "attn_logit_softcapping": 2.0, "sliding_window": 4}
    return random_weights(T5GemmaEncoderModel(T5GemmaConfig(encoder={**sizes}, decoder={**sizes}, is_encoder_decoder=False)), 2)


def tiny_pipeline(*, differential: bool = True, layers: int = 2, heads: int = 2, memory: int = MEMORY, stochastic: bool = True) -> Any:
    """A StableAudio3Pipeline; `stochastic` says whether it takes the steps of a distilled model."""
    from diffusers import (
        AutoencoderSAME,
        FlowMatchEulerDiscreteScheduler,
        StableAudio3DiTModel,
        StableAudio3Pipeline,
    )
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder

    _use_no_kornia()
    transformer = StableAudio3DiTModel(
        io_channels=LATENT,
        embed_dim=heads * HEAD_DIM,
        depth=layers,
        num_heads=heads,
        cond_token_dim=COND,
        global_cond_dim=COND,
        local_add_cond_dim=LATENT + 1,
        num_memory_tokens=memory,
        use_differential_attention=differential,
    )
    vae = AutoencoderSAME(
        patch_size=PATCH,
        encoder_channels=8,
        encoder_c_mults=[2],
        encoder_strides=[STRIDE],
        encoder_transformer_depths=[2],
        latent_dim=LATENT,
        dim_heads=8,
        decoder_sinusoidal_blocks=[2],
        sampling_rate=RATE,
    )
    return StableAudio3Pipeline(
        vae=random_weights(vae, 1),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        duration_embedder=random_weights(StableAudio3DurationEmbedder(output_dim=COND, max_val=MOST_SECONDS), 3),
        transformer=random_weights(transformer, 4, scale=0.1),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=stochastic),
    )


def loaded(folder: Path, *, hints: bool = True) -> Any:
    """The pipeline of a folder, computing as Stable Audio 3 was trained.

    So norms have its eps, and with `hints`, layers hear of known frames even if there are none.
    """
    from diffusers import StableAudio3Pipeline
    from diffusers.models.transformers.transformer_stable_audio3 import StableAudio3RMSNorm

    _use_no_kornia()
    pipeline = StableAudio3Pipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for name, module in pipeline.transformer.named_modules():
        if isinstance(module, StableAudio3RMSNorm) and not name.endswith(("q_norm", "k_norm")):
            module.eps = EPS
    if hints:
        pipeline.transformer.register_forward_pre_hook(_with_hints, with_kwargs=True)
    return pipeline


def _with_hints(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Add that no frame is known to a call that does not say so."""
    values = args[0]
    return args, {"local_add_cond": values.new_zeros(len(values), LATENT + 1, values.shape[-1]), **given}


def _use_no_kornia() -> None:
    """Saving and loading import all of diffusers; requirements/ has kornia for stable-audio-tools, without what it needs itself."""
    from diffusers.utils import import_utils

    import_utils._kornia_available = False


def saved(folder: Path, **arguments: Any) -> Path:
    """Write a tiny pipeline."""
    tiny_pipeline(**arguments).save_pretrained(folder)
    return folder
