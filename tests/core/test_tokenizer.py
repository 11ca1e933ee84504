"""Byte-level text tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from soundomni.core.errors import CheckpointError, DataError
from soundomni.core.tokenizer import SPECIAL_TOKENS, TextTokenizer
from soundomni.core.tokenizer_parts import KNOWN_PATTERNS, check_tokenizer

TEXTS = ["a rising sine tone, then two clicks", "quiet white noise", "seven"] * 10


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_survives(text: str) -> None:
    tokenizer = TextTokenizer.train(TEXTS, vocab_size=280)
    assert tokenizer.decode(tokenizer.encode(text)) == text.strip()


def test_text_that_is_not_unicode_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"the text is 'caf\\udce9'; expected UTF-8"):
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
    with pytest.raises(CheckpointError, match=r"is not a usable tokenizer\.json"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{},"merges":[]}}')
    with pytest.raises(CheckpointError, match="lacks the special tokens"):
        TextTokenizer.load(tmp_path)


QWEN2 = next(pattern for pattern in KNOWN_PATTERNS if r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" in pattern and pattern.startswith("(?i:"))
ALPHABET = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def gpt2() -> Tokenizer:
    made = Tokenizer(models.BPE(vocab=ALPHABET | {"ab": 256}, merges=[("a", "b")], continuing_subword_prefix="", end_of_word_suffix=""))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor, made.decoder = processors.ByteLevel(trim_offsets=False), decoders.ByteLevel()
    return made


def qwen2() -> Tokenizer:
    made = gpt2()
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return made


def llama() -> Tokenizer:
    vocab = {"<unk>": 0, "<0x61>": 1, "▁": 2, "b": 3}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 0)])
    return made


def bert() -> Tokenizer:
    made = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(prefix="##")
    return made


def albert() -> Tokenizer:
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)], unk_id=0))
    spaces, quotes = normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace("``", '"')
    made.normalizer = normalizers.Sequence([quotes, normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), spaces])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


@pytest.mark.parametrize("family", [gpt2, qwen2, llama, bert, albert])
def test_tokenizers_as_other_models_have_them_load_and_write_the_same(family: Any, tmp_path: Path) -> None:
    made = family()
    made.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL_TOKENS])
    made.save(str(tmp_path / "tokenizer.json"))
    loaded = TextTokenizer.load(tmp_path)
    text = "ab b  aB's 12\n don't"
    assert loaded.encode(text) == made.encode(text, add_special_tokens=False).ids
    assert loaded.decode(loaded.encode(text)) == made.decode(made.encode(text, add_special_tokens=False).ids).strip()
    loaded.save(tmp_path)
    assert TextTokenizer.load(tmp_path).encode(text) == loaded.encode(text)


def split(pattern: dict[str, str]) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}}


def replace(pattern: dict[str, str], content: str = "x", times: int = 1) -> dict[str, Any]:
    parts = [{"type": "Replace", "pattern": pattern, "content": content}] * times
    return {"normalizer": {"type": "Sequence", "normalizers": parts}}


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "its normalizer 'Precompiled' is not supported. "),
    (replace({"String": ""}), "pattern of its normalizer Replace is .*; expected a text of 1"),
    *(
        (replace({"Regex": one}), "expected the expression of a known tokenizer")
        for one in ("", "a*", "a?b?", "a|", "$", "(?=a)", "a{0,3}")
    ),
    *(
        (split({"Regex": one}), "expected the expression of a known")
        for one in ("(a+)+$", "(a|a)*b", "a*a*a*b", "a?a?a?a?b", r"(x)\1", "[a-z&&[b]]")
    ),
    (split({"Regex": "a" * 501}), "expected the expression of a known"),
    (replace({"String": "a"}, "aa", times=4), "its normalizer may write 16 characters for one; expected at most 8"),
    (replace({"String": "a"}, "a" * 17), "content of its normalizer Replace is .*; expected text of 0 to 16 characters"),
    (replace({"String": "a"}, times=33), "normalizer has more than 32 parts"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 2}}, "its normalizer may write 16 characters for one"),
    ({"normalizer": {"type": "Strip", "strip_left": True, "strip_right": False}}, "strip_left of its normalizer Strip is True; expected"),
    ({"decoder": {"type": "Strip", "content": " ", "start": 0, "stop": 1}}, "stop of its decoder Strip is 1"),
    ({"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 9}}, "its decoder may write 9 characters for one"),
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "its pre_tokenizer 'FixedLength' is not supported"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 2}}, "expected a template of at most 16"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B"}}]}}, "expected a template of at most 16"),
    ({"added_tokens": [{"id": 0, "content": " ", "lstrip": True}]}, "added_tokens holds ' ', which stripping makes empty"),
    ({"added_tokens": [{"id": 2**40, "content": "x"}]}, "id of its added_tokens token is 1099511627776"),
    ({"added_tokens": [{"id": 0, "content": ""}]}, "content of its added_tokens token is ''"),
    ({"model": {"type": "BPE", "vocab": {"a": 2**31}, "merges": []}}, "vocab of its model BPE is .*; expected at most 1,048,576 tokens"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": ["a b c"]}}, "merges of its model BPE"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": [], "continuing_subword_prefix": "é"}}, "continuing_subword_prefix of its model BPE"),
    ({"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9}}, "max_input_chars_per_word of its model WordPiece is 1000000000"),
    ({"model": {"type": "BPE", "vocab": {}, "merges": [], "code": "x"}}, "code of its model BPE is 'x'; expected only vocab, merges"),
    ({"model": {"type": "RWKV"}}, "its model 'RWKV' is not supported"),
    ({"model": []}, "expected a JSON object with a model"),
]


@pytest.mark.parametrize(("changes", "told"), HOSTILE)
def test_parts_that_have_no_bounds_are_refused_by_name(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    TextTokenizer.train(TEXTS, vocab_size=0).save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=told) as error:
        TextTokenizer.load(tmp_path)
    assert str(error.value).startswith(f"'{file}' is not a usable tokenizer.json: ") and len(str(error.value)) < 700


@pytest.mark.parametrize(
    "pattern", [*sorted(KNOWN_PATTERNS), " {2,}", r"\s+", r"\A +| +\z", r"\A▁", "[0-9][0-9][0-9]", r"\p{N}{1,3}", r"\s?[A-Za-z]+"]
)
def test_expressions_of_known_tokenizers_are_taken_and_end_soon(pattern: str) -> None:
    tree = json.loads(gpt2().to_str()) | split({"Regex": pattern})
    made = Tokenizer.from_str(json.dumps(check_tokenizer(tree)))
    for text in ("a" * 3000, " " * 3000, "1 \n" * 1000, "é—'s" * 1000):
        made.encode(text)


def test_what_the_library_itself_fails_on_is_one_line(tmp_path: Path) -> None:
    """Whatever gets past the check: a model that has no token for what it does not know, and a panic, which is no Exception."""
    made = Tokenizer(models.WordLevel(vocab={"a": 0, "b": 1}, unk_token="[UNK]"))
    made.add_special_tokens(list(SPECIAL_TOKENS))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"the tokenizer fails on 'c': .*Missing \[UNK\]"):
        TextTokenizer.load(tmp_path).encode("c")
    made.normalizer = normalizers.Replace("", "x")
    tokenizer = TextTokenizer(made)
    with pytest.raises(DataError, match="the tokenizer fails on 'a b'"):
        tokenizer.encode("a b")
