"""The writer of segments, the same one for training and for inference, so that a model gets its inputs in the form that
it learned.

Shape letters: S samples, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from soundomni.core.errors import SpecError, did_you_mean
from soundomni.core.representation import FeatureSpec, RepresentationSpec, most_frames
from soundomni.core.sequence import Attend, PositionRule, Role, Segment, audio_segment, text_segment, unplaced_segment
from soundomni.core.spec.schema import Chat, SegmentTemplate
from soundomni.core.tokenizer import TextTokenizer

T = TypeVar("T")
CLIP = "clip"
"""Name of the only modality of a codec that is trained on its own."""
PROMPT = (SegmentTemplate(text="{caption}"),)
"""How a request is written in front of what is made, if a spec does not say it."""


@dataclass(frozen=True, kw_only=True)
class HeardModality:
    """What the writer needs to know about a modality that is heard through an encoder.

    Args:
        name: its name.
        spec: spec of the encoder.
        num_tokens, read: those of the encoder.
        positions: position rule of its tokens.
        attend: attention among the tokens of a clip.
        placed: whether its tokens have places in the sequence.
        stays: whether a condition that is left out still reaches clips in one of its two ways.
    """

    name: str
    spec: FeatureSpec
    num_tokens: Callable[[int], int]
    read: Callable[[str], np.ndarray] | None = None
    positions: PositionRule = PositionRule.ADVANCE
    attend: Attend = Attend.FULL
    placed: bool = True
    stays: bool = False

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of the clips that it takes."""
        return self.spec.sample_rate

    @property
    def channels(self) -> int:
        """Encoders take mono."""
        return 1


