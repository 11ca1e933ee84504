"""Building the BlockMask of a batch: from the segment table against `create_block_mask`.

The masks have to be equal before anything is timed. `create_block_mask` evaluates every pair, eagerly on a CPU, and is
only timed up to 8k tokens, where it takes seconds. Run on one thread: `OMP_NUM_THREADS=1 pytest
benchmarks/bench_mask_build.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from soundomni.core.attention.block_mask import assemble_mask, block_tensors
from soundomni.core.attention.rule import OUTSIDE, token_rule
from soundomni.core.sequence import Attend, Role, Segment, SegmentTable

CPU = torch.device("cpu")
LARGEST_PEER = 8192
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def batch(tokens: int, splits: int) -> SegmentTable:
    """Return documents of text, a clip, text and a target: `splits` segments with `tokens` tokens in total."""
    lengths = np.diff(np.linspace(0, tokens, splits + 1).astype(int))
    kinds = [(Role.TEXT, Attend.CAUSAL), (Role.LATENT, Attend.FULL), (Role.TEXT, Attend.CAUSAL), (Role.LATENT, Attend.NOISE)]
    segments = []
    for i, length in enumerate(lengths):
        role, attend = kinds[i % 4]
        ids = np.zeros(length if role == Role.TEXT else 2, np.int64)
        segments.append(Segment(role=role, attend=attend, length=int(length), token_ids=ids))
    return SegmentTable.from_samples([segments[i : i + 4] for i in range(0, splits, 4)])


def rule_of(table: SegmentTable) -> Rule:
    """Return the rule as a `mask_mod` over precomputed ids."""
    ids = token_rule(table)
    document, block, noise = (torch.from_numpy(x) for x in (ids.document, ids.block, ids.noise))

    def rule(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same_block = (block[q] == block[k]) & (block[k] != OUTSIDE)
        shown = (noise[k] == OUTSIDE) | (noise[q] == noise[k])
        return (document[q] == document[k]) & ((q >= k) | same_block) & shown

    return rule


def from_table(table: SegmentTable, rule: Rule) -> BlockMask:
    return assemble_mask(table.num_tokens, block_tensors(table, CPU), rule)


def from_pairs(table: SegmentTable, rule: Rule) -> BlockMask:
    return create_block_mask(rule, None, None, table.num_tokens, table.num_tokens, device="cpu")


def assert_equal(found: BlockMask, expected: BlockMask) -> None:
    for name in ("kv", "full_kv", "q", "full_q"):
        assert torch.equal(getattr(found, f"{name}_num_blocks"), getattr(expected, f"{name}_num_blocks"))
        assert torch.equal(getattr(found, f"{name}_indices"), getattr(expected, f"{name}_indices"))


@pytest.mark.parametrize(("tokens", "splits"), [(4096, 32), (8192, 64), (16384, 128), (32768, 128), (32768, 256), (65536, 256)])
def test_from_the_segment_table(benchmark, tokens, splits):
    table = batch(tokens, splits)
    rule = rule_of(table)
    if tokens <= LARGEST_PEER:
        assert_equal(from_table(table, rule), from_pairs(table, rule))
    benchmark.group = f"{tokens} tokens, {splits} splits"
    benchmark(from_table, table, rule)


@pytest.mark.parametrize(("tokens", "splits"), [(4096, 32), (8192, 64)])
def test_create_block_mask(benchmark, tokens, splits):
    table = batch(tokens, splits)
    benchmark.group = f"{tokens} tokens, {splits} splits"
    benchmark.pedantic(from_pairs, args=(table, rule_of(table)), rounds=2)
