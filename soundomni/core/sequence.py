"""The language of the library: a sample is a list of segments; a packed batch is many samples in one token budget.

Every task is a way to write a sample: text-to-audio, captioning, question answering, continuation, interleaved turns.
Only the segments decide which tokens see which. Query q sees key k if and only if both are in the same document, and k
is not after q or both are in the same full or noise segment, and k is not in a noise segment other than q's own.

Nothing of size L x L is built from a packed batch. Host-side tables are numpy; payloads are torch and follow the batch to its device.

Shape letters: G segments, M documents, N tokens, B clips, C audio channels, S samples, D latent dimensions, K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from soundomni.core.upload import upload

NO_LABEL = -100


class Role(IntEnum):
    """Kind of a token. Routers send roles to experts."""

    TEXT = 0
    FEATURES = 1
    LATENT = 2
    CODES = 3

    @property
    def modality(self) -> str:
        """Name of the modality that tokens of this role belong to by default: "text", "features", "latent" or
        "codes"."""
        return self.name.lower()


TEXT = Role.TEXT.modality
"""Name that text has among the modalities."""
MADE = (Role.LATENT, Role.CODES)
"""Roles of the clips to make or to continue."""
AUDIO_BOUNDARIES = 2
"""Tokens around the frames of a clip."""


class Attend(IntEnum):
    """How the tokens of a segment see each other, and whether later segments see them.

    CAUSAL tokens see the tokens that are not after them: those of text, and of clips that are made token after token. FULL tokens see
    their whole segment. NOISE tokens do too, and no token outside the segment sees them: they carry a target that is still being
    denoised.
    """

    CAUSAL = 0
    FULL = 1
    NOISE = 2

    @classmethod
    def named(cls, name: Literal["causal", "full"]) -> Attend:
        """Return the member that a spec calls `name`."""
        return cls[name.upper()]


class PositionRule(IntEnum):
    """How position ids advance. ADVANCE counts every token. SHARED gives all tokens of the segment one id.

    After a segment the document's counter has moved by its length (ADVANCE) or by one (SHARED), and by zero after a noise segment.
    """

    ADVANCE = 0
    SHARED = 1

    @classmethod
    def named(cls, name: Literal["advance", "shared"]) -> PositionRule:
        """Return the member that a spec calls `name`."""
        return cls[name.upper()]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of tokens of one document that attends as one block.

    A text segment carries `token_ids` of its length. An audio segment has two boundary tokens around its frames, which are
    text to every expert; `token_ids` holds just these two, and `length` counts them. In a model without text, it has none.

    Args:
        role: what the tokens between the boundaries are.
        attend: how they see each other.
        length: tokens, boundaries included.
        of: name of the modality; None for the one that is named after the role.
        token_ids: int64; `[length]` for text, `[2]` for audio (start and end of audio) or none.
        positions: the position rule.
        labels: int64 `[length]`, the token that each text token predicts, NO_LABEL if it predicts nothing; None without
            loss.
        num_samples: length of the clip in samples, at the rate of the codec (LATENT, CODES) or of the encoder (FEATURES).
        frames: frames of the clip; None if there is one token for each frame.
        known: bool `[num_frames]`, frames of a clip to make that are given and stay clean; None to make all.
        waveform: float32 `[C, S]`; None until the clip is read.
        values: in place of the waveform, the clip as a codec encoded it before: float32 `[D, T]` or int64 `[K, T]`.
        masked: which features of a clip that the model hears are set to zero, bool `[num_tokens, F]`; None for none.
        aligned: clips of other modalities with as many frames, whose tokens are added to those between the boundaries; they take no
            places of their own.
        placed: whether its tokens have places in the sequence. Conditions without places have no boundaries either; the clips that
            are made after them in the sample see them in another way.
        attended: for a condition without places that enters in two ways, whether clips attend to its tokens.
    """

    role: Role
    attend: Attend
    length: int
    token_ids: np.ndarray
    of: str | None = None
    positions: PositionRule = PositionRule.ADVANCE
    labels: np.ndarray | None = None
    num_samples: int = 0
    frames: int | None = None
    known: np.ndarray | None = None
    waveform: np.ndarray | None = None
    values: np.ndarray | None = None
    masked: np.ndarray | None = None
    aligned: tuple[Segment, ...] = ()
    placed: bool = True
    attended: bool = True

    @property
    def modality(self) -> str:
        """Name of the modality that the tokens between the boundaries belong to."""
        return self.of if self.of is not None else self.role.modality

    @property
    def boundary(self) -> int:
        """Boundary tokens on each side: 1 for audio, 0 for text, for conditions without places and in models without text."""
        return 0 if self.role == Role.TEXT or not self.placed else len(self.token_ids) // AUDIO_BOUNDARIES

    @property
    def num_tokens(self) -> int:
        """Tokens between the boundaries."""
        return self.length - 2 * self.boundary

    @property
    def num_frames(self) -> int:
        """Frames of the clip."""
        return self.num_tokens if self.frames is None else self.frames

    @property
    def is_made(self) -> bool:
        """Whether it is a clip to make: clips that are only context see their whole segment."""
        return self.role in MADE and self.attend != Attend.FULL

    def with_waveform(self, waveform: np.ndarray) -> Segment:
        """Return the segment with its clip `[C, S]`."""
        return replace(self, waveform=waveform)

    def with_values(self, values: np.ndarray) -> Segment:
        """Return the segment with its clip as encoded values `[D, T]` or `[K, T]`, of `num_frames` frames."""
        return replace(self, values=values)


