"""Random packed layouts for the attention tests."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from soundomni.core.attention.stored_order import PADDING, StoredOrder, store
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, SegmentTable

CPU = torch.device("cpu")

ROUTINGS = {
    "dense": (lambda role: 0, 1),
    "modality": (lambda role: int(role in (Role.LATENT, Role.CODES)), 2),
    "split": (lambda role: int(role), 4),
}


def segment(attend: Attend, length: int, role: Role = Role.TEXT) -> Segment:
    """A segment without payload; audio has two boundary tokens, counted in its length."""
    ids = np.zeros(length if role == Role.TEXT else 2, dtype=np.int64)
    return Segment(role=role, attend=attend, length=length, token_ids=ids, positions=PositionRule.ADVANCE)


def table_of(*documents: list[tuple[Attend, int]]) -> SegmentTable:
    """Text documents of (attend, length) segments."""
    return SegmentTable.from_samples([[segment(attend, length) for attend, length in document] for document in documents])


def stored_of(table: SegmentTable, routing: str = "modality", multiple: int = 1) -> StoredOrder:
    stream_of, count = ROUTINGS[routing]
    return store(table, stream_of, count, multiple=multiple)


@st.composite
def segments(draw: st.DrawFn, longest: int = 12) -> Segment:
    role = draw(st.sampled_from(list(Role)))
    shortest = 1 if role == Role.TEXT else 3
    return segment(draw(st.sampled_from(list(Attend))), draw(st.integers(shortest, longest)), role)


def tables(longest: int = 12, documents: int = 4) -> st.SearchStrategy[SegmentTable]:
    document = st.lists(segments(longest), min_size=1, max_size=5)
    return st.lists(document, max_size=documents).map(SegmentTable.from_samples)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[SegmentTable, StoredOrder]:
    table = draw(tables())
    return table, stored_of(table, draw(st.sampled_from(list(ROUTINGS))), draw(st.sampled_from([1, 8])))


def qkv(
    stored: StoredOrder, *, heads: int = 4, kv_heads: int = 2, dim: int = 8, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random leaves in stored order. Values beyond 1 make one-sided errors of softmax visible."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(len(stored.order), n, dim) for n in (heads, kv_heads, kv_heads)]
    query, key, value = (2 * torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def forward_backward(plan, inputs: tuple[Tensor, Tensor, Tensor], seed: int = 1) -> list[Tensor]:
    """Returns the output and the gradients of a random projection of it."""
    out = plan(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(((a.double() - b.double()).abs().max().item() for a, b in zip(found, expected, strict=True) if a.numel()), default=0.0)


def padding_rows(stored: StoredOrder) -> np.ndarray:
    return np.flatnonzero(stored.order == PADDING)
