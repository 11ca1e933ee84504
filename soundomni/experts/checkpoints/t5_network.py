"""The encoder of a T5 model from its config.json and its safetensors files, which strangers may have written.

Only sizes are read from the config. Every tensor of the encoder has to be there, and those of the decoder are ignored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from soundomni.core.limits import MOST_VOCABULARY, check_count
from soundomni.experts.checkpoints.local_model import LocalModel

MODEL_TYPES = ("t5", "mt5")
MOST_WIDTH, MOST_LAYERS = 2**16, 256
"""Limits for configs from strangers."""


@dataclass(frozen=True, kw_only=True)
class T5Sizes:
    """Sizes of a T5 encoder, under the names of its config; the defaults are those of T5 small."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu"] = "relu"

    def __post_init__(self) -> None:
        check_count("vocab_size", self.vocab_size, most=MOST_VOCABULARY)
        check_count("num_layers", self.num_layers, most=MOST_LAYERS)
        for name in ("d_model", "d_kv", "d_ff", "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance"):
            check_count(name, getattr(self, name), most=MOST_WIDTH)


def read_sizes(model: LocalModel) -> T5Sizes:
    """Return the sizes of a T5 model. Raise SpecError if its config is not that of one."""
    return model.sizes(model.config(*MODEL_TYPES), T5Sizes, "d_model")


def load_network(model: LocalModel, sizes: T5Sizes) -> Any:
    """Return transformers' T5EncoderModel with the weights of a model, in float32 and frozen.

    Raises:
        CheckpointError: the weights are damaged, or do not fit the sizes.
    """
    from transformers import T5Config, T5EncoderModel

    return model.load(lambda: T5EncoderModel(T5Config(**asdict(sizes))), other_names=_tied)


def _tied(name: str) -> tuple[str, ...]:
    return ("shared.weight",) if name == "encoder.embed_tokens.weight" else ()
