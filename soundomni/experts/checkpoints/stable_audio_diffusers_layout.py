"""Where a diffusers pipeline and stable-audio-tools keep the tensors of Stable Audio Open.

| folder | prefix here | what is in it |
|---|---|---|
| transformer | `transformer.` | the diffusion transformer |
| projection_model | `projection_model.` | the encoders of seconds_start and seconds_total |
| vae | `vae.` | the codec, see soundomni/vae/checkpoints |

diffusers has separate weights for queries, keys and values; in stable-audio-tools, they are rows of one weight. Its
norms have biases, which are zero, and it does not store rotary frequencies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soundomni.core.pretrained.differential_rows import from_diffusers, to_diffusers
from soundomni.experts.checkpoints.stable_audio_layout import CONDITIONERS, DIT, Shape
from soundomni.experts.checkpoints.stable_audio_model_config import NUM_FREQUENCIES, ModelConfig
from soundomni.experts.dit_network import MLP_RATIO, NUM_TIME_FEATURES

TRANSFORMER, PROJECTION, VAE = "transformer.", "projection_model.", "vae."
NUMBER_NAMES: Mapping[str, str] = {
    "seconds_start": "start_number_conditioner",
    "seconds_total": "end_number_conditioner",
}
"""Number → diffusers' name for its module, in the order of the global embedding."""
NORMS: Mapping[str, str] = {"pre_norm": "norm1", "cross_attend_norm": "norm2", "ff_norm": "norm3"}
"""Name of a layer's norm in stable-audio-tools → its name in diffusers."""


@dataclass(frozen=True)
class Piece:
    """A tensor of stable-audio-tools, and the tensors of a pipeline that make up its rows.

    Args:
        source: its name in stable-audio-tools.
        theirs: names in the pipeline, in the order of the rows.
        shape: shape of each tensor in the pipeline.
        adds_axis: whether the tensor of stable-audio-tools has one more axis, of size 1, at its end.
        reordered: whether it is a joint projection of differential attention, whose parts diffusers has in another
            order.
    """

    source: str
    theirs: tuple[str, ...]
    shape: Shape
    adds_axis: bool = False
    reordered: bool = False

    @property
    def joined_shape(self) -> Shape:
        """Shape of the tensor of stable-audio-tools."""
        rows, *others = self.shape
        return (len(self.theirs) * rows, *others, *([1] if self.adds_axis else []))

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the tensor of stable-audio-tools."""
        joined = torch.cat(list(tensors)).reshape(self.joined_shape)
        return from_diffusers(joined) if self.reordered else joined

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the pipeline by name."""
        parts = (to_diffusers(tensor) if self.reordered else tensor).chunk(len(self.theirs))
        return {name: part.reshape(self.shape) for name, part in zip(self.theirs, parts, strict=True)}


