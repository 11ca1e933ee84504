"""AdamW over the trained parameters, and clipping by the global norm across shards."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from soundomni.core.errors import SpecError
from soundomni.core.schema import OptimizerSpec

FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(model: nn.Module, spec: OptimizerSpec) -> torch.optim.AdamW:
    """Builds AdamW (Loshchilov and Hutter 2019) over the trained parameters; those of one dimension do not decay.

    Raises:
        SpecError: every parameter is frozen.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise SpecError("nothing to train: every parameter is frozen; name fewer parts in model.freeze")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in FUSED_DEVICES for p in trained)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fused)


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
