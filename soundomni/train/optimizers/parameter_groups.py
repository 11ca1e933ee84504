"""Arguments that optimizers of AdamW's family are built with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

from soundomni.core.spec.schema import OptimizerSpec

FUSED_DEVICES = ("cpu", "cuda")


def decaying_groups(parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> list[dict[str, Any]]:
    """Return the parameter groups of matrices and larger tensors, which decay, and of the rest, which do not; no empty ones.

    Sharded and whole parameters are in different groups, because torch's fused steps do not mix them.
    """
    groups = []
    for decays in (True, False):
        for is_sharded in (True, False):
            own = [p for p in parameters.values() if (p.ndim >= 2) == decays and isinstance(p, DTensor) == is_sharded]
            groups.append({"params": own, "weight_decay": settings.weight_decay if decays else 0.0})
    return [group for group in groups if group["params"]]


def adam_arguments(parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> dict[str, Any]:
    """Return the arguments for torch's AdamW other than its groups."""
    fused = all(p.device.type in FUSED_DEVICES for p in parameters.values())
    return {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "fused": fused}
