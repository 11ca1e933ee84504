"""Making clips token after token with a key-value cache: every token is computed once.

Each row of the cache holds one guidance branch of one sample: its context, the token that begins audio, and the tokens so far.

Shape letters: B samples, G guidance branches, R = B * G rows, K codebooks, P predicted numbers per token, T frames, n new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.modality import MadeModality, frame_places
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention import plan_cached
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.inference.audio_request import AudioRequest, given_frames, sampler_seed
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.guidance import guided
from soundomni.core.interfaces import Sampler
from soundomni.core.representation import HIDDEN, Representation
from soundomni.core.sequence import TEXT, Context, PositionRule, Segment, SegmentTable, next_position, plain_segment
from soundomni.core.spec.schema import GuidanceSpec


class TokenSlots:
    """The clips behind the contexts of some rows, all of one modality.

    Args:
        model: the model.
        contexts: what comes before the clip of each row.
        slots: the clip to make in each row, as the writer of segments writes a target.
    """

    def __init__(self, model: UnifiedModel, contexts: Sequence[Context], slots: Sequence[Segment]) -> None:
        begun = [(*context, plain_segment(slot.token_ids[:1])) for context, slot in zip(contexts, slots, strict=True)]
        self._model = model
        self._cache: KVCache = make_cache(model, begun, room=max(slot.num_tokens for slot in slots))
        self._begun = self._cache.lengths.copy()
        self._slot = slots[0]
        self._shares = self._slot.positions == PositionRule.SHARED
        before = [next_position(context) for context in contexts]
        self._positions = np.asarray(before) + (0 if self._shares else 1)  # the token that begins audio is the first one
        self._no_text = torch.zeros(0, dtype=torch.int64, device=model.device)

    def predict(self, values: Tensor, timesteps: Tensor, *, first: int = 0) -> Tensor:
        """Return the logits `[R, P, n]` of tokens `first` to `first + n` − 1, given the tokens `[R, K, n]` before each of them.

        Tokens before `first` must have been asked for, and stay as they were; tokens after them are forgotten. `timesteps` are `[R, n]`.
        """
        rows, _, count = values.shape
        self._cache.lengths[:] = self._begun + first
        table = self._table(rows, count, first)
        stored = self._model.stored(table, inference=True)
        counts = np.full(rows, count)
        plan = plan_cached(self._cache.lengths[:rows], self._cache.capacity, counts, stored, causal=True, device=self._model.device)
        layout = self._model.layout(stored, plan, self._cache)
        self._cache.begin(stored.order, table.token_segments(), whole=True)
        places = frame_places(counts, count, self._model.device)
        return self._model.predict_frames(self._slot.modality, values, timesteps, self._no_text, places, layout, first=first)

    def _table(self, rows: int, count: int, first: int) -> SegmentTable:
        """Return one segment without boundaries for each row."""
        ones = np.ones(rows, dtype=np.int64)
        row = np.arange(rows)
        return SegmentTable(
            document=row,
            role=self._slot.role * ones,
            attend=self._slot.attend * ones,
            start=row * count,
            length=count * ones,
            boundary=0 * ones,
            position=self._positions[:rows] + (0 if self._shares else first),
            rule=self._slot.positions * ones,
            modality=ones,
            names=(TEXT, self._slot.modality),
        )


@torch.no_grad()
def sample_tokens(
    model: UnifiedModel,
    requests: Sequence[AudioRequest],
    *,
    sampler: Sampler,
    guidance: GuidanceSpec,
    begin: float = 1.0,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Representation:
    """Make one batch of clips of one modality, each up to its own end. No clip's result depends on the others in the batch.

    The arguments are those of `sample_audio`. A clip to vary keeps what its objective keeps at `begin`.
    """
    modality = model.made(requests[0].slot.modality)
    given, known = _given(modality, requests, begin)
    seeds = [torch.Generator().manual_seed(request.seed) for request in requests]
    start = modality.objective.start(given, known, seeds)
    branches = 2 if guidance.scale != 1.0 else 1
    contexts = [request.context for request in requests] + [request.negative for request in requests] * (branches - 1)
    slots = TokenSlots(model, contexts, [request.slot for request in requests] * branches)

    def predict_branches(values: Tensor, timesteps: Tensor, count: int, *, first: int) -> Tensor:
        every = timesteps[:, None].expand(-1, values.shape[-1])
        out = slots.predict(values.repeat(count, 1, 1), every.repeat(count, 1), first=first)
        return out.reshape(count, len(values), *out.shape[1:])

    if guidance.renormalize == "global":  # how many tokens are predicted at once must not matter, so each has its own norm
        guidance = replace(guidance, renormalize="channel")
    generators = [torch.Generator().manual_seed(sampler_seed(request.seed)) for request in requests]
    tokens = sampler.sample(guided(predict_branches, guidance), start, generators=generators, on_step=on_step)
    return modality.objective.made(tokens)


def _given(modality: MadeModality, requests: Sequence[AudioRequest], begin: float) -> tuple[Representation, Tensor]:
    """Return the known codes of all clips and which frames are known `[B, T]`, those that a variation keeps among them."""
    given, target = given_frames(modality, requests)
    values, known = given.values, target.known
    for i, request in enumerate(requests):
        if request.varied is not None:
            clip, frames = request.varied.to(values)[None], request.num_frames
            kept = modality.objective.noised(clip, torch.full_like(clip, HIDDEN), begin)[0]
            own = (kept != HIDDEN).all(0) & ~known[i, :frames]
            values[i, :, :frames] = torch.where(own, kept, values[i, :, :frames])
            known[i, :frames] |= own
    return given.with_values(values), known
