"""Exact dense attention over packed documents, written from the rule of visibility alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from soundomni.core.attention.layout import Layout
from soundomni.core.attention.stored_order import PADDING, StoredOrder, store
from soundomni.core.interfaces import Router
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, SegmentTable, text_segment


class DensePlan:
    """An attention plan that scores every pair of tokens, token by token in document order."""

    executor = "dense"
    reason = "the reference of the tests"

    def __init__(self, table: SegmentTable, stored: StoredOrder) -> None:
        row, document = table.token_segments(), np.repeat(table.document, table.length)
        index = np.arange(table.num_tokens)
        same = row[:, None] == row[None]
        whole = same & (table.attend[row] != Attend.CAUSAL)[:, None]
        hidden = ~same & (table.attend[row] == Attend.NOISE)[None]
        causal = index[:, None] >= index[None]
        self.visible = torch.from_numpy((document[:, None] == document[None]) & (causal | whole) & ~hidden)
        self.places = torch.from_numpy(np.argsort(np.where(stored.order == PADDING, table.num_tokens, stored.order))[: table.num_tokens])

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x[self.places] for x in (query, key, value))
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~self.visible, float("-inf")).softmax(dim=-1)
        return torch.zeros_like(query).index_copy(0, self.places, torch.einsum("hqk,khd->qhd", weights, v))


LayOut = Callable[..., tuple[SegmentTable, Layout]]


@pytest.fixture(scope="session")
def lay_out() -> LayOut:
    """Documents and a router → their table, and a layout with dense attention."""

    def make(documents: Sequence[Sequence[Segment]], router: Router, multiple: int = 1) -> tuple[SegmentTable, Layout]:
        table = SegmentTable.from_samples(documents)
        stored = store(table, router.stream_of, len(router.streams), multiple=multiple)
        return table, Layout(stored=stored, position_ids=torch.from_numpy(stored.position_ids), attention=DensePlan(table, stored))

    return make


def audio(role: Role, attend: Attend, frames: int, rule: PositionRule = PositionRule.SHARED) -> Segment:
    return Segment(role=role, attend=attend, length=frames + 2, token_ids=np.array([3, 4]), positions=rule)


@pytest.fixture(scope="session")
def documents() -> list[list[Segment]]:
    """Interleaved turns: text, heard audio, clean and noisy latents; two targets; a document of text alone."""
    text = text_segment([5, 6, 7], bos=1, eos=2)
    heard = audio(Role.FEATURES, Attend.FULL, 4, PositionRule.ADVANCE)
    clean, noisy = audio(Role.LATENT, Attend.FULL, 3), audio(Role.LATENT, Attend.NOISE, 5)
    return [[text, noisy], [heard, text, clean, noisy, text], [text_segment([8], bos=1, eos=2, loss=True)], [noisy]]
