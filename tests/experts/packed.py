"""Packed streams in document order and back, and random segments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from soundomni.core.attention.layout import Layout
from soundomni.core.attention.stored_order import PADDING
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, text_segment


def to_streams(layout: Layout, tokens: Tensor) -> list[Tensor]:
    """Tokens `[N, H]` in document order → streams, zero at padding."""
    order = torch.from_numpy(layout.stored.order)
    padded = torch.cat([tokens, tokens.new_zeros(1, tokens.shape[1])])
    return list(padded[torch.where(order == PADDING, len(tokens), order)].split(layout.stored.stream_lengths))


def to_tokens(layout: Layout, streams: Sequence[Tensor]) -> Tensor:
    """Streams → tokens in document order."""
    order = layout.stored.order
    return torch.cat(list(streams))[torch.from_numpy(np.argsort(np.where(order == PADDING, len(order), order))[: (order != PADDING).sum()])]


segments = st.builds(
    lambda role, attend, rule, n: (
        text_segment([5] * n, bos=1, eos=2)
        if role == Role.TEXT
        else Segment(role=role, attend=attend, length=n + 2, token_ids=np.array([3, 4]), positions=rule)
    ),
    st.sampled_from(Role),
    st.sampled_from(Attend),
    st.sampled_from(PositionRule),
    st.integers(1, 3),
)
