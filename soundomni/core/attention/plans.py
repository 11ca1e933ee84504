"""What every executor gives a backbone: exact attention for one batch.

Shape letters: P stored tokens (padding included), P' stored keys, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionPlan(Protocol):
    """Exact attention for one batch. Made once per batch, used by every layer."""

    executor: str
    """Name of the executor that was chosen."""
    reason: str
    """Why it was chosen."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P', h_kv, d]` to `[P, h, d]`, in stored order; padding rows come out
        as zero."""
        ...
