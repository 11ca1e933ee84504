"""Where tokens live: one contiguous stream per expert, and within it one contiguous run per role.

Routing by role is then a slice. Attention does not mind the order of tokens, given their positions and the segment table, so only
queries, keys and values of the streams are ever joined. The stored order is: stream by stream, role by role, each in token order,
each stream padded with tokens that nothing sees.

Shape letters: N tokens of the batch, P stored tokens (padding included), h heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from soundomni.core.sequence import Role, SegmentTable

if TYPE_CHECKING:
    from soundomni.core.cache import KVCache

PADDING = -1


class AttentionPlan(Protocol):
    """Exact attention of one batch. Made once per batch, used by every layer."""

    executor: str
    """Name of the executor that was chosen."""
    reason: str
    """Why it was chosen."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query `[P, h, d]`, key and value `[P', h_kv, d]` → `[P, h, d]`, in stored order; padding rows come out as zero."""
        ...


@dataclass(frozen=True)
class StoredOrder:
    """The stored order of a batch.

    Args:
        order: int64 numpy `[P]`, the token at each stored place, PADDING where there is none.
        position_ids: int64 numpy `[P]`, 0 at padding.
        stream_lengths: stored tokens of each stream, padding included.
        role_slices: role → (stream, first, past-the-last) within that stream. Every role has an entry; absent ones are empty.
    """

    order: np.ndarray
    position_ids: np.ndarray
    stream_lengths: tuple[int, ...]
    role_slices: dict[Role, tuple[int, int, int]]


def store(table: SegmentTable, stream_of: Callable[[Role], int], num_streams: int, *, multiple: int = 1) -> StoredOrder:
    """Computes the stored order. Streams are padded to a multiple of `multiple` with at least one token each.

    A stream is never empty, so that every parameter takes part in every step on every rank.
    """
    roles, positions = table.token_roles(), table.token_positions()
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    slices: dict[Role, tuple[int, int, int]] = {}
    for stream in range(num_streams):
        count = 0
        for role in Role:
            if stream_of(role) != stream:
                continue
            tokens = np.flatnonzero(roles == role)
            slices[role] = (stream, count, count + len(tokens))
            parts.append(tokens)
            count += len(tokens)
        stored = max(1, -(-count // multiple)) * multiple
        parts.append(np.full(stored - count, PADDING))
        lengths.append(stored)
    order = np.concatenate(parts).astype(np.int64)
    position_ids = np.where(order == PADDING, 0, np.append(positions, 0)[order])
    return StoredOrder(order, position_ids, tuple(lengths), slices)


@dataclass(frozen=True)
class Layout:
    """A batch as the backbone sees it: positions, the attention plan, and a cache when there is one.

    Args:
        stored: the stored order.
        position_ids: int64 `[P]` on the device.
        attention: the plan.
        cache: keys and values of earlier calls; None in training.
    """

    stored: StoredOrder
    position_ids: Tensor
    attention: AttentionPlan
    cache: KVCache | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Runs attention of layer `layer` on rotated queries and keys in stored order, through the cache when there is one."""
        if self.cache is not None:
            key, value = self.cache.update(layer, key, value)
        out: Tensor = self.attention(query, key, value)
        return out

    def place(self, blocks: dict[Role, Tensor], hidden_dim: int) -> list[Tensor]:
        """Joins blocks of hidden tokens by role, `[N_role, H]`, into padded streams `[N_e, H]`."""
        sample = next(iter(blocks.values()))
        streams = []
        for stream, length in enumerate(self.stored.stream_lengths):
            mine = [blocks[role] for role in Role if role in blocks and self.stored.role_slices[role][0] == stream]
            count = sum(len(block) for block in mine)
            streams.append(torch.cat([*mine, sample.new_zeros(length - count, hidden_dim)]))
        return streams

    def take(self, streams: list[Tensor], role: Role) -> Tensor:
        """Returns the hidden tokens of a role, `[N_role, H]`, in token order."""
        stream, first, last = self.stored.role_slices[role]
        return streams[stream][first:last]
