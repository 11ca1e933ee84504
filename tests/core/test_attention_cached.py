"""New tokens over a cache against the reference over the whole sequence."""

import numpy as np
import pytest
import torch
from attention_layouts import CPU, ROUTINGS, qkv, segment, stored_of, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.attention import plan_attention, plan_cached
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.attention.places import token_places
from soundomni.core.sequence import Attend, Role, SegmentTable

CAUSAL, NOISE = Attend.CAUSAL, Attend.NOISE
CAPACITY = 20


def new_table(lengths, causal):
    kind = (CAUSAL, Role.TEXT) if causal else (NOISE, Role.LATENT)
    return SegmentTable.from_samples([[segment(kind[0], int(n), kind[1])] if n else [] for n in lengths])


def run_cached(contexts, lengths, causal, routing="modality", *, heads=4, kv_heads=2, dtype=torch.float64):
    """Fills a cache with random contexts, runs the new tokens, and returns everything in token order."""
    rows = len(lengths)
    contexts, lengths = np.asarray(contexts), np.asarray(lengths)
    table = new_table(lengths, causal)
    stored = stored_of(table, routing, 4)
    query, key, value = (x.detach() for x in qkv(stored, heads=heads, kv_heads=kv_heads, dtype=dtype))
    cache = KVCache(num_rows=rows, capacity=CAPACITY, num_layers=1, num_kv_heads=kv_heads, head_dim=8, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    cache.keys.normal_(generator=generator)
    cache.values.normal_(generator=generator)
    cache.lengths = contexts.copy()
    cache.begin(stored.order, np.repeat(np.arange(rows), lengths), whole=True)
    keys, values = cache.update(0, key, value)
    plan = plan_cached(contexts, CAPACITY, lengths, stored, causal=causal, device=CPU)
    out = plan(query, keys, values)
    places = token_places(stored)
    assert (np.delete(out.numpy(), places, axis=0) == 0).all()
    return out[places], query[places], keys.view(rows, CAPACITY, kv_heads, 8), values.view(rows, CAPACITY, kv_heads, 8)


def reference_row(context, length, causal, query, keys, values):
    """The row as one document: its context causal, then the new tokens."""
    table = table_of(([(CAUSAL, context)] if context else []) + [(CAUSAL if causal else NOISE, length)])
    full_query = torch.cat([query.new_zeros(context, *query.shape[1:]), query])
    plan = plan_attention(table, stored_of(table, "dense"), device=CPU, executor="reference")
    return plan(full_query, keys[: context + length], values[: context + length])[context:]


rows = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10).map(lambda n: n if n == 0 else max(n, 3))), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(rows=rows, causal=st.booleans(), routing=st.sampled_from(list(ROUTINGS)))
def test_agrees_with_the_reference_over_the_whole_sequence(rows, causal, routing):
    contexts, lengths = zip(*rows, strict=True)
    out, query, keys, values = run_cached(contexts, lengths, causal, routing)
    start = 0
    for b, (context, length) in enumerate(rows):
        if length:
            new = slice(start, start + length)
            expected = reference_row(context, length, causal, query[new], keys[b], values[b])
            torch.testing.assert_close(out[new], expected, rtol=0, atol=1e-10)
        start += length


@pytest.mark.parametrize(
    ("contexts", "lengths", "causal"),
    [([4, 4], [5, 5], True), ([4, 4], [5, 5], False), ([7, 0, 3], [6, 3, 9], True), ([7, 0, 3], [6, 3, 9], False), ([5, 9], [1, 1], True)],
)
def test_a_row_does_not_depend_on_the_batch_around_it(contexts, lengths, causal):
    out, query, keys, values = run_cached(contexts, lengths, causal)
    start = 0
    for b, (context, length) in enumerate(zip(contexts, lengths, strict=True)):
        table = new_table([length], causal)
        stored = stored_of(table, "dense")
        plan = plan_cached(np.array([context]), CAPACITY, np.array([length]), stored, causal=causal, device=CPU)
        places = token_places(stored)
        alone = torch.zeros(len(stored.order), *query.shape[1:], dtype=query.dtype)
        alone[places] = query[start : start + length]
        torch.testing.assert_close(plan(alone, keys[b], values[b])[places], out[start : start + length], rtol=0, atol=1e-12)
        start += length


def test_decoding_step_by_step_equals_one_causal_pass():
    table = table_of([(CAUSAL, 6)])
    query, key, value = (x.detach() for x in qkv(stored_of(table, "dense")))
    expected = plan_attention(table, stored_of(table, "dense"), device=CPU)(query, key, value)
    one = stored_of(table_of([(CAUSAL, 1)]), "dense")
    cache = KVCache(num_rows=1, capacity=6, num_layers=1, num_kv_heads=2, head_dim=8, dtype=torch.float64)
    for i in range(6):
        cache.begin(one.order, np.zeros(1, np.int64), whole=True)
        plan = plan_cached(cache.lengths.copy(), 6, np.array([1]), one, causal=True, device=CPU)
        out = plan(query[i : i + 1], *cache.update(0, key[i : i + 1], value[i : i + 1]))
        cache.keep([1])
        torch.testing.assert_close(out, expected[i : i + 1], rtol=0, atol=1e-12)


def test_what_lies_beyond_a_row_is_not_seen():
    out, query, keys, values = run_cached([2, 6], [4, 4], False)
    table = new_table([4, 4], False)
    stored = stored_of(table, "dense")
    plan = plan_cached(np.array([2, 6]), CAPACITY, np.array([4, 4]), stored, causal=False, device=CPU)
    places = token_places(stored)
    again = torch.zeros(len(stored.order), *query.shape[1:], dtype=query.dtype)
    again[places] = query
    keys[0, 6:] = 99
    values[0, 6:] = 99
    torch.testing.assert_close(plan(again, keys.flatten(0, 1), values.flatten(0, 1))[places], out, rtol=0, atol=1e-12)


def test_nothing_new_gives_zeros():
    out, *_ = run_cached([3, 0], [0, 0], True)
    assert out.shape[0] == 0
