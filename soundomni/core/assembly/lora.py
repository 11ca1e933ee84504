"""Low-rank adapters on the linear layers of chosen expert streams: where they go, and merging them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from soundomni.core.assembly.dora_linear import DoRALinear
from soundomni.core.assembly.lora_linear import LoRALinear
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.assembly.timestep_gate import EVERYWHERE, Interval, TimestepGate, is_interval
from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.spec.schema import AdapterKind, LoRASpec

KINDS: Mapping[AdapterKind, type[LoRALinear]] = {"lora": LoRALinear, "dora": DoRALinear}


def add_adapters(model: UnifiedModel, spec: LoRASpec, *, seed: int = 0) -> None:
    """Freeze the parameters of the chosen expert streams, and give adapters to the linear layers that `targets` names.

    This works for any backbone: the layers are instances of nn.Linear itself within `Backbone.layers` whose weight is
    one of `Backbone.expert_parameters`. Subclasses do not count, because they may use their weight in another way.

    Args:
        model: the whole model, not yet sharded; changed in place.
        spec: streams, sizes and targets.
        seed: seed of the adapters' initial weights, which depend on nothing else.

    Raises:
        SpecError: a stream does not exist or has none of the target layers, a target names no layer, or a layer shares
            its weight.
    """
    layers = {stream: _linears(model, stream) for stream in _checked_streams(model, spec.streams)}
    known = {name.rpartition(".")[2] for found in layers.values() for name in found}
    chosen = {stream: [name for name in found if _is_target(name, spec.targets)] for stream, found in layers.items()}
    names = [name for found in chosen.values() for name in found]
    for target in spec.targets:
        if not any(_is_target(name, [target]) for name in names):
            near = did_you_mean(target.rpartition(".")[2], known)
            raise SpecError(f"train.lora.targets: unknown linear layer '{target}'.{near} Layers: {', '.join(sorted(known)) or 'none'}")
    for stream, found in chosen.items():
        if not found:
            raise SpecError(f"train.lora.streams: the stream '{stream}' has none of the layers in train.lora.targets")
    refuse_shared(model, names)
    gate = None if spec.interval is None else open_gate(model, spec.interval, names, key="train.lora.interval")
    for stream in chosen:
        for parameter in model.backbone.expert_parameters(stream):
            parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for stream, found in chosen.items():
            for name in found:
                linear = model.get_submodule(name)
                assert isinstance(linear, nn.Linear), "chosen above"
                layer = KINDS[spec.kind](linear, rank=spec.rank, alpha=spec.alpha, dropout=spec.dropout)
                layer.gate = None if gate is None else (gate, model.router.streams.index(stream))
                model.set_submodule(name, layer)


def open_gate(model: UnifiedModel, interval: Interval, names: Iterable[str], *, key: str) -> TimestepGate | None:
    """Return what lets the adapters of the layers `names` act only at the timesteps of an interval; None for all
    timesteps.

    Raise SpecError, naming the `key` of the interval, if the model does not know the timestep of every input of these
    layers.
    """
    low, high = interval
    told = f"{key} is [{low:g}, {high:g}]"
    if not is_interval((low, high)):
        raise SpecError(f"{told}; expected two numbers from 0 to 1, the lower one first")
    if (low, high) == EVERYWHERE:
        return None
    if not model.backbone.takes_times:
        kind = type(model.backbone).__name__
        raise SpecError(f"{told}, but {kind} does not know the timesteps of clips. Use the backbone dit, or leave the interval out")
    for name in names:
        if _is_target(name, model.backbone.condition_layers):
            raise SpecError(
                f"{told}, but the inputs of '{name}' are conditions, which have no timestep. Leave that layer out of the targets, or the "
                "interval"
            )
    objectives = [modality.objective for modality in model.all_made]
    ends = torch.tensor([interval], dtype=torch.float64, device="cpu")  # also if the model is built without memory
    shown = {tuple(objective.shown_times(ends)[0].tolist()) for objective in objectives}
    if len(shown) != 1:
        made = ", ".join(modality.name for modality in model.all_made)
        raise SpecError(f"{told}, but the objectives of {made} have timesteps of different kinds. Leave the interval out")
    ((first, last),) = shown
    gate = TimestepGate(interval, (first, last))
    gate.attach(model.backbone)
    return gate


def interval_of(model: nn.Module) -> Interval | None:
    """Return the timesteps at which a model's adapters act; None if they act at all timesteps or there are no
    adapters."""
    return next((layer.gate[0].interval for layer in adapted_layers(model).values() if layer.gate is not None), None)


def reset_magnitudes(model: nn.Module) -> None:
    """Set the magnitudes of new DoRA adapters to the norms of the model's current weights, which may be sharded.

    Raise SpecError for a row of zeros, which has no direction to scale.
    """
    from torch.distributed.tensor import DTensor  # slow to import, and only training needs it

    for name, layer in adapted_layers(model).items():
        if not isinstance(layer, DoRALinear):
            continue
        norms = layer.reset_magnitude()
        own = norms.to_local() if isinstance(norms, DTensor) else norms
        if bool((own == 0).any()):
            raise SpecError(
                f"train.lora.kind is 'dora', but the weight of '{name}' has rows of zeros, which have no direction. Start from a "
                "trained model with model.start, or leave this layer out of train.lora.targets"
            )


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter of `model` to the weight of its layer, and put plain layers back in place.

    Raise CheckpointError if the adapters act only at some timesteps.
    """
    if (interval := interval_of(model)) is not None:
        raise CheckpointError(
            f"the adapters only act at timesteps from {interval[0]:g} to {interval[1]:g}, so they cannot be merged "
            "into the weights. Export them with --format peft-adapter, and use --adapter to add them to the model "
            "that they were trained on"
        )
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.merged())


def check_merged(model: nn.Module) -> None:
    """Raise CheckpointError if a model has adapters, which a model directory cannot hold."""
    if adapted_layers(model):
        cure = "Call merge_adapters first, or save_adapters" if interval_of(model) is None else "Save them with save_adapters"
        raise CheckpointError(f"the model has adapters, which a model directory cannot hold. {cure}")


def _checked_streams(model: UnifiedModel, streams: Iterable[str]) -> list[str]:
    known = model.router.streams
    found = list(dict.fromkeys(streams))
    for stream in found:
        if stream not in known:
            raise SpecError(
                f"train.lora.streams: unknown expert stream '{stream}'.{did_you_mean(stream, known)} Streams: {', '.join(known)}"
            )
    return found


def _linears(model: UnifiedModel, stream: str) -> dict[str, nn.Linear]:
    """Return the plain linear layers of a stream, by their names in the model."""
    own = {id(p) for p in model.backbone.expert_parameters(stream)}
    inside = {id(module) for layer in model.backbone.layers for module in layer.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and id(module) in inside and id(module.weight) in own
    }


def _is_target(name: str, targets: Iterable[str]) -> bool:
    """Return whether a name or its last parts are among the targets; peft matches a list of targets in the same way."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def refuse_shared(model: nn.Module, names: Iterable[str]) -> None:
    """Raise SpecError if layers share a weight: merging an adapter of one would change the other too."""
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    for name in names:
        shared = holders[id(model.get_submodule(name).weight)]
        if len(shared) > 1:
            raise SpecError(f"'{shared[0]}' and '{shared[1]}' share one weight; tied weights cannot have adapters")


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
