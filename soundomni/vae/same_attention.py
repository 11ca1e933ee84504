"""SAME's attention: differential, among tokens that are near each other, with rotary positions.

A sequence is computed in blocks. With a window, the tokens of a block look at their block and at the tokens just before
and after it, as far as the window reaches; otherwise they only look at their block. So memory grows with the length,
not with its square. Only relative positions matter, so each block counts its own from 0: the angles stay exact even for
very long clips.

Shape letters: B clips, C channels of a layer, N blocks, Q tokens of a block, K tokens that it looks at, H heads, E
dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

BASE = 10_000.0
"""Longest period of the rotary positions, in tokens and divided by 2π."""


class DynamicTanh(nn.Module):
    """Computes γ·tanh(α·x) + β in place of a norm (Zhu et al. 2025, "Transformers without normalization")."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), 4.0))
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, values: Tensor) -> Tensor:
        """Map `[..., C]` to `[..., C]`."""
        return self.gamma * torch.tanh(self.alpha * values) + self.beta


@dataclass(frozen=True)
class Reach:
    """What the tokens of a block look at, besides the block itself.

    Args:
        before, after: how many tokens before and after the block are added to it.
        allowed: bool `[B, N, Q, K]`, whether a token looks at another; None if it looks at all of them.
    """

    before: int = 0
    after: int = 0
    allowed: Tensor | None = None


BLOCK_ONLY = Reach()


def within_window(lengths: Tensor, blocks: int, size: int, before: int, after: int) -> Reach:
    """Return the reach of tokens that look at `before` tokens before and `after` tokens after themselves.

    The tokens of a clip do not see tokens beyond its end.

    Args:
        lengths: `[B]`, tokens of each clip.
        blocks: N.
        size: Q.
        before, after: the window, in tokens.
    """
    device = lengths.device
    query = torch.arange(size, device=device)
    key = torch.arange(-before, size + after, device=device)
    distance = key - query[:, None]
    near = (distance >= -before) & (distance <= after)
    first, end = size * torch.arange(blocks, device=device)[:, None], lengths[:, None, None]
    exists = (first + key >= 0) & (first + key < end)
    beyond = first + query >= end  # these see everything: a token that sees nothing would become NaN
    return Reach(before, after, near & (exists[:, :, None] | beyond[..., None]))


class DifferentialAttention(nn.Module):
    """Attention minus a second attention over the same values.

    Like Ye et al. 2024, "Differential transformer", but without the factor λ and the norm of heads.

    Args:
        dim: C, a multiple of `head_dim`.
        head_dim: E, a multiple of 4; half of it is rotated.
        differential: whether a second attention is subtracted; otherwise there is only the first.
    """

    def __init__(self, *, dim: int, head_dim: int, differential: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.differential = differential
        self.qkv = nn.Linear(dim, (5 if differential else 3) * dim, bias=False)
        self.output = nn.Linear(dim, dim, bias=False)
        self.query_norm = DynamicTanh(head_dim)
        self.key_norm = DynamicTanh(head_dim)

    def forward(self, values: Tensor, reach: Reach) -> Tensor:
        """Map blocks `[B, N, Q, C]` to the same shape."""
        parts = rearrange(self.qkv(values), "b n q (part h e) -> part b n h q e", h=values.shape[-1] // self.head_dim, e=self.head_dim)
        query, key, value, *second = parts.unbind(0)
        value = _with_neighbors(value, reach)
        mixed = self._mix(query, key, value, reach)
        if self.differential:
            mixed = mixed - self._mix(second[0], second[1], value, reach)
        out: Tensor = self.output(rearrange(mixed, "(b n) h q e -> b n q (h e)", b=len(values)))
        return out

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, reach: Reach) -> Tensor:
        """Attend with `[B, N, H, Q, E]`, the values with their neighbors `[B, N, H, K, E]`: return `[B·N, H, Q, E]`."""
        query = rotated(self.query_norm(query), first=reach.before).to(value.dtype)
        key = rotated(_with_neighbors(self.key_norm(key), reach)).to(value.dtype)
        allowed = None if reach.allowed is None else reach.allowed.flatten(0, 1)[:, None]
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def rotated(vectors: Tensor, *, first: int = 0) -> Tensor:
    """Rotate half of the dimensions of `[..., L, E]` by their positions, which start at `first`.

    This is computed in at least float32 (Su et al. 2021, "RoFormer", section 3.4.2).
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    rates = rotary_rates(vectors.shape[-1], vectors.device)
    angles = torch.outer(torch.arange(first, first + vectors.shape[-2], dtype=torch.float32, device=vectors.device), rates)
    cosines, sines = angles.cos(), angles.sin()
    half = len(rates)
    left, right, rest = vectors[..., :half], vectors[..., half : 2 * half], vectors[..., 2 * half :]
    return torch.cat([left * cosines - right * sines, right * cosines + left * sines, rest], dim=-1)


def rotary_rates(head_dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the angles between neighboring positions, float32 `[E / 4]`, for E = `head_dim`."""
    rotary = head_dim // 2
    return 1.0 / BASE ** (torch.arange(0, rotary, 2, dtype=torch.float32, device=device) / rotary)


def _with_neighbors(blocks: Tensor, reach: Reach) -> Tensor:
    """Map blocks `[B, N, H, Q, E]` to `[B, N, H, K, E]`, with the tokens before and after each, or zeros."""
    if not (reach.before or reach.after):
        return blocks
    size = blocks.shape[3]
    row = rearrange(blocks, "b n h q e -> b h (n q) e")
    row = functional.pad(row, (0, 0, reach.before, reach.after))
    return rearrange(row.unfold(2, size + reach.before + reach.after, size), "b h n e k -> b n h k e")
