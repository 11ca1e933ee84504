"""What a model gets before it makes audio or writes text: the segments of a task up to those that it learned to
produce.

Shape letters: S samples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np

from soundomni.core.errors import DataError
from soundomni.core.representation import FeatureSpec
from soundomni.core.sequence import AUDIO_BOUNDARIES, Context, Segment, context_length
from soundomni.core.spec.schema import ClipSpec, SegmentTemplate
from soundomni.core.waveform import Audio, convert
from soundomni.core.writing.chat import Message, answer_opening, chat_context, taught_chat
from soundomni.core.writing.preparing import prepared
from soundomni.core.writing.segments import SegmentWriter
from soundomni.core.writing.tasks import BUILT_IN, length_texts


class PromptWriter:
    """Writes prompts, clips, questions and chats as a model was trained on them.

    Args:
        writer: writer of the model's segments.
        max_tokens: the longest sample that the model was trained with; None for no limit.
        clips: how clips to hear are prepared; None for clips as they are.
    """

    def __init__(self, writer: SegmentWriter, *, max_tokens: int | None, clips: ClipSpec | None = None) -> None:
        self._writer = writer
        self._max_tokens = max_tokens
        self._clips = clips

    def opening(self) -> list[int]:
        """Return the ids with which a text begins that the model writes."""
        tokenizer = self._writer.tokenizer
        return answer_opening(tokenizer) if self._writer.chat != "none" else [int(self._writer.text("", loss=True).token_ids[0])]

    def slot(self, num_samples: int, *, of: str | None = None) -> Segment:
        """Write the clip that is made, of the first modality if `of` names none: S samples at the codec's rate."""
        return self._writer.target(num_samples, of=of)

    def added(self, num_samples: int, *, of: str, to: Segment) -> Segment:
        """Write a clip of S samples, at the rate of the modality `of`, whose tokens are added to the clip `to`."""
        return self._writer.added(num_samples, of=of, to=to)

    def given(self, num_samples: int, *, of: str) -> Segment:
        """Write a clip of S samples, at the rate of the modality `of`, that the prompt holds."""
        return self._writer.clip(num_samples, of=of)

    @property
    def in_prompt(self) -> tuple[str, ...]:
        """Modalities of which the prompt can hold a clip."""
        return tuple(self._writer.of(template).name for template in self._writer.prompt if template.audio is not None)

    def prompt(
        self,
        text: str,
        slot: Segment,
        *,
        seconds: float | None = None,
        clips: Mapping[str, Segment] | None = None,
        name: str = "prompt",
    ) -> Context:
        """Write a prompt in front of the clip that is made.

        Args:
            text: what to make; an empty one is left out, as `data.condition_dropout` leaves texts out in training.
            slot: segment of the clip.
            seconds: length of the clip; None for that of the slot.
            clips: modality → the clip of it that the prompt holds; it has none of a modality that is not named.
            name: what errors call the text.

        Raise DataError if prompt and clip are longer than the samples that the model was trained with.
        """
        texts = {"caption": text, **length_texts(self._seconds(slot, seconds))}
        context = tuple(self._prompt(texts, clips or {}))
        self._check_prompt(context, slot, name)
        return context

    def without_prompt(
        self, slot: Segment, *, text: str = "", seconds: float | None = None, clips: Mapping[str, Segment] | None = None
    ) -> Context:
        """Write what guidance compares a prompt with: only the conditions that stay, which clips do not attend to.

        The arguments are those of `prompt`.
        """
        texts = {"caption": text, **length_texts(self._seconds(slot, seconds))}
        written = self._prompt(texts, clips or {})
        return tuple(replace(segment, attended=False) for segment in written if self._writer.stays(segment))

    def _is_written(self, template: SegmentTemplate, text: str) -> bool:
        """Return whether any template has a text that is not left out."""
        return template.text is not None and bool(text or "{caption}" not in template.text)

    def _seconds(self, slot: Segment, seconds: float | None) -> float:
        return slot.num_samples / self._writer.made(slot.of).spec.sample_rate if seconds is None else seconds

    def _prompt(self, texts: Mapping[str, str], clips: Mapping[str, Segment]) -> Iterator[Segment]:
        for template in self._writer.prompt:
            if self._is_written(template, texts["caption"]):
                yield self._writer.segment(template, texts=texts)
            elif template.audio is not None and (of := self._writer.of(template).name) in clips:
                yield clips[of]

    def _check_prompt(self, context: Context, slot: Segment, name: str) -> None:
        """Raise DataError if a prompt and the clip that is made are longer than the samples that the model was trained with."""
        modality, before = self._writer.made(slot.of), context_length(context)
        total = before + slot.length
        if self._max_tokens is None or total <= self._max_tokens:
            return
        fits = modality.seconds_within(self._max_tokens - before - 2 * slot.boundary)
        given = sum(segment.length for segment in context if segment.of in self.in_prompt)
        clips = f" ({given} from given clips)" if given else ""
        raise DataError(
            f"{slot.num_samples / modality.spec.sample_rate:g} s of audio and a {name} of {before} tokens{clips} take {total} "
            f"tokens; the model was trained with at most {self._max_tokens}. "
            + (f"Ask for at most {fits:g} s with this {name}" if fits > 0 else f"Shorten the {name}")
        )

    def chat(self, messages: Sequence[Message], clips: Sequence[Audio]) -> Context:
        """Write a chat and its clips, in the order in which messages mention them, up to the turn that answers it.

        Raises:
            SpecError: the model has no encoder.
            DataError: a message is malformed, the clips do not match the messages, a clip is too long for the encoder,
                or the chat is longer than the samples that the model was trained with.
        """
        heard = [self._hear(self._to_encoder(clip)) for clip in clips]
        return self._checked_chat(chat_context(self._writer.tokenizer, messages, heard), heard)

    def clip(self, clip: Audio, question: str | None) -> Context:
        """Write a clip and a question about it; None asks for a description.

        Raises:
            SpecError: the model has no encoder.
            DataError: the clip is too long for the encoder, or with its question longer than the samples that the model
                was trained with.
        """
        waveform = self._to_encoder(clip)
        if self._writer.chat != "none":
            heard = self._hear(waveform)
            asked = [question] if question else []
            return self._checked_chat(taught_chat(self._writer.tokenizer, [heard, *asked]), [heard])
        task, texts = ("answer", {"question": question}) if question else ("describe", {})
        context = self._before_text(task, texts, waveform)
        self._check_heard(waveform.shape[1], context)
        return context

    def _before_text(self, task: str, texts: Mapping[str, str], waveform: np.ndarray) -> Context:
        """Write a task about a clip `[1, S]`, at the encoder's rate, up to the text that it writes."""

        def written(template: SegmentTemplate) -> Segment:
            segment = self._writer.segment(template, texts=texts, num_samples=waveform.shape[1])
            return segment.with_waveform(waveform) if template.audio == "features" else segment

        return tuple(map(written, takewhile(lambda template: not template.loss, BUILT_IN[task])))

    @property
    def _encoder_spec(self) -> FeatureSpec:
        """Spec of the encoder. Raise SpecError if the model has none."""
        return self._writer.heard().spec

    def prepared(self, clip: Audio) -> Audio:
        """Return a clip as the model's training prepared its own."""
        return prepared(clip, self._clips)

    def _to_encoder(self, clip: Audio) -> np.ndarray:
        """Return `[1, S]`, prepared, at the encoder's rate. Raise DataError if it is too long for the encoder."""
        spec = self._encoder_spec
        waveform = convert(self.prepared(clip), channels=1, sample_rate=spec.sample_rate)
        if spec.max_seconds is not None and waveform.shape[1] > spec.max_seconds * spec.sample_rate:
            seconds = waveform.shape[1] / spec.sample_rate
            raise DataError(f"the clip lasts {seconds:.1f} s; the encoder takes at most {spec.max_seconds:g} s. Cut it first")
        return waveform

    def _hear(self, waveform: np.ndarray) -> Segment:
        """Write a clip `[1, S]` to understand, at the encoder's rate."""
        return self._writer.features(waveform.shape[1]).with_waveform(waveform)

    def _checked_chat(self, context: Context, heard: Sequence[Segment]) -> Context:
        """Return a chat. Raise DataError if it and the start of the answer are too long."""
        total = context_length(context) + len(self.opening())
        if self._max_tokens is not None and total > self._max_tokens:
            raise DataError(
                f"the chat and the start of the answer take {total} tokens, {sum(segment.length for segment in heard)} of them clips; "
                f"the model was trained with at most {self._max_tokens}. Shorten the clips or the messages"
            )
        return context

    def _check_heard(self, num_samples: int, context: Context) -> None:
        """Raise DataError if a clip of S samples, a question about it and the start of an answer are too long."""
        opening = len(self.opening())
        total = context_length(context) + opening
        if self._max_tokens is None or total <= self._max_tokens:
            return
        asked = context_length(context[1:])
        room = self._max_tokens - asked - opening - AUDIO_BOUNDARIES
        rate = self._encoder_spec.sample_rate
        fits = bisect_right(range(1, num_samples + 1), room, key=self._writer.heard().num_tokens) / rate
        question = f", a question of {asked} tokens" if asked else ""
        raise DataError(
            f"a clip of {num_samples / rate:g} s{question} and the start of the text take {total} tokens; "
            f"the model was trained with at most {self._max_tokens}. "
            + (f"Cut the clip to at most {fits:g} s" if fits > 0 else "Shorten the question")
        )
