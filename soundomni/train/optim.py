"""The optimizer over the trained parameters, and clipping by the global norm across shards."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from soundomni.core.errors import PluginError, SpecError
from soundomni.core.interfaces import Optimizer
from soundomni.core.spec import registry
from soundomni.core.spec.schema import OptimizerSpec


def build_optimizer(model: nn.Module, spec: OptimizerSpec, *, trust_class_paths: bool = False) -> torch.optim.Optimizer:
    """Builds the optimizer that a spec names over the trained parameters of a model.

    Raises:
        SpecError: every parameter is frozen.
        PluginError: the optimizer cannot be found, leaves parameters out, or takes sharded ones that it cannot update.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise SpecError("nothing to train: every parameter is frozen; name fewer parts in model.freeze")
    rule: Optimizer = registry.build("optimizer", spec.rule, trust_class_paths=trust_class_paths)
    optimizer = rule.build(trained, spec)
    if not rule.shards and any(isinstance(p, DTensor) for p in trained.values()):
        raise PluginError(
            f"optimizer '{spec.rule.class_path}' only runs in one process, not under torchrun; set another train.optimizer.rule"
        )
    updated = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in trained.items() if id(p) not in updated]
    if missing:
        raise PluginError(f"optimizer '{spec.rule.class_path}' updates {len(updated)} of {len(trained)} parameters; missing: {missing[0]}")
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales all gradients so that their global L2 norm is at most `limit`; 0 only measures. Returns the norm before, 0-dim.

    The norm is over whole tensors, whatever the sharding, so every rank gets the same number.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, limit, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