def text_segment(token_ids: Sequence[int] | np.ndarray, *, bos: int, eos: int, loss: bool = False) -> Segment:
    """Write text as a causal segment: `[bos] ids [eos]`, or with loss `[bos] ids`, predicting `ids [eos]`."""
    ids = np.asarray(token_ids, dtype=np.int64)
    closed = np.concatenate([[bos], ids, [eos]]).astype(np.int64)
    if loss:
        return Segment(role=Role.TEXT, attend=Attend.CAUSAL, length=len(ids) + 1, token_ids=closed[:-1], labels=closed[1:])
    return Segment(role=Role.TEXT, attend=Attend.CAUSAL, length=len(closed), token_ids=closed)


def plain_segment(token_ids: Sequence[int] | np.ndarray) -> Segment:
    """Write text tokens as a causal segment with nothing around them, for templates that bracket text in their own way.

    Raise ValueError if there are none.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    if not len(ids):
        raise ValueError("the text segment is empty; expected at least one token")
    return Segment(role=Role.TEXT, attend=Attend.CAUSAL, length=len(ids), token_ids=ids)


def audio_segment(
    *,
    role: Role,
    attend: Attend,
    num_frames: int,
    num_samples: int,
    boundary_ids: tuple[int, int] | tuple[()],
    positions: PositionRule,
    of: str | None = None,
    known: np.ndarray | None = None,
    num_tokens: int | None = None,
) -> Segment:
    """Write a clip of `num_frames` frames between its start and end tokens, `boundary_ids`, if any; the waveform is attached later.

    It has `num_tokens` tokens, by default one for each frame.
    """
    return Segment(
        role=role,
        attend=attend,
        length=(num_frames if num_tokens is None else num_tokens) + len(boundary_ids),
        token_ids=np.asarray(boundary_ids, dtype=np.int64),
        of=of,
        positions=positions,
        num_samples=num_samples,
        frames=None if num_tokens is None else num_frames,
        known=known,
    )


def unplaced_segment(*, of: str, num_tokens: int, num_samples: int) -> Segment:
    """Write a condition of `num_tokens` tokens that takes no places in the sequence; its encoder gets S samples,
    attached later."""
    return Segment(
        role=Role.FEATURES,
        attend=Attend.FULL,
        length=num_tokens,
        token_ids=np.zeros(0, np.int64),
        of=of,
        num_samples=num_samples,
        placed=False,
    )


Context = tuple[Segment, ...]
"""Segments before the audio or text to make, clips attached."""


def in_sequence(context: Context) -> Context:
    """Return the segments that have places in the sequence."""
    return tuple(segment for segment in context if segment.placed)


def context_length(context: Context) -> int:
    """Return the number of tokens of a context."""
    return sum(segment.length for segment in context)


def next_position(context: Context) -> int:
    """Return the position id of the token after a context."""
    return sum(position_advance(segment) for segment in context)


@dataclass(frozen=True)
class Sample:
    """One document: its segments in order, a key that names it, and the seed of everything random about it.

    Noise and timesteps are drawn from the sample's own seed, so that they depend neither on the batch nor on the rank
    of the sample. With a `quantile` in (0, 1), the timestep is instead at this quantile of the objective's
    distribution. The log adds up the losses of samples with the same `group`, "DATASET/TASK".
    """

    key: str
    segments: tuple[Segment, ...]
    seed: int = 0
    quantile: float | None = None
    group: str = ""

    @property
    def length(self) -> int:
        """Number of tokens of all segments."""
        return sum(segment.length for segment in self.segments)


@dataclass(frozen=True)
class SegmentTable:
    """One row per segment, int64 `[G]` each, in document order. `start` counts tokens from the beginning of the batch.

    Args:
        document: index of the document, ascending.
        role, attend: values of Role and Attend.
        start, length: first token and number of tokens, boundaries included.
        boundary: boundary tokens on each side (0 or 1).
        position: position id of the first token.
        rule: value of PositionRule.
        modality: index of the segment's modality in `names`.
        names: names of modalities, text first.
    """

    document: np.ndarray
    role: np.ndarray
    attend: np.ndarray
    start: np.ndarray
    length: np.ndarray
    boundary: np.ndarray
    position: np.ndarray
    rule: np.ndarray
    modality: np.ndarray
    names: tuple[str, ...] = (TEXT,)

    @property
    def num_segments(self) -> int:
        return len(self.document)

    @property
    def num_tokens(self) -> int:
        return int(self.length.sum())

    @property
    def num_documents(self) -> int:
        return int(self.document[-1]) + 1 if len(self.document) else 0

    @classmethod
    def from_samples(cls, samples: Sequence[Sequence[Segment]], *, first_position: Sequence[int] | None = None) -> SegmentTable:
        """Lay documents one after the other, without the segments that have no places.

        Positions restart in each document, at 0 or at `first_position[document]`.
        """
        rows: list[tuple[int, ...]] = []
        names = {TEXT: 0}
        start = 0
        for document, segments in enumerate(samples):
            position = first_position[document] if first_position is not None else 0
            for segment in in_sequence(tuple(segments)):
                rows.append(
                    (
                        document,
                        segment.role,
                        segment.attend,
                        start,
                        segment.length,
                        segment.boundary,
                        position,
                        segment.positions,
                        names.setdefault(segment.modality, len(names)),
                    )
                )
                start += segment.length
                position += position_advance(segment)
        columns = [field.name for field in fields(cls) if field.name != "names"]
        values = np.asarray(rows, dtype=np.int64).reshape(-1, len(columns)).T.copy()
        return cls(**dict(zip(columns, values, strict=True)), names=tuple(names))

    def roles(self) -> dict[str, Role]:
        """Return the role of each modality that has segments, by its name. Raise ValueError if one has several."""
        found: dict[str, Role] = {}
        for index, role in dict.fromkeys(zip(self.modality.tolist(), self.role.tolist(), strict=True)):
            if found.setdefault(self.names[index], Role(role)) != role:
                raise ValueError(f"modality '{self.names[index]}' has segments of several roles; expected one role")
        return found

    def token_segments(self) -> np.ndarray:
        """Return int64 `[N]`: the row of each token."""
        return np.repeat(np.arange(self.num_segments), self.length)

    def token_roles(self) -> np.ndarray:
        """Return int64 `[N]`: the role of each token; boundary tokens are TEXT."""
        roles = np.repeat(self.role, self.length)
        framed = self.boundary > 0
        roles[self.start[framed]] = Role.TEXT
        roles[self.start[framed] + self.length[framed] - 1] = Role.TEXT
        return roles

    def token_modalities(self) -> np.ndarray:
        """Return int64 `[N]`: the modality of each token, as an index of `names`; boundary tokens are text."""
        modalities = np.repeat(self.modality, self.length)
        framed = self.boundary > 0
        modalities[self.start[framed]] = 0
        modalities[self.start[framed] + self.length[framed] - 1] = 0
        return modalities

    def token_positions(self) -> np.ndarray:
        """Return int64 `[N]`: the position id of each token."""
        row = self.token_segments()
        offset = np.arange(self.num_tokens) - self.start[row]
        positions: np.ndarray = self.position[row] + np.where(self.rule[row] == PositionRule.ADVANCE, offset, 0)
        return positions


def position_advance(segment: Segment) -> int:
    """Return how far the segment moves a document's position counter."""
    if segment.attend == Attend.NOISE or not segment.placed:
        return 0
    return segment.length if segment.positions == PositionRule.ADVANCE else 1


