"""Contexts in a key-value cache: what comes before the audio or the text to make is computed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.sequence import Context, PackedBatch, Sample, context_length, in_sequence


def make_cache(model: UnifiedModel, contexts: Sequence[Context], room: int) -> KVCache:
    """Allocate a cache with one row per context and room for `room` more tokens in each, and compute the contexts into
    it. Conditions without places are left out.
    """
    placed = [in_sequence(context) for context in contexts]
    cache = empty_cache(model, placed, room)
    model.prefill(packed(model, placed), cache)
    return cache


def packed(model: UnifiedModel, contexts: Sequence[Context]) -> PackedBatch:
    """Return contexts as documents of one batch on the model's device."""
    samples = [Sample(key=str(i), segments=context) for i, context in enumerate(contexts)]
    return PackedBatch.from_samples(samples).to(model.device)


def empty_cache(model: UnifiedModel, contexts: Sequence[Context], room: int) -> KVCache:
    """Allocate a cache with one row per context, for the context and `room` more tokens."""
    backbone = model.backbone
    parameter = next(backbone.parameters())
    kind = parameter.device.type
    return KVCache(
        num_rows=len(contexts),
        capacity=max(map(context_length, contexts)) + room,
        num_layers=len(backbone.layers),
        num_kv_heads=backbone.num_kv_heads,
        head_dim=backbone.head_dim,
        device=parameter.device,
        dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype,
    )
