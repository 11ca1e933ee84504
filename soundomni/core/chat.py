"""Chats as Qwen2-Audio was trained on them: turns in ChatML, clips numbered through the chat.

    <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n
    <|im_start|>user\\nAudio 1: <|audio_bos|>…<|audio_eos|>\\nWhat is heard?<|im_end|>\\n
    <|im_start|>assistant\\n

Messages are those that the processor of transformers takes. Text is text: a message that spells `<|im_end|>` ends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from soundomni.core.errors import DataError
from soundomni.core.generation import Context
from soundomni.core.sequence import Segment, plain_segment
from soundomni.core.tokenizer import TextTokenizer

Message = Mapping[str, Any]
"""{"role": ..., "content": text, or a list of {"type": "audio"} and {"type": "text", "text": ...}}."""

SYSTEM = "You are a helpful assistant."
"""Said first where a chat does not begin with a system message."""
DESCRIBE = "What can be heard?"
"""Asked of a clip when no question is given."""


def question_about_a_clip(question: str | None) -> list[Message]:
    """Returns the chat that asks one question about one clip, or for a description of it."""
    return [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": question or DESCRIBE}]}]


def chat_context(tokenizer: TextTokenizer, messages: Sequence[Message], clips: Sequence[Segment]) -> Context:
    """Writes a chat up to the turn that answers it, of which `answer_opening` is the beginning.

    Args:
        tokenizer: of the model.
        messages: at least one.
        clips: the segments of its clips to understand, in the order in which messages mention them.

    Raises:
        DataError: a message is not of the form above, or there are more or fewer clips than messages mention.
    """
    turns = [_turn(i, message) for i, message in enumerate(messages)]
    if not turns:
        raise DataError("a chat needs at least one message")
    mentioned = sum(part is None for _, parts in turns for part in parts)
    if mentioned != len(clips):
        raise DataError(f"the messages mention {mentioned} clips, {len(clips)} were given")
    if turns[0][0] != "system":
        turns.insert(0, ("system", [SYSTEM]))
    writer = _Writer(tokenizer)
    heard = iter(enumerate(clips, start=1))
    for role, parts in turns:
        writer.special(tokenizer.bos)
        writer.text(f"{role}\n")
        for part in parts:
            if part is None:
                number, clip = next(heard)
                writer.text(f"Audio {number}: ")
                writer.clip(clip)
                writer.text("\n")
            else:
                writer.text(part)
        writer.special(tokenizer.eos)
        writer.text("\n")
    return writer.finish()


def answer_opening(tokenizer: TextTokenizer) -> list[int]:
    """Returns the ids that an answer begins with."""
    return [tokenizer.bos, *tokenizer.encode("assistant\n")]


def _turn(index: int, message: Message) -> tuple[str, list[str | None]]:
    """Returns the role and the parts of a message: texts, and None for a clip."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise DataError(f"message {index} has the role {role!r}, expected a name such as 'user'")
    if isinstance(content, str):
        return role, [content]
    if not isinstance(content, Sequence):
        raise DataError(f"message {index} has the content {content!r}, expected text or a list of parts")
    return role, [_part(index, part) for part in content]


def _part(index: int, part: Any) -> str | None:
    if isinstance(part, Mapping):
        if part.get("type") == "audio" or "audio" in part or "audio_url" in part:
            return None
        if part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            text: str = part["text"]
            return text
    raise DataError(f"message {index} has the part {part!r}, expected {{'type': 'audio'}} or {{'type': 'text', 'text': ...}}")


class _Writer:
    """Joins text between special tokens before it is encoded, and tokens between clips into one segment."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = ""
        self._ids: list[int] = []
        self._segments: list[Segment] = []

    def text(self, text: str) -> None:
        self._text += text

    def special(self, token_id: int) -> None:
        self._ids += [*self._tokenizer.encode(self._text), token_id]
        self._text = ""

    def clip(self, segment: Segment) -> None:
        self._flush()
        self._segments.append(segment)

    def finish(self) -> Context:
        self._flush()
        return tuple(self._segments)

    def _flush(self) -> None:
        ids = [*self._ids, *self._tokenizer.encode(self._text)]
        if ids:
            self._segments.append(plain_segment(ids))
        self._ids, self._text = [], ""
