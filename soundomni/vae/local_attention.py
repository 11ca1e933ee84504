"""Causal attention within a window, with rotary positions (Su et al. 2021, "RoFormer", section 3.2).

Positions only matter relative to each other, so that a clip can be cut. The frames are computed in blocks of the
window's size, each of which looks at itself and the block before: memory grows with T, not with its square.

Shape letters: B clips, D latent dimensions, T frames, W frames of a window, N blocks, H heads, E
dimensions of a head.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.errors import SpecError
from soundomni.vae.past import Past

HEAD_DIM = 64
BASE = 10_000.0
"""Longest period of the rotary positions, in frames and divided by 2π."""


class LocalAttention(nn.Module):
    """x + attention(norm(x)), each frame over the last W frames, itself included.

    Args:
        dim: D; heads have 64 dimensions, or there is one head if D is smaller.
        window: W.

    Raises:
        SpecError: D cannot be split into heads.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, *, dim: int, window: int) -> None:
        super().__init__()
        self.heads = max(1, dim // HEAD_DIM)
        if dim % self.heads or (dim // self.heads) % 2:
            expected = f"an even number, a multiple of {HEAD_DIM} if above, for attention"
            raise SpecError(f"latent_dim is {dim}; expected {expected}")
        self.window = window
        self.norm = nn.LayerNorm(dim)
        self.joint = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        half = dim // self.heads // 2
        rates = BASE ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(2 * window, dtype=torch.float64), rates)
        self.register_buffer("cosines", angles.cos().float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, values: Tensor, past: Past | None = None) -> Tensor:
        """Map `[B, D, T]` to `[B, D, T]`; with a past, continue the clips that it is of."""
        longer = values if past is None else past.known_before(self, values, self.window - 1)
        missing = -longer.shape[-1] % self.window
        rows = functional.pad(self.joint(self.norm(longer.mT)), (0, 0, 0, missing))
        parts = rearrange(rows, "b (n w) (part h e) -> part b h n w e", part=3, h=self.heads, w=self.window)
        query, key, value = parts.unbind(0)
        query = self._rotate(query, first=self.window)
        key, value = self._rotate(_with_block_before(key)), _with_block_before(value)
        query, key, value = (rearrange(part, "b h n w e -> (b n) h w e") for part in (query, key, value))
        allowed = self._allowed(rows.shape[1] // self.window, rows.device).repeat(len(rows), 1, 1)[:, None]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        mixed = rearrange(mixed, "(b n) h w e -> b (n w) (h e)", b=len(rows))
        end = longer.shape[-1]
        out: Tensor = self.out(mixed[:, end - values.shape[-1] : end])
        return values + out.mT

    def _rotate(self, vectors: Tensor, first: int = 0) -> Tensor:
        """Rotate `[..., L, E]` by their positions in two blocks, of which theirs start at `first`."""
        part = slice(first, first + vectors.shape[-2])
        cosines, sines = self.cosines[part], self.sines[part]
        left, right = vectors.chunk(2, dim=-1)
        return torch.cat([left * cosines - right * sines, left * sines + right * cosines], dim=-1)

    def _allowed(self, blocks: int, device: torch.device) -> Tensor:
        """Return which of the 2·W positions of a block and the one before a frame attends to: bool `[N, W, 2·W]`."""
        places, window = torch.arange(2 * self.window, device=device), self.window
        distance = places[window:, None] - places
        starts = window * torch.arange(blocks, device=device)
        exists = places + starts[:, None] >= window
        return (distance >= 0) & (distance < window) & exists[:, None]


def _with_block_before(blocks: Tensor) -> Tensor:
    """Map blocks `[B, H, N, W, E]` to `[B, H, N, 2·W, E]`, each after the block before it; zeros before the first."""
    before = functional.pad(blocks, (0, 0, 0, 0, 1, 0))[:, :, :-1]
    return torch.cat([before, blocks], dim=-2)
