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
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    sharded: list[Tensor] = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    norms = [_norm(kind) for kind in (sharded, whole) if kind]  # torch does not mix sharded and whole tensors
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
    if limit > 0:
        for is_sharded in (True, False):
            torch.nn.utils.clip_grads_with_norm_([p for p in with_gradient if isinstance(p.grad, DTensor) == is_sharded], limit, norm)
    return norm


def _norm(gradients: list[Tensor]) -> Tensor:
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