@dataclass(frozen=True)
class Clips:
    """The segments of one modality, as waveforms that a codec or an encoder takes, or as what the codec made of them before.

    Args:
        waveform: float32 `[B, C, S]`, zero beyond each clip, and for a clip that is encoded.
        lengths: int64 `[B]`, samples of each clip.
        num_samples: the same lengths on the host.
        num_frames: int64 numpy `[B]`, frames of each clip.
        num_tokens: int64 numpy `[B]`, tokens of each clip in the sequence.
        seeds: the sample's seed for each clip, made distinct within the sample.
        known: bool `[B, T]`, frames that are given; False beyond each clip.
        noise: bool `[B]`, whether the clip is a target or clean context.
        quantiles: quantile of each clip's timestep in the objective's distribution; None if the seeds decide.
        timestep: timestep of all clips, for objectives that let timesteps be chosen; None if quantiles or seeds decide.
        values: float32 `[B, D, T]` or int64 `[B, K, T]`, the clips that are encoded, zero elsewhere; None if none is.
        encoded: whether each clip is encoded; empty if none is.
        masked: bool `[B, T, F]`, which features of clips that the model hears are set to zero, False beyond each clip;
            None if there are none.
        added_to: the clip to which each of the last clips is added, (its modality, its index there); they have no places of their
            own in the sequence, and come after all that do.
    """

    waveform: Tensor
    lengths: Tensor
    num_samples: tuple[int, ...]
    num_frames: np.ndarray
    num_tokens: np.ndarray
    seeds: tuple[int, ...]
    known: Tensor
    noise: Tensor
    quantiles: tuple[float, ...] | None = None
    timestep: float | None = None
    values: Tensor | None = None
    encoded: tuple[bool, ...] = ()
    masked: Tensor | None = None
    added_to: tuple[tuple[str, int], ...] = ()

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def none(cls) -> Clips:
        """Return no clips, for a batch that has none of a modality."""
        return _clips([])

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> Clips:
        """Return the clips of segments of one modality, which have been read."""
        return _clips([(segment, 0, None) for segment in segments])

    def to(self, device: torch.device | str) -> Clips:
        """Return the clips with their tensors on `device`."""
        return replace(
            self,
            waveform=upload(self.waveform, device),
            lengths=upload(self.lengths, device),
            known=upload(self.known, device),
            noise=upload(self.noise, device),
            values=None if self.values is None else upload(self.values, device),
            masked=None if self.masked is None else upload(self.masked, device),
        )


