"""What training a spec needs on each GPU throughout a run: arithmetic over the parameters of a model without memory.

The count follows `parallelize`, the optimizer and EMA: parameters, gradients, states and averages in float32 (states as
the optimizer makes them), each sharded along its first dimension over the `shard` processes of the mesh, frozen ones as
well; only modules that `replicated_modules` names are whole on every process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soundomni.core.assembly.modality import CodecModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import SoundOmniError
from soundomni.core.interfaces import Optimizer
from soundomni.core.spec import registry
from soundomni.core.spec.culprit import named
from soundomni.core.spec.schema import OptimizerSpec

GATHERED_UNITS = 3
"""Number of layers that FSDP holds whole at once: one that computes, one fetched ahead, and the buffer that one arrives
in."""

FEW, MANY = 1 << 14, 1 << 16
"""Number of elements of the two tensors that stand for a large parameter when an optimizer is tried; smaller parameters
are tried as is.

Both are above the sizes below which optimizers keep other states, such as the 4096 of bitsandbytes.
"""


@dataclass(frozen=True)
class Part:
    """Number of parameters in one part of a model, in total and trained."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True)
class Resident:
    """Bytes that one process holds throughout a run; `optimizer` is None if it is unknown."""

    weights: int
    gradients: int
    optimizer: int | None
    ema: int


@dataclass(frozen=True)
class OptimizerState:
    """State of an optimizer.

    Args:
        per_element: parameter → bytes for each of its elements, including its share of a number for a block of
            elements.
        fixed: parameter → bytes in addition, such as a counter of steps or a table of codes.
        unknown: why the state is unknown, or None.
    """

    per_element: Mapping[str, float]
    fixed: Mapping[str, int]
    unknown: str | None = None


def list_parts(model: UnifiedModel) -> list[Part]:
    """Return the parts of a model: every expert, the shared part of the backbone, and the rest; each parameter is in
    exactly one."""
    experts = {f"expert {stream}": list(model.backbone.expert_parameters(stream)) for stream in model.router.streams}
    modules = {
        "embedding and head": model.backbone,
        "encoder": nn.ModuleList([one.encoder for one in model.all_encoders]),
        "connectors": nn.ModuleList([one.connector for one in model.each()]),
        "codec": nn.ModuleList([one.codec for one in model.each() if isinstance(one, CodecModality)]),
        "critic": nn.ModuleList([] if model.critic is None else [model.critic]),
        "others": model,
    }
    groups = experts | {name: list(module.parameters()) for name, module in modules.items()}
    seen: set[int] = set()
    parts = []
    for name, parameters in groups.items():
        own = [p for p in parameters if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            parts.append(Part(name, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)))
    return parts


def optimizer_state(model: nn.Module, settings: OptimizerSpec, *, trust_class_paths: bool = False) -> OptimizerState:
    """Determine what an optimizer keeps, by making steps on small tensors of the same names and dimensions.

    A step on tiny tensors shows which parameters it treats alike; one of each kind and shape then stands for all. That
    one is tried with FEW and with MANY elements: a state that has the same size with both is fixed, and one that grows
    with the elements is per element. Parameters with at most MANY elements are tried as they are, and their states of
    other shapes are fixed.

    The state is unknown if a tensor in it grows in another way, like numbers for rows and columns, or if MANY elements
    have other tensors than FEW.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    rule: Optimizer = registry.build("optimizer", settings.rule, trust_class_paths=trust_class_paths)
    try:
        tiny = _step(rule, {name: tuple(range(2, 2 + len(shape))) for name, shape in shapes.items()}, settings)
        kinds = {name: (shape, _keys(tiny[name])) for name, shape in shapes.items()}
        chosen = {kind: name for name, kind in kinds.items()}
        many = {name: _shrunk(shapes[name], MANY) for name in chosen.values()}
        few = {name: shape if shape == shapes[name] else _shrunk(shape, FEW) for name, shape in many.items()}
        less, more = (_step(rule, tried, settings) for tried in (few, many))
        sizes = {kind: _sizes(less[name], few[name], more[name], many[name]) for kind, name in chosen.items()}
    except _UnknownError as unknown:
        return OptimizerState({}, {}, f"the states of {settings.rule.class_path} cannot be known: {unknown}")
    return OptimizerState({name: sizes[kind][0] for name, kind in kinds.items()}, {name: sizes[kind][1] for name, kind in kinds.items()})


class _UnknownError(Exception):
    """Raised with the reason if sizes of states are unknown."""


def _step(rule: Optimizer, shapes: Mapping[str, tuple[int, ...]], settings: OptimizerSpec) -> dict[str, dict[str, Tensor]]:
    """Make a step on parameters of these shapes, and return the tensors kept for each.

    Raise _UnknownError if it cannot.
    """
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    try:
        optimizer = rule.build(parameters, settings)
        for parameter in parameters.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    except SoundOmniError:
        raise
    except Exception as error:  # any error of a plugin on small tensors
        raise _UnknownError(f"it cannot make a step on small tensors: {named(error)}") from error
    return {name: {key: t for key, t in optimizer.state[p].items() if isinstance(t, Tensor)} for name, p in parameters.items()}


def _keys(state: Mapping[str, Tensor]) -> tuple[tuple[str, torch.dtype], ...]:
    """Return names and dtypes of what is kept for a parameter."""
    return tuple((key, state[key].dtype) for key in sorted(state))


def _shrunk(shape: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Halve the longest side until there are at most so many elements."""
    sides = list(shape)
    while math.prod(sides) > most:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    return tuple(sides)


