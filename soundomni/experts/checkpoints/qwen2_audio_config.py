"""The config.json of a Qwen2-Audio checkpoint, in the spellings of transformers 4 and 5.

A file only states what differs from the defaults of transformers, which are repeated here. Anything our parts cannot
compute is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from soundomni.core.errors import CheckpointError
from soundomni.core.files.names import CONFIG_FILE
from soundomni.experts.checkpoints.language_config import LanguageConfig, Node, read_language, read_node
from soundomni.experts.qwen2_audio import HOP_LENGTH, N_FFT, SAMPLE_RATE

MODEL_TYPE = "qwen2_audio"
EXPECTED = "a Hugging Face directory with a Qwen2-Audio model"

_AUDIO = {
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "max_source_positions": 1500,
}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A config that our parts can follow.

    Args:
        language: config of the language model.
        encoder: arguments of Qwen2AudioEncoder.
    """

    language: LanguageConfig
    encoder: Mapping[str, int]


def read_source_config(directory: Path) -> SourceConfig:
    """Read config.json and, if they are next to it, the files that say how mel frames are computed.

    Raises:
        CheckpointError: it is missing or damaged, belongs to another model, or asks for something that our parts cannot
            compute.
    """
    tree = read_node(directory / CONFIG_FILE, EXPECTED)
    given = tree.values.get("model_type")
    if given != MODEL_TYPE:
        raise CheckpointError(f"{tree.place}: model_type is {given!r}; expected {MODEL_TYPE!r}")
    encoder = read_tower(tree.node("audio_config"))
    check_mel(directory, encoder["num_mel_bins"])
    return SourceConfig(language=read_language(tree.node("text_config"), outer=tree), encoder=encoder)


def read_tower(audio: Node) -> dict[str, int]:
    """Read the config of an audio tower as arguments of Qwen2AudioEncoder.

    Raise CheckpointError if it belongs to another kind.
    """
    audio.expect("model_type", "qwen2_audio_encoder")
    audio.expect("activation_function", "gelu")
    mel, width, layers, heads, inner, positions = (audio.size(name, default) for name, default in _AUDIO.items())
    encoder = {"num_mel_bins": mel, "d_model": width, "num_layers": layers, "num_heads": heads, "ffn_dim": inner}
    return encoder | {"max_source_positions": positions}


def check_mel(directory: Path, num_mel_bins: int) -> None:
    """Raise CheckpointError if the feature extractor computes other mel frames than Qwen2AudioEncoder."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        tree = read_node(file, EXPECTED)
        extractor = tree.node("feature_extractor") if "feature_extractor" in tree.values else tree
        ours = {"sampling_rate": SAMPLE_RATE, "n_fft": N_FFT, "hop_length": HOP_LENGTH, "feature_size": num_mel_bins, "dither": 0.0}
        for key, value in ours.items():
            extractor.expect(key, value)
