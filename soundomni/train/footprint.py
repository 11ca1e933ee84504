"""What training a spec takes of each GPU: arithmetic over the parameters of a model without memory.

Counted as `parallelise`, the optimizer and EMA keep them: parameters, gradients, states and averages in float32 (states as the optimizer
makes them), each sharded along its first dimension over the `shard` processes of the mesh, frozen ones as well; only what
`replicated_modules` names is whole on every process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soundomni.core import registry
from soundomni.core.errors import SoundOmniError
from soundomni.core.interfaces import Optimizer
from soundomni.core.model import UnifiedModel
from soundomni.core.schema import OptimizerSpec

GATHERED_UNITS = 3
"""Layers that FSDP holds whole at once: one that computes, one fetched ahead of it, and the buffer that one arrives in."""

PROBED, PROBED_SIDE = 8, 128
"""Parameters on which an optimizer is tried that are less small, and their longest side."""


@dataclass(frozen=True)
class Part:
    """Parameters of one part of a model, all and those that are trained."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True)
class Resident:
    """Bytes that one process holds throughout a run; `optimizer` is None when it cannot be known."""

    weights: int
    gradients: int
    optimizer: int | None
    ema: int


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer keeps.

    Args:
        per_element: parameter → bytes for each of its elements.
        fixed: parameter → bytes beside these, as for a counter of steps.
        unknown: why that cannot be told; None when it is told.
    """

    per_element: Mapping[str, int]
    fixed: Mapping[str, int]
    unknown: str | None = None


def list_parts(model: UnifiedModel) -> list[Part]:
    """Returns the parts of a model: every expert, what the backbone shares, and the rest; each parameter is in one, none is in two."""
    experts = {f"expert {stream}": list(model.backbone.expert_parameters(stream)) for stream in model.router.streams}
    modules = {
        "embedding and head": model.backbone,
        "encoder": model.encoder,
        "connectors": nn.ModuleList([m for m in (model.latent_connector, model.features_connector) if m is not None]),
        "codec": model.codec,
        "others": model,
    }
    groups = experts | {name: list(module.parameters()) for name, module in modules.items() if module is not None}
    seen: set[int] = set()
    parts = []
    for name, parameters in groups.items():
        own = [p for p in parameters if id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            parts.append(Part(name, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)))
    return parts


def optimizer_state(model: nn.Module, settings: OptimizerSpec, *, trust_class_paths: bool = False) -> OptimizerState:
    """Finds out what an optimizer keeps, by one step of it on small tensors of the same names and dimensions.

    Unknown are one that keeps tensors of other shapes than the parameter's, and one that keeps others for larger parameters: a second
    step, in which the largest are less small, would show it.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    small = {name: tuple(range(2, 2 + p.ndim)) for name, p in trained.items()}
    largest = sorted(trained, key=lambda name: trained[name].numel(), reverse=True)[:PROBED]
    larger = small | {name: tuple(min(size, PROBED_SIDE) for size in trained[name].shape) for name in largest}
    rule: Optimizer = registry.build("optimizer", settings.rule, trust_class_paths=trust_class_paths)
    states = []
    for shapes in (small, larger):
        try:
            states.append(_step(rule, shapes, settings))
        except SoundOmniError:
            raise
        except Exception as error:  # whatever a plugin does that small tensors do not allow
            states.append(OptimizerState({}, {}, f"it cannot make a step on small tensors: {type(error).__name__}: {error}"))
    unknown = states[0].unknown or states[1].unknown
    if unknown is None and states[0] != states[1]:
        unknown = "it keeps others for larger parameters"
    if unknown is None:
        return states[0]
    return OptimizerState({}, {}, f"the states of {settings.rule.class_path} cannot be known: {unknown}")


def _step(rule: Optimizer, shapes: Mapping[str, tuple[int, ...]], settings: OptimizerSpec) -> OptimizerState:
    """Makes a step on parameters of these shapes, and returns what is kept for each."""
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    optimizer = rule.build(parameters, settings)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    per_element, fixed = dict.fromkeys(parameters, 0), dict.fromkeys(parameters, 0)
    for key, parameter in parameters.items():
        for tensor in optimizer.state[parameter].values():
            if not isinstance(tensor, Tensor):
                continue
            if tensor.shape == parameter.shape:
                per_element[key] += tensor.element_size()
            elif tensor.ndim == 0:
                fixed[key] += tensor.element_size()
            else:
                shown = f"a tensor {list(tensor.shape)} for a parameter {list(parameter.shape)}"
                return OptimizerState({}, {}, f"it keeps {shown}, from which sizes do not follow")
    return OptimizerState(per_element, fixed)


def resident_bytes(model: UnifiedModel, state: OptimizerState, *, shard: int, ema: bool) -> Resident:
    """Adds up what the first process, which never has less than another, holds throughout.

    Args:
        model: it may be on the meta device.
        state: of its optimizer.
        shard: processes that share each parameter.
        ema: whether the run keeps averages.
    """
    whole = {id(p) for module in model.replicated_modules for p in module.parameters() if not p.requires_grad}
    local = {name: p.numel() if id(p) in whole else shard_numel(p, shard) for name, p in model.named_parameters()}
    sizes = {name: p.element_size() for name, p in model.named_parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    gradients = sum(local[name] * sizes[name] for name in trained)
    kept = None if state.unknown else sum(local[name] * state.per_element[name] + state.fixed[name] for name in trained)
    return Resident(
        weights=sum(local[name] * sizes[name] for name in local) + buffers,
        gradients=gradients,
        optimizer=kept,
        ema=sum(4 * local[name] for name in trained) if ema else 0,
    )


def shard_numel(parameter: Tensor, shard: int) -> int:
    """Returns the elements of a parameter that the first of `shard` processes holds: a share of its rows, rounded up."""
    if shard == 1 or parameter.ndim == 0:
        return parameter.numel()
    rows = parameter.shape[0]
    return -(-rows // shard) * (parameter.numel() // rows) if rows else 0


def gathered_bytes(model: UnifiedModel, *, bf16: bool) -> int:
    """Returns what FSDP takes at most for parameters that are gathered and gradients that are on their way.

    What is in no layer (embedding, head, connectors, encoder) stays gathered from the forward to the backward pass. Of the layers,
    GATHERED_UNITS are whole at once, and the gradients of one, in the computing precision and in float32, wait to be added up.
    """
    size = 2 if bf16 else 4
    units = [list(unit.parameters()) for unit in model.units]
    apart = {id(p) for unit in units for p in unit} | {id(p) for module in model.replicated_modules for p in module.parameters()}
    root = sum(p.numel() for p in model.parameters() if id(p) not in apart)
    layer = max((sum(p.numel() for p in unit) for unit in units), default=0)
    trained = max((sum(p.numel() for p in unit if p.requires_grad) for unit in units), default=0)
    return size * (root + GATHERED_UNITS * layer) + (size + 4) * trained
