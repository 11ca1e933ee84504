"""The unified model: plugins joined into one network that makes and understands audio.

A batch passes each part once: codec → normalizer → objective → connectors → backbone → connectors → losses. Nothing
here depends on `self.training`.

Shape letters: B clips, D latent dimensions, T frames, F feature dimensions, N tokens of one role, H hidden dimensions, R cache rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly.chunked import chunk_frames_of, decode_in_groups
from soundomni.core.assembly.losses_by_group import clip_parts, text_parts
from soundomni.core.assembly.normalizer import LatentNormalizer
from soundomni.core.attention import plan_attention
from soundomni.core.attention.kv_cache import KVCache
from soundomni.core.attention.layout import AttentionPlan, Layout
from soundomni.core.attention.stored_order import StoredOrder, store
from soundomni.core.errors import SpecError
from soundomni.core.interfaces import Backbone, Codec, Connector, Encoder, LossTerms, Objective, Query, Router
from soundomni.core.representation import Representation
from soundomni.core.sequence import NO_LABEL, Breakdown, Clips, PackedBatch, Role, SegmentTable

GPU_STREAM_MULTIPLE = 128
CODEC_SAMPLES = 1 << 22
"""Samples, of all channels, that a codec encodes at once in training. A large codec needs over a kilobyte for each, and
a batch as large as the original's holds more than a hundred million."""


