"""Variable-length flash attention on CUDA: one call for all causal rectangles of a batch, one for all others.

It is exact if every query has one rectangle, that is, if no causal segment follows a full one; then nothing is merged.
Rectangles are gathered one after another, so that the kernel sees a batch of sequences whose queries and keys may
differ in number (FlashAttention-2, Dao 2023).

Shape letters: P stored tokens, Q and K gathered queries and keys, n rectangles, h heads, h_kv key-value heads, d head
dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from soundomni.core.attention.rectangles import Rectangle, Rectangles
from soundomni.core.attention.rule import is_single_pass
from soundomni.core.attention.uncompiled import uncompiled
from soundomni.core.sequence import SegmentTable
from soundomni.core.upload import upload

HALF = (torch.bfloat16, torch.float16)
HEAD_MULTIPLE, MOST_HEAD_DIM = 8, 256
"""Head dimensions that flash attention takes: multiples of the one up to the other."""


def kernel_obstacle(device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str | None:
    """Return why the varlen kernels cannot run, or None if they can.

    `head_dim` is d; None leaves it to the kernels.
    """
    if device.type != "cuda":
        return f"varlen kernels need a CUDA device, and the batch is on '{device.type}'"
    if dtype not in HALF:
        return f"varlen kernels take bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    if head_dim is not None and (head_dim % HEAD_MULTIPLE or head_dim > MOST_HEAD_DIM):
        return f"varlen kernels take heads of a multiple of {HEAD_MULTIPLE} up to {MOST_HEAD_DIM} dimensions, not {head_dim}"
    return None


def obstacle(table: SegmentTable, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> str | None:
    """Return why the varlen kernels cannot compute the batch, or None if they can."""
    hindrance = kernel_obstacle(device, dtype, head_dim)
    if hindrance is not None:
        return hindrance
    if not is_single_pass(table):
        return "a causal segment follows a full one in the same document, which needs two calls merged"
    return None


@dataclass(frozen=True)
class VarlenCall:
    """Arguments of one call: every rectangle is one sequence, and none is empty.

    Args:
        query, key: int64 `[Q]` and `[K]`, stored places, rectangle after rectangle.
        cu_seqlens_q, cu_seqlens_k: int32 `[n + 1]`, start of each rectangle.
        causal: whether query i of a rectangle sees only its first i + 1 keys.
    """

    query: np.ndarray
    key: np.ndarray
    cu_seqlens_q: np.ndarray
    cu_seqlens_k: np.ndarray
    causal: bool


def varlen_calls(rectangles: Sequence[Rectangle]) -> list[VarlenCall]:
    """Return at most two calls that cover the rectangles, which hold stored places."""
    calls = []
    for causal in (True, False):
        chosen = [rectangle for rectangle in rectangles if rectangle.causal == causal]
        if chosen:
            calls.append(
                VarlenCall(
                    query=np.concatenate([r.query for r in chosen]),
                    key=np.concatenate([r.key for r in chosen]),
                    cu_seqlens_q=np.cumsum([0] + [len(r.query) for r in chosen], dtype=np.int32),
                    cu_seqlens_k=np.cumsum([0] + [len(r.key) for r in chosen], dtype=np.int32),
                    causal=causal,
                )
            )
    return calls


class _DeviceCall:
    """A call with its indices on the device."""

    def __init__(self, call: VarlenCall, device: torch.device) -> None:
        self.query, self.key = (upload(x, device) for x in (call.query, call.key))
        self._cu_q, self._cu_k = (upload(x, device) for x in (call.cu_seqlens_q, call.cu_seqlens_k))
        self._max_q, self._max_k = (int(np.diff(x).max()) for x in (call.cu_seqlens_q, call.cu_seqlens_k))
        self._window = (-1, 0) if call.causal else (-1, -1)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P, h_kv, d]` to `[Q, h, d]`."""
        from torch.nn.attention.varlen import varlen_attn  # slow to import, and only for CUDA

        group = query.shape[1] // key.shape[1]  # the operator is specified for equal numbers of heads
        k, v = (x.index_select(0, self.key).repeat_interleave(group, dim=1) for x in (key, value))
        q = query.index_select(0, self.query)
        out = varlen_attn(q, k, v, self._cu_q, self._cu_k, self._max_q, self._max_k, window_size=self._window)
        assert isinstance(out, Tensor)
        return out


@uncompiled
class VarlenPlan:
    """Executor "varlen": bf16 and fp16 on CUDA; training and inference."""

    executor = "varlen"

    def __init__(self, rectangles: Rectangles, *, device: torch.device, reason: str) -> None:
        assert not rectangles.second, "a query with two rectangles has to be merged"
        self.reason = reason
        self._calls = [_DeviceCall(call, device) for call in varlen_calls(rectangles.first)]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P', h_kv, d]` of one dtype, float16 or bfloat16, h a multiple of h_kv,
        to `[P, h, d]`."""
        out = torch.zeros_like(query)
        if not self._calls:  # nothing to attend to: the parameters behind q, k and v still take part in the backward pass
            return out + 0.0 * (query.sum() + key.sum() + value.sum())
        for call in self._calls:
            out = out.index_copy(0, call.query, call(query, key, value))
        return out
