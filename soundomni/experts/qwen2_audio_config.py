"""What the config.json of a Qwen2-Audio checkpoint says, in the spellings of transformers 4 and 5.

A file says only what differs from the defaults of transformers, which are repeated here. What our parts cannot compute is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError
from soundomni.experts.qwen2_audio import HOP_LENGTH, N_FFT, SAMPLE_RATE

CONFIG_FILE = "config.json"
MODEL_TYPE = "qwen2_audio"

_TEXT = {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 151936}
_AUDIO = {
    "num_mel_bins": 128,
    "d_model": 1280,
    "encoder_layers": 32,
    "encoder_attention_heads": 20,
    "encoder_ffn_dim": 5120,
    "max_source_positions": 1500,
}


@dataclass(frozen=True, kw_only=True)
class LanguageSizes:
    """Sizes of a language model of Qwen2.

    Args:
        hidden_dim, num_layers, num_heads, num_kv_heads, head_dim, intermediate_dim: as in MoTBackbone.
        vocab_size: rows of its embedding.
    """

    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_dim: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A config that our parts can follow.

    Args:
        language: sizes of the language model.
        rope_theta, norm_eps: of its rotary positions and norms.
        tied: whether the head may be absent, because it is the embedding.
        max_tokens: longest sequence.
        encoder: arguments of Qwen2AudioEncoder.
    """

    language: LanguageSizes
    rope_theta: float
    norm_eps: float
    tied: bool
    max_tokens: int
    encoder: Mapping[str, int]


def read_source_config(directory: Path) -> SourceConfig:
    """Reads config.json and, where they lie beside it, the files that say how mel frames are computed.

    Raises:
        CheckpointError: it is missing, damaged, of another model, or says what our parts cannot compute.
    """
    file = directory / CONFIG_FILE
    tree = _Node(_read_json(file), f"'{file}'")
    given = tree.values.get("model_type")
    if given != MODEL_TYPE:
        raise CheckpointError(f"'{file}' is of a model of type {given!r}, expected {MODEL_TYPE!r}")
    text, audio = tree.node("text_config"), tree.node("audio_config")
    sizes = {name: text.size(name, default) for name, default in _TEXT.items()}
    heads = sizes["num_attention_heads"]
    language = LanguageSizes(
        hidden_dim=sizes["hidden_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=_or(text, "num_key_value_heads", 32, none=heads),
        head_dim=_or(text, "head_dim", None, none=sizes["hidden_size"] // heads),
        intermediate_dim=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"],
    )
    _check_text(text)
    audio.expect("model_type", "qwen2_audio_encoder")
    audio.expect("activation_function", "gelu")
    mel, width, layers, tower_heads, inner, positions = (audio.size(name, default) for name, default in _AUDIO.items())
    encoder = {"num_mel_bins": mel, "d_model": width, "num_layers": layers, "num_heads": tower_heads, "ffn_dim": inner}
    _check_mel(directory, mel)
    return SourceConfig(
        language=language,
        rope_theta=_rope_theta(text),
        norm_eps=text.number("rms_norm_eps", 1e-6),
        tied=bool(text.values.get("tie_word_embeddings", False) or tree.values.get("tie_word_embeddings", False)),
        max_tokens=text.size("max_position_embeddings", 32768),
        encoder=encoder | {"max_source_positions": positions},
    )


@dataclass(frozen=True)
class _Node:
    """A JSON object and where it lies, for errors."""

    values: Mapping[str, Any]
    place: str

    def node(self, name: str) -> _Node:
        value = self.values.get(name)
        if value is None:
            return _Node({}, f"{self.place}: {name}")
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.place}: {name} is {value!r}, expected an object")
        return _Node(value, f"{self.place}: {name}")

    def size(self, name: str, default: int) -> int:
        value = self.values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self.place}: {name} is {value!r}, expected a whole number above 0")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise CheckpointError(f"{self.place}: {name} is {value!r}, expected a number above 0")
        return float(value)

    def expect(self, name: str, expected: Any) -> None:
        """Raises CheckpointError when it says something else; what it does not say is as expected."""
        value = self.values.get(name)
        if value is not None and value != expected:
            raise CheckpointError(f"{self.place}: {name} is {value!r}, only {expected!r} can be imported")


def _or(node: _Node, name: str, default: int | None, *, none: int) -> int:
    """Returns a size that may be null, which stands for `none`."""
    if node.values.get(name, default) is None:
        return none
    return node.size(name, default if default is not None else none)


def _check_text(text: _Node) -> None:
    text.expect("model_type", "qwen2")
    text.expect("hidden_act", "silu")
    text.expect("use_sliding_window", False)
    text.expect("use_mrope", False)
    kinds = text.values.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise CheckpointError(f"{text.place}: layer_types names {kinds!r}, only full_attention can be imported")


def _rope_theta(text: _Node) -> float:
    """Returns the base of the rotary frequencies. Raises CheckpointError when they are scaled, or when two spellings differ."""
    rope = text.node("rope_parameters")
    for node in (rope, text.node("rope_scaling")):
        node.expect("rope_type", "default")
        node.expect("type", "default")
        node.expect("partial_rotary_factor", 1)
    found = {node.number("rope_theta", 1e4) for node in (rope, text) if "rope_theta" in node.values}
    if len(found) > 1:
        raise CheckpointError(f"{text.place}: rope_theta is given as {' and '.join(f'{theta:g}' for theta in sorted(found))}")
    return found.pop() if found else 1e4


def _check_mel(directory: Path, num_mel_bins: int) -> None:
    """Raises CheckpointError when the feature extractor computes other mel frames than Qwen2AudioEncoder."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = directory / name
        if not file.is_file():
            continue
        tree = _Node(_read_json(file), f"'{file}'")
        extractor = tree.node("feature_extractor") if "feature_extractor" in tree.values else tree
        ours = {"sampling_rate": SAMPLE_RATE, "n_fft": N_FFT, "hop_length": HOP_LENGTH, "feature_size": num_mel_bins, "dither": 0.0}
        for key, value in ours.items():
            extractor.expect(key, value)


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(f"no {file.name} in '{file.parent}': expected a directory of Hugging Face with a Qwen2-Audio model")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"'{file}' cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"'{file}' must hold a JSON object")
    return tree
