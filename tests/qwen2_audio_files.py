"""Tiny directories of Hugging Face with a Qwen2-Audio model of random weights, as transformers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

RATE, LIMIT = 16000, 16000  # of a tower with 50 positions, which hears one second
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
TEXT = {"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
AUDIO = {"num_mel_bins": 80, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 16}
VOCAB = 330
"""Rows of the embedding: more than the tokenizer has ids, as in the real model."""
WORDS = ["What can be heard? A dog barks, then a door closes.", "system user assistant You are a helpful assistant. Audio 1: "]


def tokenizer(specials: tuple[str, ...] = SPECIALS) -> Tokenizer:
    """Byte-level BPE as that of Qwen: no space before the first word, special tokens after all others."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(WORDS * 3, trainers.BpeTrainer(vocab_size=310, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return made


def model(seed: int = 3, *, vocab_size: int = VOCAB, **text: Any) -> Qwen2AudioForConditionalGeneration:
    """A model whose every weight matters: none is zero, one, or so small that its neighbours hide it."""
    ids = tokenizer()
    config = Qwen2AudioConfig(
        text_config=TEXT | {"vocab_size": vocab_size, "model_type": "qwen2", "rms_norm_eps": 1e-5} | text,
        audio_config=AUDIO | {"max_source_positions": 50, "model_type": "qwen2_audio_encoder"},
        audio_token_index=ids.token_to_id("<|AUDIO|>"),
    )
    torch.manual_seed(seed)
    made = Qwen2AudioForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    made.generation_config.eos_token_id = [ids.token_to_id("<|endoftext|>"), ids.token_to_id("<|im_end|>")]
    made.generation_config.pad_token_id = ids.token_to_id("<|endoftext|>")
    return made


def processor(specials: tuple[str, ...] = SPECIALS) -> Qwen2AudioProcessor:
    """The processor of transformers for these models."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(specials), pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left"
    )
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=80, chunk_length=1), fast)


def write(folder: Path, made: Qwen2AudioForConditionalGeneration, *, specials: tuple[str, ...] = SPECIALS, shard: str = "5GB") -> Path:
    """Writes what transformers writes, in its own layout of names."""
    made.save_pretrained(folder, max_shard_size=shard)
    processor(specials).save_pretrained(folder)
    return folder


def rename(folder: Path, *, version: int) -> Path:
    """Gives the tensors of a directory with one weight file the names of transformers 4 or 5."""
    file = folder / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(file).items():
        plain = (
            name.removeprefix("model.").replace("language_model.model.", "language_model.").replace("language_model.lm_head.", "lm_head.")
        )
        four = plain.replace("language_model.", "language_model.model.").replace("lm_head.", "language_model.lm_head.")
        renamed[four if version == 4 else plain if plain.startswith("lm_head.") else f"model.{plain}"] = tensor
    save_file(renamed, file, metadata={"format": "pt"})
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    """Sets keys of a JSON file, `text_config__vocab_size` those of objects within it; None takes a key away."""
    tree = json.loads(file.read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for name in path:
            node = node[name]
        node.pop(last, None)
        if value is not None:
            node[last] = value
    file.write_text(json.dumps(tree))