@dataclass(frozen=True)
class Places:
    """Where the tensors of a model are in a pipeline, without those of its codec.

    Args:
        parts: prefixes of the folders that hold them.
        pieces: those that make up tensors of stable-audio-tools.
        constants: name of another tensor → its values, the only ones that it can have.
        why: what the import report says about these.
    """

    parts: tuple[str, ...]
    pieces: Sequence[Piece]
    constants: Mapping[str, Tensor]
    why: str

    def written(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a pipeline from those of stable-audio-tools."""
        split = {name: tensor for piece in self.pieces for name, tensor in piece.split(tensors[piece.source]).items()}
        return split | dict(self.constants)


def places_of(config: ModelConfig) -> Places:
    """Return where the tensors of a model with the backbone `dit` are."""
    zeros = torch.zeros(1).expand(config.backbone["hidden_dim"])  # takes no memory, however large the config says
    biases = dict.fromkeys(norm_biases(config.backbone["num_layers"]), zeros)
    return Places((TRANSFORMER, PROJECTION), pieces_of(config), biases, "zero, like that of every norm")


def pieces_of(config: ModelConfig) -> list[Piece]:
    """Return the tensors of a model, without those of its codec and without the biases of norms."""
    backbone, latent_dim, condition_dim = config.backbone, config.latent_dim, config.condition_dim
    hidden_dim: int = backbone["hidden_dim"]
    seen_dim, num_times = hidden_dim if backbone["project_conditions"] else condition_dim, NUM_TIME_FEATURES // 2
    found = [
        Piece(f"{DIT}timestep_features.weight", (f"{TRANSFORMER}time_proj.weight",), (num_times,), adds_axis=True),
        *linear("to_timestep_embed.0", "timestep_proj.0", (hidden_dim, NUM_TIME_FEATURES), bias=True),
        *linear("to_timestep_embed.2", "timestep_proj.2", (hidden_dim, hidden_dim), bias=True),
        *linear("to_global_embed.0", "global_proj.0", (hidden_dim, condition_dim * len(NUMBER_NAMES))),
        *linear("to_global_embed.2", "global_proj.2", (hidden_dim, hidden_dim)),
        *linear("to_cond_embed.0", "cross_attention_proj.0", (seen_dim, condition_dim)),
        *linear("to_cond_embed.2", "cross_attention_proj.2", (seen_dim, seen_dim)),
        *linear("preprocess_conv", "preprocess_conv", (latent_dim, latent_dim, 1)),
        *linear("postprocess_conv", "postprocess_conv", (latent_dim, latent_dim, 1)),
        *linear("transformer.project_in", "proj_in", (hidden_dim, latent_dim)),
        *linear("transformer.project_out", "proj_out", (latent_dim, hidden_dim)),
    ]
    for layer in range(backbone["num_layers"]):
        found += _layer(layer, hidden_dim, seen_dim)
    for name, module in NUMBER_NAMES.items():
        theirs, ours = f"{PROJECTION}{module}.time_positional_embedding.", f"{CONDITIONERS}{name}.embedder.embedding."
        found.append(Piece(f"{ours}0.weights", (f"{theirs}0.weights",), (NUM_FREQUENCIES,)))
        found.append(Piece(f"{ours}1.weight", (f"{theirs}1.weight",), (condition_dim, 2 * NUM_FREQUENCIES + 1)))
        found.append(Piece(f"{ours}1.bias", (f"{theirs}1.bias",), (condition_dim,)))
    return found


def norm_biases(num_layers: int) -> list[str]:
    """Return the names of the biases of norms. All of them are zero."""
    layers = [f"{TRANSFORMER}transformer_blocks.{layer}" for layer in range(num_layers)]
    return [f"{layer}.{norm}.bias" for layer in layers for norm in NORMS.values()]


def _layer(layer: int, hidden_dim: int, seen_dim: int) -> Iterator[Piece]:
    ours, theirs, square = f"transformer.layers.{layer}", f"transformer_blocks.{layer}", (hidden_dim, hidden_dim)
    for name, norm in NORMS.items():
        yield Piece(f"{DIT}{ours}.{name}.gamma", (f"{TRANSFORMER}{theirs}.{norm}.weight",), (hidden_dim,))
    yield from linear(f"{ours}.self_attn.to_qkv", f"{theirs}.attn1", square, rows=("to_q", "to_k", "to_v"))
    yield from linear(f"{ours}.self_attn.to_out", f"{theirs}.attn1.to_out.0", square)
    yield from linear(f"{ours}.cross_attn.to_q", f"{theirs}.attn2.to_q", square)
    yield from linear(f"{ours}.cross_attn.to_kv", f"{theirs}.attn2", (seen_dim, seen_dim), rows=("to_k", "to_v"))
    yield from linear(f"{ours}.cross_attn.to_out", f"{theirs}.attn2.to_out.0", square)
    inner = MLP_RATIO * hidden_dim
    yield from linear(f"{ours}.ff.ff.0.proj", f"{theirs}.ff.net.0.proj", (2 * inner, hidden_dim), bias=True)
    yield from linear(f"{ours}.ff.ff.2", f"{theirs}.ff.net.2", (hidden_dim, inner), bias=True)


def linear(ours: str, theirs: str, shape: Shape, *, bias: bool = False, rows: Sequence[str] = ()) -> Iterator[Piece]:
    """Yield the weight and the bias of a layer. `rows` names the layers below `theirs`, each of this shape, that are
    its rows."""
    names = [f"{TRANSFORMER}{theirs}.{row}.weight" for row in rows] or [f"{TRANSFORMER}{theirs}.weight"]
    yield Piece(f"{DIT}{ours}.weight", tuple(names), shape)
    if bias:
        yield Piece(f"{DIT}{ours}.bias", (f"{TRANSFORMER}{theirs}.bias",), shape[:1])
