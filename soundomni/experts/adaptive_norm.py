"""Adaptive LayerNorm: a vector for each clip scales and shifts the norms of a layer (DiT, Peebles and Xie 2023, section 3.2).

Shape letters: N_e tokens of a stream, M clips, n norms of a layer, H hidden dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AdaptiveNorms(nn.Module):
    """Computes scale and shift of n norms from the vector of each clip: SiLU, then Linear.

    It starts at zero, which changes nothing. Without a bias, a vector of zeros, that is a clip without conditions, never changes
    anything.

    Args:
        hidden_dim: H.
        num_norms: n.
    """

    def __init__(self, *, hidden_dim: int, num_norms: int) -> None:
        super().__init__()
        self.num_norms = num_norms
        self.linear = nn.Linear(hidden_dim, 2 * num_norms * hidden_dim, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the weights to zero."""
        nn.init.zeros_(self.linear.weight)

    def forward(self, vectors: Tensor, clips: Tensor) -> Tensor:
        """Map vectors `[M + 1, H]`, and the row of the one of each token, `[N_e]`, to `[N_e, 2, n, H]`: scales, then shifts."""
        modulation: Tensor = self.linear(F.silu(vectors)).unflatten(-1, (2, self.num_norms, -1))
        return modulation.index_select(0, clips)


def modulated(normed: Tensor, modulation: Tensor | None, norm: int) -> Tensor:
    """Scale and shift the output `[N_e, H]` of a norm by what `AdaptiveNorms` gives; without it, nothing changes."""
    return normed if modulation is None else normed * (1 + modulation[:, 0, norm]) + modulation[:, 1, norm]
