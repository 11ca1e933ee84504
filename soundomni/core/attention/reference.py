"""Dense attention with an explicit mask, in the precision of its inputs: the reference for every other executor.

Shape letters: N tokens, P stored tokens, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soundomni.core.attention.places import token_places
from soundomni.core.attention.rule import dense_mask
from soundomni.core.attention.stored_order import StoredOrder
from soundomni.core.sequence import SegmentTable
from soundomni.core.upload import upload

MAX_TOKENS = 16384


def obstacle(table: SegmentTable) -> str | None:
    """Return why the batch cannot be computed densely, or None if it can."""
    if table.num_tokens > MAX_TOKENS:
        return f"its mask is dense, which is for tests with at most {MAX_TOKENS} tokens, and the batch has {table.num_tokens}"
    return None


class ReferencePlan:
    """Softmax over an N x N mask (Vaswani et al. 2017, equation 1), differentiable twice."""

    executor = "reference"

    def __init__(self, table: SegmentTable, stored: StoredOrder, *, device: torch.device, reason: str) -> None:
        self.reason = reason
        self._places = upload(token_places(stored), device)
        self._mask = upload(dense_mask(table), device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P, h_kv, d]` to `[P, h, d]`."""
        group = query.shape[1] // key.shape[1]
        q = query.index_select(0, self._places)
        k = key.index_select(0, self._places).repeat_interleave(group, dim=1)
        v = value.index_select(0, self._places).repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * query.shape[-1] ** -0.5
        weights = scores.masked_fill(~self._mask, float("-inf")).softmax(dim=-1)
        out = torch.einsum("hqk,khd->qhd", weights, v)
        return torch.zeros_like(query).index_copy(0, self._places, out)
