"""Where published checkpoints keep the tensors of Oobleck, Stable Audio's first autoencoder: in any layout of
`stable_audio_prefixes`, or in diffusers' (`diffusers-oobleck`), with the modules of its AutoencoderOobleck.

Every tensor of a file is either used, unused for a known reason, or unexpected; nothing may be unexpected or missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from soundomni.core.errors import CheckpointError
from soundomni.core.pretrained.foreign_weights import WeightFile, read_float32
from soundomni.vae.checkpoints.oobleck_names import FOLDED, from_diffusers, is_diffusers, num_blocks, our_modules, split_name, to_diffusers
from soundomni.vae.checkpoints.same_names import MARK as SAME_MARK
from soundomni.vae.checkpoints.stable_audio_prefixes import STABLE_AUDIO, check_tensors, locate
from soundomni.vae.weight_norm import DIRECTION, MAGNITUDE, split_weight

Shape = tuple[int, ...]

DIFFUSERS = "diffusers-oobleck"


@dataclass(frozen=True)
class Found:
    """Where the tensors of the autoencoder are in a file.

    Args:
        layout: one of the layouts above.
        sources: parameter here → tensor of the file; a folded convolution has the parameter `weight`.
        unused: tensor or other value of the file → why it is not used.
        unexpected: tensors of the file that nothing explains.
    """

    layout: str
    sources: Mapping[str, str]
    unused: Mapping[str, str]
    unexpected: tuple[str, ...]

    def used(self) -> dict[str, list[str]]:
        """Return tensor of the file → parameters here."""
        return {source: _parameters(ours) for ours, source in self.sources.items()}

    def source_of(self, parameter: str) -> str:
        """Return the tensor of the file that a parameter here comes from."""
        return next(source for ours, source in self.sources.items() if parameter in _parameters(ours))


def find_autoencoder(weights: WeightFile) -> Found:
    """Find the layout of a file by its prefixes, and where each tensor belongs.

    Raises:
        CheckpointError: no tensor belongs to Oobleck, or one parameter occurs twice.
    """
    if any(name.endswith(SAME_MARK) for name in weights):
        raise CheckpointError(f"'{weights.path}' holds SAME, the autoencoder of Stable Audio 3, not Oobleck. Use `soundomni import same`")
    example = "encoder.layers.1.layers.0.layers.1.weight_g"
    located = locate(weights, num_blocks, what="Stable Audio's autoencoder", example=example)
    sources, unexpected = _assign(weights, located.names)
    named = DIFFUSERS if is_diffusers(located.names) and located.layout == STABLE_AUDIO else located.layout
    return Found(named, sources, located.unused, tuple(sorted([*unexpected, *located.unexpected])))


def shapes_of(weights: WeightFile, found: Found) -> dict[str, Shape]:
    """Return parameter here → the shape that `load_state` gives it, without reading any tensor."""
    shapes: dict[str, Shape] = {}
    for ours, source in found.sources.items():
        shape = weights.shape(source)
        if ours.endswith(f".{FOLDED}"):
            magnitude, direction = _parameters(ours)
            shapes |= {magnitude: (*shape[:1], *(1 for _ in shape[1:])), direction: shape}
        else:
            shapes[ours] = shape[1:2] if _is_snake(ours, shape) else shape
    return shapes


def check_fit(weights: WeightFile, found: Found, expected: Mapping[str, Shape]) -> None:
    """Raise CheckpointError unless the file has exactly the parameters `expected`, name → shape, and no unexplained
    tensor."""
    given = shapes_of(weights, found)
    check_tensors(weights, given, expected, unexpected=found.unexpected, source_of=found.source_of)


def load_state(weights: WeightFile, found: Found) -> dict[str, Tensor]:
    """Read the parameters as float32, under their names here.

    A folded convolution is split into g and v of the same weight.

    Raises:
        CheckpointError: a tensor is not floating point of at most 32 bits, or holds a number that is not finite.
    """
    state: dict[str, Tensor] = {}
    for ours, source in found.sources.items():
        state |= _parameters_in(weights, ours, source)
    return state


def read_parameter(weights: WeightFile, found: Found, parameter: str) -> Tensor:
    """Read one parameter as `load_state` reads all."""
    source = found.source_of(parameter)
    ours = next(ours for ours, name in found.sources.items() if name == source and parameter in _parameters(ours))
    return _parameters_in(weights, ours, source)[parameter]


def _parameters_in(weights: WeightFile, ours: str, source: str) -> dict[str, Tensor]:
    """Read the parameters that one entry of Found.sources provides."""
    tensor = read_float32(weights, source)
    if ours.endswith(f".{FOLDED}"):
        return dict(zip(_parameters(ours), split_weight(tensor), strict=True))
    return {ours: tensor.flatten() if _is_snake(ours, tuple(tensor.shape)) else tensor}


def to_layout(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Rename the state dict of an OobleckCodec for other packages: the inverse of reading.

    Args:
        state: the codec's state dict, with weight norm.
        layout: "stable-audio-vae", flat, or "diffusers-oobleck", whose snakes have parameters `[1, C, 1]`. Both have
            weight_g, weight_v.

    Raises:
        CheckpointError: the state belongs to something else, or there is no such layout.
    """
    if layout not in (STABLE_AUDIO, DIFFUSERS):
        raise CheckpointError(f"unknown layout '{layout}'; expected {STABLE_AUDIO} or {DIFFUSERS}")
    modules = to_diffusers(num_blocks(state)) if layout == DIFFUSERS else {name: name for name in our_modules(num_blocks(state))}
    spelled = {MAGNITUDE: "weight_g", DIRECTION: "weight_v"}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, parameter = split_name(name) or (name, "")
        if module not in modules or parameter == FOLDED:
            raise CheckpointError(f"'{name}' is not a parameter of an OobleckCodec with weight norm")
        snake = layout == DIFFUSERS and parameter in ("alpha", "beta")
        renamed[f"{modules[module]}.{spelled.get(parameter, parameter)}"] = tensor[None, :, None] if snake else tensor
    return renamed


def _assign(weights: WeightFile, names: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the parameter here of each tensor, by its name without the prefix, and the tensors that have none."""
    blocks = num_blocks(names)
    modules = from_diffusers(blocks) if is_diffusers(names) else {name: name for name in our_modules(blocks)}
    sources: dict[str, str] = {}
    taken: dict[str, str] = {}
    unexpected: list[str] = []
    for name, full in names.items():
        module, parameter = split_name(name) or (name, "")
        if module not in modules:
            unexpected.append(full)
            continue
        ours = f"{modules[module]}.{parameter}"
        for part in _parameters(ours):
            if part in taken:
                raise CheckpointError(f"'{weights.path}' holds the parameter '{part}' twice: as '{taken[part]}' and as '{full}'")
            taken[part] = full
        sources[ours] = full
    return sources, unexpected


def _parameters(ours: str) -> list[str]:
    """Return the codec's parameters that one entry of Found.sources provides."""
    if not ours.endswith(f".{FOLDED}"):
        return [ours]
    module = ours.removesuffix(FOLDED)
    return [f"{module}{MAGNITUDE}", f"{module}{DIRECTION}"]


def _is_snake(ours: str, shape: Shape) -> bool:
    """Return whether it is a parameter `[1, C, 1]` of an activation, which is `[C]` here."""
    return ours.endswith((".alpha", ".beta")) and len(shape) == 3 and shape[0] == shape[2] == 1
