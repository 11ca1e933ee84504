"""Text and JSON from files written by many programs: read strictly, and every error says what to do."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ARCHIVES = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "ZIP", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST_DIGITS = 1000
_CURE = "save it as UTF-8"
_JSON_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


def read_text(path: Path, *, most_bytes: int | None = None) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. Lines keep their ends.

    Raises:
        ValueError: it is not a regular file, longer than `most_bytes`, or not UTF-8; the one-line message says what to
            do.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError("it is not a regular file" if path.exists() else "there is no such file")
    size = path.stat().st_size
    if most_bytes is not None and size > most_bytes:
        raise ValueError(f"it has {size:,} bytes; expected at most {most_bytes:,}")
    raw = path.read_bytes()
    for mark, name in _MARKS.items():
        if raw.startswith(mark):
            raise ValueError(f"it is {name}; expected UTF-8: {_CURE}")
    if raw.count(0) * 4 > len(raw):
        raise ValueError(f"it is full of NUL bytes, like UTF-16 text or a binary file; expected UTF-8: {_CURE}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{raw[error.start]:02x} in line {line} is not UTF-8, as in Latin-1 and Windows-1252"
        raise ValueError(f"{found}; expected UTF-8: {_CURE} (in Excel: 'CSV UTF-8')") from error


def compression_of(head: bytes) -> str | None:
    """Return how a file that begins with `head` is compressed, or None if it is not."""
    return next((name for magic, name in _ARCHIVES.items() if head.startswith(magic)), None)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raise ValueError, in one line, if it is not JSON, too deeply nested, or has a key twice.
    """
    if not text.strip():
        raise ValueError("it is empty; expected a JSON object")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply; expected an object with texts and lists of texts") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"it is not JSON: {error.msg} ({where})") from error


def kind_of(value: object) -> str:
    """Return what a JSON value is, in words."""
    return "null" if value is None else _JSON_KINDS.get(type(value), type(value).__name__)


def few(values: Sequence[object], show: Callable[[object], str] = repr, *, most: int = 3, longest: int = 60) -> str:
    """Return the first values, each shortened, and how many others there are: values from a file may be long.

    >>> few(("a", "b", "c", "d", "e"))
    "'a', 'b', 'c' and 2 more"
    """
    shown = [show(value) for value in values[:most]]
    text = ", ".join(one if len(one) <= longest else f"{one[: longest - 3]}..." for one in shown)
    return f"{text} and {len(values) - most} more" if len(values) > most else text


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits):,} digits; expected at most {_MOST_DIGITS}")
    return int(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"it has the key '{key}' twice; keep one of them")
        values[key] = value
    return values
