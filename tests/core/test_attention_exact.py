"""The executors "merged" and "padded" against dense attention in float64, forward and backward."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from attention_layouts import CPU, forward_backward, largest_error, layouts, padding_rows, qkv, stored_of, table_of
from hypothesis import given, settings

from soundomni.core.attention import exempt_executors, plan_attention
from soundomni.core.attention.places import token_places
from soundomni.core.sequence import Attend, SegmentTable

CAUSAL, FULL, NOISE = Attend.CAUSAL, Attend.FULL, Attend.NOISE
INTERLEAVED = table_of(
    [(CAUSAL, 5), (FULL, 4), (CAUSAL, 3), (NOISE, 6), (CAUSAL, 2)],
    [(NOISE, 1)],
    [(FULL, 3), (FULL, 2), (CAUSAL, 4), (CAUSAL, 1)],
    [(CAUSAL, 1)],
)


pytestmark = pytest.mark.parametrize("executor", ["merged", "padded"])


def plans(table, stored, executor):
    return tuple(plan_attention(table, stored, device=CPU, executor=name) for name in (executor, "reference"))


@settings(max_examples=60, deadline=None)
@given(layout=layouts())
def test_agrees_with_the_reference_in_float64(layout, executor):
    plan, reference = plans(*layout, executor)
    inputs = qkv(layout[1])
    assert largest_error(forward_backward(plan, inputs), forward_backward(reference, inputs)) <= 1e-10


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
@settings(max_examples=20, deadline=None)
@given(layout=layouts())
def test_agrees_in_lower_precision(dtype, tolerance, layout, executor):
    plan, reference = plans(*layout, executor)
    inputs = qkv(layout[1], dtype=dtype)
    found = forward_backward(plan, inputs)
    expected = forward_backward(reference, tuple(x.detach().double().requires_grad_() for x in inputs))
    scale = max(1.0, *(x.abs().max().item() for x in expected if x.numel()))
    assert all(x.dtype == dtype for x in found)
    assert largest_error(found, expected) <= tolerance * scale


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_grouped_query_heads(heads, kv_heads, executor):
    stored = stored_of(INTERLEAVED)
    plan, reference = plans(INTERLEAVED, stored, executor)
    inputs = qkv(stored, heads=heads, kv_heads=kv_heads)
    assert largest_error(forward_backward(plan, inputs), forward_backward(reference, inputs)) <= 1e-10


def test_long_segments_and_padded_groups(executor):
    """Longer than the kernel's blocks of 32 to 768, and of lengths close enough to share padded calls."""
    table = table_of(*[[(CAUSAL, 9 + i), (NOISE, 67 + i % 3), (FULL, 3)] for i in range(6)], [(CAUSAL, 900), (FULL, 70), (CAUSAL, 40)])
    stored = stored_of(table, multiple=8)
    plan, reference = plans(table, stored, executor)
    inputs = qkv(stored)
    assert largest_error(forward_backward(plan, inputs), forward_backward(reference, inputs)) <= 1e-10


def test_padding_of_a_group_is_harmless_under_extreme_scores(executor):
    """A padding query repeats a real one whose log-sum-exp may lie far below the scores it is compared with."""
    table = table_of([(CAUSAL, 12)], [(CAUSAL, 3)])
    stored = stored_of(table)
    plan, reference = plans(table, stored, executor)
    query, key, value = qkv(stored)
    with torch.no_grad():
        key[13:] *= 2000
    inputs = (query, key, value)
    found, expected = forward_backward(plan, inputs), forward_backward(reference, inputs)
    assert all(x.isfinite().all() for x in found)
    assert largest_error(found[:1] + found[2:], expected[:1] + expected[2:]) <= 1e-10


