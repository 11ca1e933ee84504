"""Where published checkpoints keep SAME's tensors: in a file of their own (`same`), in any other layout of
`stable_audio_prefixes`, such as a full Stable Audio 3 model, or in diffusers' layout (`diffusers-same`), with the
modules of its AutoencoderSAME.

Every tensor of a file is either used, unused for a known reason, or unexpected; nothing may be unexpected or missing.
diffusers has the parts of joint projections in a different order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soundomni.core.assembly.uninitialized import without_memory
from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.differential_rows import from_diffusers, to_diffusers
from soundomni.core.pretrained.foreign_weights import WeightFile, read_float32
from soundomni.vae.checkpoints.same_names import (
    DIFFUSERS,
    SAME,
    is_diffusers,
    is_same,
    layer_names,
    plain_name,
    their_names,
)
from soundomni.vae.checkpoints.stable_audio_prefixes import STABLE_AUDIO, check_tensors, locate
from soundomni.vae.same import SameCodec
from soundomni.vae.same_attention import rotary_rates
from soundomni.vae.same_network import SameTransformer

_IMPLIED = "follows from the sizes"


@dataclass(frozen=True)
class Found:
    """Where the tensors of the autoencoder are in a file.

    Args:
        layout: one of the layouts above.
        sources: parameter here → tensor of the file.
        unused: tensor or other value of the file → why it is not used.
        reordered: parameters here whose five parts the file has in diffusers' order.
    """

    layout: str
    sources: Mapping[str, str]
    unused: Mapping[str, str]
    reordered: frozenset[str]

    def used(self) -> dict[str, list[str]]:
        """Return a mapping: tensor of the file → parameters here."""
        return {source: [ours] for ours, source in self.sources.items()}

    def implied(self) -> dict[str, str]:
        """Return the tensors of the file that follow from the sizes, with a text that says so."""
        return {name: why for name, why in self.unused.items() if why == _IMPLIED}


def find_same(weights: WeightFile, init_args: Mapping[str, Any]) -> Found:
    """Find the tensors of a codec in a file, and check that they are exactly its own; no large tensor is read.

    Args:
        weights: the file.
        init_args: arguments of the codec `same`.

    Raises:
        CheckpointError: the file does not hold SAME, or a tensor is missing, unexpected, duplicated or of the wrong
            shape, or has values that contradict the sizes.
    """
    example = "encoder.layers.0.transformers.0.self_attn.to_qkv.weight"
    located = locate(weights, is_same, what="SAME, the autoencoder of Stable Audio 3", example=example)
    diffusers = is_diffusers(located.names)
    names = _spelled(weights, located.names)
    expected = shapes_of(init_args)
    theirs = dict(their_names(init_args["transformer"]["num_layers"], diffusers=diffusers))
    sources = {ours: names[theirs[ours]] for ours in expected if theirs[ours] in names}
    buffers = {} if diffusers else dict(buffers_of(init_args))
    left = names.keys() - {theirs[ours] for ours in expected} - buffers.keys()
    missing = {name: tuple(buffer.shape) for name, buffer in buffers.items()}
    given = {ours: weights.shape(source) for ours, source in sources.items()}
    given |= {name: weights.shape(names[name]) for name in missing if name in names}
    check_tensors(
        weights,
        given,
        expected | missing,
        unexpected=[*located.unexpected, *(names[name] for name in left)],
        source_of=lambda name: sources.get(name) or names[name],
    )
    _check_buffers(weights, names, buffers)
    reordered = [name for name in sources if name.endswith(".qkv.weight") and diffusers and init_args["transformer"]["differential"]]
    own = DIFFUSERS if diffusers else SAME
    layout = own if located.layout == STABLE_AUDIO else located.layout
    unused = {**located.unused, **{names[name]: _IMPLIED for name in buffers}}
    return Found(layout, sources, unused, frozenset(reordered))


def read_parameter(weights: WeightFile, found: Found, parameter: str) -> Tensor:
    """Read one parameter as float32.

    Raise CheckpointError if it is not floating point of at most 32 bits, or holds a number that is not finite.
    """
    tensor = read_float32(weights, found.sources[parameter])
    return from_diffusers(tensor) if parameter in found.reordered else tensor


def shapes_of(init_args: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a codec's parameters without making them. Raise SpecError for sizes that it cannot have."""
    with without_memory():
        return {name: tuple(tensor.shape) for name, tensor in build_same(init_args).state_dict().items()}


def build_same(init_args: Mapping[str, Any]) -> SameCodec:
    """Build the codec from plain arguments. Raise SpecError for arguments that it cannot have."""
    return SameCodec(**{**init_args, "transformer": SameTransformer(**init_args["transformer"])})


def buffers_of(init_args: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of Stability's package that follow from the sizes: rotary frequencies, and an empty tensor for
    noise channels, which SAME does not have."""
    yield "bottleneck.noise_scaling_factor", torch.ones(1, 0, 1)
    widths = [init_args["base_channels"] * multiple for multiple in init_args["channel_multiples"]]
    for block, name in layer_names(init_args["transformer"]["num_layers"]):
        yield f"{name}.rope.inv_freq", rotary_rates(min(init_args["transformer"]["head_dim"], widths[block]))


def to_layout(state: Mapping[str, Tensor], init_args: Mapping[str, Any], layout: str) -> dict[str, Tensor]:
    """Rename the state dict of a SameCodec for other packages: the inverse of reading.

    Args:
        state: the codec's state dict, with weight norm.
        init_args: arguments of the codec.
        layout: "same" (Stability's package) or "diffusers-same".

    Raises:
        CheckpointError: the state belongs to something else, or there is no such layout.
    """
    if layout not in (SAME, DIFFUSERS):
        raise CheckpointError(f"unknown layout '{layout}'; expected {SAME} or {DIFFUSERS}")
    theirs = dict(their_names(init_args["transformer"]["num_layers"], diffusers=layout == DIFFUSERS))
    strange = next((name for name in state if name not in theirs), None)
    if strange is not None:
        raise CheckpointError(f"'{strange}' is not a parameter of a SameCodec with these sizes and weight norm")
    turned = layout == DIFFUSERS and init_args["transformer"]["differential"]
    renamed = {theirs[name]: to_diffusers(tensor) if turned and name.endswith(".qkv.weight") else tensor for name, tensor in state.items()}
    return renamed if layout == DIFFUSERS else renamed | dict(buffers_of(init_args))


def _spelled(weights: WeightFile, names: Mapping[str, str]) -> dict[str, str]:
    """Return the names with one spelling of weight norm. Raise CheckpointError if two tensors are the same
    parameter."""
    spelled: dict[str, str] = {}
    for name, full in names.items():
        plain = plain_name(name)
        if plain in spelled:
            raise CheckpointError(f"'{weights.path}' holds the parameter '{plain}' twice: as '{spelled[plain]}' and as '{full}'")
        spelled[plain] = full
    return spelled


def _check_buffers(weights: WeightFile, names: Mapping[str, str], buffers: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a tensor that follows from the sizes has different values."""
    for name, expected in buffers.items():
        stored = read_float32(weights, names[name])
        if not torch.allclose(stored, expected.to(weights[names[name]].dtype).float(), rtol=1e-3, atol=1e-6):
            raise CheckpointError(
                f"'{weights.path}': {names[name]} does not have the values that follow from its sizes; the autoencoder is not SAME"
            )
