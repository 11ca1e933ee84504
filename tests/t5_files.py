"""A tiny random T5 as files, such as a Hub repository has them."""

from __future__ import annotations

from pathlib import Path

import torch


def tiny_t5(folder: Path) -> Path:
    """Write a T5 encoder of 8 dimensions with a tokenizer of whole words, and return its folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import T5Config, T5EncoderModel

    words = ["<pad>", "</s>", "<unk>", "zero", "one", "two", "three", "four", "five"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = T5Config(vocab_size=len(words), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder, safe_serialization=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
