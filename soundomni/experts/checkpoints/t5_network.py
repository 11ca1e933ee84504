"""The encoder of a T5 model from its config.json and its safetensors files, which strangers may have written.

Only sizes are read from the config. Every tensor of the encoder has to be there, and those of the decoder are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError, SpecError, message_of, some
from soundomni.core.files.paths import place
from soundomni.core.files.small_files import read_json
from soundomni.core.limits import MOST_VOCABULARY, check_count
from soundomni.core.pretrained.foreign_weights import SAFE_SUFFIX, WeightFile, read_float32, read_weights
from soundomni.core.spec.values import convert

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MODEL_TYPES = ("t5", "mt5")
MOST_WIDTH, MOST_LAYERS = 2**16, 256
"""Limits for configs from strangers."""
_TIED = {"encoder.embed_tokens.weight": "shared.weight"}
"""A tensor of the network → the name that files have it under."""


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


def read_sizes(folder: Path, name: str) -> T5Sizes:
    """Return the sizes of the T5 model `name` in a folder. Raise SpecError if its config is not that of one."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise SpecError(f"t5: {place(folder / CONFIG)} cannot be read: {message_of(error)}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(config, dict) or kind not in MODEL_TYPES:
        raise SpecError(f"t5: '{name}' has a config of model_type '{kind}'; expected {' or '.join(MODEL_TYPES)}")
    if "d_model" not in config:
        raise SpecError(f"t5: the config of '{name}' lacks d_model; expected that of a T5 model")
    known = {key: value for key, value in config.items() if key in T5Sizes.__dataclass_fields__}
    try:
        sizes: T5Sizes = convert(known, T5Sizes, "")
    except SpecError as error:
        raise SpecError(f"t5: the config of '{name}': {error}") from error
    return sizes


def load_network(folder: Path, sizes: T5Sizes) -> Any:
    """Return transformers' T5EncoderModel with the weights of a folder, in float32 and frozen.

    Raises:
        CheckpointError: the weights are damaged, or do not fit the sizes.
    """
    from transformers import T5Config, T5EncoderModel

    with without_memory():
        network = T5EncoderModel(T5Config(**asdict(sizes)))
    weights = read_weights(folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX))
    pickles = [file.name for file in weights.files if file.suffix != SAFE_SUFFIX]
    if pickles:
        raise CheckpointError(f"t5: the weights are in {some(pickles)}; expected only {SAFE_SUFFIX} files")
    network.load_state_dict(_tensors(network, weights), assign=True)
    return network.requires_grad_(False).eval()


def _tensors(network: nn.Module, weights: WeightFile) -> Mapping[str, Tensor]:
    """Return the tensors of a network from a file. Raise CheckpointError if one is missing, of another shape or not finite."""
    found: dict[str, Tensor] = {}
    for ours, like in network.state_dict().items():
        theirs = ours if ours in weights else _TIED.get(ours, ours)
        if theirs not in weights:
            raise CheckpointError(f"t5: {place(weights.path)} lacks the tensor '{ours}'; expected the weights of a whole T5 encoder")
        if weights.shape(theirs) != tuple(like.shape):
            shapes = f"{list(weights.shape(theirs))}; expected {list(like.shape)}, as its config says"
            raise CheckpointError(f"t5: {place(weights.path)}: '{theirs}' has the shape {shapes}")
        found[ours] = read_float32(weights, theirs)
    return found