@dataclass(frozen=True, kw_only=True)
class CodecModality:
    """What the writer needs to know about a modality that is given, or made, as the representation of a codec.

    Args:
        name: its name.
        spec: spec of the codec.
        target_attend: attention among the tokens of a clip that is made; None if the modality is only given.
        max_tokens: how many tokens of a clip its connector can tell apart; None for any number.
        positions: position rule of its tokens.
        num_tokens: tokens of a clip of so many frames; None if there is one for each frame.
        aligned: modalities whose tokens are added to those of a clip that is made.
        keeps: whether frames of a clip to make can be known.
    """

    name: str
    spec: RepresentationSpec
    target_attend: Attend | None = Attend.NOISE
    max_tokens: int | None = None
    positions: PositionRule = PositionRule.ADVANCE
    num_tokens: Callable[[int], int] | None = None
    aligned: tuple[str, ...] = ()
    keeps: bool = True

    def tokens_of(self, num_samples: int) -> int:
        """Return the tokens of a clip of so many samples, without its boundaries."""
        frames = self.spec.num_frames(num_samples)
        return frames if self.num_tokens is None else self.num_tokens(frames)

    def seconds_within(self, num_tokens: int) -> float:
        """Return the length of the longest clip that has at most `num_tokens` tokens, without its boundaries."""
        return self.spec.seconds(most_frames(self.num_tokens or int, max(0, num_tokens)))

    @property
    def role(self) -> Role:
        """Role of its tokens."""
        return Role.CODES if self.spec.kind == "codes" else Role.LATENT

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of the clips that it takes."""
        return self.spec.sample_rate

    @property
    def channels(self) -> int:
        """Audio channels of the clips that it takes."""
        return self.spec.channels


class SegmentWriter:
    """Writes the segments of one model. It only needs the spec, not the weights.

    Args:
        tokenizer: the model's tokenizer.
        modalities: the model's modalities, in order.
        chat, prompt: as in ModelSpec.
        has_text: whether the sequence can hold text; if not, clips have no boundary tokens.
    """

    def __init__(
        self,
        *,
        tokenizer: TextTokenizer,
        modalities: Iterable[HeardModality | CodecModality],
        chat: Chat = "none",
        prompt: Sequence[SegmentTemplate] = PROMPT,
        has_text: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.has_text = has_text
        self.modalities = {modality.name: modality for modality in modalities}
        self.chat = chat
        self.prompt = tuple(prompt)

    def heard(self, of: str | None = None) -> HeardModality:
        """Return the modality of this name that hears clips; None stands for the first one in the sequence. Raise
        SpecError if there is none."""
        heard = self._with_encoder(is_heard=True)
        if self.hears_nothing is not None and (of is None or not heard):
            raise SpecError(
                f"this model only generates, because {self.hears_nothing}. To describe clips, use a model that hears them in its sequence"
            )
        return _chosen({name: one for name, one in heard.items() if one.placed} if of is None else heard, of, "hears")

    def reads(self, of: str) -> HeardModality:
        """Return the modality of this name whose encoder reads texts or numbers. Raise SpecError if there is none."""
        return _chosen(self._with_encoder(is_heard=False), of, "reads")

    def made(self, of: str | None = None) -> CodecModality:
        """Return the modality of this name that is made; None stands for the first one. Raise SpecError if there is none."""
        made = {name: one for name, one in self._with_codec().items() if one.target_attend is not None}
        return _chosen(made, of, "makes")

    def given(self, of: str | None = None) -> CodecModality:
        """Return the modality of this name that has a codec; None stands for the first one that is made. Raise SpecError if there
        is none."""
        return self.made() if of is None else _chosen(self._with_codec(), of, "takes")

    def _with_encoder(self, *, is_heard: bool) -> dict[str, HeardModality]:
        encoders = {name: one for name, one in self.modalities.items() if isinstance(one, HeardModality)}
        return {name: one for name, one in encoders.items() if (one.spec.source == "waveform") == is_heard}

    def _with_codec(self) -> dict[str, CodecModality]:
        return {name: one for name, one in self.modalities.items() if isinstance(one, CodecModality)}

    @property
    def hears_nothing(self) -> str | None:
        """Why the model cannot describe clips: it hears none in its sequence. None if it does."""
        heard = self._with_encoder(is_heard=True)
        if not heard:
            return "the model has no encoder"
        return None if any(one.placed for one in heard.values()) else f"'{next(iter(heard))}' only conditions what the model makes"

    def stays(self, segment: Segment) -> bool:
        """Return whether a condition that is left out still reaches clips in one of its two ways."""
        modality = self.modalities.get(segment.modality)
        return isinstance(modality, HeardModality) and modality.stays

    def of(self, template: SegmentTemplate) -> HeardModality | CodecModality:
        """Return the modality of an audio segment. Raise SpecError if the model does not have it."""
        if template.audio == "features":
            return self.heard(template.of)
        return self.made(template.of) if template.audio == "target" else self.given(template.of)

    def segment(
        self,
        template: SegmentTemplate,
        *,
        texts: Mapping[str, str],
        num_samples: int = 0,
        made: tuple[int, int] | None = None,
    ) -> Segment:
        """Write one segment of a task.

        Args:
            template: template of the segment.
            texts: values of its placeholders.
            num_samples: S of its clip, at the rate of its modality.
            made: the frames of a clip to make, (first, end); None for all of them.
        """
        if template.text is not None and template.of is not None:
            return self.condition(template.text.format(**texts), of=template.of)
        if template.text is not None:
            return self.text(template.text.format(**texts), loss=template.loss)
        if template.audio == "features":
            return self.features(num_samples, of=template.of)
        if template.audio == "context":
            return self.context(num_samples, of=template.of)
        return self.target(num_samples, of=template.of, made=made)

    def check_text(self) -> None:
        """Raise SpecError if the model has no text in its sequence."""
        if not self.has_text:
            raise SpecError("the model has no text in its sequence. Set the segment's `of` to the modality whose encoder reads it")

    def text(self, text: str, *, loss: bool = False) -> Segment:
        """Write text as a causal segment; with loss, as one to predict. Raise SpecError if the model has no text."""
        self.check_text()
        return text_segment(self.tokenizer.encode(text), bos=self.tokenizer.bos, eos=self.tokenizer.eos, loss=loss)

    def features(self, num_samples: int, *, of: str | None = None) -> Segment:
        """Write a clip to understand, or one that conditions what is made, of S samples at the encoder's rate."""
        return self._encoded(self.heard(of), num_samples)

    def condition(self, text: str, *, of: str) -> Segment:
        """Write a text, or a number as text, that the encoder of a modality reads. Raise DataError if it cannot."""
        modality = self.reads(of)
        assert modality.read is not None, "its encoder reads text"
        values = modality.read(text)
        return self._encoded(modality, values.shape[1]).with_waveform(values)

    def target(self, num_samples: int, *, of: str | None = None, made: tuple[int, int] | None = None) -> Segment:
        """Write a clip to make, of S samples at the codec's rate; of its T frames, those outside `made`, (first, end),
        are given.
        """
        modality = self.made(of)
        assert modality.target_attend is not None, "it is made"
        frames = modality.spec.num_frames(num_samples)
        first, end = made or (0, frames)
        index = np.arange(frames)
        known = (index < first) | (index >= end) if (first, end) != (0, frames) else None
        return self._frames(modality, num_samples, modality.target_attend, known)

    def check_context(self) -> None:
        """Raise SpecError if the sequence has no place for a clip that is not made."""
        if not self.has_text:
            raise SpecError("the model's sequence only has the clips that it makes. Leave out the segment of another clip")

    def context(self, num_samples: int, *, of: str | None = None) -> Segment:
        """Write a clip as clean context (timestep 0), of S samples at the codec's rate. Raise SpecError if there is no place for it."""
        self.check_context()
        return self._frames(self.given(of), num_samples, Attend.FULL, None)

    def clip(self, num_samples: int, *, of: str) -> Segment:
        """Write a clip that is given, heard or as clean context, of S samples at the rate of its modality."""
        heard = isinstance(self.modalities[of], HeardModality)
        return self.features(num_samples, of=of) if heard else self.context(num_samples, of=of)

    def added(self, num_samples: int, *, of: str, to: Segment) -> Segment:
        """Write a clip whose tokens are added to those of the clip `to`, of S samples at the rate of its own modality.

        Raise ValueError for another number of frames.
        """
        segment = self.clip(num_samples, of=of)
        if segment.num_frames != to.num_frames:
            counts = f"{segment.num_frames} tokens of '{of}' cannot be added to {to.num_frames} of '{to.modality}'"
            raise ValueError(f"{counts}; expected as many")
        return segment

    def _encoded(self, modality: HeardModality, num_samples: int) -> Segment:
        """Write the tokens that an encoder makes from S samples, which are attached later."""
        num_tokens = modality.num_tokens(num_samples)
        if not modality.placed:
            return unplaced_segment(of=modality.name, num_tokens=num_tokens, num_samples=num_samples)
        return audio_segment(
            role=Role.FEATURES,
            attend=modality.attend,
            num_frames=num_tokens,
            num_samples=num_samples,
            boundary_ids=self._boundary_ids,
            positions=modality.positions,
            of=modality.name,
        )

    @property
    def _boundary_ids(self) -> tuple[int, int] | tuple[()]:
        return (self.tokenizer.audio_bos, self.tokenizer.audio_eos) if self.has_text else ()

    def _frames(self, modality: CodecModality, num_samples: int, attend: Attend, known: np.ndarray | None) -> Segment:
        frames = modality.spec.num_frames(num_samples)
        return audio_segment(
            role=modality.role,
            attend=attend,
            num_frames=frames,
            num_samples=num_samples,
            boundary_ids=self._boundary_ids,
            positions=modality.positions,
            of=modality.name,
            known=known,
            num_tokens=None if modality.num_tokens is None else modality.num_tokens(frames),
        )


def _chosen(among: Mapping[str, T], of: str | None, does: str) -> T:
    if of is None and among:
        return next(iter(among.values()))
    if of is None or of not in among:
        wanted = "audio" if of is None else f"'{of}'"
        near = did_you_mean(of or "", among)
        raise SpecError(f"the model does not have {wanted} among what it {does}: {', '.join(among) or 'nothing'}.{near}")
    return among[of]
