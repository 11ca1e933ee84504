"""What a model is given before it writes text: clips to understand with a question, or a chat.

Shape letters: S samples.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from soundomni.core.assembly.model import UnifiedModel
from soundomni.core.errors import DataError, SpecError
from soundomni.core.inference.sampling import Context, context_length, features_context, text_context
from soundomni.core.sequence import AUDIO_BOUNDARIES, Attend, PositionRule
from soundomni.core.spec.schema import ModelSpec
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.waveform import Audio, convert
from soundomni.core.writing.chat import Message, answer_opening, chat_context, question_about_a_clip


class ContextBuilder:
    """Writes clips, questions and chats as a model was trained on them.

    Args:
        model: the network.
        spec: what it was built from.
        tokenizer: its text tokens.
        max_tokens: the longest sample it was trained with; None for no limit.
    """

    def __init__(self, model: UnifiedModel, spec: ModelSpec, tokenizer: TextTokenizer, *, max_tokens: int | None) -> None:
        self._model = model
        self._spec = spec
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def opening(self) -> list[int]:
        """Returns the ids that a text begins with which the model writes."""
        return [self._tokenizer.bos] if self._spec.chat == "none" else answer_opening(self._tokenizer)

    def chat(self, messages: Sequence[Message], clips: Sequence[Audio]) -> Context:
        """Writes a chat and its clips, in the order in which messages mention them, up to the turn that answers it.

        Raises:
            SpecError: the model has no encoder.
            DataError: a message is malformed, clips do not match the messages, a clip is too long for the encoder, or the whole for
                what the model was trained with.
        """
        heard = [segment for clip in clips for segment in self._hear(self._to_encoder(clip))]
        context = chat_context(self._tokenizer, messages, heard)
        total = context_length(context) + len(self.opening())
        if self._max_tokens is not None and total > self._max_tokens:
            raise DataError(
                f"the chat and the start of the answer take {total} tokens, {sum(segment.length for segment in heard)} of them clips; "
                f"the model was trained with at most {self._max_tokens}: shorten the clips or the messages"
            )
        return context

    def clip(self, clip: Audio, question: str | None) -> Context:
        """Writes a clip and a question about it; None asks for a description.

        Raises:
            SpecError: the model has no encoder.
            DataError: the clip is too long for the encoder, or with its question for what the model was trained with.
        """
        if self._spec.chat != "none":
            return self.chat(question_about_a_clip(question), [clip])
        waveform = self._to_encoder(clip)
        heard = self._hear(waveform)
        asked = text_context(self._tokenizer, question) if question else ()
        self._check_heard(waveform.shape[1], context_length(asked), context_length(heard))
        return heard + asked

    def _to_encoder(self, clip: Audio) -> np.ndarray:
        """Returns `[1, S]` at the rate of the encoder. Raises DataError when the clip is longer than the encoder takes."""
        encoder = self._model.encoder
        if encoder is None:
            raise SpecError("this model only generates: its spec has no encoder, so it cannot describe")
        waveform = convert(clip, channels=1, sample_rate=encoder.spec.sample_rate)
        limit = encoder.spec.max_seconds
        if limit is not None and waveform.shape[1] > limit * encoder.spec.sample_rate:
            seconds = waveform.shape[1] / encoder.spec.sample_rate
            raise DataError(f"the clip lasts {seconds:.1f} s; the encoder takes at most {limit:g} s: cut it first")
        return waveform

    def _hear(self, waveform: np.ndarray) -> Context:
        """Writes a clip `[1, S]` at the rate of the encoder as something to understand."""
        return features_context(
            self._model,
            waveform,
            tokenizer=self._tokenizer,
            attend=Attend.named(self._spec.feature_attend),
            rule=PositionRule.named(self._spec.feature_positions),
        )

    def _check_heard(self, num_samples: int, asked: int, heard: int) -> None:
        """Raises DataError when a clip of `heard` tokens, a question of `asked` tokens and the start of an answer are too long."""
        total = heard + asked + 1
        if self._max_tokens is None or total <= self._max_tokens:
            return
        encoder = self._model.encoder
        assert encoder is not None, "checked by _to_encoder"
        room = self._max_tokens - asked - 1 - AUDIO_BOUNDARIES
        fits = bisect_right(range(1, num_samples + 1), room, key=encoder.num_tokens) / encoder.spec.sample_rate
        question = f", a question of {asked} tokens" if asked else ""
        raise DataError(
            f"a clip of {num_samples / encoder.spec.sample_rate:g} s{question} and the start of the text take {total} tokens; "
            f"the model was trained with at most {self._max_tokens}: "
            + (f"at most {fits:g} s fit, so cut the clip" if fits > 0 else "shorten the question")
        )
