"""A tiny random T5 and a tiny random T5Gemma as files, such as a Hub repository has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

NUMBERS = ("zero", "one", "two", "three", "four", "five")


def tiny_t5(folder: Path, *, width: int = 8) -> Path:
    """Write a T5 encoder of `width` dimensions with a tokenizer of whole words, and return its folder."""
    from transformers import T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", *NUMBERS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(vocab_size=len(words), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder, safe_serialization=True)
    _write_tokenizer(folder, words, end="</s>")
    return folder


def tiny_t5gemma(folder: Path) -> Path:
    """Write a T5Gemma model of 8 dimensions, encoder and decoder, with a tokenizer that adds no token, and return its folder."""
    from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration

    words = ["<pad>", "<eos>", "<bos>", "<unk>", *NUMBERS]
    sizes = {"vocab_size": len(words), "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 6, "query_pre_attn_scalar": 6, "attn_logit_softcapping": 2.0, "sliding_window": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5GemmaConfig(encoder={**sizes}, decoder={**sizes, "initializer_range": 0.5}, initializer_range=0.5)
        T5GemmaForConditionalGeneration(config).save_pretrained(folder, safe_serialization=True)
    _write_tokenizer(folder, words, end=None)
    return folder


def _write_tokenizer(folder: Path, words: Sequence[str], *, end: str | None) -> None:
    """Write a tokenizer of whole words, which adds a token at the end of a text, and what transformers wants to know about it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, words.index(end))])
    tokenizer.save(str(folder / "tokenizer.json"))


def peer_tokenizer(folder: Path) -> Any:
    """Return transformers' tokenizer of a folder."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", unk_token="<unk>")


def change_config(folder: Path, **changes: Any) -> Path:
    """Change values of config.json; a dict changes a part. Return the folder."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    return folder