def test_gradcheck(executor):
    table = table_of([(CAUSAL, 2), (FULL, 2), (CAUSAL, 2)], [(CAUSAL, 1), (NOISE, 2)])
    stored = stored_of(table, multiple=4)
    plan = plan_attention(table, stored, device=CPU, executor=executor)
    assert torch.autograd.gradcheck(plan, qkv(stored, heads=2, kv_heads=1, dim=4), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(layout=layouts())
def test_padding_rows_are_zero_and_send_no_gradient(layout, executor):
    table, stored = layout
    rows = padding_rows(stored)
    inputs = qkv(stored)
    with torch.no_grad():
        for x in inputs:
            x[rows] = float("nan")
    found = forward_backward(plan_attention(table, stored, device=CPU, executor=executor), inputs)
    for x in found:
        assert (x[rows] == 0).all()
        assert x.isfinite().all()


def test_an_empty_batch_still_has_gradients(executor):
    table = SegmentTable.from_samples([])
    stored = stored_of(table, multiple=8)
    out, *grads = forward_backward(plan_attention(table, stored, device=CPU, executor=executor), qkv(stored))
    assert out.shape[0] == 16 and (out == 0).all()
    assert all((grad == 0).all() for grad in grads)


def test_a_lone_token_gets_its_own_value(executor):
    table = table_of([(CAUSAL, 1)], [(NOISE, 1)], [(FULL, 1)])
    stored = stored_of(table, "dense")
    query, key, value = qkv(stored, heads=2, kv_heads=2)
    out = plan_attention(table, stored, device=CPU, executor=executor)(query, key, value)
    torch.testing.assert_close(out, value, rtol=0, atol=1e-12)


def test_the_stored_order_does_not_matter(executor):
    in_order, shuffled = stored_of(INTERLEAVED, "dense"), stored_of(INTERLEAVED, "dense")
    permutation = np.random.default_rng(0).permutation(INTERLEAVED.num_tokens)
    shuffled = replace(in_order, order=permutation, position_ids=in_order.position_ids[permutation])
    inputs = qkv(in_order)
    moved = tuple(x.detach()[permutation].requires_grad_() for x in inputs)
    out = plan_attention(INTERLEAVED, in_order, device=CPU, executor=executor)(*inputs)
    out_moved = plan_attention(INTERLEAVED, shuffled, device=CPU, executor=executor)(*moved)
    torch.testing.assert_close(out_moved, out[permutation], rtol=0, atol=1e-12)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    grads_moved = torch.autograd.grad(out_moved.square().sum(), moved)
    assert largest_error(list(grads_moved), [grad[permutation] for grad in grads]) <= 1e-12


def test_documents_do_not_leak(executor):
    stored = stored_of(INTERLEAVED)
    plan = plan_attention(INTERLEAVED, stored, device=CPU, executor=executor)
    query, key, value = qkv(stored)
    before = plan(query, key, value)
    document = INTERLEAVED.document[INTERLEAVED.token_segments()]
    places = torch.from_numpy(token_places(stored))
    mine, others = places[document == 2], places[document != 2]
    with torch.no_grad():
        key[mine] += 1
        value[mine] -= 3
    after = plan(query, key, value)
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[mine], after[mine])
    (grad,) = torch.autograd.grad(after[others].sum(), value)
    assert (grad[mine] == 0).all() and (grad[others] != 0).any()


def test_packed_equals_one_document_at_a_time(executor):
    documents = [[(CAUSAL, 5), (FULL, 4), (CAUSAL, 3)], [(CAUSAL, 4), (NOISE, 9)], [(CAUSAL, 6), (NOISE, 8)], [(CAUSAL, 1)]]
    table = table_of(*documents)
    inputs = qkv(stored_of(table, "dense"))
    packed = plan_attention(table, stored_of(table, "dense"), device=CPU, executor=executor)(*inputs)
    start = 0
    for document in documents:
        alone = table_of(document)
        rows = slice(start, start + alone.num_tokens)
        out = plan_attention(alone, stored_of(alone, "dense"), device=CPU, executor=executor)(*(x[rows] for x in inputs))
        torch.testing.assert_close(out, packed[rows], rtol=0, atol=1e-12)
        start += alone.num_tokens


@pytest.mark.parametrize("routing", ["dense", "modality"])
def test_views_of_a_fused_projection(routing, executor):
    """Queries, keys and values as slices of one tensor `[P, h + 2 h_kv, d]`, as a fused linear layer leaves them."""
    table = table_of([(CAUSAL, 7)], [(CAUSAL, 7)], [(CAUSAL, 7)])
    stored = stored_of(table, routing)
    plan, reference = plans(table, stored, executor)
    fused = torch.cat([x.detach() for x in qkv(stored)], dim=1)
    parts = fused.split([4, 2, 2], dim=1)
    assert not parts[0].is_contiguous()
    torch.testing.assert_close(plan(*parts), reference(*parts), rtol=0, atol=1e-12)


def test_works_inside_a_compiled_function(executor):
    stored = stored_of(INTERLEAVED)
    plan = plan_attention(INTERLEAVED, stored, device=CPU, executor=executor)
    inputs = qkv(stored)
    exempt_executors()
    compiled = torch.compile(lambda q, k, v: plan(q * 2, k, v) + 1, backend="eager")
    torch.testing.assert_close(compiled(*inputs), plan(inputs[0] * 2, *inputs[1:]) + 1)
