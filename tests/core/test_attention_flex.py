"""The analytic block mask against create_block_mask, and flex attention against the reference."""

import numpy as np
import pytest
import torch
from attention_layouts import CPU, largest_error, layouts, padding_rows, qkv, stored_of, table_of, tables
from hypothesis import given, settings
from torch.nn.attention.flex_attention import create_block_mask

from soundomni.core.attention import plan_attention
from soundomni.core.attention.block_mask import BLOCK, assemble_mask, block_tensors
from soundomni.core.attention.flex import FlexPlan, masked_attention, pad_table, padded_length
from soundomni.core.attention.rule import dense_mask
from soundomni.core.errors import SpecError
from soundomni.core.sequence import Attend, SegmentTable

CAUSAL, FULL, NOISE = Attend.CAUSAL, Attend.FULL, Attend.NOISE


def both_masks(table):
    dense = torch.from_numpy(dense_mask(table))

    def rule(batch, head, q, k):
        return dense[q, k]

    expected = create_block_mask(rule, None, None, table.num_tokens, table.num_tokens, device="cpu", BLOCK_SIZE=BLOCK)
    return assemble_mask(table.num_tokens, block_tensors(table, CPU), rule), expected


def assert_same_mask(found, expected):
    assert found.shape == expected.shape and found.BLOCK_SIZE == expected.BLOCK_SIZE
    for name in ("kv", "full_kv", "q", "full_q"):
        count, wanted = getattr(found, f"{name}_num_blocks"), getattr(expected, f"{name}_num_blocks")
        assert count.dtype == wanted.dtype and torch.equal(count, wanted)
        indices, wanted = getattr(found, f"{name}_indices"), getattr(expected, f"{name}_indices")
        assert indices.dtype == wanted.dtype and torch.equal(indices, wanted)


@settings(max_examples=25, deadline=None)
@given(tables(longest=300).filter(lambda table: table.num_tokens > 0))
def test_block_mask_equals_create_block_mask(table):
    assert_same_mask(*both_masks(table))


def test_block_mask_with_full_blocks():
    table = table_of([(CAUSAL, 100), (FULL, 300), (CAUSAL, 300), (NOISE, 452)], [(CAUSAL, 384)])
    found, expected = both_masks(table)
    assert expected.full_kv_num_blocks.sum() > 5
    assert_same_mask(found, expected)


@pytest.mark.parametrize(
    ("tokens", "length"), [(0, 128), (1, 128), (128, 128), (129, 256), (257, 384), (385, 512), (513, 768), (769, 1024)]
)
def test_padded_lengths(tokens, length):
    assert padded_length(tokens) == length


def test_lengths_are_few_and_never_too_short():
    lengths = [padded_length(n) for n in range(1, 40_000)]
    assert all(n <= length and length % BLOCK == 0 and length < 1.5 * n + BLOCK for n, length in enumerate(lengths, 1))
    assert len(set(lengths)) <= 18


@settings(max_examples=20, deadline=None)
@given(tables(longest=150))
def test_padding_sees_itself_alone(table):
    length = padded_length(table.num_tokens)
    mask = dense_mask(pad_table(table, length))
    n = table.num_tokens
    assert mask.shape == (length, length)
    assert (mask[:n, :n] == dense_mask(table)).all()
    assert not mask[n:, :n].any() and not mask[:n, n:].any()
    assert np.diag(mask).all()


@settings(max_examples=15, deadline=None)
@given(layouts())
def test_agrees_with_the_reference(layout):
    table, stored = layout
    inputs = tuple(x.detach() for x in qkv(stored, dtype=torch.float32))
    flex = FlexPlan(table, stored, device=CPU, reason="test", attention=masked_attention)
    out = flex(*inputs)
    expected = plan_attention(table, stored, device=CPU, executor="reference")(*(x.double() for x in inputs))
    assert largest_error([out], [expected]) <= 1e-5
    assert (out[padding_rows(stored)] == 0).all()


@pytest.mark.long
def test_batches_of_a_run_share_one_compiled_kernel():
    batches = [
        table_of([(CAUSAL, 50), (FULL, 60), (CAUSAL, 40)], [(CAUSAL, 8), (NOISE, 70)]),
        table_of(*[[(CAUSAL, 9), (NOISE, 40)]] * 5),
    ]
    for stance, table in zip(("default", "fail_on_recompile"), batches, strict=True):
        stored = stored_of(table, multiple=8)
        inputs = tuple(x.detach() for x in qkv(stored, dim=16, dtype=torch.float32))
        with torch.no_grad(), torch.compiler.set_stance(stance):
            out = plan_attention(table, stored, device=CPU, executor="flex")(*inputs)
        expected = plan_attention(table, stored, device=CPU, executor="reference")(*inputs)
        assert largest_error([out], [expected]) <= 1e-5


@pytest.mark.long
def test_more_threads_have_a_kernel_of_their_own():
    """One for fewer threads would write beyond its buffers."""
    table = table_of([(CAUSAL, 50), (FULL, 60), (CAUSAL, 40)])
    stored = stored_of(table, multiple=8)
    inputs = tuple(x.detach() for x in qkv(stored, dim=16, dtype=torch.float32))
    expected = plan_attention(table, stored, device=CPU, executor="reference")(*inputs)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            plan = plan_attention(table, stored, device=CPU, executor="flex")
            torch.set_num_threads(1)
            assert largest_error([plan(*inputs)], [expected]) <= 1e-5
            torch.set_num_threads(2)
            with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError, match="recompile"):
                plan(*inputs)
            assert largest_error([plan(*inputs)], [expected]) <= 1e-5
    finally:
        torch.set_num_threads(threads)


def test_training_on_the_cpu_is_refused():
    table = table_of([(CAUSAL, 3)])
    with pytest.raises(SpecError, match=r"'flex' cannot run here: .*no backward pass on the CPU; use 'merged'"):
        plan_attention(table, stored_of(table), device=CPU, executor="flex")


def test_an_empty_batch():
    table = SegmentTable.from_samples([])
    stored = stored_of(table, multiple=8)
    plan = FlexPlan(table, stored, device=CPU, reason="test", attention=masked_attention)
    assert (plan(*(x.detach() for x in qkv(stored, dtype=torch.float32))) == 0).all()
