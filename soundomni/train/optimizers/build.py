"""The optimizer that a spec names, over the trained parameters of a model."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from soundomni.core.errors import PluginError, SpecError
from soundomni.core.interfaces import Optimizer
from soundomni.core.spec import registry
from soundomni.core.spec.schema import OptimizerSpec


def build_optimizer(
    model: nn.Module, spec: OptimizerSpec, *, part: nn.Module | None = None, trust_class_paths: bool = False
) -> torch.optim.Optimizer:
    """Builds the optimizer that a spec names over the trained parameters of a model, or of a part of it.

    Raises:
        SpecError: every parameter is frozen.
        PluginError: the optimizer cannot be found, leaves parameters out, or takes sharded ones that it cannot update.
    """
    of_part = {id(p) for p in (part if part is not None else model).parameters()}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in of_part}
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
