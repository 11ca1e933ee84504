"""The config.json of a Qwen2 language model, on its own or as part of another model's config.

A file only states what differs from the defaults of transformers, which are repeated here. Anything our parts cannot
compute is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError, shown
from soundomni.core.files.json_objects import read_object

_DEFAULTS = {"hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 151936}


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A language model that the backbone `mot` can represent.

    Args:
        hidden_dim, num_layers, num_heads, num_kv_heads, head_dim, intermediate_dim, rope_theta, norm_eps: as in
            MoTBackbone.
        vocab_size: rows of its embedding.
        tied: whether the head may be absent, because it shares the embedding's weights.
        max_tokens: length of the longest sequence.
    """

    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_dim: int
    vocab_size: int
    rope_theta: float
    norm_eps: float
    tied: bool
    max_tokens: int


@dataclass(frozen=True)
class Node:
    """A JSON object and where it is, for errors."""

    values: Mapping[str, Any]
    place: str

    def node(self, name: str) -> Node:
        """Return the object under a key, or an empty one if there is none.

        Raise CheckpointError if it is something else.
        """
        value = self.values.get(name)
        if value is None:
            return Node({}, f"{self.place}: {name}")
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}; expected an object")
        return Node(value, f"{self.place}: {name}")

    def size(self, name: str, default: int) -> int:
        """Return a whole number above 0. Raise CheckpointError if it is something else."""
        value = self.values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}; expected a whole number above 0")
        return value

    def number(self, name: str, default: float) -> float:
        """Return a finite number above 0. Raise CheckpointError if it is something else."""
        value = self.values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= sys.float_info.max:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}; expected a number above 0")
        return float(value)

    def expect(self, name: str, expected: Any) -> None:
        """Raise CheckpointError if a key has another value; a missing key is fine."""
        value = self.values.get(name)
        if value is not None and value != expected:
            raise CheckpointError(f"{self.place}: {name} is {shown(value)}; only {expected!r} can be imported")


def read_node(file: Path, expected: str) -> Node:
    """Read a file with one JSON object.

    Raise CheckpointError, which says what was `expected`, if it is missing or damaged.
    """
    if not file.exists():
        raise CheckpointError(f"no {file.name} in '{file.parent}': expected {expected}")
    return Node(read_object(file), f"'{file}'")


def read_language(text: Node, *, outer: Node | None = None) -> LanguageConfig:
    """Read the config of a language model, which may be part of another model's config, `outer`.

    Raises:
        CheckpointError: it belongs to another kind of model, or asks for something that the backbone cannot compute.
    """
    _check(text)
    sizes = {name: text.size(name, default) for name, default in _DEFAULTS.items()}
    heads = sizes["num_attention_heads"]
    return LanguageConfig(
        hidden_dim=sizes["hidden_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=_or(text, "num_key_value_heads", 32, none=heads),
        head_dim=_or(text, "head_dim", None, none=sizes["hidden_size"] // heads),
        intermediate_dim=sizes["intermediate_size"],
        vocab_size=sizes["vocab_size"],
        rope_theta=_rope_theta(text),
        norm_eps=text.number("rms_norm_eps", 1e-6),
        tied=any(bool(node.values.get("tie_word_embeddings", False)) for node in (text, outer) if node is not None),
        max_tokens=text.size("max_position_embeddings", 32768),
    )


def _or(node: Node, name: str, default: int | None, *, none: int) -> int:
    """Return a size that may be null, which means `none`."""
    if node.values.get(name, default) is None:
        return none
    return node.size(name, default if default is not None else none)


def _check(text: Node) -> None:
    text.expect("model_type", "qwen2")
    text.expect("hidden_act", "silu")
    text.expect("use_sliding_window", False)
    text.expect("use_mrope", False)
    kinds = text.values.get("layer_types") or []
    if any(kind != "full_attention" for kind in kinds):
        raise CheckpointError(f"{text.place}: layer_types is {shown(kinds)}; only full_attention can be imported")


def _rope_theta(text: Node) -> float:
    """Return the base of the rotary frequencies.

    Raise CheckpointError if they are scaled, or if two spellings differ.
    """
    rope = text.node("rope_parameters")
    for node in (rope, text.node("rope_scaling")):
        node.expect("rope_type", "default")
        node.expect("type", "default")
        node.expect("partial_rotary_factor", 1)
    found = {node.number("rope_theta", 1e4) for node in (rope, text) if "rope_theta" in node.values}
    if len(found) > 1:
        values = " and ".join(f"{theta:g}" for theta in sorted(found))
        raise CheckpointError(f"{text.place}: rope_theta is both {values}; expected one value")
    return found.pop() if found else 1e4
