"""The ways into the hidden space of a model and out of it, one for each modality.

A modality is heard through an encoder, or given through a codec; with an objective it can be made too. Nothing here
depends on `self.training`.

Shape letters: B clips, D latent dimensions, K codebooks, P predicted numbers per token, T frames, N tokens, H hidden dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from soundomni.core.assembly.chunked import chunk_frames_of, decode_in_groups
from soundomni.core.assembly.encoding import encode_clips
from soundomni.core.assembly.normalizer import LatentNormalizer
from soundomni.core.attention.conditions import SeenHints
from soundomni.core.errors import DataError, SpecError
from soundomni.core.full_precision import full_precision
from soundomni.core.interfaces import Codec, Connector, Encoder, First, LevelsConnector, Objective, Query
from soundomni.core.representation import Representation, most_frames
from soundomni.core.sequence import Clips, Role
from soundomni.core.spec.schema import Enters
from soundomni.core.upload import upload


@dataclass(frozen=True)
class Entered:
    """Clips of one modality in the hidden space.

    Args:
        hidden: `[N, H]`, their tokens one after the other.
        query: what the model is asked to predict; None if the modality is not made.
        places: int64 `[N]`, where the tokens lie in the flattened `[B * T]` axis of the query.
    """

    hidden: Tensor
    query: Query | None = None
    places: Tensor | None = None


class Modality(nn.Module, ABC):
    """A way into the hidden space.

    Args:
        name: its name in the spec.
        role: role of its tokens, for the router.
        connector: carries its tokens.
    """

    def __init__(self, *, name: str, role: Role, connector: Connector) -> None:
        super().__init__()
        self.name = name
        self.role = role
        self.connector = connector

    @property
    @abstractmethod
    def sample_rate(self) -> int:
        """Sample rate in Hz of the clips that it takes."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Audio channels of the clips that it takes."""

    @property
    def whole(self) -> tuple[nn.Module, ...]:
        """Modules that are never trained with the model and that every rank holds whole."""
        return ()

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses of its objective; none if it is not made."""
        return ()

    @abstractmethod
    def enter(self, clips: Clips) -> Entered:
        """Return clips of a training batch in the hidden space, those to make corrupted. Called for no clips too, so that every
        rank computes the same gradients."""

    @abstractmethod
    def enter_context(self, clips: Clips) -> Tensor:
        """Return the hidden tokens `[N, H]` of given clips, at least one."""

    @property
    def device(self) -> torch.device:
        """Device of the connector's parameters."""
        return self._sample.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the connector's parameters."""
        return self._sample.dtype

    @property
    def _sample(self) -> Tensor:
        return next(chain(self.connector.parameters(), self.connector.buffers()))


def share(modality: Modality, owner: Modality, *, parts: Sequence[str] = ("codec", "normalizer", "encoder")) -> Modality:
    """Return the modality of another network, such as a critic, which uses these parts of the model's own modality.

    They are not registered in it, so only the owner moves, shards and saves them.
    """
    for name in parts:
        if modality._modules.pop(name, None) is not None:
            object.__setattr__(modality, name, getattr(owner, name))
    return modality


