"""Names of SAME's tensors: here, in Stability's package, and in diffusers.

Blocks of the decoder have different numbers in Stability's package, which also counts layers without tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from soundomni.vae.weight_norm import DIRECTION, MAGNITUDE

SAME, DIFFUSERS = "same", "diffusers-same"
"""Layouts in which the autoencoder has a file of its own."""
MARK = ".new_tokens"
"""Suffix of the names of the learned tokens, which no other autoencoder has."""

_SPELLED = {MAGNITUDE: "weight_g", DIRECTION: "weight_v"}
_NORM, _WEIGHT = ("alpha", "gamma", "beta"), ("weight",)
_LINEAR = (*_WEIGHT, "bias")
_LAYER = (
    ("attention_norm", "pre_norm", "norm_attn", _NORM),
    ("attention.qkv", "self_attn.to_qkv", "attn.to_qkv", _WEIGHT),
    ("attention.output", "self_attn.to_out", "attn.to_out", _WEIGHT),
    ("attention.query_norm", "self_attn.q_norm", "attn.q_norm", _NORM),
    ("attention.key_norm", "self_attn.k_norm", "attn.k_norm", _NORM),
    ("mlp_norm", "ff_norm", "norm_ff", _NORM),
    ("mlp.into", "ff.ff.0.proj", "ff.proj_in", _LINEAR),
    ("mlp.output", "ff.ff.2", "ff.proj_out", _LINEAR),
)
"""Module of a layer here, in Stability's package and in diffusers, and its parameters."""


def is_same(names: Collection[str]) -> bool:
    """Return whether tensors with these names, without a prefix, belong to SAME."""
    return any(name.startswith(("encoder.", "decoder.")) and name.endswith(MARK) for name in names)


def is_diffusers(names: Collection[str]) -> bool:
    """Return whether the tensors have diffusers' names."""
    return any(name.startswith("encoder.blocks.") for name in names)


def plain_name(name: str) -> str:
    """Return a tensor's name in the old spelling of weight norm, which both packages use."""
    for new, old in _SPELLED.items():
        name = name.replace(new, old)
    return name


def their_names(num_layers: Collection[int], *, diffusers: bool) -> Iterator[tuple[str, str]]:
    """Yield the name here and the name there of every tensor that a codec with these layers may have.

    Blocks whose two widths are equal have no convolution, so a codec may lack the tensors of `mapping`.
    """
    blocks = len(num_layers)
    for name, theirs in (
        ("scale", "scale" if diffusers else "scaling_factor"),
        ("bias", "bias"),
        ("running_std", "running_std"),
    ):
        yield f"bottleneck.{name}", f"bottleneck.{theirs}"
    for name in _LINEAR:
        yield f"encoder.output.{name}", f"encoder.{'proj' if diffusers else f'layers.{blocks + 1}'}.{name}"
        yield f"decoder.input.{name}", f"decoder.{'proj' if diffusers else 'layers.1'}.{name}"
    for coder, first in (("encoder", 0), ("decoder", 3)):
        counts = list(num_layers) if coder == "encoder" else list(num_layers)[::-1]
        for i, count in enumerate(counts):
            ours, theirs = f"{coder}.blocks.{i}", f"{coder}.{f'blocks.{i}' if diffusers else f'layers.{first + i}'}"
            yield f"{ours}{MARK}", f"{theirs}{MARK}"
            yield from ((f"{ours}.mapping.{name}", f"{theirs}.mapping.{_SPELLED.get(name, name)}") for name in (*_SPELLED, "bias"))
            for layer in range(count):
                for module, stability, other, parameters in _LAYER:
                    inner = f"{theirs}.transformers.{layer}.{other if diffusers else stability}"
                    yield from ((f"{ours}.layers.{layer}.{module}.{name}", f"{inner}.{name}") for name in parameters)


def layer_names(num_layers: Collection[int]) -> Iterator[tuple[int, str]]:
    """Yield, for every layer, its block's place counted from the waveform, and its name in Stability's package."""
    blocks = len(num_layers)
    for i, count in enumerate(num_layers):
        for name in (f"encoder.layers.{i}", f"decoder.layers.{3 + blocks - 1 - i}"):
            yield from ((i, f"{name}.transformers.{layer}") for layer in range(count))
