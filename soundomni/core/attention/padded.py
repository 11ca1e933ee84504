"""Exact attention by `scaled_dot_product_attention` on padded rectangles: any layout, device, dtype and head size, nothing to compile.

Rectangles of similar sizes share a call, as in merged.py. Causal tokens after a full segment would need two rectangles; here they have one,
whose last keys are the queries, with a mask of its size.

Shape letters: P stored tokens, h heads, h_kv key-value heads, d head dimensions, n rectangles of a call, q and k their padded lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from soundomni.core.attention.fused import fused_attention
from soundomni.core.attention.merged import Group, build_group, share_calls
from soundomni.core.attention.rectangles import Rectangle, Rectangles
from soundomni.core.attention.uncompiled import uncompiled
from soundomni.core.upload import upload


def join_rectangles(rectangles: Rectangles) -> list[Rectangle]:
    """Return one rectangle for each query: causal ones begin with the keys that all of their queries see."""
    before = {int(one.query[0]): one.key for one in rectangles.second}
    joined = []
    for one in rectangles.first:
        keys = before.pop(int(one.query[0]), None) if one.causal else None
        joined.append(one if keys is None else replace(one, key=np.concatenate([keys, one.key])))
    assert not before, "a second rectangle is about the queries of a causal one"
    return joined


@dataclass(frozen=True)
class _Call:
    """A call for rectangles of similar sizes.

    Args:
        group: the rectangles.
        mask: `[n, 1, 1 or q, k]`; None if no query sees a key that is hidden from another one.
    """

    group: Group
    mask: Tensor | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P', h_kv, d]` to `[n * q, h, d]`, zero at padding."""
        q, k, v = self.group.queries_of(query), self.group.keys_of(key), self.group.keys_of(value)
        is_causal = self.group.causal and self.mask is None
        rows = fused_attention(q, k, v, mask=self.mask, causal=is_causal).transpose(1, 2).flatten(0, 1)
        return rows if self.group.padding is None else rows.index_fill(0, self.group.padding, 0)


@uncompiled
class PaddedPlan:
    """Executor "padded": any device and dtype; training and inference.

    Args:
        rectangles: places; every query is in one of them. The queries of a causal one are its last keys.
        device: device of the queries.
        reason: why it was chosen.
    """

    executor = "padded"

    def __init__(self, rectangles: Sequence[Rectangle], *, device: torch.device, reason: str) -> None:
        self.reason = reason
        after = [one for one in rectangles if one.causal and len(one.key) > len(one.query)]
        others = [one for one in rectangles if not (one.causal and len(one.key) > len(one.query))]
        self._calls = [_call(members, _padding_mask(members), device) for members in share_calls(others)]
        self._calls += [_call(members, _causal_mask(members), device) for members in share_calls(after)]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, key and value `[P', h_kv, d]` of one dtype, h a multiple of h_kv, to `[P, h, d]`."""
        out = torch.zeros_like(query)
        if not self._calls:  # the parameters behind q, k and v still take part in the backward pass
            return out + sum(x[:0].sum() for x in (query, key, value))
        for call in self._calls:
            call.group.query.add_to(out, call(query, key, value))
        return out


def _call(members: Sequence[Rectangle], mask: np.ndarray | None, device: torch.device) -> _Call:
    return _Call(build_group(members, device), None if mask is None else upload(mask, device))


def _lengths(members: Sequence[Rectangle]) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of queries and of keys of each rectangle, int64 `[n]`."""
    return np.asarray([len(one.query) for one in members]), np.asarray([len(one.key) for one in members])


def _padding_mask(members: Sequence[Rectangle]) -> np.ndarray | None:
    """Return bool `[n, 1, 1, k]`, False at padding; None if no query can see any. Causal rectangles have as many keys as queries."""
    _, keys = _lengths(members)
    if members[0].causal or (keys == keys.max()).all():
        return None  # a causal query never looks as far as the padding at the end
    mask: np.ndarray = (np.arange(keys.max()) < keys[:, None])[:, None, None]
    return mask


def _causal_mask(members: Sequence[Rectangle]) -> np.ndarray:
    """Return bool `[n, 1, q, k]` for causal rectangles with further keys in front."""
    queries, keys = _lengths(members)
    seen = np.minimum((keys - queries)[:, None] + 1 + np.arange(queries.max()), keys[:, None])
    mask: np.ndarray = (np.arange(keys.max()) < seen[..., None])[:, None]
    return mask
