"""Checks on the parts of a tokenizer.json, made before the tokenizers library builds it.

The library accepts any combination of its parts. Some of them abort the process on unsuitable values, run regular
expressions that never end, or write many characters for one, again and again. So only parts whose fields are known here
are accepted, with each field within limits: those of byte-level BPE, SentencePiece and WordPiece tokenizers as
transformers writes them, except for tables of characters (Precompiled), which cannot be checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from soundomni.core.errors import CheckpointError, did_you_mean, shown
from soundomni.core.limits import MOST_VOCABULARY

MOST_ADDED = 20_000
"""Largest number of added tokens; the largest models have about 6,000."""
LONGEST_TOKEN = 1000
MOST_PARTS, DEEPEST = 32, 4
"""Largest number of parts of one kind, including those within sequences, and of sequences within each other."""
LARGEST_GROWTH = 8.0
"""Largest number of characters that all parts of one kind together may write for one character."""
LONGEST_PATTERN, MOST_ALTERNATIVES, MOST_OPTIONAL = 500, 32, 3

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
KNOWN_PATTERNS = frozenset(
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_REST}",
        rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_REST}",
        rf"{_CONTRACTIONS}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_REST}",
        rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}",
        rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_REST}",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*""" + _REST,
        " ?[^(\\s|[.,!?…。，、।۔،])]+",
    )
)
"""Regular expressions of GPT-2, Qwen2, Llama 3, Qwen3.5, Tekken, o200k, DeepSeek-V3 and BLOOM; `_check_regex` accepts
some others."""

_ESCAPE = r"\\[sSwWdDhHrntvf]|\\[pP]\{\^?\w{1,32}\}|\\[^\w\s]"
_CLASS = rf"(?:{_ESCAPE}|\[\^?(?:{_ESCAPE}|[^\[\]\\&])+\])"
_ATOM = re.compile(
    rf"(?:(?P<empty>\(\?[=!]{_CLASS}\)|\\[AzZbB]|[$^])|{_CLASS}|[^\\\[\](){{}}|?*+^$])(?P<times>[?*+]|\{{\d{{1,3}}(?:,\d{{0,3}})?\}})?"
)

Check = Callable[[Any], str | None]
"""Returns what was expected if a value is wrong, otherwise None."""


class _Kind(NamedTuple):
    """A type of part: its fields, and how many characters it may write for one."""

    fields: Mapping[str, Check]
    growth: Callable[[Mapping[str, Any]], float] = lambda part: 1.0


