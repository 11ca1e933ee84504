"""The stored order of a batch: one contiguous stream per expert, and within it one contiguous run per role.

Routing by role is then a slice. Attention does not mind the order of tokens, given their positions and the segment
table, so only queries, keys and values of the streams are ever joined. The stored order is: stream by stream, role by
role, each in token order, each stream padded with tokens that nothing sees.

Shape letters: P stored tokens (padding included).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from soundomni.core.sequence import Role, SegmentTable

PADDING = -1
"""Entry of a stored order that stands for no token."""


@dataclass(frozen=True)
class StoredOrder:
    """The stored order of a batch.

    Args:
        order: int64 numpy `[P]`, the token at each stored place, PADDING if there is none.
        position_ids: int64 numpy `[P]`, 0 at padding.
        stream_lengths: stored tokens of each stream, padding included.
        role_slices: role → (stream, first, past-the-last) within that stream. Every role has an entry; absent roles
            have empty ones.
    """

    order: np.ndarray
    position_ids: np.ndarray
    stream_lengths: tuple[int, ...]
    role_slices: dict[Role, tuple[int, int, int]]


def store(
    table: SegmentTable, stream_of: Callable[[Role], int], num_streams: int, *, multiple: int = 1, pad_empty: bool = True
) -> StoredOrder:
    """Return the stored order.

    Args:
        table: the segments of the batch.
        stream_of: role → index of its stream.
        num_streams: number of streams.
        multiple: every stream is padded to a multiple of this length.
        pad_empty: pad streams without tokens too, as training needs it: every parameter then takes part in every step on every
            rank. False leaves them empty.
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
        stored = max(int(pad_empty), -(-count // multiple)) * multiple
        parts.append(np.full(stored - count, PADDING))
        lengths.append(stored)
    order = np.concatenate(parts).astype(np.int64)
    position_ids = np.where(order == PADDING, 0, np.append(positions, 0)[order])
    return StoredOrder(order, position_ids, tuple(lengths), slices)
