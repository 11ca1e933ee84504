"""Attention of packed batches on the CPU, forward and backward: the planner's choice against simpler code.

Before it is timed, every contestant has to agree with dense attention in its output and gradients. Run on one thread:
`OMP_NUM_THREADS=1 pytest benchmarks/bench_attention.py`.

Shape letters: P stored tokens, h heads, d head dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soundomni.core.attention import dense_mask, plan_attention
from soundomni.core.attention.places import token_places
from soundomni.core.attention.stored_order import StoredOrder, store
from soundomni.core.sequence import Attend, Role, Segment, SegmentTable

CPU = torch.device("cpu")
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def text(length: int) -> Segment:
    return Segment(role=Role.TEXT, attend=Attend.CAUSAL, length=length, token_ids=np.zeros(length, np.int64))


def audio(length: int, attend: Attend) -> Segment:
    return Segment(role=Role.LATENT, attend=attend, length=length, token_ids=np.zeros(2, np.int64))


def short() -> list[list[Segment]]:
    """Return 32 captions of 6 to 14 tokens, each with a target of 67."""
    return [[text(6 + i % 9), audio(67, Attend.NOISE)] for i in range(32)]


def text_to_audio() -> list[list[Segment]]:
    """Return 8 documents of 64 text tokens and a target of 448: 4096 tokens."""
    return [[text(64), audio(448, Attend.NOISE)] for _ in range(8)]


def interleaved() -> list[list[Segment]]:
    """Return 4 conversations of 1024 tokens: text, a clip, text, a clip, text, and a target."""
    turns = [text(96), audio(160, Attend.FULL), text(128), audio(160, Attend.FULL), text(96), audio(384, Attend.NOISE)]
    return [turns for _ in range(4)]


WORKLOADS: dict[str, tuple[Callable[[], list[list[Segment]]], int, int]] = {
    "short": (short, 4, 40),
    "text_to_audio": (text_to_audio, 8, 64),
    "interleaved": (interleaved, 8, 64),
}


def planned(table: SegmentTable, stored: StoredOrder) -> Attention:
    return plan_attention(table, stored, device=CPU)


def dense_sdpa(table: SegmentTable, stored: StoredOrder) -> Attention:
    """Return attention as one call over all tokens, with a boolean mask."""
    places = torch.from_numpy(token_places(stored))
    mask = torch.from_numpy(dense_mask(table))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.index_select(0, places).transpose(0, 1)[None] for x in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)
        return torch.zeros_like(query).index_copy(0, places, out)

    return attend


def sdpa_per_segment(table: SegmentTable, stored: StoredOrder) -> Attention:
    """Return attention as one call per segment over its visible keys, with a boolean mask if tokens differ."""
    places, mask = token_places(stored), dense_mask(table)
    calls = []
    for start, length in zip(table.start, table.length, strict=True):
        keys = np.flatnonzero(mask[start : start + length].any(axis=0))
        seen = mask[start : start + length, keys]
        calls.append(
            (
                torch.from_numpy(places[start : start + length]),
                torch.from_numpy(places[keys]),
                None if seen.all() else torch.from_numpy(seen),
            )
        )
    order = torch.cat([rows for rows, _, _ in calls])

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outs = []
        for rows, keys, seen in calls:
            q, k, v = (x.index_select(0, i).transpose(0, 1)[None] for x, i in ((query, rows), (key, keys), (value, keys)))
            outs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen)[0].transpose(0, 1))
        return torch.zeros_like(query).index_copy(0, order, torch.cat(outs))

    return attend


CONTESTANTS: dict[str, Callable[[SegmentTable, StoredOrder], Attention]] = {
    "planned": planned,
    "sdpa_per_segment": sdpa_per_segment,
    "dense_sdpa": dense_sdpa,
}


def run(attention: Attention, inputs: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Run one forward and backward pass; return the output and three gradients."""
    out = attention(*inputs)
    return [out, *torch.autograd.grad(out, inputs, weight)]


@pytest.mark.parametrize("contestant", list(CONTESTANTS))
@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_forward_backward(benchmark, workload, contestant):
    documents, heads, dim = WORKLOADS[workload]
    table = SegmentTable.from_samples(documents())
    stored = store(table, lambda role: int(role == Role.LATENT), 2, multiple=8)
    torch.manual_seed(0)
    inputs = [torch.randn(len(stored.order), heads, dim, requires_grad=True) for _ in range(3)]
    weight = torch.randn(len(stored.order), heads, dim)
    attention = CONTESTANTS[contestant](table, stored)
    for found, expected in zip(run(attention, inputs, weight), run(dense_sdpa(table, stored), inputs, weight), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    benchmark.group = workload
    benchmark.extra_info["tokens"] = table.num_tokens
    benchmark.extra_info["allowed_pairs"] = int(dense_mask(table).sum())
    benchmark(run, attention, inputs, weight)


@pytest.mark.parametrize("workload", list(WORKLOADS))
def test_planning(benchmark, workload):
    """Measure what a batch costs once, whatever the number of layers."""
    table = SegmentTable.from_samples(WORKLOADS[workload][0]())
    stored = store(table, lambda role: int(role == Role.LATENT), 2, multiple=8)
    benchmark.group = "planning"
    benchmark(plan_attention, table, stored, device=CPU)
