"""Chats as Qwen2-Audio was trained on them: turns in ChatML, clips numbered through the chat.

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\nAudio 1: <|audio_bos|>…<|audio_eos|>\\nWhat is heard?<|im_end|>\\n
    <|im_start|>assistant\\n

Messages have the form that the processor of transformers takes. A message that spells out `<|im_end|>` is plain text
and ends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from soundomni.core.errors import DataError
from soundomni.core.sequence import NO_LABEL, Attend, Context, Role, Segment, plain_segment
from soundomni.core.tokenizer import TextTokenizer

Message = Mapping[str, Any]
"""{"role": ..., "content": text, or a list of {"type": "audio"} and {"type": "text", "text": ...}}."""

SYSTEM = "You are a helpful assistant."
"""Comes first if a chat does not begin with a system message."""
DESCRIBE = "What can be heard?"
"""Question about a clip if none is given."""


def chat_context(tokenizer: TextTokenizer, messages: Sequence[Message], clips: Sequence[Segment]) -> Context:
    """Write a chat up to the turn that answers it, which begins with `answer_opening`.

    Args:
        tokenizer: the model's tokenizer.
        messages: at least one.
        clips: segments of the clips to understand, in the order in which the messages mention them.

    Raises:
        DataError: a message is malformed, or there are more or fewer clips than the messages mention.
    """
    turns = [_turn(i, message) for i, message in enumerate(messages)]
    if not turns:
        raise DataError("the chat is empty; expected at least one message")
    mentioned = sum(part is None for _, parts in turns for part in parts)
    if mentioned != len(clips):
        raise DataError(f"clips has length {len(clips)}; expected {mentioned}, one for each clip that the messages mention")
    if turns[0][0] != "system":
        turns.insert(0, ("system", [SYSTEM]))
    writer = _Writer(tokenizer)
    heard = iter(clips)
    for role, parts in turns:
        writer.begin(role)
        for part in parts:
            writer.add(next(heard) if part is None else part)
        writer.end()
    return writer.finish()


@dataclass(frozen=True)
class Answer:
    """What the assistant says in a chat to learn from."""

    text: str


def taught_chat(tokenizer: TextTokenizer, parts: Sequence[str | Segment | Answer]) -> Context:
    """Write a chat to learn from, or such a chat up to its answer. Texts and clips before an answer form one turn of
    the user.

    Clips without a text get the question `DESCRIBE`. Each answer predicts itself and the token that ends it. It begins
    with `answer_opening`, and what comes before it is what `chat_context` writes for the same messages.
    """
    writer = _Writer(tokenizer)
    writer.begin("system")
    writer.add(SYSTEM)
    writer.end()
    asking: list[str | Segment] = []
    for part in parts:
        if not isinstance(part, Answer):
            asking.append(part)
            continue
        if asking:
            _ask(writer, asking)
        asking = []
        writer.answer(part.text)
    if asking:
        _ask(writer, asking)
    return writer.finish()


def _ask(writer: _Writer, parts: Sequence[str | Segment]) -> None:
    writer.begin("user")
    for part in parts:
        writer.add(part)
    if not any(isinstance(part, str) for part in parts):
        writer.add(DESCRIBE)
    writer.end()


def answer_opening(tokenizer: TextTokenizer) -> list[int]:
    """Return the ids that an answer begins with."""
    return [tokenizer.bos, *tokenizer.encode("assistant\n")]


def _turn(index: int, message: Message) -> tuple[str, list[str | None]]:
    """Return the role and the parts of a message: texts, and None for a clip."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise DataError(f"message {index} has the role {role!r}; expected a name such as 'user'")
    if isinstance(content, str):
        return role, [content]
    if not isinstance(content, Sequence):
        raise DataError(f"message {index} has the content {content!r}; expected text or a list of parts")
    return role, [_part(index, part) for part in content]


def _part(index: int, part: Any) -> str | None:
    if isinstance(part, Mapping):
        if part.get("type") == "audio" or "audio" in part or "audio_url" in part:
            return None
        if part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            text: str = part["text"]
            return text
    raise DataError(f"message {index} has the part {part!r}; expected {{'type': 'audio'}} or {{'type': 'text', 'text': ...}}")


class _Writer:
    """Joins text between special tokens before it is encoded, and tokens between clips and answers into one segment."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = ""
        self._ids: list[int] = []
        self._segments: list[Segment] = []
        self._num_clips = 0
        self._answered = False

    def begin(self, role: str) -> None:
        """Open a turn."""
        if self._answered:  # the answer before it predicts this token and has not written it
            self.end()
        self._special(self._tokenizer.bos)
        self._text += f"{role}\n"

    def add(self, part: str | Segment) -> None:
        """Add text or the next clip to the turn."""
        if isinstance(part, str):
            self._text += part
            return
        self._num_clips += 1
        self._text += f"Audio {self._num_clips}: "
        self._flush()
        self._segments.append(part)
        self._text += "\n"

    def end(self) -> None:
        """Close the turn."""
        self._special(self._tokenizer.eos)
        self._text += "\n"
        self._answered = False

    def answer(self, text: str) -> None:
        """Add a turn of the assistant to learn, up to the token that ends it."""
        if self._answered:
            self.end()
        self._flush()
        opening, ids = answer_opening(self._tokenizer), self._tokenizer.encode(text)
        labels = [NO_LABEL] * (len(opening) - 1) + [*ids, self._tokenizer.eos]
        self._segments.append(
            Segment(
                role=Role.TEXT,
                attend=Attend.CAUSAL,
                length=len(labels),
                token_ids=np.asarray([*opening, *ids], dtype=np.int64),
                labels=np.asarray(labels, dtype=np.int64),
            )
        )
        self._answered = True

    def finish(self) -> Context:
        """Return all segments."""
        self._flush()
        return tuple(self._segments)

    def _special(self, token_id: int) -> None:
        self._ids += [*self._tokenizer.encode(self._text), token_id]
        self._text = ""

    def _flush(self) -> None:
        ids = [*self._ids, *self._tokenizer.encode(self._text)]
        if ids:
            self._segments.append(plain_segment(ids))
        self._ids, self._text = [], ""
