"""Several gated feed-forward networks of equal size at once, each on its own rows, without waiting for a GPU to say how many they are.

Shape letters: N rows, H hidden dimensions, I intermediate dimensions, E networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soundomni.experts.swiglu import SwiGLU

ALIGNMENT = 8
"""Sides of bf16 matrices are multiples of this: the kernel reads 16 bytes at a time."""


def runs_grouped(networks: Sequence[nn.Module], rows: Tensor) -> bool:
    """Return whether the kernel fits: bf16 on CUDA, and plain networks, without adapters. Others run one after the other."""
    if rows.device.type != "cuda" or _computing_dtype(rows) != torch.bfloat16:
        return False
    linears = [linear for network in networks if isinstance(network, SwiGLU) for linear in (network.gate_up, network.down)]
    sides = {side for linear in linears for side in linear.weight.shape}
    plain = len(linears) == 2 * len(networks) and all(type(linear) is nn.Linear for linear in linears)
    return plain and all(side % ALIGNMENT == 0 for side in sides)


def run_grouped(networks: Sequence[SwiGLU], rows: Tensor, sizes: Tensor) -> Tensor:
    """Return `[N, H]`, what each network makes of its own rows.

    Args:
        networks: E networks of equal size.
        rows: `[N, H]`, those of the first network first.
        sizes: int64 `[E]`, the rows of each network, on the device of the rows; any may be 0.
    """
    ends = sizes.cumsum(0).to(torch.int32)
    gate, up = _product(rows, [network.gate_up for network in networks], ends).chunk(2, dim=-1)
    return _product(F.silu(gate) * up, [network.down for network in networks], ends)


def _product(rows: Tensor, linears: Sequence[nn.Linear], ends: Tensor) -> Tensor:
    dtype = _computing_dtype(rows)
    weights = torch.stack([linear.weight.to(dtype) for linear in linears])
    product: Tensor = F.grouped_mm(rows.to(dtype), weights.transpose(1, 2), offs=ends)
    return product


def _computing_dtype(rows: Tensor) -> torch.dtype:
    kind = rows.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
