"""Generation with a key-value cache: the context is computed once, then only the slot that is being made.

Each row of the cache holds one guidance branch of one sample. At every step, the sampler rewrites the audio slots
behind the rows, in one batch. Clips that are made token after token are in next_token.py, and text is in decoding.py.

Shape letters: B samples, G guidance branches, R = B * G rows, D latent dimensions, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from soundomni.core.assembly.modality import MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.attention import plan_cached
from soundomni.core.attention.conditions import Conditions
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.inference.audio_request import AudioRequest, given_frames, sampler_seed
from soundomni.core.inference.bounded_change import Bound, bounded
from soundomni.core.inference.contexts import make_cache
from soundomni.core.inference.guidance import PredictBranches, compared, guided, without_norms
from soundomni.core.inference.next_token import sample_tokens
from soundomni.core.interfaces import First, Objective, Predict, Sampler
from soundomni.core.representation import Representation, length_mask
from soundomni.core.sequence import Segment, SegmentTable, next_position
from soundomni.core.spec.schema import GuidanceSpec
from soundomni.core.upload import upload


class AudioSlots:
    """The audio slots behind the contexts of some rows, with everything that does not change between sampling steps.

    Args:
        model: the model.
        cache: holds the contexts; rows 0 to len(slots) - 1 are used.
        slots: the clip to make in each row, as the writer of segments writes a target; all of one modality.
        positions: position id of each slot.
        added: what is added to the frames of the slots, from `UnifiedModel.aligned_frames`; None for nothing.
        conditions: conditions of the rows that have no places in the sequence; None if there are none.
        hints: what the network also sees of known frames, `[R, D + 1, T]`, see `Objective.hints`; None if nothing.
    """

    def __init__(
        self,
        model: UnifiedModel,
        cache: KVCache,
        slots: Sequence[Segment],
        *,
        positions: Sequence[int],
        added: Tensor | None = None,
        conditions: Conditions | None = None,
        hints: Tensor | None = None,
    ) -> None:
        table = SegmentTable.from_samples([(slot,) for slot in slots], first_position=positions)
        rows = len(slots)
        self._model, self._cache = model, cache
        stored = model.stored(table, inference=True)
        self._rows = table.document[table.token_segments()]
        plan = plan_cached(
            cache.lengths[:rows],
            cache.capacity,
            np.asarray([slot.length for slot in slots]),
            stored,
            causal=False,
            device=model.device,
        )
        self._layout = model.layout(stored, plan, cache)
        if conditions is not None:
            ends = np.cumsum([slot.length for slot in slots]).tolist()
            inside = [(end - slot.length + slot.boundary, end - slot.boundary) for end, slot in zip(ends, slots, strict=True)]
            self._layout = self._layout.with_conditions(model.seen(conditions, stored, inside))
        self._boundary = upload(np.concatenate([slot.token_ids for slot in slots]), model.device)
        self._tokens = np.asarray([slot.num_tokens for slot in slots])
        self._added, self._hints = added, hints
        self._name = slots[0].modality

    def predict(self, values: Tensor, timesteps: Tensor, *, first: First = 0, review: bool = False, level: int | None = None) -> Tensor:
        """Return the prediction `[R, P, T]` for values `[R, D, T]` or codes `[R, K, T]` at timesteps `[R, T]`, of one level of codes or
        of all, or with `review` their scores.

        Raise ValueError unless `first` is 0: every token of a noise segment sees all others, so none of them is settled.
        """
        if not isinstance(first, int) or first:
            raise ValueError(f"first is {first}, but the tokens of this clip see each other; expected 0")
        self._cache.begin(self._layout.stored.order, self._rows, whole=True)
        places = self._model.made(self._name).places(self._tokens, values.shape[-1])
        slots = (self._boundary, places, self._layout, self._added)
        return self._model.predict_frames(self._name, values, timesteps, *slots, hints=self._hints, review=review, level=level)


@torch.no_grad()
def sample_audio(
    model: UnifiedModel,
    requests: Sequence[AudioRequest],
    *,
    sampler: Sampler,
    guidance: GuidanceSpec,
    begin: float = 1.0,
    on_step: Callable[[int, Tensor], None] | None = None,
    draft: UnifiedModel | None = None,
) -> Representation:
    """Make one batch of clips of one modality. No clip's result depends on the others in the batch.

    Below 1, `begin` is the timestep to start from, with noise added to the clips to vary up to there (Meng et al. 2022,
    SDEdit, algorithm 1). A `draft` is a smaller model of the same codes and texts that guesses ahead for a `DraftedSampler`.

    Returns:
        the normalized representation, `[B, D, T]`; clips that end by themselves may be shorter than asked for.
    """
    modality = model.made(requests[0].slot.modality)
    if modality.objective.predicts == "next-token":
        return sample_tokens(model, requests, sampler=sampler, guidance=guidance, begin=begin, on_step=on_step, draft=draft)
    given, target = given_frames(modality, requests)
    slots = _branches(model, requests, guidance, modality.objective.hints(target.values, target.known))
    noise = [torch.Generator().manual_seed(request.seed) for request in requests]
    start = _varied(modality, requests, modality.objective.start(given, target.known, noise), begin)
    valid = length_mask(given.lengths, given.values.shape[-1])

    made = valid & ~target.known
    predict = target.hold(guided(_asking(slots), guidance, valid=made, objective=modality.objective))
    predict = bounded(predict, modality.objective, [_bound(request) for request in requests], made=made)
    more: dict[str, Any] = {}
    if sampler.compares:
        compare = target.hold(compared(_asking(slots), guidance, valid=made, objective=modality.objective))
        more["compare"] = _bounded_first(compare, modality.objective, [_bound(request) for request in requests], made=made)
    if sampler.reviews:  # scores only rank cells, so how large they are needs no correction
        judges = slots if model.critic is None else _branches(model.critic, requests, guidance, None)
        more["review"] = target.hold(guided(_asking(judges, review=True), without_norms(guidance)))
    generators = [torch.Generator().manual_seed(sampler_seed(request.seed)) for request in requests]
    start = start.with_values(target.begun(start.values))
    made_tokens = sampler.sample(predict, start, generators=generators, begin=begin, on_step=on_step, **more)
    return modality.objective.made(made_tokens.with_values(target.show(made_tokens.values) * valid[:, None]))


def _branches(model: UnifiedModel, requests: Sequence[AudioRequest], guidance: GuidanceSpec, hints: Tensor | None) -> dict[int, AudioSlots]:
    """Return the audio slots of one guidance branch, and of two if guidance needs them, behind the contexts of the requests."""
    branches = 2 if guidance.scale != 1.0 else 1
    contexts = [r.context for r in requests] + [r.negative for r in requests] * (branches - 1)
    cache = make_cache(model, contexts, room=max(request.slot.length for request in requests))
    written = [request.slot for request in requests]
    added, conditions = model.aligned_frames(written), model.conditions(contexts)
    return {
        count: AudioSlots(
            model,
            cache,
            written * count,
            positions=[next_position(context) for context in contexts[: count * len(requests)]],
            added=added if added is None or count == 1 else torch.cat([added, torch.zeros_like(added)]),  # nothing without a prompt
            conditions=conditions,
            hints=None if hints is None else hints.repeat(count, 1, 1),
        )
        for count in range(1, branches + 1)
    }


def _asking(slots: Mapping[int, AudioSlots], *, review: bool = False) -> PredictBranches:
    """Return what guidance asks for the predictions of branches, or for their scores."""

    def predict_branches(values: Tensor, timesteps: Tensor, count: int, *, first: First, level: int | None = None) -> Tensor:
        # Conditional rows come first in the cache, so that only they run outside the guidance interval.
        out = slots[count].predict(values.repeat(count, 1, 1), timesteps.repeat(count, 1), first=first, review=review, level=level)
        return out.reshape(count, len(values), *out.shape[1:])

    return predict_branches


def _varied(modality: MadeModality, requests: Sequence[AudioRequest], start: Representation, begin: float) -> Representation:
    """Return what sampling starts from: `start`, mixed with the clip if one is varied."""
    mixed = start.values.clone()
    for i, request in enumerate(requests):
        if request.varied is not None:
            clip, frames = request.varied[None].to(mixed), request.num_frames
            mixed[i : i + 1, :, :frames] = modality.objective.noised(clip, start.values[i : i + 1, :, :frames], begin)
    return start.with_values(mixed)


def _bounded_first(compare: Predict, objective: Objective, bounds: Sequence[Bound | None], *, made: Tensor) -> Predict:
    """Return what `compare` does, `[2, B, P, T]`, with the first prediction within the bound of each clip."""

    def both(values: Tensor, timesteps: Tensor, *, first: First = 0) -> Tensor:
        steered, other = compare(values, timesteps, first=first)
        within = bounded(lambda *_, **__: steered, objective, bounds, made=made)
        return torch.stack([within(values, timesteps, first=first), other])

    return both


def _bound(request: AudioRequest) -> Bound | None:
    if request.varied is None or math.isinf(request.most_change):
        return None
    return Bound(request.varied, request.most_change)
