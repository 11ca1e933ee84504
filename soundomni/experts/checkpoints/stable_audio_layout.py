"""Where the tensors of Stable Audio's diffusion transformer and its conditioners belong here, and back again.

Names there are those of stable-audio-tools. Most tensors are one parameter here; the first layer of the global embedding has the columns of
several. Buffers that follow from the sizes are checked when they are read, and written again, so that nothing is lost either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from soundomni.experts.dit_layer import HeadNorm, Norm
from soundomni.experts.dit_network import ROPE_THETA

Shape = tuple[int, ...]
DIT, CONDITIONERS, CODEC = "model.model.", "conditioner.conditioners.", "pretransform.model."
"""Prefixes of the three parts of a model."""
LATENT = "latent"
"""Name of the modality that is made."""


@dataclass(frozen=True)
class Part:
    """A tensor of a checkpoint and the parameters here that it holds.

    Args:
        source: its name there.
        ours: names of the parameters; the columns of several lie side by side in the tensor.
        shape: its shape there; None if it is that of the parameter.
    """

    source: str
    ours: tuple[str, ...]
    shape: Callable[[Shape], Shape] | None = None

    def shape_from(self, shapes: Mapping[str, Shape]) -> Shape:
        """Return the shape of the tensor from those of the parameters."""
        if len(self.ours) > 1:
            rows, _ = shapes[self.ours[0]]
            return rows, sum(shapes[name][1] for name in self.ours)
        own = shapes[self.ours[0]]
        return own if self.shape is None else self.shape(own)

    def read(self, tensor: Tensor, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
        """Return the parameters that a tensor holds, in their shapes."""
        if len(self.ours) == 1:
            return {self.ours[0]: tensor.reshape(shapes[self.ours[0]])}
        columns = torch.split(tensor, [shapes[name][1] for name in self.ours], dim=1)
        return dict(zip(self.ours, columns, strict=True))

    def write(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor, made of the parameters."""
        if len(self.ours) > 1:
            return torch.cat([state[name] for name in self.ours], dim=1)
        own = state[self.ours[0]]
        return own if self.shape is None else own.reshape(self.shape(tuple(own.shape)))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What decides which tensors a model has.

    Args:
        num_layers: number of layers.
        hidden_dim, rotary_dim: sizes of the transformer.
        crosses: whether layers attend to conditions.
        global_ids: the conditions that are embedded globally, in the order of their columns.
        numbers: the conditions that are numbers with learned frequencies.
        modulates, has_memory: parts that only some families have.
        norm: norm in front of a branch; LayerNorm has a bias of zeros there.
        head_norm: norm of the queries and keys of a head.
        has_frequencies: whether the frequencies of timesteps are learned.
        has_hints: whether every layer has a network for known frames.
        fixed_numbers: the conditions that are numbers with fixed frequencies.
        padded: the texts with a learned embedding for the padding after them.
    """

    num_layers: int
    hidden_dim: int
    rotary_dim: int
    crosses: bool
    global_ids: Sequence[str]
    numbers: Sequence[str]
    modulates: bool
    has_memory: bool
    norm: Norm = "layer"
    head_norm: HeadNorm = "none"
    has_frequencies: bool = True
    has_hints: bool = False
    fixed_numbers: Sequence[str] = ()
    padded: Sequence[str] = ()


def parts_of(facts: Facts) -> list[Part]:
    """Return the tensors of a model, without those of its codec."""
    found = [
        *_linear(f"{DIT}to_timestep_embed.0", "backbone.time.inward", bias=True),
        *_linear(f"{DIT}to_timestep_embed.2", "backbone.time.outward", bias=True),
        *_pointwise(f"{DIT}preprocess_conv", f"modalities.{LATENT}.connector.before"),
        *_pointwise(f"{DIT}postprocess_conv", f"modalities.{LATENT}.connector.after"),
        *_linear(f"{DIT}transformer.project_in", f"modalities.{LATENT}.connector.inward"),
        *_linear(f"{DIT}transformer.project_out", f"modalities.{LATENT}.connector.outward"),
    ]
    if facts.has_frequencies:
        found.append(Part(f"{DIT}timestep_features.weight", ("backbone.time.frequencies",), lambda shape: (*shape, 1)))
    if facts.crosses:
        found += [part for i in (0, 2) for part in _linear(f"{DIT}to_cond_embed.{i}", f"backbone.conditions.{i}")]
    if facts.global_ids:
        columns = tuple(f"backbone.globals.inward.{name}.weight" for name in facts.global_ids)
        found.append(Part(f"{DIT}to_global_embed.0.weight", columns))
        found += _linear(f"{DIT}to_global_embed.2", "backbone.globals.outward")
    if facts.has_memory:
        found.append(Part(f"{DIT}transformer.memory_tokens", ("backbone.memory",)))
    if facts.modulates:
        for i in (0, 2):
            found += _linear(f"{DIT}transformer.global_cond_embedder.{i}", f"backbone.modulation.{i}", bias=True)
    for layer in range(facts.num_layers):
        found += _layer(f"{DIT}transformer.layers.{layer}.", f"backbone.blocks.{layer}.", facts)
    for name in (*facts.numbers, *facts.fixed_numbers):
        theirs, ours = f"{CONDITIONERS}{name}.embedder.embedding.", f"modalities.{name}."
        if name in facts.numbers:
            found.append(Part(f"{theirs}0.weights", (f"{ours}encoder.frequencies",)))
        found += _linear(f"{theirs}1", f"{ours}connector.inward", bias=True)
    found += [Part(f"{CONDITIONERS}{name}.padding_embedding", (f"modalities.{name}.encoder.padding",)) for name in facts.padded]
    return found


def buffers_of(facts: Facts) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that follow from the sizes: rotary frequencies, and LayerNorm biases, which are zero."""
    exponents = torch.arange(0, facts.rotary_dim, 2).float() / facts.rotary_dim
    yield f"{DIT}transformer.rotary_pos_emb.inv_freq", 1.0 / ROPE_THETA**exponents
    if facts.norm != "layer":
        return
    norms = ("pre_norm", "cross_attend_norm", "ff_norm") if facts.crosses else ("pre_norm", "ff_norm")
    for layer in range(facts.num_layers):
        for norm in norms:
            yield f"{DIT}transformer.layers.{layer}.{norm}.beta", torch.zeros(facts.hidden_dim)


