"""Clipping of whole or sharded gradients by their global norm."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `limit`, and return the norm before, 0-dim.

    A limit of 0 only measures. The norm is over whole tensors, however they are sharded, so all ranks get the same
    number.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, limit, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