def check_tokenizer(tree: Any) -> dict[str, Any]:
    """Return the part of a tokenizer.json that the tokenizers library may be given: its known keys.

    Args:
        tree: contents of the file as plain data; the model gets a type if an old file omits it.

    Raises:
        CheckpointError: a part or field is not supported. The message names it and what is supported, but not the file.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict):
        raise CheckpointError("expected a JSON object with a model")
    model = tree["model"] if "type" in tree["model"] or "merges" not in tree["model"] else {"type": "BPE", **tree["model"]}
    _check_part(model, "model", _MODELS)
    checked: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "model": model}
    for name, (kinds, members) in _ROLES.items():
        part = tree.get(name)
        if part is not None:
            parts: list[Mapping[str, Any]] = []
            _flatten(part, name, members, kinds, parts)
            growth = math.prod(kinds[one["type"]].growth(one) for one in parts)
            if growth > LARGEST_GROWTH:
                raise CheckpointError(f"its {name} may write {growth:.3g} characters for one; expected at most {LARGEST_GROWTH:g}")
        checked[name] = part
    checked["added_tokens"] = _added(tree.get("added_tokens") or [], strips='"Strip"' in json.dumps(checked["normalizer"]))
    return checked


def _flatten(part: Any, place: str, members: str, kinds: Mapping[str, _Kind], found: list[Mapping[str, Any]], depth: int = 0) -> None:
    """Add the parts that a part consists of to `found`, after checking each."""
    if isinstance(part, dict) and part.get("type") == "Sequence":
        inner = part.get(members)
        if set(part) != {"type", members} or not isinstance(inner, list) or depth == DEEPEST:
            raise CheckpointError(f"{place} is a Sequence; expected a list of {members}, at most {DEEPEST} within each other")
        for one in inner:
            _flatten(one, place, members, kinds, found, depth + 1)
        return
    if len(found) == MOST_PARTS:
        raise CheckpointError(f"{place} has more than {MOST_PARTS} parts")
    _check_part(part, place, kinds)
    found.append(part)


def _check_part(part: Any, place: str, kinds: Mapping[str, _Kind]) -> None:
    name = part.get("type") if isinstance(part, dict) else None
    if not isinstance(name, str) or name not in kinds:
        near = did_you_mean(name, kinds) if isinstance(name, str) else ""
        raise CheckpointError(f"its {place} {shown(name)} is not supported.{near} Supported are {', '.join(kinds)}")
    fields = kinds[name].fields
    for key, value in part.items():
        expected = None if key == "type" else fields[key](value) if key in fields else f"only {', '.join(fields) or 'its type'}"
        if expected is not None:
            raise CheckpointError(f"{key} of its {place} {name} is {shown(value)}; expected {expected}")


def _added(tokens: Any, *, strips: bool) -> list[dict[str, Any]]:
    """Return the added tokens.

    The library fails if stripping leaves nothing of a token that is only spaces; `strips` says if a normalizer strips.
    """
    if not isinstance(tokens, list) or len(tokens) > MOST_ADDED:
        raise CheckpointError(f"added_tokens is {shown(tokens)}; expected a list of at most {MOST_ADDED:,}")
    for token in tokens:
        if not isinstance(token, dict):
            raise CheckpointError(f"added_tokens holds {shown(token)}; expected objects")
        _check_part({"type": "token", **token}, "added_tokens", {"token": _Kind(_ADDED)})
        if not token.get("content", "x").strip() and (token.get("lstrip") or token.get("rstrip") or (strips and token.get("normalized"))):
            raise CheckpointError(f"added_tokens holds {shown(token['content'])}, which stripping makes empty; expected other text")
    return tokens


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"a number from {low:g} to {high:g}"

    return check


def _count(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"a whole number from {low} to {high}"

    return check


def _text(least: int, most: int) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and least <= len(value) <= most else f"text of {least} to {most} characters"

    return check


def _one_of(*choices: Any) -> Check:
    def check(value: Any) -> str | None:
        return (
            None
            if any(type(value) is type(choice) and value == choice for choice in choices)
            else f"one of {', '.join(map(repr, choices))}"
        )

    return check


def _or_null(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _pattern(value: Any) -> str | None:
    if isinstance(value, dict) and len(value) == 1:
        if isinstance(value.get("String"), str):
            return None if 1 <= len(value["String"]) <= LONGEST_TOKEN else f"a text of 1 to {LONGEST_TOKEN} characters"
        if isinstance(value.get("Regex"), str):
            return _check_regex(value["Regex"])
    return "a String or a Regex"


def _check_regex(pattern: str) -> str | None:
    """Return what was expected, unless the regular expression is a known one or one that ends soon on any text.

    The latter is a list of alternatives, each a row of characters and classes of which one repeats and few are
    optional, so that a match at any place takes time at most proportional to the text. No alternative may match the
    empty text.
    """
    if pattern in KNOWN_PATTERNS:
        return None
    expected = "the expression of a known tokenizer, or alternatives of characters and classes with one repetition each"
    if not 1 <= len(pattern) <= LONGEST_PATTERN:
        return expected
    place, alternatives = 0, 1
    repeated = optional = solid = 0
    while place < len(pattern):
        if pattern[place] == "|":
            if not solid:
                return expected
            place, alternatives, repeated, optional, solid = place + 1, alternatives + 1, 0, 0, 0
            continue
        atom = _ATOM.match(pattern, place)
        if atom is None or (atom["empty"] and atom["times"]):
            return expected
        times = atom["times"] or ""
        optional += times == "?"
        repeated += times not in ("", "?")
        solid += not atom["empty"] and not times.startswith(("?", "*", "{0"))
        place = atom.end()
        if repeated > 1 or optional > MOST_OPTIONAL:
            return expected
    return None if solid and alternatives <= MOST_ALTERNATIVES else expected


def _replacement_growth(part: Mapping[str, Any]) -> float:
    pattern = part.get("pattern", {})
    return max(1.0, len(part.get("content", "")) / max(1, len(pattern.get("String", ""))))


def _vocabulary(value: Any) -> str | None:
    expected = f"at most {MOST_VOCABULARY:,} tokens of at most {LONGEST_TOKEN:,} characters with ids below {MOST_VOCABULARY:,}"
    if not isinstance(value, dict) or len(value) > MOST_VOCABULARY or any(len(token) > LONGEST_TOKEN for token in value):
        return expected
    return None if all(type(i) is int and 0 <= i < MOST_VOCABULARY for i in value.values()) else expected


def _scored(value: Any) -> str | None:
    expected = f"1 to {MOST_VOCABULARY:,} pairs of a token of 1 to {LONGEST_TOKEN:,} characters and a number"
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_VOCABULARY:
        return expected
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and _text(1, LONGEST_TOKEN)(pair[0]) is None):
            return expected
        if _number(-1e6, 1e6)(pair[1]) is not None:
            return expected
    return None


def _merges(value: Any) -> str | None:
    expected = f"at most {2 * MOST_VOCABULARY:,} pairs of tokens"
    if not isinstance(value, list) or len(value) > 2 * MOST_VOCABULARY:
        return expected
    for pair in value:
        parts: Sequence[Any] = pair.split(" ") if isinstance(pair, str) else pair if isinstance(pair, list) else ()
        if len(parts) != 2 or not all(isinstance(part, str) and 1 <= len(part) <= LONGEST_TOKEN for part in parts):
            return expected
    return None


def _template(*texts: str) -> Check:
    """Return a check for a template that has each of the texts once, with special tokens around them."""
    expected = f"a template of at most 16 pieces with {' and '.join(texts)} once"

    def check(value: Any) -> str | None:
        if not isinstance(value, list) or len(value) > 16:
            return expected
        found = []
        for piece in value:
            inner = next(iter(piece.values())) if isinstance(piece, dict) and len(piece) == 1 else None
            if not isinstance(inner, dict) or not set(piece) <= {"Sequence", "SpecialToken"}:
                return expected
            if not isinstance(inner.get("id"), str) or _count(0, 255)(inner.get("type_id", 0)) is not None:
                return expected
            found += [inner["id"]] if "Sequence" in piece else []
        return None if sorted(found) == list(texts) else expected

    return check


def _special_tokens(value: Any) -> str | None:
    expected = f"tokens with ids below {MOST_VOCABULARY:,}"
    if not isinstance(value, dict) or len(value) > 32:
        return expected
    for token in value.values():
        ids, texts = (token.get("ids"), token.get("tokens")) if isinstance(token, dict) else (None, None)
        if not isinstance(ids, list) or not isinstance(texts, list) or not len(ids) == len(texts) <= 16:
            return expected
        if any(_count(0, MOST_VOCABULARY - 1)(i) for i in ids) or any(_text(1, LONGEST_TOKEN)(text) for text in texts):
            return expected
    return None


def _pair(value: Any) -> str | None:
    fits = (
        isinstance(value, list) and len(value) == 2 and not (_text(1, LONGEST_TOKEN)(value[0]) or _count(0, MOST_VOCABULARY - 1)(value[1]))
    )
    return None if fits else "a token and its id"


_BEHAVIOR = _one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_SCHEME = _one_of("always", "never", "first")
_BYTES = {"add_prefix_space": _flag, "trim_offsets": _flag, "use_regex": _flag}
_METASPACE = {"replacement": _text(1, 1), "prepend_scheme": _SCHEME, "split": _flag, "add_prefix_space": _flag, "str_rep": _text(1, 1)}
_REPLACE = {"pattern": _pattern, "content": _text(0, 16)}
_EXPANDS = 4.0
"""Characters that a part writes for one if it writes bytes, or puts spaces around it."""

_ADDED: dict[str, Check] = {
    "id": _count(0, MOST_VOCABULARY - 1),
    "content": _text(1, LONGEST_TOKEN),
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), _flag),
}
_MODELS: dict[str, _Kind] = {
    "BPE": _Kind(
        {
            "vocab": _vocabulary,
            "merges": _merges,
            "dropout": _or_null(_number(0.0, 1.0)),
            "unk_token": _or_null(_text(1, LONGEST_TOKEN)),
            "continuing_subword_prefix": _one_of(None, ""),
            "end_of_word_suffix": _or_null(_text(0, 16)),
            **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), _flag),
        }
    ),
    "Unigram": _Kind({"vocab": _scored, "unk_id": _or_null(_count(0, MOST_VOCABULARY - 1)), "byte_fallback": _flag}),
    "WordLevel": _Kind({"vocab": _vocabulary, "unk_token": _text(1, LONGEST_TOKEN)}),
    "WordPiece": _Kind(
        {
            "vocab": _vocabulary,
            "unk_token": _text(1, LONGEST_TOKEN),
            "continuing_subword_prefix": _text(0, 16),
            "max_input_chars_per_word": _count(1, 1000),
        }
    ),
}
_NORMALIZERS: dict[str, _Kind] = {
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"), _Kind({})),
    "BertNormalizer": _Kind(
        {"clean_text": _flag, "handle_chinese_chars": _flag, "strip_accents": _or_null(_flag), "lowercase": _flag}, lambda part: _EXPANDS
    ),
    "ByteLevel": _Kind({}, lambda part: _EXPANDS),
    "Prepend": _Kind({"prepend": _text(1, 16)}),
    "Replace": _Kind(_REPLACE, _replacement_growth),
    "Strip": _Kind({"strip_left": _one_of(False), "strip_right": _flag}),  # the library fails, or never ends, if it strips the left
}
_PRE_TOKENIZERS: dict[str, _Kind] = {
    **dict.fromkeys(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"), _Kind({})),
    "ByteLevel": _Kind(_BYTES, lambda part: _EXPANDS),
    "Digits": _Kind({"individual_digits": _flag}),
    "Metaspace": _Kind(_METASPACE),
    "Punctuation": _Kind({"behavior": _BEHAVIOR}),
    "Split": _Kind({"pattern": _pattern, "behavior": _BEHAVIOR, "invert": _flag}),
}
_DECODERS: dict[str, _Kind] = {
    **dict.fromkeys(("ByteFallback", "Fuse"), _Kind({})),
    "BPEDecoder": _Kind({"suffix": _text(1, 16)}),
    "ByteLevel": _Kind(_BYTES),
    "Metaspace": _Kind(_METASPACE),
    "Replace": _Kind(_REPLACE, _replacement_growth),
    "Strip": _Kind({"content": _text(1, 1), "start": _count(0, 16), "stop": _count(0, 0)}),
    "WordPiece": _Kind({"prefix": _text(1, 16), "cleanup": _flag}),
}
_PROCESSORS: dict[str, _Kind] = {
    "BertProcessing": _Kind({"sep": _pair, "cls": _pair}),
    "ByteLevel": _Kind(_BYTES),
    "RobertaProcessing": _Kind({"sep": _pair, "cls": _pair, "trim_offsets": _flag, "add_prefix_space": _flag}),
    "TemplateProcessing": _Kind({"single": _template("A"), "pair": _template("A", "B"), "special_tokens": _special_tokens}),
}
_ROLES: dict[str, tuple[Mapping[str, _Kind], str]] = {
    "normalizer": (_NORMALIZERS, "normalizers"),
    "pre_tokenizer": (_PRE_TOKENIZERS, "pretokenizers"),
    "post_processor": (_PROCESSORS, "processors"),
    "decoder": (_DECODERS, "decoders"),
}
"""Key of the file → the types of parts that it accepts, and the key of a Sequence of them."""
