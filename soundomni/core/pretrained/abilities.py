"""What a model makes, hears and takes: what a command line, a server or a page needs to know before it asks for anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from soundomni.core.assembly.build import build_sampler, steps_of
from soundomni.core.assembly.modality import CodecModality, MadeModality
from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.representation import most_frames
from soundomni.core.spec.schema import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Made:
    """A modality that a model makes.

    Args:
        name: its name, for `of`.
        kind: whether the model makes latents or codes.
        sample_rate, channels: of its clips, in Hz.
        max_seconds: the longest clip that its connector takes; None if there is no limit.
        num_steps: steps of its sampler; None if they follow from the clip, as when tokens are made one after the other.
        ends: whether a clip ends by itself, so that a length is the most that it may have.
        guidance_scale: scale of its guidance.
        aligned: modalities of which a clip can be given, to be added to the one that is made.
        in_prompt: modalities of which a clip can be given, to come before the one that is made or to condition it.
        levels: levels of its codes that are made, (first, end); those below `first` have to be given.
    """

    name: str
    kind: Literal["continuous", "codes"]
    sample_rate: int
    channels: int
    max_seconds: float | None
    num_steps: int | None
    ends: bool
    guidance_scale: float
    aligned: tuple[str, ...] = ()
    in_prompt: tuple[str, ...] = ()
    levels: tuple[int, int] = (0, 1)

    @property
    def same_length(self) -> tuple[str, ...]:
        """Modalities of which a clip can be given that is as long as the one that is made."""
        return (*self.aligned, *((self.name,) if self.levels[0] else ()))

    @property
    def taken(self) -> tuple[str, ...]:
        """Modalities of which a clip can be given."""
        return tuple(dict.fromkeys((*self.same_length, *self.in_prompt)))


@dataclass(frozen=True, kw_only=True)
class Heard:
    """A modality that a model hears through an encoder, to describe clips: its name, the encoder's rate in Hz, and the
    longest clip or None."""

    name: str
    sample_rate: int
    max_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Given:
    """A modality that a model takes as context, but does not make: its name, and rate in Hz and channels of its clips."""

    name: str
    sample_rate: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Read:
    """A modality whose encoder reads a text or a number of the prompt: its name, and which of them."""

    name: str
    source: Literal["text", "number"]


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a model can do.

    Args:
        made, heard, read, given: its modalities, in the order of the spec; the first one that is made is made if none is named.
        chats: whether it was trained on chats.
        max_tokens: the longest sample that it was trained with; None for no limit.
        takes_text: whether its prompt has a text that says what to make.
    """

    made: tuple[Made, ...]
    heard: tuple[Heard, ...]
    read: tuple[Read, ...]
    given: tuple[Given, ...]
    chats: bool
    max_tokens: int | None
    takes_text: bool = True


def abilities_of(model: UnifiedModel, spec: ModelSpec, *, max_tokens: int | None, trust_class_paths: bool = False) -> Abilities:
    """Return what a model can do, from its parts and its spec."""
    codecs = [modality for modality in model.each() if isinstance(modality, CodecModality)]
    return Abilities(
        made=tuple(_made(modality, spec, trust_class_paths) for modality in model.all_made),
        heard=tuple(Heard(name=one.name, sample_rate=one.sample_rate, max_seconds=one.encoder.spec.max_seconds) for one in model.all_heard),
        read=tuple(
            Read(name=one.name, source=one.encoder.spec.source) for one in model.all_encoders if one.encoder.spec.source != "waveform"
        ),
        given=tuple(
            Given(name=one.name, sample_rate=one.sample_rate, channels=one.channels) for one in codecs if not isinstance(one, MadeModality)
        ),
        chats=spec.chat != "none",
        max_tokens=max_tokens,
        takes_text=spec.takes_text,
    )


def _made(modality: MadeModality, spec: ModelSpec, trust_class_paths: bool) -> Made:
    own = spec.all_made[modality.name]
    assert own.sampler is not None, "checked when the spec was read"
    codec, most = modality.codec.spec, modality.connector.max_frames
    return Made(
        name=modality.name,
        kind=codec.kind,
        sample_rate=modality.sample_rate,
        channels=modality.channels,
        max_seconds=None if most is None else codec.seconds(most_frames(modality.num_tokens, most)),
        num_steps=steps_of(build_sampler(own.sampler, trust_class_paths=trust_class_paths)),
        ends=modality.objective.predicts == "next-token",
        guidance_scale=own.guidance.scale,
        aligned=modality.aligned,
        in_prompt=tuple(template.of for template in spec.prompt if template.audio is not None and template.of is not None),
        levels=(modality.first_level, modality.most_levels),
    )
