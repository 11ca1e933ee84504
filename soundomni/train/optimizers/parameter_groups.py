"""Arguments that optimizers of AdamW's family are built with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from soundomni.core.spec.schema import OptimizerSpec

FUSED_DEVICES = ("cpu", "cuda")


def decaying_groups(parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> list[dict[str, Any]]:
    """Return the parameter groups of matrices and larger tensors, which decay, and of the rest, which do not; no empty
    ones."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adam_arguments(parameters: Mapping[str, nn.Parameter], settings: OptimizerSpec) -> dict[str, Any]:
    """Return the arguments for torch's AdamW other than its groups."""
    fused = all(p.device.type in FUSED_DEVICES for p in parameters.values())
    return {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "fused": fused}
