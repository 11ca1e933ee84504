"""Cross-attention of packed clips to their conditions (Vaswani et al. 2017, section 3.2.3), as one more branch of a layer.

Shape letters: N_e tokens of a stream, C condition tokens of the batch, H hidden dimensions, h heads, d head dimensions.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn

from soundomni.core.attention.layout import Layout
from soundomni.experts.initial import INITIAL_STD


class CrossAttention(nn.Module):
    """LayerNorm, queries of the tokens, keys and values of the conditions, and the way back: `[N_e, H]` → `[N_e, H]`.

    There are no biases and no positions, so a token without conditions gets exactly zero.

    Args:
        hidden_dim, num_heads, head_dim: H, h and d.
        norm_eps: eps of the norm.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, head_dim: int, norm_eps: float) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(hidden_dim, eps=norm_eps)
        self.query = nn.Linear(hidden_dim, inner, bias=False)
        self.key_value = nn.Linear(hidden_dim, 2 * inner, bias=False)
        self.output = nn.Linear(inner, hidden_dim, bias=False)

    @torch.no_grad()
    def draw(self, branches: int) -> None:
        """Draw the initial weights for a network with so many branches that write to the residual stream."""
        for layer in (self.query, self.key_value):
            nn.init.normal_(layer.weight, std=INITIAL_STD)
        nn.init.normal_(self.output.weight, std=INITIAL_STD / math.sqrt(branches))

    def forward(self, hidden: Tensor, layout: Layout, *, layer: int, stream: int) -> Tensor:
        """Return what the tokens `[N_e, H]` of a stream find in their conditions, `[N_e, H]`."""
        query: Tensor = self.query(self.norm(hidden)).unflatten(-1, (-1, self.head_dim))
        found: Tensor = self.output(rearrange(layout.cross(layer, stream, query, self.project), "n h d -> n (h d)"))
        return found

    def project(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Map condition tokens `[C, H]` to key and value `[C, h, d]`."""
        key, value = self.key_value(conditions).unflatten(-1, (2, -1, self.head_dim)).unbind(1)
        return key, value
