"""The encoder of a T5Gemma model (Zhang et al. 2025) from its config.json and its safetensors files, which strangers may have written.

Only sizes are read from the config. Every tensor of the encoder has to be there, and those of the decoder are ignored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from soundomni.core.errors import SpecError
from soundomni.core.limits import MOST_VOCABULARY, check_count
from soundomni.experts.checkpoints.local_model import LocalModel
from soundomni.experts.checkpoints.t5_network import MOST_LAYERS, MOST_WIDTH


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions, under the names of a config."""

    rope_type: Literal["default"] = "default"
    rope_theta: float = 10000.0


@dataclass(frozen=True, kw_only=True)
class T5GemmaSizes:
    """Sizes of a T5Gemma encoder, under the names of the part `encoder` of its config; the defaults are those of google/t5gemma-b-b-ul2."""

    vocab_size: int = 256000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    query_pre_attn_scalar: int = 64
    attn_logit_softcapping: float | None = 50.0
    attention_bias: bool = False
    sliding_window: int = 4096
    layer_types: tuple[Literal["sliding_attention", "full_attention"], ...] | None = None
    rope_parameters: Rope | None = None
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        check_count("vocab_size", self.vocab_size, most=MOST_VOCABULARY)
        check_count("num_hidden_layers", self.num_hidden_layers, most=MOST_LAYERS)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar"):
            check_count(name, getattr(self, name), most=MOST_WIDTH)
        check_count("sliding_window", self.sliding_window)
        for name, of in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads"), ("head_dim", "")):
            divisor = getattr(self, of) if of else 2
            if getattr(self, name) % divisor:
                raise SpecError(f"{name} is {getattr(self, name)}; expected a multiple of {f'{of}, which is {divisor}' if of else 2}")
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise SpecError(
                f"layer_types has {len(self.layer_types)} entries; expected num_hidden_layers, which is {self.num_hidden_layers}"
            )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of transformers' config; older files have rope_theta next to the sizes."""
        rope = self.rope_parameters or Rope(rope_theta=self.rope_theta)
        given = asdict(self) | {"rope_parameters": asdict(rope), "layer_types": None if self.layer_types is None else [*self.layer_types]}
        del given["rope_theta"]
        return given


def read_sizes(model: LocalModel) -> T5GemmaSizes:
    """Return the sizes of the encoder of a T5Gemma model. Raise SpecError if its config is not that of one."""
    return model.sizes(model.config("t5gemma").get("encoder"), T5GemmaSizes, "hidden_size", key="encoder")


def load_network(model: LocalModel, sizes: T5GemmaSizes) -> Any:
    """Return transformers' T5GemmaEncoderModel with the weights of a model, in float32 and frozen.

    Raises:
        CheckpointError: the weights are damaged, or do not fit the sizes.
    """
    from transformers import T5GemmaConfig, T5GemmaEncoderModel

    def make() -> Any:
        # only eager attention bounds its logits (attn_logit_softcapping)
        config = T5GemmaConfig(encoder=sizes.arguments(), is_encoder_decoder=False, attn_implementation="eager")
        return T5GemmaEncoderModel(config)

    return model.load(make, other_names=lambda name: (f"model.{name}",))
