"""Gated feed-forward network. Shape letters: N tokens, H hidden dimensions, I intermediate dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """Computes down(silu(gate(x)) · up(x)) without biases (Shazeer 2020, eq. 6): `[N, H]` → `[N, H]`.

    Gate and up are one matrix product: rows `[:I]` of `gate_up.weight` are the gate, rows `[I:]` are up.
    """

    def __init__(self, *, hidden_dim: int, intermediate_dim: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden_dim, 2 * intermediate_dim, bias=False)
        self.down = nn.Linear(intermediate_dim, hidden_dim, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map `[N, H]` to `[N, H]`."""
        gate, up = self.gate_up(hidden).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out

    @torch.no_grad()
    def copy_from(self, source: SwiGLU) -> None:
        """Copy the weights of a network that is at least as wide.

        A narrower network of I channels takes channels floor(j · I_source / I) for j = 0 … I − 1, evenly spaced: these
        rows of gate and up, and the matching columns of down.
        """
        width, wide = self.down.in_features, source.down.in_features
        if width > wide:
            raise ValueError(f"a network of {width} channels cannot be copied from one of {wide}; expected at most {wide}")
        chosen = kept_channels(width, wide).to(source.down.weight.device)
        self.gate_up.weight.copy_(source.gate_up.weight[torch.cat([chosen, chosen + wide])])
        self.down.weight.copy_(source.down.weight[:, chosen])


def kept_channels(width: int, wide: int) -> Tensor:
    """Return int64 `[width]`: the channels of a network of `wide` that a copy of `width` takes over, see
    SwiGLU.copy_from."""
    return torch.arange(width) * wide // width