class UnifiedModel(nn.Module):
    """A backbone over expert streams, and the parts that carry audio in and out of it.

    Args:
        backbone, router, codec, objective: plugins.
        latent_connector, features_connector, encoder: plugins; the last two are None in a model that only generates.
        normalizer: normalizer of the codec's latents.
        frozen: parts that are not trained; see ModelSpec.freeze.

    Raises:
        ValueError: `frozen` names a part that does not exist.
    """

    FORWARD_METHODS: ClassVar[tuple[str, ...]] = ("prefill", "prefill_text", "predict_frames", "next_token_logits")
    """Methods besides `forward` that run sub-modules; sharding registers them."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        router: Router,
        codec: Codec,
        objective: Objective,
        latent_connector: Connector,
        features_connector: Connector | None,
        encoder: Encoder | None,
        normalizer: LatentNormalizer,
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.codec = codec.requires_grad_(False)
        self.objective = objective
        self.latent_connector = latent_connector
        self.features_connector = features_connector
        self.encoder = encoder
        self.normalizer = normalizer
        self.router = router
        self.audio_role = Role.LATENT if codec.spec.kind == "continuous" else Role.CODES
        self.executor = "auto"
        self._freeze(frozen)

    def _freeze(self, frozen: Sequence[str]) -> None:
        connectors = [m for m in (self.latent_connector, self.features_connector) if m is not None]
        parts: dict[str, Iterable[nn.Parameter]] = {
            "encoder": self.encoder.parameters() if self.encoder is not None else (),
            "connectors": [p for module in connectors for p in module.parameters()],
            "embedding": self._shared_parameters(),
        }
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

    @property
    def units(self) -> nn.ModuleList:
        """The layers: units of sharding, activation checkpointing and compilation."""
        return self.backbone.layers

    @property
    def replicated_modules(self) -> tuple[nn.Module, ...]:
        """Modules that are never trained with the model and that every rank holds whole."""
        return (self.codec, self.normalizer)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.backbone.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.backbone.parameters()).dtype

    # Training

    def count_terms(self, batch: PackedBatch) -> dict[str, float]:
        """Return the number of elements of each loss of `batch`, known before anything is computed."""
        clips = batch.latents
        frames = float(sum(int(n) for n, noise in zip(clips.num_frames, clips.noise.tolist(), strict=True) if noise))
        frames -= float((clips.known & clips.noise[:, None]).sum())
        counts = {"ce": float((batch.labels != NO_LABEL).sum())}
        counts |= dict.fromkeys(self.objective.loss_names, frames)
        return counts | dict.fromkeys(self.router.loss_names, 1.0)

    def forward(self, batch: PackedBatch) -> LossTerms:
        """Return every loss of a batch as (sum, count), and those of its groups if it is broken down.

        Every rank runs every stream, whatever is in the batch.
        """
        layout = self.plan(batch.table)
        query = self.corrupt(batch.latents)
        places = frame_places(batch.latents.num_frames, query.inputs.shape[-1], self.device)
        streams = layout.place(
            {
                Role.TEXT: self.backbone.embed(batch.text_ids),
                Role.FEATURES: self.enter_features(batch.features),
                self.audio_role: self.enter_frames(query.inputs, query.timesteps, places),
            },
            self.backbone.hidden_dim,
        )
        streams, auxiliary = self.backbone(streams, layout)
        hidden = layout.take(streams, self.audio_role)
        losses = {"ce": self.text_loss(layout.take(streams, Role.TEXT), batch.labels, batch.predicting)}
        output = self.leave_frames(hidden, places, query.inputs)
        prediction = self.objective.predicted(output, query.inputs, query.timesteps)
        losses |= self.objective.loss(prediction, query)
        for name in self.router.loss_names:
            total, count = auxiliary[name]
            losses[name] = (total / count.clamp(min=1), torch.ones_like(total))
        if batch.breakdown is not None:
            losses |= self._text_parts(layout.take(streams, Role.TEXT), batch, batch.breakdown)
            losses |= clip_parts(self.objective, prediction.detach(), query, batch.breakdown)
        return losses

    @torch.no_grad()
    def _text_parts(self, hidden: Tensor, batch: PackedBatch, breakdown: Breakdown) -> LossTerms:
        logits = self.backbone.head(hidden.index_select(0, batch.predicting))
        return text_parts(logits, batch.labels.index_select(0, batch.predicting), breakdown)

    def text_loss(self, hidden: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of text `[N_text, H]` against `labels` `[N_text]` over the labeled `rows` `[N]`:
        (nats, count).
        """
        logits = self.backbone.head(hidden.index_select(0, rows)).float()
        total = functional.cross_entropy(logits, labels.index_select(0, rows), reduction="sum")
        return total, torch.tensor(float(len(rows)), device=total.device)

    def corrupt(self, clips: Clips) -> Query:
        """Encode, normalize and corrupt the clips to make; each draws from its own seed."""
        if len(clips) == 0:
            return self._empty_query()
        generators = [torch.Generator().manual_seed(seed) for seed in clips.seeds]
        clean = self.encode(clips.waveform, clips.lengths, generators)
        clean = replace(clean, frames=tuple(clips.num_frames.tolist()))
        if clips.quantiles is None:
            return self.objective.corrupt(clean, known=clips.known, noise=clips.noise, generators=generators)
        return self.objective.corrupt_at(clean, known=clips.known, noise=clips.noise, generators=generators, quantiles=clips.quantiles)

    def _empty_query(self) -> Query:
        """Return a query without clips.

        The connectors still run, on nothing, so that every rank computes the same gradients.
        """
        values = torch.zeros(0, self.codec.spec.token_dim, 1, device=self.device, dtype=self.dtype)
        mask = values[:, 0]
        return Query(inputs=values, timesteps=mask, targets=values, loss_mask=mask.bool())

    def fit_latents(self, batches: Iterable[PackedBatch]) -> None:
        """Fit the latent normalizer on the clips of some batches."""
        with torch.no_grad():
            self.normalizer.fit(
                self.run_codec(batch.latents.waveform.to(self.device), batch.latents.lengths.to(self.device))
                for batch in batches
                if len(batch.latents)
            )

    # Codec

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Return the normalized representation of `[B, C, S]`, in the codec's own precision, as in the fit of the
        normalizer.
        """
        with torch.autocast(waveform.device.type, enabled=False):
            return self.normalizer.normalize(self.run_codec(waveform, lengths, generators))

    def run_codec(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Return the codec's representation of `[B, C, S]`, some clips at a time.

        No clip's values depend on the others.
        """
        count = max(1, CODEC_SAMPLES // max(1, waveform.shape[1] * waveform.shape[2]))
        groups = [slice(first, first + count) for first in range(0, max(1, len(waveform)), count)]
        parts = [self.codec.encode(waveform[group], lengths[group], generators[group] if generators else None) for group in groups]
        if len(parts) == 1:
            return parts[0]
        values, frames = torch.cat([part.values for part in parts]), torch.cat([part.lengths for part in parts])
        return Representation(values, frames, parts[0].spec)

    @torch.no_grad()
    def decode(self, representation: Representation) -> Tensor:
        """Decode a normalized representation to `[B, C, S]`, in the codec's own precision and the memory of one piece
        of CHUNK_SECONDS.
        """
        with torch.autocast(representation.values.device.type, enabled=False):
            latents = self.normalizer.denormalize(representation)
            return decode_in_groups(self.codec, latents, most_frames=chunk_frames_of(self.codec.spec))

    # In and out of the hidden space

    def stored(self, table: SegmentTable, *, inference: bool = False) -> StoredOrder:
        """Decide where the tokens of a table are stored.

        In inference the experts of a stream without tokens do not run, if the backbone allows it.
        """
        multiple = GPU_STREAM_MULTIPLE if self.device.type == "cuda" else 1
        pad_empty = not (inference and self.backbone.takes_empty_streams)
        return store(table, self.router.stream_of, len(self.router.streams), multiple=multiple, pad_empty=pad_empty)

    def layout(self, stored: StoredOrder, plan: AttentionPlan, cache: KVCache | None = None) -> Layout:
        """Lay out tokens with a plan of their attention."""
        return Layout(stored, torch.from_numpy(stored.position_ids).to(self.device), plan, cache)

    def plan(self, table: SegmentTable, cache: KVCache | None = None) -> Layout:
        """Lay out the tokens of a table and plan exact attention among them; a cache means inference."""
        stored = self.stored(table, inference=cache is not None)
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        plan = plan_attention(table, stored, device=self.device, executor=self.executor, dtype=dtype)
        return self.layout(stored, plan, cache)

    def enter_features(self, clips: Clips) -> Tensor:
        """Return the hidden tokens `[N, H]` of clips to understand."""
        if self.encoder is None or self.features_connector is None:
            if len(clips):
                raise ValueError("the batch holds audio to understand, but the model has no encoder")
            return torch.zeros(0, self.backbone.hidden_dim, device=self.device, dtype=self.dtype)
        if len(clips) == 0:  # every rank runs the encoder: a silent clip, whose features are dropped
            silence = torch.zeros(1, 1, self.encoder.spec.sample_rate // 10, device=self.device, dtype=self.dtype)
            features = self.encoder(silence, torch.tensor([silence.shape[-1]], device=self.device))
            return self.features_connector.enter(features.flatten(0, 1)[:0])
        features = self.encoder(clips.waveform, clips.lengths)
        places = frame_places(clips.num_frames, features.shape[1], self.device)
        return self.features_connector.enter(features.flatten(0, 1).index_select(0, places))

    def enter_frames(self, values: Tensor, timesteps: Tensor, places: Tensor) -> Tensor:
        """Return the hidden tokens `[N, H]` of the frames at `places` in values `[B, D, T]` at timesteps `[B, T]`.

        Raise SpecError for more frames than the latent connector tells apart.
        """
        num_frames = values.shape[-1]
        self.check_frames(num_frames)
        tokens = rearrange(values, "b d t -> (b t) d").index_select(0, places)
        times = timesteps.flatten().index_select(0, places)
        return self.latent_connector.enter(tokens, timesteps=times, frames=places % num_frames)

    def check_frames(self, num_frames: int) -> None:
        """Raise SpecError for a clip of more frames than the latent connector tells apart."""
        most = self.latent_connector.max_frames
        if most is not None and num_frames > most:
            given, longest = (self.codec.spec.seconds(frames) for frames in (num_frames, most))
            raise SpecError(f"the clip lasts {given:g} s; the latent connector takes at most {longest:g} s. Choose a shorter length")

    def leave_frames(self, hidden: Tensor, places: Tensor, like: Tensor) -> Tensor:
        """Return the prediction `[B, D, T]` of hidden tokens `[N, H]`, zero in the padding."""
        tokens = self.latent_connector.leave(hidden)
        b, _, t = like.shape
        flat = tokens.new_zeros(b * t, tokens.shape[-1]).index_copy(0, places, tokens)
        return flat.reshape(b, t, tokens.shape[-1]).transpose(1, 2)  # b may be 0

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
        documents = table.document[table.token_segments()][table.token_roles() == Role.TEXT]
        last = np.searchsorted(documents, np.arange(table.num_documents), side="right") - 1
        return self.backbone.head(text.index_select(0, torch.from_numpy(last).to(self.device))).float()

    def _fill(self, batch: PackedBatch, cache: KVCache) -> Tensor:
        """Run context documents and keep their keys and values. Return the hidden text tokens, `[N, H]`."""
        layout = self.plan(batch.table, cache)
        rows = batch.table.document[batch.table.token_segments()]
        cache.begin(layout.stored.order, rows, whole=False)
        blocks = {Role.TEXT: self.backbone.embed(batch.text_ids)}
        if len(batch.features):
            blocks[Role.FEATURES] = self.enter_features(batch.features)
        if len(batch.latents):
            clean = self.encode(batch.latents.waveform, batch.latents.lengths)
            clean = clean.with_values(clean.values.to(self.dtype))
            places = frame_places(batch.latents.num_frames, clean.values.shape[-1], self.device)
            blocks[self.audio_role] = self.enter_frames(clean.values, torch.zeros_like(clean.values[:, 0]), places)
        streams, _ = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        cache.keep(np.bincount(rows, minlength=cache.num_rows))
        return layout.take(streams, Role.TEXT)

    def predict_frames(self, values: Tensor, timesteps: Tensor, boundary_ids: Tensor, places: Tensor, layout: Layout) -> Tensor:
        """Predict for the audio slots of all rows at once.

        Args:
            values: `[R, D, T]`.
            timesteps: `[R, T]`.
            boundary_ids: int64 `[2 R]`, start and end token of each row's slot.
            places: the frames of the slots, from `frame_places`.
            layout: layout of the slots, with a cached plan; the cache already knows where they go.

        Returns:
            The prediction `[R, D, T]`.
        """
        # The sampler keeps its own precision: values and timesteps are not rounded to the precision of the parameters.
        frames = self.enter_frames(values.to(self.dtype), timesteps, places)
        blocks = {Role.TEXT: self.backbone.embed(boundary_ids), self.audio_role: frames}
        streams, _ = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        output = self.leave_frames(layout.take(streams, self.audio_role), places, values)
        return self.objective.predicted(output.to(values.dtype), values, timesteps).to(values.dtype)

    def next_token_logits(self, token_ids: Tensor, layout: Layout) -> Tensor:
        """Add one text token to each row, `[R]`, and return the logits of the next, `[R, V]`."""
        blocks = {Role.TEXT: self.backbone.embed(token_ids)}
        streams, _ = self.backbone(layout.place(blocks, self.backbone.hidden_dim), layout)
        return self.backbone.head(layout.take(streams, Role.TEXT)).float()


def frame_places(num_frames: np.ndarray, padded: int, device: torch.device) -> Tensor:
    """Return int64 `[N]`: where the valid frames of clips with `num_frames` `[B]` lie in a flattened `[B * padded]`
    axis.
    """
    if len(num_frames) and int(num_frames.max()) > padded:
        raise ValueError(f"a clip was packed as {int(num_frames.max())} frames, but its encoding has {padded}")
    first = np.arange(len(num_frames)) * padded
    runs = [np.arange(start, start + count) for start, count in zip(first, num_frames, strict=True)]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *runs]).astype(np.int64)).to(device)
