"""The BlockMask of a batch, straight from the segment table.

It equals `create_block_mask` of the same rule, which evaluates every query-key pair. Here the token axis is cut at the edges of segments
and of blocks into pieces; a piece sees whole pieces, but for the triangle within itself, so that counting the allowed pairs of each
block is a matter of cumulative sums over pieces. The mask does not depend on the head, and its indices are full width.

Shape letters: G segments, N tokens, n pieces, b blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from soundomni.core.sequence import Attend, SegmentTable

BLOCK = 128


@dataclass(frozen=True)
class _Pieces:
    """Runs of tokens of one segment in one block, int64 `[n]` each: the block, the tokens, the segment."""

    block: np.ndarray
    length: np.ndarray
    row: np.ndarray


def block_counts(table: SegmentTable, *, block: int = BLOCK) -> np.ndarray:
    """Returns int64 `[b, b]`: how many query-key pairs of each block the rule allows."""
    blocks = -(-table.num_tokens // block)
    if blocks == 0:
        return np.zeros((0, 0), dtype=np.int64)
    pieces = _cut(table, block)
    index = np.arange(len(pieces.row))
    attend = table.attend[pieces.row]
    causal = attend == Attend.CAUSAL
    tokens = np.zeros((len(index), blocks), dtype=np.int64)
    tokens[index, pieces.block] = pieces.length
    total = _running_sum(tokens)
    visible = _running_sum(np.where((attend != Attend.NOISE)[:, None], tokens, 0))

    segment_first = np.searchsorted(pieces.row, pieces.row)
    segment_end = np.searchsorted(pieces.row, pieces.row, side="right")
    document = table.document[pieces.row]
    document_first = np.searchsorted(document, document)
    seen = visible[np.where(causal, index, segment_first)] - visible[document_first]
    seen += np.where(causal[:, None], 0, total[segment_end] - total[segment_first])
    pairs = pieces.length[:, None] * seen
    pairs[index, pieces.block] += np.where(causal, pieces.length * (pieces.length + 1) // 2, 0)
    counts: np.ndarray = np.add.reduceat(pairs, np.searchsorted(pieces.block, np.arange(blocks)), axis=0)
    return counts


def block_mask(table: SegmentTable, device: torch.device) -> BlockMask:
    """Returns the BlockMask `[1, 1, N, N]` of blocks of 128. Its `mask_mod` is left to the executor, which has the ids on the device."""
    counts = block_counts(table)
    full = counts == BLOCK * BLOCK
    partial = (counts > 0) & ~full
    return BlockMask(
        (table.num_tokens, table.num_tokens),
        *_ordered(partial, device),
        *_ordered(full, device),
        *_ordered(partial.T, device),
        *_ordered(full.T, device),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=_all_visible,
    )


def _all_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return batch.new_ones((), dtype=torch.bool)


def _cut(table: SegmentTable, block: int) -> _Pieces:
    ends = table.start + table.length
    edges = np.union1d(np.append(table.start, ends), np.arange(0, table.num_tokens, block))
    first = edges[:-1]
    return _Pieces(block=first // block, length=np.diff(edges), row=np.searchsorted(ends, first, side="right"))


def _running_sum(values: np.ndarray) -> np.ndarray:
    """`[n, b]` → `[n + 1, b]`: the sum of all rows before."""
    sums = np.zeros((len(values) + 1, values.shape[1]), dtype=np.int64)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def _ordered(blocks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns how many blocks each row has, int32 `[1, 1, b]`, and all columns, those blocks first, int32 `[1, 1, b, b]`."""
    count = blocks.sum(axis=1, dtype=np.int32)
    columns = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(columns)[None, None].to(device)