@dataclass(frozen=True)
class Conditioned:
    """A clip that is made, and the conditions without places that come before it in its sample.

    Args:
        first, end: its tokens in the batch, [first, end), without boundaries.
        conditions: (modality, index among its clips) of each condition.
        clip: the same of the clip itself.
        unattended: those of the conditions that the clip does not attend to.
    """

    first: int
    end: int
    conditions: tuple[tuple[str, int], ...]
    clip: tuple[str, int]
    unattended: frozenset[tuple[str, int]] = frozenset()


def find_conditioned(samples: Sequence[Sequence[Segment]]) -> tuple[Conditioned, ...]:
    """Return the clips of a batch that are made, with their conditions without places."""
    found: list[Conditioned] = []
    counts: dict[str, int] = {}
    start = 0
    for segments in samples:
        before: dict[tuple[str, int], bool] = {}
        for segment in segments:
            own = (segment.modality, counts.get(segment.modality, 0))
            if not segment.placed:
                before[own] = segment.attended
            elif segment.is_made:
                inside = start + segment.boundary, start + segment.length - segment.boundary
                unattended = frozenset(one for one, is_attended in before.items() if not is_attended)
                found.append(Conditioned(*inside, tuple(before), own, unattended))
            counts[segment.modality] = counts.get(segment.modality, 0) + 1
            start += segment.length if segment.placed else 0
    return tuple(found)


