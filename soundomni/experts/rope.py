"""Rotary position embedding (Su et al. 2021, section 3.2.2) in the half-split convention of Llama and Qwen2.

Pair i of a head is (x[i], x[i + d/2]); it is rotated by position · theta^(−2i/d).

Shape letters: P stored tokens, h heads, d head dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(position_ids: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the factors of x and of its swapped halves, `[P, d]` each, for int64 `position_ids` `[P]`.

    The first are the cosines, twice; the second the sines, negative for the first half of a head, so that `rotate` takes two
    products and a sum. Angles are computed in float32 (float64 for float64 models), whatever `dtype` the tables have.
    """
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=wide) / head_dim
    angles = position_ids[:, None].to(wide) * theta**-exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys `[P, h, d]` by tables `[P, d]`; the result has the dtype of `x`."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos[:, None] + swapped * sin[:, None]).to(x.dtype)
