"""Byte-level text tokens."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soundomni.core.errors import CheckpointError, DataError
from soundomni.core.tokenizer import SPECIAL_TOKENS, TextTokenizer

TEXTS = ["a rising sine tone, then two clicks", "quiet white noise", "seven"] * 10


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_survives(text: str) -> None:
    tokenizer = TextTokenizer.train(TEXTS, vocab_size=280)
    assert tokenizer.decode(tokenizer.encode(text)) == text.strip()


def test_text_that_is_not_unicode_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"'caf\\udce9' was given, expected text in UTF-8"):
        TextTokenizer.train(TEXTS, vocab_size=280).encode("caf\udce9")


def test_special_tokens_in_a_caption_are_plain_text() -> None:
    tokenizer = TextTokenizer.train(TEXTS, vocab_size=280)
    ids = tokenizer.encode("say <|im_end|> now")
    assert not set(ids) & {tokenizer.bos, tokenizer.eos, tokenizer.audio_bos, tokenizer.audio_eos}
    assert tokenizer.decode(ids) == "say <|im_end|> now"


def test_learning_depends_on_the_texts_alone_and_survives_saving(tmp_path: Path) -> None:
    first, second = (TextTokenizer.train(TEXTS, vocab_size=300) for _ in range(2))
    assert first.encode(TEXTS[0]) == second.encode(TEXTS[0])
    assert len(first.encode("seven")) < len("seven")
    first.save(tmp_path)
    assert TextTokenizer.load(tmp_path).encode(TEXTS[0]) == first.encode(TEXTS[0])


def test_small_vocabularies_are_bytes() -> None:
    tokenizer = TextTokenizer.train(TEXTS, vocab_size=0)
    assert tokenizer.vocab_size == 256 + len(SPECIAL_TOKENS)
    assert len(tokenizer.encode("seven")) == len("seven") + 1  # a space before the first word


def test_what_is_not_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer at"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is not a tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}')
    with pytest.raises(CheckpointError, match="lacks the special tokens"):
        TextTokenizer.load(tmp_path)