def _layer(theirs: str, ours: str, facts: Facts) -> Iterator[Part]:
    yield Part(f"{theirs}pre_norm.gamma", (f"{ours}attention_norm.weight",))
    yield from _linear(f"{theirs}self_attn.to_qkv", f"{ours}attention.qkv")
    yield from _linear(f"{theirs}self_attn.to_out", f"{ours}attention.output")
    if facts.crosses:
        yield Part(f"{theirs}cross_attend_norm.gamma", (f"{ours}condition_norm.weight",))
        for name, own in {"to_q": "query", "to_kv": "key_value", "to_out": "output"}.items():
            yield from _linear(f"{theirs}cross_attn.{name}", f"{ours}conditions.{own}")
    kinds = {"self_attn": "attention"} | ({"cross_attn": "conditions"} if facts.crosses else {})
    for kind, own in kinds.items():
        for name, norm in {"q_norm": "query", "k_norm": "key"}.items():
            if facts.head_norm == "layer":
                yield from _linear(f"{theirs}{kind}.{name}", f"{ours}{own}.norms.{norm}", bias=True)
            elif facts.head_norm == "rms":
                yield Part(f"{theirs}{kind}.{name}.gamma", (f"{ours}{own}.norms.{norm}.weight",))
    if facts.has_hints:
        for i, own in {0: "inward", 2: "outward"}.items():
            yield from _linear(f"{theirs}to_local_embed.{i}", f"{ours}hints.{own}", bias=True)
    yield Part(f"{theirs}ff_norm.gamma", (f"{ours}mlp_norm.weight",))
    yield from _linear(f"{theirs}ff.ff.0.proj", f"{ours}mlp.up", bias=True)
    yield from _linear(f"{theirs}ff.ff.2", f"{ours}mlp.down", bias=True)
    if facts.modulates:
        yield Part(f"{theirs}to_scale_shift_gate", (f"{ours}modulation",))


def _linear(theirs: str, ours: str, *, bias: bool = False) -> list[Part]:
    return [Part(f"{theirs}.{name}", (f"{ours}.{name}",)) for name in (("weight", "bias") if bias else ("weight",))]


def _pointwise(theirs: str, ours: str) -> list[Part]:
    return [Part(f"{theirs}.weight", (f"{ours}.weight",), lambda shape: (*shape, 1))]
