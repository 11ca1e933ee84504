"""The unified model: plugins joined into one network that makes and understands audio.

A batch passes each part once: for each modality its codec or encoder, its objective if it is made, and its connector;
then the backbone, the connectors back, and the losses. Nothing here depends on `self.training`.

Shape letters: B clips, D latent dimensions, P predicted numbers per token, T frames, N tokens of one modality, H hidden dimensions,
R cache rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from soundomni.core.assembly.aligned import add_aligned
from soundomni.core.assembly.losses_by_group import clip_parts, text_parts
from soundomni.core.assembly.modality import EncoderModality, Entered, MadeModality, Modality
from soundomni.core.assembly.text_loss import summed_nats
from soundomni.core.attention import plan_attention
from soundomni.core.attention.conditions import Conditions, Kept, SeenConditions, SeenHints, join_conditions
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.attention.layout import Layout
from soundomni.core.attention.plans import AttentionPlan
from soundomni.core.attention.stored_order import StoredOrder, store
from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.interfaces import Backbone, First, LossTerms, Objective, Query, Review, Router
from soundomni.core.sequence import NO_LABEL, TEXT, Breakdown, Clips, Context, PackedBatch, Segment, SegmentTable
from soundomni.core.upload import upload

GPU_STREAM_MULTIPLE = 128


class UnifiedModel(nn.Module):
    """A backbone over expert streams, and the modalities that carry audio in and out of it.

    Args:
        backbone, router: plugins.
        modalities: the ways in and out, in the order of the spec.
        critic: a separate network that scores for objectives with a review. Its modalities share codecs and encoders with this model, see
            `share`. None if this network's own heads give the scores.
        frozen: parts that are not trained; see ModelSpec.freeze.

    Raises:
        ValueError: `frozen` names a part that does not exist, or a modality has a name that torch does not take.
    """

    FORWARD_METHODS: ClassVar[tuple[str, ...]] = (
        *("prefill", "prefill_text", "predict_frames", "hidden_tokens", "predict_tokens", "next_token_logits", "aligned_frames"),
        *("conditions", "review", "enter_given", "answer"),
    )
    """Methods besides `forward` that run sub-modules; sharding registers them."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        router: Router,
        modalities: Iterable[Modality],
        critic: UnifiedModel | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.is_rounded = False  # see compute_in
        self.backbone = backbone
        self.modalities = nn.ModuleDict()
        for modality in modalities:
            if hasattr(self.modalities, modality.name):
                raise ValueError(f"the modality '{modality.name}' has a name that torch uses itself. Choose another one, such as codes")
            self.modalities[modality.name] = modality
        self.router = router
        self.critic = critic
        self.executor = "auto"
        self.teach: Callable[[PackedBatch], Mapping[str, Query]] | None = None
        """Returns the query about the clips of a training batch, by modality; None to use the objectives' own
        queries."""
        self._freeze(frozen)

    def _freeze(self, frozen: Sequence[str]) -> None:
        own = {f"{m.name}.connector": list(m.connector.parameters()) for m in self.each()}
        encoders = {f"{m.name}.encoder": list(m.encoder.parameters()) for m in self.each() if isinstance(m, EncoderModality)}
        parts: dict[str, Iterable[nn.Parameter]] = {
            "encoder": [p for parameters in encoders.values() for p in parameters],
            "connectors": [p for parameters in own.values() for p in parameters],
            "embedding": self._shared_parameters(),
            **own,
            **encoders,
        }
        if self.critic is not None:
            parts["critic"] = self.critic.parameters()
        for stream in self.router.streams:
            parts[stream] = self.backbone.expert_parameters(stream)
        for name in frozen:
            if name not in parts:
                raise ValueError(f"model.freeze: unknown part '{name}'. Parts: {', '.join(sorted(parts))}")
            for parameter in parts[name]:
                parameter.requires_grad_(False)

    def _shared_parameters(self) -> list[nn.Parameter]:
        own = {id(p) for stream in self.router.streams for p in self.backbone.expert_parameters(stream)}
        return [p for p in self.backbone.parameters() if id(p) not in own]

    # Modalities

    def each(self) -> list[Modality]:
        """Return the modalities, in the order of the spec."""
        return [modality for modality in self.modalities.values() if isinstance(modality, Modality)]

    def modality(self, name: str) -> Modality:
        """Return the modality of this name. Raise KeyError if there is none."""
        return cast(Modality, self.modalities[name])

    @property
    def all_made(self) -> list[MadeModality]:
        """The modalities that the model makes."""
        return [modality for modality in self.each() if isinstance(modality, MadeModality)]

    @property
    def all_encoders(self) -> list[EncoderModality]:
        """The modalities with an encoder, whether it hears or reads."""
        return [modality for modality in self.each() if isinstance(modality, EncoderModality)]

    @property
    def all_heard(self) -> list[EncoderModality]:
        """The modalities that the model hears through an encoder in its sequence; clips that only condition what it
        makes do not count."""
        return [one for one in self.all_encoders if one.encoder.spec.source == "waveform" and one.enters == "prefix"]

    @property
    def unplaced(self) -> dict[str, EncoderModality]:
        """The modalities whose tokens have no places in the sequence, by name."""
        return {modality.name: modality for modality in self.all_encoders if modality.enters != "prefix"}

    def made(self, name: str | None = None) -> MadeModality:
        """Return the modality of this name that the model makes; None stands for the first one.

        Raise SpecError if there is no such modality.
        """
        made = {modality.name: modality for modality in self.all_made}
        if name is None and made:
            return next(iter(made.values()))
        if name is None or name not in made:
            raise SpecError(f"the model makes {', '.join(made) or 'no audio'}, not '{name}'.{did_you_mean(str(name), made)}")
        return made[name]

    def heard(self) -> EncoderModality | None:
        """Return the first modality that the model hears, or None."""
        return next(iter(self.all_heard), None)

    @property
    def units(self) -> nn.ModuleList:
        """The layers: units of sharding, activation checkpointing and compilation."""
        layers = self.backbone.layers
        return layers if self.critic is None else nn.ModuleList([*layers, *self.critic.units])

    @property
    def networks(self) -> tuple[UnifiedModel, ...]:
        """Networks inside this one of which generation calls the methods directly."""
        return () if self.critic is None else (self.critic,)

    @property
    def replicated_modules(self) -> tuple[nn.Module, ...]:
        """Modules that are never trained with the model and that every rank holds whole."""
        return tuple(module for modality in self.each() for module in modality.whole)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.backbone.parameters()).dtype

    def compute_in(self, dtype: torch.dtype) -> None:
        """Round the weights of backbone, connectors and critic to a dtype in which they compute from now on, to use the model, not to
        train it. Codecs, encoders and normalizers stay as they are.
        """
        self.is_rounded = self.is_rounded or dtype != self.dtype
        for module in (self.backbone, *(modality.connector for modality in self.each())):
            module.to(dtype)
        if self.critic is not None:
            self.critic.compute_in(dtype)

    # Training

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that it returns, except parts of losses."""
        return ("ce", *(name for modality in self.each() for name in self._named(modality).values()), *self.router.loss_names)

    def _named(self, modality: Modality) -> dict[str, str]:
        """Return the name of each loss of a modality: the objective's own, after the modality's if several have it."""
        own = [name for other in self.each() for name in other.loss_names]
        return {name: name if own.count(name) == 1 else f"{modality.name}.{name}" for name in modality.loss_names}

    @property
    def timed_losses(self) -> tuple[str, ...]:
        """Names of the losses that can be measured at a chosen timestep; empty with a teacher, which chooses the
        timesteps."""
        timed = [modality for modality in self.all_made if modality.objective.has_timesteps and self.teach is None]
        return tuple(name for modality in timed for name in self._named(modality).values())

    def count_terms(self, batch: PackedBatch) -> dict[str, float]:
        """Return the number of elements of each loss of `batch`, known before anything is computed."""
        counts = {"ce": float((batch.labels != NO_LABEL).sum())}
        for modality in self.all_made:
            counts |= dict.fromkeys(self._named(modality).values(), modality.count_terms(batch.of(modality.name)))
        return counts | dict.fromkeys(self.router.loss_names, 1.0)

    def forward(self, batch: PackedBatch) -> LossTerms:
        """Return every loss of a batch as (sum, count), and those of its groups if it is broken down.

        Every rank runs every stream and every modality, whatever is in the batch.
        """
        taught: Mapping[str, Query] = {} if self.teach is None else self.teach(batch)
        entered = {modality.name: self._enter(batch, modality, taught.get(modality.name)) for modality in self.each()}
        layout, streams, auxiliary = self._run(batch, entered)
        hidden = layout.take(streams, TEXT)
        losses = {"ce": self.text_loss(hidden, batch.labels, batch.predicting)}
        parts = self._text_parts(hidden, batch, batch.breakdown) if batch.breakdown is not None else {}
        queries: dict[str, Query] = {}
        for modality in self.all_made:
            one, objective = entered[modality.name], modality.objective
            assert one.query is not None, "it is made"
            prediction = _predicted(modality, layout.take(streams, modality.name), one)
            self._add_losses(losses, parts, modality, objective, prediction, one.query, batch.breakdown)
            if objective.review is not None:
                queries[modality.name] = modality.reviewed(prediction, one.query, batch.of(modality.name))
        for name, scores in self._reviewed(batch, layout, entered, queries).items():
            modality = self.made(name)
            assert modality.objective.review is not None, "it has a query"
            self._add_losses(losses, parts, modality, modality.objective.review, scores, queries[name], batch.breakdown)
        for name in self.router.loss_names:
            total, count = auxiliary[name]
            losses[name] = (total / count.clamp(min=1), torch.ones_like(total))
        return losses | parts

    def enter_given(self, batch: PackedBatch) -> dict[str, Entered]:
        """Return the clips of a batch that are only given, in the hidden space, by modality."""
        return {
            modality.name: modality.enter(batch.of(modality.name)) for modality in self.each() if not isinstance(modality, MadeModality)
        }

    def answer(self, batch: PackedBatch, queries: Mapping[str, Query], given: Mapping[str, Entered]) -> dict[str, Tensor]:
        """Return the prediction `[B, P, T]` for a query about the clips of each modality that is made.

        Args:
            batch: its clips may lack some conditions of the batch that `given` comes from.
            queries: one for each modality that is made.
            given: what `enter_given` returned, so that encoders run only once for several queries.
        """
        entered = {one.name: given[one.name] if one.name in given else self._enter(batch, one, queries[one.name]) for one in self.each()}
        layout, streams, _ = self._run(batch, entered)
        return {one.name: _predicted(one, layout.take(streams, one.name), entered[one.name]) for one in self.all_made}

    def _enter(self, batch: PackedBatch, modality: Modality, query: Query | None) -> Entered:
        """Return the clips of a modality in the hidden space. Clips to make look as `query` shows them, by default the
        modality's own."""
        clips = batch.of(modality.name)
        return modality.enter(clips) if query is None else self.made(modality.name).enter_query(clips, query)

    def _run(self, batch: PackedBatch, entered: Mapping[str, Entered]) -> tuple[Layout, list[Tensor], LossTerms]:
        """Return the layout of a batch, its hidden streams after the backbone, and auxiliary losses."""
        layout = self._with_conditions(self.plan(batch.table), batch, entered)
        blocks = {TEXT: self.backbone.embed(batch.text_ids)} | self._placed(entered, batch.clips)
        streams, auxiliary = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        return layout, streams, auxiliary

    def _placed(self, entered: Mapping[str, Entered], clips: Mapping[str, Clips]) -> dict[str, Tensor]:
        """Return the hidden tokens that have places in the sequence, with those of aligned clips added to them."""
        added_to = {name: own.added_to for name, own in clips.items() if own.added_to}
        hidden = {name: one.hidden for name, one in entered.items() if name not in self.unplaced}
        return add_aligned(hidden, {name: own.num_frames for name, own in clips.items()}, added_to) if added_to else hidden

    def _with_conditions(self, layout: Layout, batch: PackedBatch, entered: Mapping[str, Entered]) -> Layout:
        """Return the layout with the conditions that have no places in the sequence, if the model has such modalities, and the timesteps
        of the clips, if the backbone takes them."""
        if not self.unplaced and not self.backbone.takes_times:
            return layout
        hidden = {name: entered[name].hidden for name in self.unplaced}
        counts = {name: batch.of(name).num_tokens for name in self.unplaced}
        clips, unattended = [one.conditions for one in batch.conditioned], [one.unattended for one in batch.conditioned]
        conditions = self._join(hidden, counts, clips, unattended)
        seen = self.seen(conditions, layout.stored, [(one.first, one.end) for one in batch.conditioned])
        if self.backbone.takes_times:
            seen = replace(seen.at(self._clip_times(batch, entered)), hints=self._hints(layout, entered))
        return layout.with_conditions(seen)

    def _hints(self, layout: Layout, entered: Mapping[str, Entered]) -> SeenHints | None:
        """Return the hints for the frames of a batch, if the backbone takes them; at most one modality has any."""
        for modality in self.all_made:
            own = entered[modality.name]
            assert own.query is not None and own.places is not None, "it is made"
            seen = modality.seen_hints(own.query.hints, own.places, layout.stored.runs[modality.name])
            if seen is not None:
                return seen
        return None

    def _clip_times(self, batch: PackedBatch, entered: Mapping[str, Entered]) -> Tensor:
        """Return the timestep of each clip of a batch that is made, `[M]`."""
        parts: list[Tensor] = []
        begin: dict[str, int] = {}
        count = 0
        for modality in self.all_made:
            query = entered[modality.name].query
            assert query is not None, "it is made"
            parts.append(modality.clip_times(query.timesteps))
            begin[modality.name], count = count, count + len(query.timesteps)
        chosen = [begin[name] + index for name, index in (one.clip for one in batch.conditioned)]
        return torch.cat(parts).index_select(0, upload(torch.tensor(chosen, dtype=torch.int64), self.device))

    def _join(
        self,
        hidden: Mapping[str, Tensor],
        num_tokens: Mapping[str, np.ndarray],
        clips: Sequence[Sequence[tuple[str, int]]],
        unattended: Sequence[Collection[tuple[str, int]]],
        kept: Kept | None = None,
    ) -> Conditions:
        """Join the hidden tokens of conditions, `[N, H]` of each modality, see `join_conditions`."""
        unplaced = self.unplaced
        by_way = {way: {name: tokens for name, tokens in hidden.items() if unplaced[name].enters_as(way)} for way in ("cross", "global")}
        nothing = torch.zeros(0, self.backbone.condition_dim, device=self.device, dtype=self.dtype)
        like = next(iter(hidden.values()), nothing)
        return join_conditions(by_way["cross"], by_way["global"], num_tokens, clips, like=like, unattended=unattended, kept=kept)

    def review(self, batch: PackedBatch, layout: Layout, queries: Mapping[str, Query]) -> dict[str, Tensor]:
        """Return the scores `[B, P, T]` that each of another model's `queries` about a batch asks for."""
        entered = {modality.name: modality.enter(batch.of(modality.name)) for modality in self.each() if modality.name not in queries}
        scores, streams = self._scores(batch, self._with_conditions(layout, batch, entered), entered, queries)
        # The sum of nothing: every parameter has a gradient, so that all ranks and all steps update the same ones.
        unused = [self.backbone.head(layout.take(streams, TEXT)[:0])]
        unused += [one.connector.leave(layout.take(streams, one.name)[:0]) for one in self.all_made if one.name not in queries]
        return {name: one + torch.cat([other.flatten() for other in unused]).sum() for name, one in scores.items()}

    def _reviewed(
        self, batch: PackedBatch, layout: Layout, entered: Mapping[str, Entered], queries: Mapping[str, Query]
    ) -> dict[str, Tensor]:
        """Return the scores `[B, P, T]` of the critic, or of this network's own heads, for each of `queries`."""
        if not queries:
            return {}
        if self.critic is not None:
            return self.critic.review(batch, layout, queries)
        return self._scores(batch, layout, entered, queries)[0]

    def _scores(
        self, batch: PackedBatch, layout: Layout, entered: Mapping[str, Entered], queries: Mapping[str, Query]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the scores `[B, P, T]` that each of `queries` asks for, in a second pass over the batch, and its hidden streams."""
        again = dict(entered)
        for name, query in queries.items():
            again[name] = self.made(name).enter_query(batch.of(name), query)
        blocks = {TEXT: self.backbone.embed(batch.text_ids)} | self._placed(again, batch.clips)
        streams, _ = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        scores = {name: self.made(name).split(_left(self.made(name), layout.take(streams, name), again[name]))[1] for name in queries}
        return scores, streams

    def _add_losses(
        self,
        losses: LossTerms,
        parts: LossTerms,
        modality: MadeModality,
        objective: Objective | Review,
        prediction: Tensor,
        query: Query,
        breakdown: Breakdown | None,
    ) -> None:
        """Add the losses of a prediction `[B, P, T]` and their parts by group, under their names in the model."""
        names = self._named(modality)
        losses.update({names[name]: term for name, term in objective.loss(prediction, query).items()})
        if breakdown is not None and modality.name in breakdown.clips:
            groups = breakdown.clips[modality.name]
            parts.update(clip_parts(objective, prediction.detach(), query, groups, breakdown.names, named=names))

    @torch.no_grad()
    def _text_parts(self, hidden: Tensor, batch: PackedBatch, breakdown: Breakdown) -> LossTerms:
        logits = self.backbone.head(hidden.index_select(0, batch.predicting))
        return text_parts(logits, batch.labels.index_select(0, batch.predicting), breakdown)

    def text_loss(self, hidden: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of text `[N_text, H]` against `labels` `[N_text]` over the labeled `rows` `[N]`:
        (nats, count).
        """
        total = summed_nats(self.backbone.head, hidden.index_select(0, rows), labels.index_select(0, rows))
        return total, torch.full((), float(len(rows)), device=total.device)

    # Layout

    def stored(self, table: SegmentTable, *, inference: bool = False) -> StoredOrder:
        """Decide where the tokens of a table are stored.

        In inference, streams are not padded, and the experts of a stream without tokens do not run, if the backbone allows it.
        """
        multiple = GPU_STREAM_MULTIPLE if self.device.type == "cuda" and not inference else 1
        pad_empty = not (inference and self.backbone.takes_empty_streams)
        return store(
            table,
            self.router.stream_of,
            len(self.router.streams),
            modalities={modality.name: modality.role for modality in self.each()},
            multiple=multiple,
            pad_empty=pad_empty,
        )

    def layout(self, stored: StoredOrder, plan: AttentionPlan, cache: KVCache | None = None) -> Layout:
        """Lay out tokens with a plan of their attention."""
        return Layout(stored, upload(stored.position_ids, self.device), plan, cache)

    def plan(self, table: SegmentTable, cache: KVCache | None = None) -> Layout:
        """Lay out the tokens of a table and plan exact attention among them; a cache means inference."""
        stored = self.stored(table, inference=cache is not None)
        dtype, head_dim = self._computing_dtype(), self.backbone.head_dim
        plan = plan_attention(table, stored, device=self.device, executor=self.executor, dtype=dtype, head_dim=head_dim)
        return self.layout(stored, plan, cache)

    def seen(self, conditions: Conditions, stored: StoredOrder, spans: Sequence[tuple[int, int]]) -> SeenConditions:
        """Return the conditions that the tokens [first, end) of clips see; see `Conditions.seen`."""
        return conditions.seen(stored, spans, dtype=self._computing_dtype(), head_dim=self.backbone.head_dim)

    def _computing_dtype(self) -> torch.dtype:
        """Return the dtype of queries: that of autocast, or of the parameters."""
        kind = self.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype

    # Generation: the context once, then only the slot

    def prefill(self, batch: PackedBatch, cache: KVCache) -> None:
        """Run context documents, one per cache row, and keep their keys and values.

        Only what the documents hold is computed: no encoder runs without audio to understand, no codec without audio to
        continue.
        """
        if batch.table.num_tokens:
            self._fill(batch, cache)

    def prefill_text(self, batch: PackedBatch, cache: KVCache) -> Tensor:
        """Run context documents that end with text as `prefill` does, and return the logits after the last token of each, `[R, V]`."""
        text = self._fill(batch, cache)
        table = batch.table
        documents = table.document[table.token_segments()][table.token_modalities() == 0]
        last = np.searchsorted(documents, np.arange(table.num_documents), side="right") - 1
        return self.backbone.head(text.index_select(0, upload(last, self.device))).float()

    def _fill(self, batch: PackedBatch, cache: KVCache) -> Tensor:
        """Run context documents and keep their keys and values. Return the hidden text tokens, `[N, H]`."""
        layout = self.plan(batch.table, cache)
        rows = batch.table.document[batch.table.token_segments()]
        cache.begin(layout.stored.order, rows, whole=False)
        blocks = {TEXT: self.backbone.embed(batch.text_ids)}
        blocks |= {modality.name: modality.enter_context(clips) for modality in self.each() if len(clips := batch.of(modality.name))}
        streams, _ = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        cache.keep(np.bincount(rows, minlength=cache.num_rows))
        return layout.take(streams, TEXT)

    def conditions(self, contexts: Sequence[Context]) -> Conditions | None:
        """Return the conditions of rows that have no places in the sequence, for sampling; None if no row has any, unless the backbone
        takes times.

        Keys and values are computed in the first call that needs them, and kept.
        """
        found: dict[str, list[Segment]] = {}
        rows: list[list[tuple[str, int]]] = []
        unattended: list[list[tuple[str, int]]] = []
        for context in contexts:
            rows.append([])
            unattended.append([])
            for segment in context:
                if not segment.placed:
                    own = found.setdefault(segment.modality, [])
                    rows[-1].append((segment.modality, len(own)))
                    unattended[-1] += [] if segment.attended else rows[-1][-1:]
                    own.append(segment)
        if not found and not self.backbone.takes_times:
            return None
        clips = {name: Clips.of(own).to(self.device) for name, own in found.items()}
        hidden = {name: self.unplaced[name].enter_context(own) for name, own in clips.items()}
        return self._join(hidden, {name: own.num_tokens for name, own in clips.items()}, rows, unattended, kept={})

    def aligned_frames(self, slots: Sequence[Segment]) -> Tensor | None:
        """Return what the aligned clips of audio slots add to their frames, `[N, H]`; None if no slot has any."""
        found: dict[str, list[tuple[int, Segment]]] = {}
        for i, slot in enumerate(slots):
            for other in slot.aligned:
                found.setdefault(other.modality, []).append((i, other))
        if not found:
            return None
        frames = np.asarray([slot.num_frames for slot in slots])
        nothing = torch.zeros(int(frames.sum()), self.backbone.hidden_dim, device=self.device, dtype=self.dtype)
        host = ""  # no modality has this name
        hidden, num_frames = {host: nothing}, {host: frames}
        for name, pairs in found.items():
            clips = Clips.of([other for _, other in pairs]).to(self.device)
            modality = self.modality(name)
            hidden[name], num_frames[name] = modality.enter_context(clips), clips.num_frames
        return add_aligned(hidden, num_frames, {name: [(host, i) for i, _ in pairs] for name, pairs in found.items()})[host]

    def predict_frames(
        self,
        name: str,
        values: Tensor,
        timesteps: Tensor,
        boundary_ids: Tensor,
        places: Tensor,
        layout: Layout,
        added: Tensor | None = None,
        *,
        hints: Tensor | None = None,
        first: First = 0,
        review: bool = False,
        level: int | None = None,
    ) -> Tensor:
        """Predict for the audio slots of all rows at once.

        Args:
            name: name of the modality that is made.
            values: `[R, D, T]`, or codes `[R, K, T]`.
            timesteps: `[R, T]`.
            boundary_ids: int64 `[2 R]`, start and end token of each row's slot; empty if the layout has none.
            places: the frames of the slots, from `frame_places`.
            layout: layout of the slots, with a cached plan; the cache already knows where they go.
            added: what is added to the frames, from `aligned_frames`; None for nothing.
            hints: what the network also sees of known frames, `[R, D + 1, T]`, see `Objective.hints`.
            first: index of the first of these tokens in the clips, or in each.
            review: return the scores of the objective's review instead.
            level: the level of codes to predict; None for all of them.

        Returns:
            The prediction `[R, P, T]`; with a level, P is its vocabulary.
        """
        hidden = self.hidden_tokens(name, values, timesteps, boundary_ids, places, layout, added, hints=hints, first=first)
        if review:
            modality = self.made(name)
            return modality.split(modality.leave(hidden, places, values))[1].float()
        return self.predict_tokens(name, hidden, values, timesteps, places, first=first, level=level)

    def hidden_tokens(
        self,
        name: str,
        values: Tensor,
        timesteps: Tensor,
        boundary_ids: Tensor,
        places: Tensor,
        layout: Layout,
        added: Tensor | None = None,
        *,
        hints: Tensor | None = None,
        first: First = 0,
    ) -> Tensor:
        """Return the hidden tokens `[N, H]` of audio slots, from which `predict_tokens` predicts. The arguments are those of
        `predict_frames`."""
        # The sampler keeps its own precision: values and timesteps are not rounded to the precision of the parameters.
        modality = self.made(name)
        given = values.to(self.dtype) if values.is_floating_point() else values
        frames = modality.enter_frames(given, timesteps, places, first=first, hints=hints)
        frames = frames if added is None else frames + added
        if self.backbone.takes_times:
            assert layout.conditions is not None, "a backbone that takes times has conditions"
            seen_hints = modality.seen_hints(hints, places, layout.stored.runs[name])
            layout = layout.with_conditions(replace(layout.conditions.at(modality.clip_times(timesteps)), hints=seen_hints))
        blocks = {TEXT: self.backbone.embed(boundary_ids), name: frames}
        streams, _ = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        return layout.take(streams, name)

    def predict_tokens(
        self,
        name: str,
        hidden: Tensor,
        values: Tensor,
        timesteps: Tensor,
        places: Tensor,
        *,
        ids: Tensor | None = None,
        first: First = 0,
        level: int | None = None,
    ) -> Tensor:
        """Predict for audio slots from their hidden tokens `[N, H]`, and from the `ids` `[R, K, T]` of the tokens that are predicted.

        The other arguments and the result are those of `predict_frames`.
        """
        modality = self.made(name)
        asked = level if type(modality.objective).predicted is Objective.predicted else None  # it may need all levels
        output = modality.leave(hidden, places, values, ids, level=asked)
        if asked is None:
            output, _ = modality.split(output)
        precise = values.dtype if values.is_floating_point() else torch.float32
        prediction = modality.objective.predicted(output.to(precise), values, timesteps, first=first).to(precise)
        if level is None or asked is not None:
            return prediction
        return prediction.narrow(1, sum(modality.classes[:level]), modality.classes[level])

    def next_token_logits(self, token_ids: Tensor, layout: Layout) -> Tensor:
        """Add one text token to each row, `[R]`, and return the logits of the next, `[R, V]`."""
        blocks = {TEXT: self.backbone.embed(token_ids)}
        streams, _ = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        return self.backbone.head(layout.take(streams, TEXT)).float()


def _left(modality: MadeModality, hidden: Tensor, entered: Entered) -> Tensor:
    """Return what leaves as the hidden tokens `[N, H]` of clips that entered, `[B, P, T]`."""
    assert entered.query is not None and entered.places is not None, "it is made"
    query = entered.query
    return modality.leave(hidden, entered.places[: len(hidden)], query.inputs, query.ids)  # clips that are added to others have no tokens


def _predicted(modality: MadeModality, hidden: Tensor, entered: Entered) -> Tensor:
    """Return the prediction `[B, P, T]` for the hidden tokens `[N, H]` of clips that entered, without scores."""
    assert entered.query is not None, "it is made"
    output, _ = modality.split(_left(modality, hidden, entered))
    return modality.objective.predicted(output, entered.query.inputs, entered.query.timesteps)
