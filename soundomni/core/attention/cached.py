"""Attention of new tokens over a key-value cache: rows of any lengths in one call.

Shape letters: B rows, L cached places per row that are looked at, q the most new tokens of a row, P stored tokens of
the call, h heads, h_kv key-value heads, d head dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from soundomni.core.attention.fused import fused_attention
from soundomni.core.attention.places import token_places
from soundomni.core.attention.stored_order import StoredOrder
from soundomni.core.attention.uncompiled import uncompiled
from soundomni.core.upload import upload


@uncompiled
class CachedPlan:
    """Executor "cached": fused attention on padded rows, with a mask over keys if rows differ."""

    executor = "cached"
    reason = "new tokens look into a key-value cache"

    def __init__(
        self,
        cache_lengths: np.ndarray,
        capacity: int,
        new_lengths: np.ndarray,
        stored: StoredOrder,
        *,
        causal: bool,
        device: torch.device,
    ) -> None:
        totals = cache_lengths + new_lengths
        assert totals.max(initial=0) <= capacity, f"rows of up to {totals.max()} tokens in a cache of {capacity}"
        self._shape = (len(new_lengths), int(new_lengths.max(initial=0)))
        self._capacity, self._length = capacity, int(totals.max(initial=0))
        real = np.arange(self._shape[1]) < new_lengths[:, None]
        places = token_places(stored)
        self._is_empty, self._has_padding = not len(places), not len(places) == real.size == len(stored.order)
        self._is_ordered = not self._has_padding and np.array_equal(places, np.arange(real.size))
        if not self._is_ordered:
            padded = np.zeros(self._shape, dtype=np.int64)
            padded[real] = places
            self._query = upload(padded.reshape(-1), device)
            self._order = upload(stored.order, device)
            self._real = upload(np.flatnonzero(real), device)
            self._places = upload(places, device)
        limit = self._key_limits(cache_lengths, totals, causal=causal)
        visible = np.arange(self._length) < limit[..., None]
        self._mask = None if visible.all() else upload(visible[:, None], device)

    def _key_limits(self, cache_lengths: np.ndarray, totals: np.ndarray, *, causal: bool) -> np.ndarray:
        """Return `[B, 1 or q]`: how many keys of its row each query sees."""
        if not causal or self._shape[1] <= 1:
            return totals[:, None]
        limit: np.ndarray = np.minimum(cache_lengths[:, None] + np.arange(1, self._shape[1] + 1), totals[:, None])
        return limit

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Map query `[P, h, d]`, and key and value as whole buffers `[B * capacity, h_kv, d]`, to `[P, h, d]`."""
        if self._is_empty:
            return torch.zeros_like(query)
        rows = query if self._is_ordered else query.index_select(0, self._query)
        keys, values = self._rows(key), self._rows(value)
        if self._shape[1] == 1:  # query heads that share keys are then like several queries, and no key is repeated for them
            heads = rows.view(self._shape[0], key.shape[1], -1, query.shape[2])
            tokens = fused_attention(heads, keys, values, mask=self._mask).reshape(rows.shape)
        else:
            out = fused_attention(rows.view(*self._shape, *query.shape[1:]).transpose(1, 2), keys, values, mask=self._mask)
            tokens = out.transpose(1, 2).flatten(0, 1)
        if self._is_ordered:
            return tokens
        if not self._has_padding:
            return tokens.index_select(0, self._order)
        return torch.zeros_like(query).index_copy_(0, self._places, tokens.index_select(0, self._real))

    def _rows(self, buffer: Tensor) -> Tensor:
        """Map `[B' * capacity, h_kv, d]`, B' >= B, to `[B, h_kv, L, d]`, a view of the first B rows."""
        place, head, dim = buffer.stride()
        shape = (self._shape[0], buffer.shape[1], self._length, buffer.shape[2])
        return buffer.as_strided(shape, (self._capacity * place, head, place, dim))


def plan_cached(
    cache_lengths: np.ndarray,
    capacity: int,
    new_lengths: np.ndarray,
    stored: StoredOrder,
    *,
    causal: bool,
    device: torch.device,
) -> CachedPlan:
    """Plan attention of the new tokens of B rows over whole cache buffers in which the new tokens already follow each
    row's context.

    The buffers may have more than B rows; only the first B are used.

    A query sees the whole context of its row and the new tokens of its row: all of them, or only those up to itself if
    `causal`.

    Args:
        cache_lengths: int64 `[B]`, tokens of context in each row.
        capacity: places per row in the buffers `[B * capacity, h_kv, d]`.
        new_lengths: int64 `[B]`, new tokens in each row; in token order, they follow one another row after row.
        stored: stored order of the new tokens.
        causal: whether new tokens see each other causally.
        device: device of queries and buffers.
    """
    return CachedPlan(cache_lengths, capacity, new_lengths, stored, causal=causal, device=device)
