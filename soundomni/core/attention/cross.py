"""Attention of clips to conditions that have no places in the sequence: each clip sees only its own.

Keys and values are those of all conditions of a batch, one after the other. A clip without conditions sees nothing, and its
attention is zero.

Shape letters: P stored tokens of a stream, C condition tokens of the batch, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from soundomni.core.attention.merged import Group, MergedPlan, group_rectangles
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.attention.rectangles import Rectangle, Rectangles
from soundomni.core.attention.uncompiled import uncompiled
from soundomni.core.attention.varlen import HALF, VarlenPlan


@uncompiled
class PaddedPlan:
    """Executor "padded": `scaled_dot_product_attention` on rectangles of similar sizes; any device and dtype."""

    executor = "padded"

    def __init__(self, rectangles: Sequence[Rectangle], *, device: torch.device, reason: str) -> None:
        assert not any(rectangle.causal for rectangle in rectangles), "a padded rectangle is not causal"
        self.reason = reason
        self._groups: list[Group] = group_rectangles(rectangles, device)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[C, h_kv, d]`, h a multiple of h_kv, to `[P, h, d]`."""
        out = torch.zeros_like(query)
        if not self._groups:  # the parameters behind q, k and v still take part in the backward pass
            return out + 0.0 * (query.sum() + key.sum() + value.sum())
        for group in self._groups:
            q, k, v = group.queries_of(query), group.keys_of(key), group.keys_of(value)
            part = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask_as(q.dtype), enable_gqa=q.shape[1] != k.shape[1])
            rows = part.transpose(1, 2).flatten(0, 1)
            if group.padding is not None:
                rows = rows.index_fill(0, group.padding, 0)
            group.query.add_to(out, rows)
        return out


def plan_cross(rectangles: Sequence[Rectangle], *, device: torch.device, dtype: torch.dtype) -> AttentionPlan:
    """Plan exact attention of the tokens of a stream to the conditions of a batch.

    Args:
        rectangles: a clip and its conditions each: places in the stream, and places among the condition tokens.
        device, dtype: those of the queries.
    """
    if device.type == "cpu":
        return MergedPlan(Rectangles(list(rectangles)), device=device, reason="on the CPU, flash calls are exact and need no mask")
    if device.type == "cuda" and dtype in HALF:
        return VarlenPlan(Rectangles(list(rectangles)), device=device, reason="a query has one rectangle, so one varlen call is exact")
    return PaddedPlan(rectangles, device=device, reason=f"varlen kernels do not take {str(dtype).removeprefix('torch.')}")
