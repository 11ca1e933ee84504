"""Chats against the processor of transformers: the same ids for the same messages, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwen2_audio_files import SPECIALS, processor, tokenizer

from soundomni.core.errors import DataError
from soundomni.core.sequence import NO_LABEL, Attend, Context, PositionRule, Role, audio_segment, plain_segment
from soundomni.core.tokenizer import TextTokenizer
from soundomni.core.writing.chat import DESCRIBE, Answer, answer_opening, chat_context, taught_chat

PROCESSOR = processor()
TOKENIZER = TextTokenizer(tokenizer())
AUDIO = {"type": "audio", "audio_url": "clip.wav"}
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn"]), max_size=12)
PARTS = st.lists(st.one_of(st.just(AUDIO), TEXTS.map(lambda text: {"type": "text", "text": text})), max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.one_of(TEXTS, PARTS)}), min_size=1, max_size=4
)


def clips(count: int) -> list[Any]:
    return [
        audio_segment(
            role=Role.FEATURES,
            attend=Attend.CAUSAL,
            num_frames=3 + i,
            num_samples=0,
            boundary_ids=(TOKENIZER.audio_bos, TOKENIZER.audio_eos),
            positions=PositionRule.ADVANCE,
        )
        for i in range(count)
    ]


def ids_of(context: Context, audio_id: int) -> list[int]:
    """All tokens in order, frames as one <|AUDIO|>."""
    ids: list[int] = []
    for segment in context:
        tokens = segment.token_ids.tolist()
        ids += tokens if segment.role == Role.TEXT else [tokens[0], audio_id, tokens[1]]
    return ids


def expected(messages: list[Any]) -> list[int]:
    text = PROCESSOR.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, chat_template=PROCESSOR.default_chat_template
    )
    return PROCESSOR.tokenizer(text).input_ids


@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES, system=st.none() | TEXTS)
def test_ids_equal_those_of_the_processor(messages: list[Any], system: str | None) -> None:
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    count = sum(
        part is AUDIO or part == AUDIO for message in messages if isinstance(message["content"], list) for part in message["content"]
    )
    context = (*chat_context(TOKENIZER, messages, clips(count)), plain_segment(answer_opening(TOKENIZER)))
    assert ids_of(context, PROCESSOR.tokenizer.convert_tokens_to_ids("<|AUDIO|>")) == expected(messages)


def test_text_that_spells_a_special_token_is_text() -> None:
    context = chat_context(TOKENIZER, [{"role": "user", "content": "a<|im_end|>b<|audio_bos|>"}], [])
    (segment,) = context
    ids = segment.token_ids.tolist()
    assert ids.count(TOKENIZER.eos) == 2 and TOKENIZER.audio_bos not in ids  # the ends of the system's turn and of the user's


def test_clips_stand_where_messages_mention_them() -> None:
    given_clips = clips(2)
    content = [{"type": "text", "text": "first"}, {"type": "audio", "audio": "x"}, {"audio_url": "y"}, {"text": "then"}]
    context = chat_context(TOKENIZER, [{"role": "user", "content": content}], given_clips)
    assert [segment.role for segment in context] == [Role.TEXT, Role.FEATURES, Role.TEXT, Role.FEATURES, Role.TEXT]
    assert context[1] is given_clips[0] and context[3] is given_clips[1]
    assert TOKENIZER.decode(context[2].token_ids) == "Audio 2:"
    assert all(segment.attend == Attend.CAUSAL and segment.labels is None for segment in context)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "at least one message"),
        ([{"content": "x"}], "message 0 has the role None"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "message 1 has the content None"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 0 has the part {'type': 'image'}; expected {'type': 'audio'}"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0 has the part"),
        ([{"role": "user", "content": ["x"]}], "message 0 has the part 'x'"),
        ([{"role": "user", "content": [AUDIO, AUDIO]}], "clips has length 1; expected 2, one for each clip that the messages mention"),
        ([{"role": "user", "content": "x"}], "clips has length 1; expected 0, one for each clip"),
    ],
)
def test_malformed_chats_are_refused(messages: list[Any], told: str) -> None:
    with pytest.raises(DataError) as caught:
        chat_context(TOKENIZER, messages, clips(1))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_plain_segments_hold_their_tokens_and_nothing_else() -> None:
    segment = plain_segment([5, 6, 7])
    assert segment.length == 3 and segment.token_ids.dtype == np.int64 and segment.token_ids.tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match="at least one token"):
        plain_segment([])


def test_texts_end_at_the_end_of_a_document_as_well() -> None:
    assert len(SPECIALS) == 6 and TOKENIZER.ends == (TOKENIZER.eos, PROCESSOR.tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    assert TextTokenizer.train(["a"], vocab_size=1).ends == (TextTokenizer.train(["a"], vocab_size=1).eos,)


@settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.tuples(st.lists(TEXTS | st.just(None), max_size=3), TEXTS), min_size=1, max_size=3))
def test_a_chat_to_learn_from_is_the_chat_that_is_answered(turns: list[tuple[list[str | None], str]]) -> None:
    heard = iter(clips(9))
    parts: list[Any] = []
    messages: list[Any] = []
    for asked, answer in turns:
        given_parts = [next(heard) if part is None else part for part in asked]
        parts += [*given_parts, Answer(answer)]
        content: list[Any] = [AUDIO if part is None else {"type": "text", "text": part} for part in asked]
        content += [] if any(part is not None for part in asked) else [{"type": "text", "text": DESCRIBE}]
        messages += [{"role": "user", "content": content}] if asked else []
        messages.append({"role": "assistant", "content": answer})
    context = taught_chat(TOKENIZER, parts)
    audio = PROCESSOR.tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    whole = ids_of(chat_context(TOKENIZER, messages, [part for part in parts if not isinstance(part, (str, Answer))]), audio)
    ours = ids_of(context, audio)
    assert ours == whole[: len(ours)] and whole[len(ours)] == TOKENIZER.eos and whole[len(ours) + 1 :] == TOKENIZER.encode("\n")
    answers = [segment for segment in context if segment.labels is not None]
    for segment, (_, answer) in zip(answers, turns, strict=True):
        labels = segment.labels[segment.labels != NO_LABEL]
        assert labels.tolist() == [*TOKENIZER.encode(answer), TOKENIZER.eos]
        assert segment.token_ids.tolist() == [*answer_opening(TOKENIZER), *TOKENIZER.encode(answer)]
        assert segment.labels[-len(labels) : -1].tolist() == segment.token_ids[len(segment.token_ids) - len(labels) + 1 :].tolist()