class EncoderModality(Modality):
    """Clips that are heard, or clips, texts and numbers that condition what is made: an encoder turns them into
    features.

    Args:
        name, connector: as in Modality.
        encoder: the encoder.
        enters: as in ModalitySpec.
    """

    def __init__(self, *, name: str, connector: Connector, encoder: Encoder, enters: Enters = "prefix") -> None:
        super().__init__(name=name, role=Role.FEATURES, connector=connector)
        self.encoder = encoder
        self.enters = enters

    def enters_as(self, way: str) -> bool:
        """Return whether clips see its tokens in a way, "cross" or "global"."""
        return way in self.enters.split("+")

    @property
    def sample_rate(self) -> int:
        """Sample rate of the encoder's input in Hz."""
        return self.encoder.spec.sample_rate

    @property
    def channels(self) -> int:
        """Encoders take mono."""
        return 1

    def enter(self, clips: Clips) -> Entered:
        """Return the features of clips in the hidden space, without those that are masked."""
        if len(clips):
            return Entered(self.enter_context(clips))
        # Every rank runs the encoder: a silent clip, whose features are dropped.
        samples = self.sample_rate // 10 if self.encoder.spec.source == "waveform" else 1
        silence = torch.zeros(1, 1, samples, device=self.device, dtype=self.dtype)
        features = self._features(silence, torch.full((1,), samples, device=self.device))
        return Entered(self.connector.enter(features.flatten(0, 1)[:0].to(self.dtype)))

    def enter_context(self, clips: Clips) -> Tensor:
        """Return the hidden tokens `[N, H]` of the clips' features."""
        features = self._features(clips.waveform, clips.lengths)
        if clips.masked is not None:  # the encoder may return padding after the tokens of the longest clip
            beyond = features.shape[1] - clips.masked.shape[1]
            features = features.masked_fill(functional.pad(clips.masked, (0, 0, 0, beyond)), 0.0)
        places = frame_places(clips.num_tokens, features.shape[1], self.device)
        return self.connector.enter(features.flatten(0, 1).index_select(0, places).to(self.dtype))

    def _features(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Return the encoder's features `[B, S, F]`. If the encoder is shared, see `share`, they have no gradient: a critic does not train
        it."""
        is_own = "encoder" in self._modules
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_own):
            features: Tensor = self.encoder(waveform, lengths)
        return features


class CodecModality(Modality):
    """Clips that are given as the representation of a codec.

    Args:
        name, connector: as in Modality.
        codec: the codec; it is not trained with the model.
        normalizer: normalizer of the codec's latents.
    """

    def __init__(self, *, name: str, connector: Connector, codec: Codec, normalizer: LatentNormalizer) -> None:
        role = Role.LATENT if codec.spec.kind == "continuous" else Role.CODES
        super().__init__(name=name, role=role, connector=connector)
        self.codec = codec.requires_grad_(False)
        self.normalizer = normalizer

    @property
    def sample_rate(self) -> int:
        """Sample rate of the codec in Hz."""
        return self.codec.spec.sample_rate

    @property
    def channels(self) -> int:
        """Audio channels of the codec."""
        return self.codec.spec.channels

    @property
    def most_levels(self) -> int:
        """Levels of its codes that the model has: all of the codec's. For latents, their dimensions."""
        return self.codec.spec.token_dim

    @property
    def whole(self) -> tuple[nn.Module, ...]:
        """The codec and the normalizer."""
        return (self.codec, self.normalizer)

    def enter(self, clips: Clips) -> Entered:
        """Return the representation of clips in the hidden space."""
        if len(clips):
            return Entered(self.enter_context(clips))
        return Entered(self.enter_frames(self._nothing(), None, frame_places(clips.num_tokens, 1, self.device)))

    def enter_context(self, clips: Clips) -> Tensor:
        """Return the hidden tokens `[N, H]` of the clips' representation, clean."""
        values = self.as_context(replace(self.represent(clips), frames=tuple(clips.num_frames.tolist())))
        clean = values.to(self.dtype) if values.is_floating_point() else values
        return self.enter_frames(clean, None, frame_places(clips.num_tokens, clean.shape[-1], self.device))

    def as_context(self, clean: Representation) -> Tensor:
        """Return the tokens of clips that are only context, `[B, D, T]` or `[B, K, T]`."""
        return clean.values

    def num_tokens(self, num_frames: int) -> int:
        """Return how many tokens a clip of so many frames has, without its boundaries."""
        return num_frames

    def enter_frames(self, values: Tensor, timesteps: Tensor | None, places: Tensor, *, first: First = 0) -> Tensor:
        """Return the hidden tokens `[N, H]` of those at `places` in values `[B, D, T]` or codes `[B, K, T]`.

        Args:
            values: the values.
            timesteps: `[B, T]`; None if all are clean.
            places: int64 `[N]`, see `frame_places`.
            first: index of the first of these tokens in the clips, or in each.

        Raise SpecError for more tokens than the connector tells apart.
        """
        num_tokens = values.shape[-1]
        self._check_tokens(num_tokens + (first if isinstance(first, int) else int(first.max())))
        tokens = values.transpose(1, 2).flatten(0, 1).index_select(0, places)  # einops would cost more than all of it for one token
        before = first if isinstance(first, int) else first.to(places.device)[places // num_tokens]
        return self._connect(tokens, timesteps, places, before + places % num_tokens)

    def _connect(self, tokens: Tensor, timesteps: Tensor | None, places: Tensor, indices: Tensor) -> Tensor:
        return self.connector.enter(tokens)

    def check_frames(self, num_frames: int) -> None:
        """Raise SpecError for a clip of more frames than the connector tells apart."""
        self._check_tokens(self.num_tokens(num_frames))

    def _check_tokens(self, num_tokens: int) -> None:
        most = self.connector.max_frames
        if most is not None and num_tokens > most:
            given, longest = (self.codec.spec.seconds(most_frames(self.num_tokens, count)) for count in (num_tokens, most))
            raise SpecError(f"the clip lasts {given:g} s; the {self.name} connector takes at most {longest:g} s. Choose a shorter length")

    def _nothing(self) -> Tensor:
        """Return the values of no clips, `[0, D, 1]`."""
        dtype = self.dtype if self.codec.spec.kind == "continuous" else torch.int64
        return torch.zeros(0, self.most_levels, 1, device=self.device, dtype=dtype)

    @torch.no_grad()
    def encode(self, waveform: Tensor, lengths: Tensor, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Return the normalized representation of `[B, C, S]`, in the codec's own precision, as in the fit of the
        normalizer.
        """
        with full_precision(waveform.device):
            return self.normalizer.normalize(encode_clips(self.codec, waveform, lengths, generators))

    @torch.no_grad()
    def represent(self, clips: Clips, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Return the normalized representation of clips, of which some or all may be encoded already."""
        with full_precision(clips.waveform.device):
            return self.normalizer.normalize(self.run_codec(clips, generators))

    def run_codec(self, clips: Clips, generators: Sequence[torch.Generator] | None = None) -> Representation:
        """Return the codec's representation of clips; those that are encoded already stay as they are.

        No clip's values depend on the others.
        """
        if clips.values is None:
            return encode_clips(self.codec, clips.waveform, clips.lengths, generators, num_samples=clips.num_samples)
        values = clips.values
        rest = [i for i, is_encoded in enumerate(clips.encoded) if not is_encoded]
        if rest:
            rows = upload(torch.tensor(rest), values.device)
            drawn = [generators[i] for i in rest] if generators else None
            counts = [clips.num_samples[i] for i in rest]
            made = encode_clips(self.codec, clips.waveform[rows], clips.lengths[rows], drawn, num_samples=counts).values
            values = values.to(made.dtype, copy=True)
            values[rows, :, : made.shape[-1]] = made
        return Representation(values, self.codec.spec.frame_lengths(clips.lengths), self.codec.spec)

    @torch.no_grad()
    def decode(self, representation: Representation) -> Tensor:
        """Decode a normalized representation to `[B, C, S]`, in the codec's own precision and the memory of one piece
        of CHUNK_SECONDS.
        """
        with full_precision(representation.values.device):
            latents = self.normalizer.denormalize(representation)
            return decode_in_groups(self.codec, latents, most_frames=chunk_frames_of(self.codec.spec))

    def check_decodes(self) -> None:
        """Raise SpecError if the codec only encodes, so that there is no waveform."""
        if not self.codec.decodes:
            told = f"the codec of '{self.name}', {type(self.codec).__name__}, only encodes, so its tokens have no waveform"
            raise SpecError(f"{told}. Use a modality whose codec decodes")

    @property
    def is_fitted(self) -> bool:
        """Whether codec and normalizer have measured what they need to know about the data."""
        return self.codec.is_fitted and self.normalizer.measured

    @torch.no_grad()
    def fit(self, batches: Sequence[Clips], *, device: torch.device | None = None) -> None:
        """Measure on clips what codec and normalizer need to know about the data.

        Args:
            batches: the clips.
            device: where the codec is; None for the model's device.

        Raise DataError if the codec has to be measured, which needs waveforms, and a clip is encoded.
        """
        given = [clips.to(self.device if device is None else device) for clips in batches if len(clips)]
        if not self.codec.is_fitted:
            if any(clips.values is not None for clips in given):
                raise DataError(f"the codec of '{self.name}' cannot be measured on clips that are encoded")
            self.codec.fit([(clips.waveform, clips.lengths) for clips in given])
        if not self.normalizer.measured:
            self.normalizer.fit(self.run_codec(clips) for clips in given)


class MadeModality(CodecModality):
    """Clips that the model makes: the objective corrupts them, and the model predicts what it says.

    Args:
        name, connector, codec, normalizer: as in CodecModality.
        objective: the objective.
        aligned: names of modalities whose tokens are added to its own.
        num_scores: how many of the numbers that leave for a token are scores of the objective's review: the last ones.
        lead: tokens in front of the frames of a clip, which the backbone fills.
        num_hints: numbers of the objective's hints that the backbone takes itself, so that they are not numbers of the
            tokens; 0 for none.
        window: seconds to generate for shorter clips too; None to make clips as long as they are asked for.
        headroom: seconds to generate behind the end of a clip.
    """

    def __init__(
        self,
        *,
        name: str,
        connector: Connector,
        codec: Codec,
        normalizer: LatentNormalizer,
        objective: Objective,
        aligned: Sequence[str] = (),
        num_scores: int = 0,
        lead: int = 0,
        num_hints: int = 0,
        window: float | None = None,
        headroom: float = 0.0,
    ) -> None:
        super().__init__(name=name, connector=connector, codec=codec, normalizer=normalizer)
        self.objective = objective
        self.aligned = tuple(aligned)
        self.num_scores = num_scores
        self.lead = lead
        self.num_hints = num_hints
        self.window = window
        self.headroom = headroom

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses of the objective and of its review."""
        review = self.objective.review
        return self.objective.loss_names if review is None else (*self.objective.loss_names, *review.loss_names)

    @property
    def first_level(self) -> int:
        """The first level of codes that is made; those below are given."""
        return self.objective.made_levels(self.codec.spec)[0]

    @property
    def most_levels(self) -> int:
        """Levels of its codes that the model has, as its objective says. For latents, their dimensions."""
        return self.objective.made_levels(self.codec.spec)[1]

    def num_tokens(self, num_frames: int) -> int:
        """Return how many tokens a clip of so many frames has: as its objective says, and those that lead."""
        return self.lead + self.objective.num_tokens(self.codec.spec, num_frames)

    @property
    def classes(self) -> tuple[int, ...]:
        """Vocabularies of the levels of codes that leave, those that are not made first; empty for latents."""
        outputs = self.objective.tokens(self.codec.spec).outputs
        return () if isinstance(outputs, int) else (*self.codec.spec.codebook_sizes[: self.first_level], *outputs)

    def as_context(self, clean: Representation) -> Tensor:
        """Return the tokens of clips that are only context, as its objective shows them."""
        return self.objective.given(clean)

    def enter(self, clips: Clips) -> Entered:
        """Return clips in the hidden space, those to make corrupted."""
        return self.enter_query(clips, self.corrupt(clips))

    def enter_query(self, clips: Clips, query: Query) -> Entered:
        """Return clips in the hidden space as a query shows them."""
        places = self.places(clips.num_tokens, query.inputs.shape[-1])
        return Entered(self.enter_frames(query.inputs, query.timesteps, places, hints=query.hints), query, places)

    def samples_made(self, num_samples: int) -> int:
        """Return how many samples to generate for a clip of `num_samples` samples."""
        longer = num_samples + round(self.headroom * self.sample_rate)
        return longer if self.window is None else max(longer, round(self.window * self.sample_rate))

    def places(self, num_tokens: np.ndarray, padded: int) -> Tensor:
        """Return `frame_places` of clips with `num_tokens` `[B]`, without the tokens that lead."""
        return frame_places(num_tokens - self.lead, padded, self.device)

    def enter_frames(
        self, values: Tensor, timesteps: Tensor | None, places: Tensor, *, first: First = 0, hints: Tensor | None = None
    ) -> Tensor:
        """Return the hidden tokens `[N, H]` of those at `places`, as the objective shows them, and zeros for those that lead.

        The other arguments are those of `CodecModality.enter_frames`; `hints` are those of `Objective.hints`.
        """
        if timesteps is not None:
            values = self.objective.shown(values, timesteps)
            timesteps = self.objective.shown_times(timesteps)
        if hints is not None and not self.num_hints:
            values = torch.cat([values, hints.to(values.dtype)], dim=1)
        hidden = super().enter_frames(values, timesteps, places, first=first)
        return hidden if not self.lead else self._led(hidden, places, len(values), values.shape[-1])

    def seen_hints(self, hints: Tensor | None, places: Tensor, run: tuple[int, int, int]) -> SeenHints | None:
        """Return the hints `[B, L, T]` of the frames at `places` for a backbone that takes them; None if there are
        none.

        `run` is where the tokens of the modality are stored: the stream, and their first and last place.
        """
        if hints is None or not self.num_hints:
            return None
        stream, first, _ = run
        values = hints.transpose(1, 2).flatten(0, 1).index_select(0, places).to(self.dtype)
        return SeenHints(stream, first + self._behind(places, hints.shape[-1]), values)

    def clip_times(self, timesteps: Tensor) -> Tensor:
        """Return the timestep of each clip for a backbone that takes times, `[B]`, from `[B, T]`: the highest of its frames."""
        times = self.objective.shown_times(timesteps)
        return times.amax(1) if times.shape[1] else times.new_zeros(len(times))

    def _led(self, hidden: Tensor, places: Tensor, num_clips: int, padded: int) -> Tensor:
        """Return hidden tokens `[N, H]` with zeros for the tokens in front of each clip."""
        led = hidden.new_zeros(len(places) + self.lead * num_clips, hidden.shape[1])
        return led.index_copy(0, self._behind(places, padded), hidden)

    def _behind(self, places: Tensor, padded: int) -> Tensor:
        """Return where the tokens at `places` lie behind those that lead, int64 `[N]`."""
        return torch.arange(len(places), device=places.device) + self.lead * (1 + places // padded)

    def corrupt(self, clips: Clips) -> Query:
        """Encode, normalize and corrupt the clips to make; each draws from its own seed."""
        if len(clips) == 0:
            return self.empty_query()
        generators = [torch.Generator().manual_seed(seed) for seed in clips.seeds]
        clean = self.represent(clips, generators)
        clean = replace(clean, frames=tuple(clips.num_frames.tolist()))
        if clips.timestep is not None and self.objective.has_timesteps:
            return self.objective.corrupt_to(clean, known=clips.known, noise=clips.noise, generators=generators, timestep=clips.timestep)
        if clips.quantiles is None:
            return self.objective.corrupt(clean, known=clips.known, noise=clips.noise, generators=generators)
        return self.objective.corrupt_at(clean, known=clips.known, noise=clips.noise, generators=generators, quantiles=clips.quantiles)

    @torch.no_grad()
    def reviewed(self, prediction: Tensor, asked: Query, clips: Clips) -> Query:
        """Return what the objective's review asks about a prediction `[B, P, T]`; each clip draws from a seed that follows from its own."""
        assert self.objective.review is not None, "the model asks only those that have one"
        generators = [torch.Generator().manual_seed(_review_seed(seed)) for seed in clips.seeds]
        return self.objective.review.query(prediction.detach(), asked, frames=clips.num_frames.tolist(), generators=generators)

    def empty_query(self) -> Query:
        """Return a query without clips.

        The connector still runs, on nothing, so that every rank computes the same gradients.
        """
        values = self._nothing()
        timesteps = torch.zeros(0, 1, device=self.device, dtype=self.dtype)
        hints = self.objective.hints(values, timesteps.bool())
        return Query(inputs=values, timesteps=timesteps, targets=values, loss_mask=timesteps.bool(), hints=hints)

    def _connect(self, tokens: Tensor, timesteps: Tensor | None, places: Tensor, indices: Tensor) -> Tensor:
        if timesteps is None:
            times = torch.zeros(len(places), device=self.device, dtype=self.dtype)
        else:
            times = timesteps.flatten().index_select(0, places)
        return self.connector.enter(tokens, timesteps=times, frames=indices)

    def leave(self, hidden: Tensor, places: Tensor, like: Tensor, ids: Tensor | None = None, *, level: int | None = None) -> Tensor:
        """Return what leaves as hidden tokens `[N, H]`, `[B, P, T]`, zero in the padding and for levels that are not made.

        `like` is `[B, ·, T]`. The `ids` `[B, K, T]` of the tokens that are predicted only matter to a `LevelsConnector`. With a `level` of
        codes, only its logits leave.
        """
        first, sizes = self.first_level, self.classes
        if self.lead:
            hidden = hidden.index_select(0, self._behind(places, like.shape[-1]))
        if level is None:
            if isinstance(self.connector, LevelsConnector) and ids is not None:
                own = ids[:, first:].transpose(1, 2).flatten(0, 1).index_select(0, places)
                tokens = self.connector.leave(hidden, own)
            else:
                tokens = self.connector.leave(hidden)
            tokens = functional.pad(tokens, (sum(sizes[:first]), 0)) if first else tokens
        elif level < first:
            tokens = hidden.new_zeros(len(hidden), sizes[level])
        else:
            tokens = self.connector.leave_level(hidden, level - first, sizes[first:])
        b, _, t = like.shape
        if len(places) < b * t:  # there is padding
            tokens = tokens.new_zeros(b * t, tokens.shape[-1]).index_copy_(0, places, tokens)
        return tokens.reshape(b, t, tokens.shape[-1]).transpose(1, 2)  # b may be 0

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prediction and the scores of the review in what left as `[B, P, T]`."""
        first = output.shape[1] - self.num_scores
        return output[:, :first], output[:, first:]

    def count_terms(self, clips: Clips) -> float:
        """Return the count of each loss, which follows from how many frames of each clip are made and not known."""
        rows = zip(clips.num_frames.tolist(), clips.known.sum(1).tolist(), clips.noise.tolist(), strict=True)
        return float(sum(self.objective.num_terms(self.codec.spec, frames - known) for frames, known, noise in rows if noise))


def _review_seed(seed: int) -> int:
    """Return the seed for what a review draws, a stream different from those that nearby clips are corrupted with."""
    return (seed ^ 0x2545F491) & 0xFFFFFFFF  # CPU generators only read the low 32 bits


def frame_places(num_tokens: np.ndarray, padded: int, device: torch.device) -> Tensor:
    """Return int64 `[N]`: where the valid tokens of clips with `num_tokens` `[B]` lie in a flattened `[B * padded]`
    axis.
    """
    if len(num_tokens) and int(num_tokens.max()) > padded:
        raise ValueError(f"a clip was packed as {int(num_tokens.max())} tokens, but its encoding has {padded}")
    first = np.arange(len(num_tokens)) * padded
    runs = [np.arange(start, start + count) for start, count in zip(first, num_tokens, strict=True)]
    return upload(np.concatenate([np.zeros(0, np.int64), *runs]).astype(np.int64), device)
