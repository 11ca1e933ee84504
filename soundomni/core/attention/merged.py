"""Exact attention on the CPU, forward and backward, by one flash call per rectangle; nothing of size N x N.

Rectangles of (nearly) equal size share a call. If a query has two rectangles, their results are merged by log-sum-exp
(Dao et al. 2022, FlashAttention, section 3.1). The backward pass calls each flash backward with the merged output and
log-sum-exp, which gives the probabilities of the whole row, and adds up the gradients.

Shape letters: P stored tokens, h heads, h_kv key-value heads, d head dimensions, n rectangles of a group, q and k their
padded lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from soundomni.core.attention.places import Rows
from soundomni.core.attention.rectangles import Rectangle, Rectangles
from soundomni.core.attention.uncompiled import uncompiled
from soundomni.core.upload import upload

WASTE = 1024
"""Average number of padded query-key pairs per rectangle up to which sharing a call is cheaper than another call."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def obstacle(device: torch.device) -> str | None:
    """Return why the kernels cannot run on `device`, or None if they can."""
    return None if device.type == "cpu" else f"its kernels are for the CPU, and the batch is on '{device.type}'"


@dataclass(frozen=True)
class Group:
    """Rectangles that share a flash call, padded at their ends to equal lengths.

    Args:
        count: n.
        query, key: the rows of all rectangles, n * q and n * k of them; padding repeats the first row of its rectangle.
        causal: whether all of them are causal.
        padding: int64, which of the n * q query rows are padding; None if none are.
        mask: `[n, 1, 1, k]`, -inf at padding keys, otherwise 0; None if no real query can see a padding key.
    """

    count: int
    query: Rows
    key: Rows
    causal: bool
    padding: Tensor | None
    mask: Tensor | None

    def queries_of(self, stored: Tensor) -> Tensor:
        """Map `[P, h, d]` to `[n, h, q, d]`."""
        return self._batched(self.query.of(stored))

    def keys_of(self, stored: Tensor) -> Tensor:
        """Map `[P, h_kv, d]` to `[n, h_kv, k, d]`."""
        return self._batched(self.key.of(stored))

    def _batched(self, rows: Tensor) -> Tensor:
        return rows.view(self.count, -1, *rows.shape[1:]).transpose(1, 2)

    def mask_as(self, dtype: torch.dtype) -> Tensor | None:
        """Return the mask in the dtype of the queries, as the kernel requires."""
        return None if self.mask is None else self.mask.to(dtype)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output `[n * q, h, d]` and log-sum-exp `[n * q, h]` of only these rectangles."""
        q, k, v = self.queries_of(query), self.keys_of(key), self.keys_of(value)
        out, lse = _flash(q, k, v, 0.0, self.causal, attn_mask=self.mask_as(q.dtype))
        return out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)


def share_calls(rectangles: Sequence[Rectangle]) -> list[list[Rectangle]]:
    """Sort rectangles into groups of similar size, all causal or none, the largest first."""
    groups: list[list[Rectangle]] = []
    longest = area = 0
    for rectangle in sorted(rectangles, key=lambda r: (r.causal, len(r.key), len(r.query)), reverse=True):
        size = len(rectangle.query) * len(rectangle.key)
        if groups and groups[-1][0].causal == rectangle.causal:
            members = len(groups[-1]) + 1
            padded = members * max(longest, len(rectangle.query)) * len(groups[-1][0].key)
            if padded - area - size <= WASTE * members:
                groups[-1].append(rectangle)
                longest, area = max(longest, len(rectangle.query)), area + size
                continue
        groups.append([rectangle])
        longest, area = len(rectangle.query), size
    return groups


def build_group(members: Sequence[Rectangle], device: torch.device) -> Group:
    """Return rectangles as a group that shares a flash call."""
    query, query_padding = _pad([r.query for r in members])
    key, key_padding = _pad([r.key for r in members])
    causal = members[0].causal
    mask = None
    if key_padding.any() and not causal:  # a causal query never looks as far as the padding at the end
        mask = torch.zeros(key.shape).masked_fill(torch.from_numpy(key_padding), float("-inf"))[:, None, None]
    return Group(
        count=len(members),
        query=Rows(query.reshape(-1), device),
        key=Rows(key.reshape(-1), device),
        causal=causal,
        padding=upload(np.flatnonzero(query_padding), device) if query_padding.any() else None,
        mask=None if mask is None else upload(mask, device),
    )


def _pad(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows as one array, short ones filled up with their first entry, and where they were filled."""
    lengths = np.asarray([len(row) for row in rows])
    padding = np.arange(lengths.max()) >= lengths[:, None]
    filled = np.repeat(np.asarray([row[0] for row in rows])[:, None], lengths.max(), axis=1)
    filled[~padding] = np.concatenate(rows)
    return filled, padding


class _MergedAttention(torch.autograd.Function):
    """All rectangles of a batch as one differentiable step."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, first: Sequence[Group], second: Sequence[Group]) -> Tensor:
        precise = torch.promote_types(query.dtype, torch.float32)  # dtype of the kernel's log-sum-exp
        out, lse = torch.zeros_like(query), query.new_zeros(query.shape[:2], dtype=precise)
        for group in first:
            part, part_lse = group.forward(query, key, value)
            if group.padding is not None:
                part.index_fill_(0, group.padding, 0)
                part_lse.index_fill_(0, group.padding, 0)
            group.query.add_to(out, part)  # the rows are still zero, and adding is faster than writing
            group.query.add_to(lse, part_lse)
        for group in second:
            part, part_lse = group.forward(query, key, value)
            before, before_lse = group.query.of(out), group.query.of(lse)
            both = torch.logaddexp(before_lse, part_lse)
            merged = before * (before_lse - both).exp()[..., None] + part * (part_lse - both).exp()[..., None]
            group.query.write_to(out, merged.to(out.dtype))  # padding repeats a query of this rectangle, and so its values
            group.query.write_to(lse, both)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.groups = (*first, *second)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grads = tuple(torch.zeros_like(x, dtype=lse.dtype) for x in (query, key, value))
        grad_out = grad_out.contiguous()
        for group in ctx.groups:
            rows_lse = group.query.of(lse)
            if group.padding is not None:  # probability zero: a padding query sends no gradient anywhere
                rows_lse = rows_lse.index_fill(0, group.padding, float("inf"))
            parts = _flash_backward(
                group.queries_of(grad_out),
                group.queries_of(query),
                group.keys_of(key),
                group.keys_of(value),
                group.queries_of(out),
                rows_lse.view(group.count, -1, query.shape[1]).transpose(1, 2),
                0.0,
                group.causal,
                attn_mask=group.mask_as(query.dtype),
            )
            for rows, grad, part in zip((group.query, group.key, group.key), grads, parts, strict=True):
                rows.add_to(grad, part.transpose(1, 2).flatten(0, 1).to(grad.dtype))
        return (*(grad.to(query.dtype) for grad in grads), None, None)


@uncompiled
class MergedPlan:
    """Executor "merged": fp64, fp32, bf16 and fp16 on the CPU; training and inference. Rectangles hold places."""

    executor = "merged"

    def __init__(self, rectangles: Rectangles, *, device: torch.device, reason: str) -> None:
        self.reason = reason
        self._first, self._second = (
            [build_group(members, device) for members in share_calls(some)] for some in (rectangles.first, rectangles.second)
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P', h_kv, d]` of one dtype, h a multiple of h_kv, to `[P, h, d]`."""
        out: Tensor = _MergedAttention.apply(  # type: ignore[no-untyped-call]
            query, key, value, self._first, self._second
        )
        return out
