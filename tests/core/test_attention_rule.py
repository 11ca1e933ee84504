"""The mask rule token by token, and the rectangles and block counts that stand for it."""

import numpy as np
import pytest
from attention_layouts import table_of, tables
from hypothesis import given, settings

from soundomni.core.attention.block_mask import block_counts
from soundomni.core.attention.rectangles import cut_rectangles
from soundomni.core.attention.rule import dense_mask, is_single_pass
from soundomni.core.sequence import Attend, SegmentTable

CAUSAL, FULL, NOISE = Attend.CAUSAL, Attend.FULL, Attend.NOISE


def sees(table: SegmentTable, q: int, k: int) -> bool:
    """The sentence of the unified model's description, on tokens, from the table's raw columns."""
    row = {}
    for g in range(table.num_segments):
        for token in range(table.start[g], table.start[g] + table.length[g]):
            row[token] = g
    same_sample = table.document[row[q]] == table.document[row[k]]
    same_block = row[q] == row[k] and table.attend[row[q]] in (FULL, NOISE)
    foreign_noise = table.attend[row[k]] == NOISE and row[q] != row[k]
    return bool(same_sample and (q >= k or same_block) and not foreign_noise)


@settings(max_examples=30, deadline=None)
@given(tables(longest=6, documents=3))
def test_dense_mask_is_the_rule(table):
    mask = dense_mask(table)
    assert mask.shape == (table.num_tokens, table.num_tokens)
    for q in range(0, table.num_tokens, 3):
        assert mask[q].tolist() == [sees(table, q, k) for k in range(table.num_tokens)]


def test_dense_mask_of_a_worked_example():
    mask = dense_mask(table_of([(CAUSAL, 2), (NOISE, 2), (FULL, 2), (CAUSAL, 1)], [(CAUSAL, 1)]))
    expected = ["10000000", "11000000", "11110000", "11110000", "11001100", "11001100", "11001110", "00000001"]
    assert mask.astype(int).tolist() == [[int(c) for c in row] for row in expected]


@settings(max_examples=60, deadline=None)
@given(tables())
def test_rectangles_cover_every_allowed_pair_once(table):
    found = cut_rectangles(table)
    count = np.zeros((table.num_tokens, table.num_tokens), dtype=int)
    for rectangle in found.first + found.second:
        pairs = np.ones((len(rectangle.query), len(rectangle.key)), dtype=int)
        count[np.ix_(rectangle.query, rectangle.key)] += np.tril(pairs) if rectangle.causal else pairs
    assert (count == dense_mask(table)).all()
    queries = np.concatenate([np.zeros(0, int), *[r.query for r in found.first]])
    assert sorted(queries) == list(range(table.num_tokens))
    assert is_single_pass(table) == (not found.second)


def test_a_causal_chain_is_one_rectangle_across_noise():
    found = cut_rectangles(table_of([(CAUSAL, 3), (CAUSAL, 2), (NOISE, 4), (CAUSAL, 2)]))
    causal = [r for r in found.first if r.causal]
    assert [r.query.tolist() for r in causal] == [[0, 1, 2, 3, 4, 9, 10]]
    assert len(found.first) == 2 and not found.second


@pytest.mark.parametrize("block", [1, 4, 16])
@settings(max_examples=40, deadline=None)
@given(table=tables(longest=20))
def test_block_counts_are_those_of_the_dense_mask(block, table):
    blocks = -(-table.num_tokens // block)
    mask = np.zeros((blocks * block, blocks * block), dtype=int)
    mask[: table.num_tokens, : table.num_tokens] = dense_mask(table)
    assert (block_counts(table, block=block) == mask.reshape(blocks, block, blocks, block).sum(axis=(1, 3))).all()
