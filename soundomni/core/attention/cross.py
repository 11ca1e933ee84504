"""Attention of clips to conditions that have no places in the sequence: each clip sees only its own.

Keys and values are those of all conditions of a batch, one after the other. A clip without conditions sees nothing, and its
attention is zero.

Shape letters: P stored tokens of a stream, C condition tokens of the batch, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soundomni.core.attention.merged import MergedPlan
from soundomni.core.attention.padded import PaddedPlan
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.attention.rectangles import Rectangle, Rectangles
from soundomni.core.attention.varlen import VarlenPlan, kernel_obstacle


def plan_cross(rectangles: Sequence[Rectangle], *, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> AttentionPlan:
    """Plan exact attention of the tokens of a stream to the conditions of a batch.

    Args:
        rectangles: a clip and its conditions each: places in the stream, and places among the condition tokens.
        device, dtype: those of the queries.
        head_dim: d; None leaves its limits to the kernels.
    """
    if device.type == "cpu":
        return MergedPlan(Rectangles(list(rectangles)), device=device, reason="on the CPU, flash calls are exact and need no mask")
    hindrance = kernel_obstacle(device, dtype, head_dim)
    if hindrance is None:
        return VarlenPlan(Rectangles(list(rectangles)), device=device, reason="a query has one rectangle, so one varlen call is exact")
    return PaddedPlan(rectangles, device=device, reason=hindrance)