def _sizes(less: Mapping[str, Tensor], few: tuple[int, ...], more: Mapping[str, Tensor], many: tuple[int, ...]) -> tuple[float, int]:
    """Return bytes per element, and bytes in addition, of a parameter for which `less` is kept with shape `few`, `more`
    with `many`."""
    if _keys(less) != _keys(more):
        raise _UnknownError("it keeps others for larger parameters")
    per_element, fixed, elements = 0.0, 0, math.prod(many)
    for key, state in more.items():
        whole = tuple(state.shape) == many
        if not whole and state.shape == less[key].shape:
            fixed += state.nbytes
        elif whole or abs(state.numel() * math.prod(few) / elements - less[key].numel()) <= 1:  # the last block may not be full
            per_element += state.nbytes / elements
        else:
            shown = f"a tensor {list(state.shape)} for a parameter {list(many)}"
            raise _UnknownError(f"it keeps {shown}, and {list(less[key].shape)} for {list(few)}, from which sizes do not follow")
    return per_element, fixed


def resident_bytes(model: UnifiedModel, state: OptimizerState, *, shard: int, ema: bool) -> Resident:
    """Add up what the first process, which never has less than the others, holds throughout.

    Args:
        model: the model; it may be on the meta device.
        state: state of its optimizer.
        shard: number of processes that share each parameter.
        ema: whether the run keeps averages.
    """
    whole = {id(p) for module in model.replicated_modules for p in module.parameters() if not p.requires_grad}
    local = {name: p.numel() if id(p) in whole else shard_numel(p, shard) for name, p in model.named_parameters()}
    sizes = {name: p.element_size() for name, p in model.named_parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    gradients = sum(local[name] * sizes[name] for name in trained)
    kept = None if state.unknown else sum(math.ceil(local[name] * state.per_element[name]) + state.fixed[name] for name in trained)
    return Resident(
        weights=sum(local[name] * sizes[name] for name in local) + buffers,
        gradients=gradients,
        optimizer=kept,
        ema=sum(4 * local[name] for name in trained) if ema else 0,
    )


def teacher_bytes(model: UnifiedModel, *, shard: int) -> int:
    """Return what the first process holds of a frozen teacher with the model's architecture. It shares the model's
    codecs."""
    shared = {id(p) for module in model.replicated_modules for p in module.parameters()}
    return sum(shard_numel(p, shard) * p.element_size() for p in model.parameters() if id(p) not in shared)


def shard_numel(parameter: Tensor, shard: int) -> int:
    """Return the number of a parameter's elements on the first of `shard` processes: a share of its rows, rounded
    up."""
    if shard == 1 or parameter.ndim == 0:
        return parameter.numel()
    rows = parameter.shape[0]
    return -(-rows // shard) * (parameter.numel() // rows) if rows else 0


def gathered_bytes(model: UnifiedModel, *, bf16: bool) -> int:
    """Return FSDP's peak for gathered parameters and gradients being reduced.

    Parameters in no layer (embedding, head, connectors, encoder) stay gathered from the forward to the backward pass.
    Of the layers, GATHERED_UNITS are whole at once, and the gradients of one, in the computing precision and in
    float32, wait to be reduced.
    """
    size = 2 if bf16 else 4
    units = [list(unit.parameters()) for unit in model.units]
    apart = {id(p) for unit in units for p in unit} | {id(p) for module in model.replicated_modules for p in module.parameters()}
    root = sum(p.numel() for p in model.parameters() if id(p) not in apart)
    layer = max((sum(p.numel() for p in unit) for unit in units), default=0)
    trained = max((sum(p.numel() for p in unit if p.requires_grad) for unit in units), default=0)
    return size * (root + GATHERED_UNITS * layer) + (size + 4) * trained