@dataclass(frozen=True)
class Breakdown:
    """Which group each element of a loss belongs to.

    Args:
        names: names of the groups.
        labels: int64 `[N]`, the group of each text token that predicts something, in token order.
        clips: int64 `[B]`, the group of each clip, by the name of its modality.
    """

    names: tuple[str, ...]
    labels: Tensor
    clips: Mapping[str, Tensor]

    def to(self, device: torch.device | str) -> Breakdown:
        """Return the breakdown with its tensors on `device`."""
        clips = {name: groups.to(device, non_blocking=True) for name, groups in self.clips.items()}
        return replace(self, labels=upload(self.labels, device), clips=clips)


@dataclass(frozen=True)
class PackedBatch:
    """Many samples in one token budget: the segment table and the payloads by modality, each in token order.

    Args:
        table: one row per segment.
        keys: the sample's key of each document, `M` of them.
        text_ids: int64 `[N_text]`, ids of all text tokens, boundaries included.
        labels: int64 `[N_text]`, the token that each predicts, NO_LABEL for none.
        predicting: int64 `[N]`, the rows of `labels` that predict something, found while the labels are on the host.
        clips: the clips of each modality that the batch has, by its name; see `of`.
        conditioned: the clips that are made, with their conditions without places.
        groups: the sample's group of each document, `M` of them; empty without groups.
        breakdown: set by `broken_down`; the model then adds the losses of each group to its losses, as "NAME/GROUP".
    """

    table: SegmentTable
    keys: tuple[str, ...]
    text_ids: Tensor
    labels: Tensor
    predicting: Tensor
    clips: Mapping[str, Clips]
    conditioned: tuple[Conditioned, ...] = ()
    groups: tuple[str, ...] = ()
    breakdown: Breakdown | None = None

    @classmethod
    def from_samples(cls, samples: Sequence[Sample], *, first_position: Sequence[int] | None = None) -> PackedBatch:
        """Pack samples whose clips have been read. Raise ValueError if an audio segment has no waveform."""
        table = SegmentTable.from_samples([s.segments for s in samples], first_position=first_position)
        segments = [segment for sample in samples for segment in sample.segments]
        ids = [segment.token_ids for segment in segments]
        labels = [s.labels if s.labels is not None else np.full(len(s.token_ids), NO_LABEL) for s in segments]
        flat_labels = _flatten(labels)
        return cls(
            table=table,
            keys=tuple(sample.key for sample in samples),
            text_ids=_flatten(ids),
            labels=flat_labels,
            predicting=torch.nonzero(flat_labels != NO_LABEL).squeeze(1),
            clips=_clips_by_modality(samples),
            conditioned=find_conditioned([sample.segments for sample in samples]),
            groups=tuple(sample.group for sample in samples),
        )

    def of(self, modality: str) -> Clips:
        """Return the clips of a modality, none if the batch has none."""
        return self.clips[modality] if modality in self.clips else Clips.none()

    def broken_down(self) -> PackedBatch:
        """Return the batch with a breakdown by `groups`; it must be on the host."""
        names = tuple(dict.fromkeys(self.groups))
        number = np.asarray([names.index(group) for group in self.groups], dtype=np.int64)
        of_text = number[self.table.document[self.table.token_segments()[self.table.token_roles() == Role.TEXT]]]
        placed = {name: number[self.table.document[self.table.modality == index]] for index, name in enumerate(self.table.names)}
        of_clips = {}
        for modality, clips in self.clips.items():
            added = [placed[host][index] for host, index in clips.added_to]
            of_clips[modality] = torch.from_numpy(np.concatenate([placed.get(modality, added[:0]), added]).astype(np.int64))
        labels = torch.from_numpy(of_text[self.predicting.numpy()])
        return replace(self, breakdown=Breakdown(names, labels, of_clips))

    def at_timestep(self, timestep: float) -> PackedBatch:
        """Return the batch with all clips at one timestep, if their objectives let timesteps be chosen."""
        return replace(self, clips={name: replace(clips, timestep=timestep) for name, clips in self.clips.items()})

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch with its tensors on `device`; the table stays on the host."""
        return replace(
            self,
            text_ids=upload(self.text_ids, device),
            labels=upload(self.labels, device),
            predicting=upload(self.predicting, device),
            clips={name: clips.to(device) for name, clips in self.clips.items()},
            breakdown=self.breakdown and self.breakdown.to(device),
        )


def _flatten(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *arrays]).astype(np.int64))


def _clips_by_modality(samples: Sequence[Sample]) -> dict[str, Clips]:
    """Return the clips of each modality. No two clips to make in one sample have the same seed."""
    chosen: dict[str, list[tuple[Segment, int, float | None]]] = {}
    added: list[tuple[Segment, int, float | None]] = []
    hosts: list[tuple[str, int]] = []
    for sample in samples:
        for made in (False, True):
            audio = [s for s in sample.segments if s.role != Role.TEXT and (s.role in MADE) == made]
            for i, segment in enumerate(audio):
                seed, rows = sample.seed + 1_000_003 * i, chosen.setdefault(segment.modality, [])
                added += [(other, seed, sample.quantile) for other in segment.aligned]
                hosts += [(segment.modality, len(rows))] * len(segment.aligned)
                rows.append((segment, seed, sample.quantile))
    added_to: dict[str, list[tuple[str, int]]] = {}
    for row, host in zip(added, hosts, strict=True):
        chosen.setdefault(row[0].modality, []).append(row)
        added_to.setdefault(row[0].modality, []).append(host)
    return {name: _clips(rows, added_to=added_to.get(name, ())) for name, rows in chosen.items()}


def _clips(chosen: Sequence[tuple[Segment, int, float | None]], *, added_to: Sequence[tuple[str, int]] = ()) -> Clips:
    """Join segments, each with its seed and its quantile; the last ones are added to the clips `added_to`."""
    segments = [segment for segment, _, _ in chosen]
    if any(segment.waveform is None and segment.values is None for segment in segments):
        raise ValueError("an audio segment without its waveform or its values cannot be packed. Read the clip first")
    waveforms = [segment.waveform for segment in segments if segment.waveform is not None]
    samples = tuple(s.num_samples if s.waveform is None else s.waveform.shape[1] for s in segments)
    frames = np.asarray([segment.num_frames for segment in segments], dtype=np.int64)
    longest = max((w.shape[1] for w in waveforms), default=0)
    waveform = torch.zeros(len(chosen), waveforms[0].shape[0] if waveforms else 1, longest)
    known = torch.zeros(len(chosen), int(frames.max(initial=0)), dtype=torch.bool)
    for i, segment in enumerate(segments):
        if segment.waveform is not None:
            waveform[i, :, : segment.waveform.shape[1]] = torch.from_numpy(segment.waveform)
        if segment.known is not None:
            known[i, : segment.num_frames] = torch.from_numpy(segment.known)
    values = _values(segments, int(frames.max(initial=0)))
    return Clips(
        waveform=waveform,
        lengths=torch.tensor(samples, dtype=torch.int64),
        num_samples=samples,
        num_frames=frames,
        num_tokens=np.asarray([segment.num_tokens for segment in segments], dtype=np.int64),
        seeds=tuple(seed for _, seed, _ in chosen),
        known=known,
        noise=torch.tensor([segment.is_made for segment in segments], dtype=torch.bool),
        quantiles=tuple(fixed) if len(fixed := [place for _, _, place in chosen if place is not None]) == len(chosen) else None,
        values=values,
        encoded=() if values is None else tuple(segment.values is not None for segment in segments),
        masked=_masked(segments),
        added_to=tuple(added_to),
    )


def _masked(segments: Sequence[Segment]) -> Tensor | None:
    """Return the masked features of clips, `[B, T, F]`; None if no clip has any."""
    given = {i: segment.masked for i, segment in enumerate(segments) if segment.masked is not None}
    if not given:
        return None
    feature_dim = next(iter(given.values())).shape[1]
    joined = torch.zeros(len(segments), max(segment.num_tokens for segment in segments), feature_dim, dtype=torch.bool)
    for i, masked in given.items():
        joined[i, : masked.shape[0]] = torch.from_numpy(masked)
    return joined


def _values(segments: Sequence[Segment], num_frames: int) -> Tensor | None:
    """Return the values of encoded clips, `[B, D, num_frames]`; None if no clip is encoded."""
    given = {i: segment.values for i, segment in enumerate(segments) if segment.values is not None}
    if not given:
        return None
    like = next(iter(given.values()))
    joined = torch.zeros(len(segments), like.shape[0], num_frames, dtype=torch.from_numpy(like).dtype)
    for i, values in given.items():
        joined[i, :, : values.shape[1]] = torch.from_numpy(values)
    return joined
