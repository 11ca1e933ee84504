"""The BlockMask of a batch, straight from the segment table.

The result equals `create_block_mask` for the same rule, which evaluates every query-key pair. Here the token axis is
cut into pieces at the edges of segments and blocks. A piece sees whole pieces, except for the triangle within itself,
so that the allowed pairs of each block can be counted by cumulative sums over pieces. The mask does not depend on the
head, and its indices are full width.

Shape letters: G segments, N tokens, n pieces, b blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from soundomni.core.sequence import Attend, SegmentTable
from soundomni.core.upload import upload

BLOCK = 128


@dataclass(frozen=True)
class _Pieces:
    """Runs of tokens of one segment in one block, int64 `[n]` each: block, number of tokens, and segment."""

    block: np.ndarray
    length: np.ndarray
    row: np.ndarray


def block_counts(table: SegmentTable, *, block: int = BLOCK) -> np.ndarray:
    """Return int64 `[b, b]`: how many query-key pairs the rule allows in each block."""
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


def block_tensors(table: SegmentTable, device: torch.device) -> tuple[Tensor, ...]:
    """Return the int32 tensors of a BlockMask with blocks of 128, in the order that `assemble_mask` takes.

    These are, for partial and full blocks by query, then for both by key: their number `[1, 1, b]` and their indices
    `[1, 1, b, b]`.
    """
    counts = block_counts(table)
    full = counts == BLOCK * BLOCK
    partial = (counts > 0) & ~full
    tensors = [tensor for blocks in (partial, full, partial.T, full.T) for tensor in _ordered(blocks)]
    return tuple(upload(tensor[None, None], device) for tensor in tensors)


def assemble_mask(length: int, blocks: Sequence[Tensor], mask_mod: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> BlockMask:
    """Return the BlockMask `[1, 1, N, N]` for N = `length` tokens; `mask_mod` is the rule within partial blocks."""
    kv, kv_index, full_kv, full_kv_index, q, q_index, full_q, full_q_index = blocks
    return BlockMask(
        seq_lengths=(length, length),
        kv_num_blocks=kv,
        kv_indices=kv_index,
        full_kv_num_blocks=full_kv,
        full_kv_indices=full_kv_index,
        q_num_blocks=q,
        q_indices=q_index,
        full_q_num_blocks=full_q,
        full_q_indices=full_q_index,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=mask_mod,
    )


def _cut(table: SegmentTable, block: int) -> _Pieces:
    ends = table.start + table.length
    edges = np.union1d(np.append(table.start, ends), np.arange(0, table.num_tokens, block))
    first = edges[:-1]
    return _Pieces(block=first // block, length=np.diff(edges), row=np.searchsorted(ends, first, side="right"))


def _running_sum(values: np.ndarray) -> np.ndarray:
    """Map `[n, b]` to `[n + 1, b]`: the sum of all earlier rows."""
    sums = np.zeros((len(values) + 1, values.shape[1]), dtype=np.int64)
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def _ordered(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many blocks each row has, int32 `[b]`, and all columns, starting with those blocks, int32 `[b, b]`."""
    return blocks.sum(axis=1, dtype=np.int32), np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
