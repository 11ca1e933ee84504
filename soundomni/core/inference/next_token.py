"""Making clips token after token with a key-value cache: every token is computed once.

Each row of the cache holds one guidance branch of one sample: its context, the token that begins audio, and the tokens so far.

Shape letters: B samples, G guidance branches, R = B * G rows, K codebooks, P predicted numbers per token, T frames, n new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.modality import MadeModality, frame_places
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention import plan_cached
from soundomni.core.attention.conditions import SeenConditions
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.stored_order import StoredOrder
from soundomni.core.inference.audio_request import AudioRequest, given_frames, sampler_seed
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.guidance import check_guidance, guided
from soundomni.core.inference.places_ahead import PlacesAhead
from soundomni.core.interfaces import Draft, DraftedSampler, First, LevelsConnector, Predict, Sampler
from soundomni.core.representation import HIDDEN, Representation
from soundomni.core.sequence import TEXT, Context, PositionRule, Segment, SegmentTable, next_position, plain_segment
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.core.upload import upload


class _NewTokens(NamedTuple):
    """Where new tokens are stored, positioned as the first ones of their clips, the row of each, their places in the values, and the
    conditions that they see."""

    stored: StoredOrder
    rows: np.ndarray
    places: Tensor
    conditions: SeenConditions | None


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
        self._conditions = model.conditions(contexts)
        self._device = model.device
        self._no_text = torch.zeros(0, dtype=torch.int64, device=self._device)
        self._written: dict[tuple[int, int], _NewTokens] = {}
        made = model.made(self._slot.modality)
        self._classes = list(made.classes)
        self.by_level = isinstance(made.connector, LevelsConnector)
        self._last: tuple[Tensor, Tensor, Tensor, First] | None = None

    def predict(self, values: Tensor, timesteps: Tensor, *, first: First = 0, level: int | None = None) -> Tensor:
        """Return the logits `[R, P, n]` of tokens `first` to `first + n` − 1, given the tokens `[R, K, n]` before each of them; with a
        `level`, only its logits.

        Tokens before `first` must have been asked for, and do not change; those from `first` on are forgotten. `timesteps` are `[R, n]`.
        """
        rows, _, count = values.shape
        settled = first if isinstance(first, int) else first.numpy()
        self._cache.lengths[:rows] = self._begun[:rows] + settled
        new = self._new_tokens(rows, count)
        stored, counts = new.stored, np.full(rows, count)
        plan = plan_cached(self._cache.lengths[:rows], self._cache.capacity, counts, stored, causal=True, device=self._device)
        self._cache.begin(stored.order, new.rows, whole=True)
        layout = Layout(stored, self._position_ids(new, settled), plan, self._cache, conditions=new.conditions)
        name, places = self._slot.modality, new.places
        if not self.by_level:
            return self._model.predict_frames(name, values, timesteps, self._no_text, places, layout, first=first, level=level)
        hidden = self._model.hidden_tokens(name, values, timesteps, self._no_text, places, layout, first=first)
        self._last = hidden.reshape(rows, count, -1)[:, -1], values[..., -1:], timesteps[:, -1:], first + (count - 1)
        return self._model.predict_tokens(name, hidden, values, timesteps, places, first=first)

    def level(self, ids: Tensor, level: int) -> Tensor:
        """Return the logits `[R, V]` of a level of the last token that was asked for, given its ids `[R, K]` below that level."""
        assert self._last is not None, "a token was asked for"
        hidden, values, timesteps, first = self._last
        places, name = torch.arange(len(ids), device=ids.device), self._slot.modality
        logits = self._model.predict_tokens(name, hidden, values, timesteps, places, ids=ids[..., None], first=first)
        return torch.split(logits[..., 0], self._classes, dim=1)[level]

    def _position_ids(self, new: _NewTokens, settled: int | np.ndarray) -> Tensor:
        """Return the position of each stored token `[P]`, `settled` tokens of its clip being before the new ones."""
        positions = new.stored.position_ids
        if not self._shares:
            own = settled if isinstance(settled, int) else np.append(settled[new.rows], 0)[new.stored.order]  # PADDING is the last entry
            positions = positions + own
        return upload(positions, self._device)

    def _new_tokens(self, rows: int, count: int) -> _NewTokens:
        """Return what is the same for any `count` tokens of each row; it is kept, since almost every call has one token."""
        if (rows, count) not in self._written:
            table = self._table(rows, count)
            stored = self._model.stored(table, inference=True)
            places = frame_places(np.full(rows, count), count, self._device)
            spans = [(row * count, (row + 1) * count) for row in range(rows)]
            seen = None if self._conditions is None else self._model.seen(self._conditions, stored, spans)
            self._written[rows, count] = _NewTokens(stored, table.token_segments(), places, seen)
        return self._written[rows, count]

    def _table(self, rows: int, count: int) -> SegmentTable:
        """Return one segment without boundaries for each row, at the beginning of its clip."""
        ones = np.ones(rows, dtype=np.int64)
        row = np.arange(rows)
        return SegmentTable(
            document=row,
            role=self._slot.role * ones,
            attend=self._slot.attend * ones,
            start=row * count,
            length=count * ones,
            boundary=0 * ones,
            position=self._positions[:rows],
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
    draft: UnifiedModel | None = None,
) -> Representation:
    """Make one batch of clips of one modality, each up to its own end. No clip's result depends on the others in the batch.

    The arguments are those of `sample_audio`. A clip to vary keeps what its objective keeps at `begin`.
    """
    modality = model.made(requests[0].slot.modality)
    given, known = _given(modality, requests, begin)
    seeds = [torch.Generator().manual_seed(request.seed) for request in requests]
    start = modality.objective.start(given, known, seeds)
    predict = guided_tokens(model, requests, guidance)
    generators = [torch.Generator().manual_seed(sampler_seed(request.seed)) for request in requests]
    if isinstance(sampler, DraftedSampler) and draft is not None:
        guess = PlacesAhead(guided_tokens(draft, requests, guidance), start.values, 1.0)
        ahead: Draft = lambda values, tokens: guess(values, tokens)[..., 0]  # noqa: E731
        tokens = sampler.sample(predict, start, generators=generators, on_step=on_step, draft=ahead)
    else:
        tokens = sampler.sample(predict, start, generators=generators, on_step=on_step)
    return modality.objective.made(tokens)


def guided_tokens(model: UnifiedModel, requests: Sequence[AudioRequest], guidance: GuidanceSpec) -> Predict:
    """Return the guided prediction of the next token of clips, with a cache of its own.

    It is `PredictLevels` if the connector predicts each level from those below it. Guidance is then applied level by level.
    """
    check_guidance(guidance, predicts="next-token")
    branches = 2 if guidance.scale != 1.0 else 1
    contexts = [request.context for request in requests] + [request.negative for request in requests] * (branches - 1)
    slots = TokenSlots(model, contexts, [request.slot for request in requests] * branches)

    def predict_branches(values: Tensor, timesteps: Tensor, count: int, *, first: First, level: int | None = None) -> Tensor:
        every = timesteps[:, None].expand(-1, values.shape[-1])
        shown = (values, every) if count == 1 else (values.repeat(count, 1, 1), every.repeat(count, 1))
        settled = first if isinstance(first, int) else first.repeat(count)
        out = slots.predict(*shown, first=settled, level=level)
        return out.reshape(count, len(values), *out.shape[1:])

    if guidance.renormalize == "global":  # how many tokens are predicted at once must not matter, so each has its own norm
        guidance = replace(guidance, renormalize="channel")
    predict = guided(predict_branches, guidance)
    return _GuidedLevels(predict, slots, guidance) if slots.by_level else predict


class _GuidedLevels:
    """The guided prediction of tokens whose levels depend on those below them: `PredictLevels`.

    Args:
        predict: the guided prediction of tokens.
        slots: the clips of all branches.
        guidance: how the logits of a level are guided.
    """

    def __init__(self, predict: Predict, slots: TokenSlots, guidance: GuidanceSpec) -> None:
        self._predict = predict
        self._slots = slots
        self._guidance = guidance
        self._timesteps = torch.zeros(0)

    def __call__(self, values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        """Return the logits `[B, P, n]` of tokens, of each level without those below it."""
        self._timesteps = timesteps
        return self._predict(values, timesteps, first=first)

    def level(self, ids: Tensor, level: int) -> Tensor:
        """Return the logits `[B, V]` of a level of the last token, given its ids `[B, K]` below that level."""

        asked = level

        def predict_branches(values: Tensor, timesteps: Tensor, count: int, *, first: First, level: int | None = None) -> Tensor:
            out = self._slots.level(values[..., 0].repeat(count, 1), asked)
            return out.reshape(count, len(values), -1, 1)

        return guided(predict_branches, self._guidance)(ids[..., None], self._timesteps)[..., 0]


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
