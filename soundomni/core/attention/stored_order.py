"""The stored order of a batch: one contiguous stream per expert, and within it one contiguous run per modality.

Routing is then a slice. Attention does not mind the order of tokens, given their positions and the segment
table, so only queries, keys and values of the streams are ever joined. The stored order is: stream by stream, modality
by modality, each in token order, each stream padded with tokens that nothing sees.

Shape letters: P stored tokens (padding included).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from soundomni.core.sequence import TEXT, Attend, Role, SegmentTable

PADDING = -1
"""Entry of a stored order that stands for no token."""
APART = -1
"""Entry of `StoredOrder.clips` for a token outside such clips."""


@dataclass(frozen=True)
class StoredOrder:
    """The stored order of a batch.

    Args:
        order: int64 numpy `[P]`, the token at each stored place, PADDING if there is none.
        position_ids: int64 numpy `[P]`, 0 at padding.
        stream_lengths: stored tokens of each stream, padding included.
        runs: name of a modality → (stream, first, past-the-last) within that stream. Every modality of the model has an
            entry; absent ones have empty ones.
        table: the segments of the batch.
    """

    order: np.ndarray
    position_ids: np.ndarray
    stream_lengths: tuple[int, ...]
    runs: Mapping[str, tuple[int, int, int]]
    table: SegmentTable

    @cached_property
    def clips(self) -> np.ndarray:
        """For each stored place, the full or noise segment of which its token is a frame, or a token of text, int64 `[P]`; APART for
        boundary tokens, the tokens of causal segments, and padding."""
        row = self.table.token_segments()
        inside = (self.table.attend[row] != Attend.CAUSAL) & (self.table.token_modalities() == self.table.modality[row])
        clips: np.ndarray = np.append(np.where(inside, row, APART), APART)[self.order]  # PADDING is the last entry
        return clips


def store(
    table: SegmentTable,
    stream_of: Callable[[Role], int],
    num_streams: int,
    *,
    modalities: Mapping[str, Role] | None = None,
    multiple: int = 1,
    pad_empty: bool = True,
) -> StoredOrder:
    """Return the stored order.

    Args:
        table: the segments of the batch.
        stream_of: role → index of its stream.
        num_streams: number of streams.
        modalities: the modalities of the model with their roles; None for one of each role, named after it, and those of the
            table. Text need not be named.
        multiple: every stream is padded to a multiple of this length.
        pad_empty: pad streams without tokens too, as training needs it: every parameter then takes part in every step on every
            rank. False leaves them empty.

    Raises:
        ValueError: the table has a modality that the model does not have, or one of another role, or of several.
    """
    roles = table.roles()
    known = {role.modality: role for role in Role} | roles if modalities is None else {TEXT: Role.TEXT, **modalities}
    for name, role in roles.items():
        if name not in known:
            raise ValueError(f"the batch has clips of modality '{name}', which the model does not have; it has {', '.join(known)}")
        if role != known[name]:
            raise ValueError(f"modality '{name}' has segments of role {role.modality}; expected {known[name].modality}, as in the model")
    modality, positions = table.token_modalities(), table.token_positions()
    numbers = {name: index for index, name in enumerate(table.names)}
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    runs: dict[str, tuple[int, int, int]] = {}
    for stream in range(num_streams):
        count = 0
        for name, role in sorted(known.items(), key=lambda pair: pair[1]):
            if stream_of(role) != stream:
                continue
            tokens = np.flatnonzero(modality == numbers.get(name, -1))
            runs[name] = (stream, count, count + len(tokens))
            parts.append(tokens)
            count += len(tokens)
        stored = max(int(pad_empty), -(-count // multiple)) * multiple
        parts.append(np.full(stored - count, PADDING))
        lengths.append(stored)
    order = np.concatenate(parts).astype(np.int64)
    position_ids = np.where(order == PADDING, 0, np.append(positions, 0)[order])
    return StoredOrder(order, position_ids, tuple(lengths), runs, table)
