"""Directories with tiny networks of random weights in the layout of transformers, for tests that load one."""

from __future__ import annotations

from pathlib import Path

import torch

CLAP_RATE = 8000
CLASSES = 5


def save_tiny_clap(folder: Path, *, fusion: bool = False) -> Path:
    """A CLAP network of 16 features that takes windows of one second at 8 kHz, with a tokenizer of bytes."""
    from tokenizers import pre_tokenizers
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 66,
            "projection_dim": 16,
        },
        audio_config={
            "window_size": 4,
            "num_mel_bins": 16,
            "spec_size": 64,
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "enable_fusion": fusion,
            "fusion_type": "aff_2d" if fusion else None,
            "projection_dim": 16,
        },
        projection_dim=16,
    )
    extractor = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=CLAP_RATE,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_max=4000,
        truncation="fusion" if fusion else "rand_trunc",
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet])}
    ClapModel(config).save_pretrained(folder)
    ClapProcessor(extractor, RobertaTokenizer(vocab=vocabulary, merges=[])).save_pretrained(folder)
    return folder


def save_tiny_classifier(folder: Path) -> Path:
    """An Audio Spectrogram Transformer of five classes that takes windows of 0.66 s at 16 kHz."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=66,
        num_mel_bins=32,
        num_labels=CLASSES,
        initializer_range=0.5,
    )
    ASTForAudioClassification(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=66, num_mel_bins=32).save_pretrained(folder)
    return folder


def without_a_weight(folder: Path) -> None:
    """Takes one tensor out of the weights of a directory."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop(sorted(name for name in state if name.endswith("weight"))[0])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
