"""The arguments of the varlen calls against the mask rule; the kernel itself where there is a GPU."""

import numpy as np
import pytest
import torch
from attention_layouts import largest_error, layouts, qkv, stored_of, table_of
from hypothesis import given, settings

from soundomni.core.attention import plan_attention
from soundomni.core.attention.places import token_places
from soundomni.core.attention.rectangles import cut_rectangles
from soundomni.core.attention.rule import dense_mask, is_single_pass
from soundomni.core.attention.stored_order import store
from soundomni.core.attention.varlen import VarlenPlan, obstacle, varlen_calls
from soundomni.core.sequence import Attend, SegmentTable

CAUSAL, FULL, NOISE = Attend.CAUSAL, Attend.FULL, Attend.NOISE
CUDA = torch.device("cuda")


@settings(max_examples=60, deadline=None)
@given(layouts().filter(lambda layout: is_single_pass(layout[0])))
def test_calls_cover_every_allowed_pair_once(layout):
    table, stored = layout
    calls = varlen_calls(cut_rectangles(table).at(token_places(stored)).first)
    assert len(calls) <= 2
    seen = np.zeros((table.num_tokens, table.num_tokens), dtype=int)
    queries = []
    for call in calls:
        assert call.cu_seqlens_q.dtype == call.cu_seqlens_k.dtype == np.int32
        assert (np.diff(call.cu_seqlens_q) > 0).all() and (np.diff(call.cu_seqlens_k) > 0).all()
        assert call.cu_seqlens_q[-1] == len(call.query) and call.cu_seqlens_k[-1] == len(call.key)
        for i in range(len(call.cu_seqlens_q) - 1):
            q = stored.order[call.query[call.cu_seqlens_q[i] : call.cu_seqlens_q[i + 1]]]
            k = stored.order[call.key[call.cu_seqlens_k[i] : call.cu_seqlens_k[i + 1]]]
            assert not call.causal or len(q) == len(k)
            ones = np.ones((len(q), len(k)), dtype=int)
            seen[np.ix_(q, k)] += np.tril(ones) if call.causal else ones
            queries += q.tolist()
    assert (seen == dense_mask(table)).all()
    assert sorted(queries) == list(range(table.num_tokens))


def test_text_to_audio_is_two_calls():
    table = table_of([(CAUSAL, 3), (NOISE, 4)], [(CAUSAL, 2), (NOISE, 5)])
    causal, full = varlen_calls(cut_rectangles(table).at(token_places(stored_of(table))).first)
    assert causal.causal and causal.cu_seqlens_q.tolist() == causal.cu_seqlens_k.tolist() == [0, 3, 5]
    assert not full.causal and full.cu_seqlens_q.tolist() == [0, 4, 9] and full.cu_seqlens_k.tolist() == [0, 7, 14]


@pytest.mark.parametrize(
    ("device", "dtype", "document", "said"),
    [
        ("cpu", torch.bfloat16, [(CAUSAL, 3)], "need a CUDA device, and the batch is on 'cpu'"),
        ("cuda", torch.float32, [(CAUSAL, 3)], "take bfloat16 or float16, not float32"),
        ("cuda", torch.bfloat16, [(FULL, 3), (CAUSAL, 3)], "a causal segment follows a full one"),
        ("cuda", torch.bfloat16, [(CAUSAL, 3), (NOISE, 3), (CAUSAL, 3), (FULL, 3)], None),
    ],
)
def test_what_stands_in_the_way(device, dtype, document, said):
    found = obstacle(table_of([(FULL, 2)], document), torch.device(device), dtype)
    assert found is None if said is None else said in found


def gradients(plan, inputs):
    out = plan(*inputs)
    return [out.detach(), *torch.autograd.grad(out.double().square().mean() * 1e3, inputs)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("executor", ["varlen", "flex"])
def test_kernels_agree_with_the_reference(executor):
    table = table_of(*[[(CAUSAL, 10 + i), (NOISE, 67)] for i in range(8)], [(CAUSAL, 300)], [(CAUSAL, 1), (FULL, 200)])
    stored = stored_of(table, multiple=8)
    inputs = tuple(x.detach().to(CUDA).requires_grad_() for x in qkv(stored, dim=64, dtype=torch.bfloat16))
    plan = plan_attention(table, stored, device=CUDA, executor=executor, dtype=torch.bfloat16)
    reference = plan_attention(table, stored, device=CUDA, executor="reference")
    found = [x.cpu() for x in gradients(plan, inputs)]
    expected = [x.cpu() for x in gradients(reference, tuple(x.detach().double().requires_grad_() for x in inputs))]
    assert largest_error(found, expected) <= 0.1


def test_an_empty_batch_stays_in_the_graph():
    table = SegmentTable.from_samples([])
    stored = store(table, lambda role: 0, 1)
    plan = VarlenPlan(cut_rectangles(table).at(token_places(stored)), device=torch.device("cpu"), reason="test")
    query = torch.randn(1, 2, 4, requires_grad=True)
    plan(query, query, query).sum().backward()
    assert query.grad is not None and not query.grad.any()
