"""Low-rank adapters (Hu et al. 2021) on the linear layers of chosen expert streams, trained and merged.

An adapter of a layer W `[O, I]` computes W x + (alpha / r) · B A x with A `[r, I]` and B `[O, r]` (section 4.1).

Shape letters: I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import CheckpointError, SpecError, did_you_mean
from soundomni.core.spec.schema import LoRASpec


class LoRALinear(nn.Linear):
    """A linear layer with an adapter: `[..., I]` → `[..., O]`.

    A starts random and B at zero, so that at first it computes what the layer did. Weight and bias are the layer's own
    parameters under their own names. Whether they are frozen does not change.

    Args:
        linear: the layer.
        rank: r.
        alpha: the adapter is scaled by alpha / r.
        dropout: share of the adapter's inputs that are zeroed if gradients are computed.
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, **like)  # drawn like any linear layer, Kaiming-uniform
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, **like)
        nn.init.zeros_(self.lora_B.weight)
        self.rank, self.alpha, self.dropout = rank, alpha, dropout

    def forward(self, input: Tensor) -> Tensor:
        """`[..., I]` → `[..., O]`."""
        drops = self.dropout > 0 and torch.is_grad_enabled()
        adapted = functional.dropout(input, self.dropout) if drops else input
        update: Tensor = self.lora_B(self.lora_A(adapted))
        return super().forward(input) + self.alpha / self.rank * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain layer that computes the same; the weight is changed in place."""
        add_low_rank(self.weight, self.lora_A.weight, self.lora_B.weight, scale=self.alpha / self.rank)
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        plain.weight, plain.bias = self.weight, self.bias
        return plain


@torch.no_grad()
def add_low_rank(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> None:
    """Add scale · B A to `weight` `[O, I]` in place, computed in float32 or a wider dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    update = b.to(weight.device, wide) @ a.to(weight.device, wide)
    weight.copy_(weight.to(wide).add_(update, alpha=scale))


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
    for stream in chosen:
        for parameter in model.backbone.expert_parameters(stream):
            parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear), "chosen above"
            model.set_submodule(name, LoRALinear(linear, rank=spec.rank, alpha=spec.alpha, dropout=spec.dropout))


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter of `model` to the weight of its layer, and put plain layers back in place."""
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.merged())


def check_merged(model: nn.Module) -> None:
    """Raise CheckpointError if a model has adapters, which a model directory cannot hold."""
    if adapted_layers(model):
        raise CheckpointError("the model has adapters, which a model directory cannot hold. Call merge_adapters first, or save_adapters")


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
