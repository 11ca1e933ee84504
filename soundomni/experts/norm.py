"""Root-mean-square normalization. Shape letters: D normalized dimensions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang and Sennrich 2019, eq. 4): `[..., D]` →
    `[..., D]`.

    The result has the input's dtype; the mean is taken in at least float32. A weight kept in float32 does not widen
    bf16 tokens.
    """

    def __init__(self, dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., D]` to `[..., D]`."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
