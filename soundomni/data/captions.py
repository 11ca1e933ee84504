"""Captions, questions and attributes that lie beside audio files.

Three places are read, none before the other: `<stem>.json`, `<stem>.txt` and, in the folder's root, metadata.csv or metadata.jsonl.
They may complete each other (a caption here, questions there). Where two give the same thing they must agree: if not, the data is
wrong in one of them, and only its owner knows in which.

- `<stem>.txt`: one caption per line that is not blank.
- `<stem>.json`: an object with any of `prompt`, `caption`, `text` (a string each), `captions` (a list of strings), `questions`
  (a list of `{question, answer}`); every other key is an attribute.
- metadata.jsonl: such an object per line, with the file's path in `file_name`; it may hold `question` and `answer` directly.
- metadata.csv: the same as columns. Rows of one file add up, so several captions or questions take several rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundomni.core.errors import DataError, did_you_mean

TABLES = ("metadata.csv", "metadata.jsonl")
_CAPTION_KEYS = ("prompt", "caption", "text")
_FIELDS = (*_CAPTION_KEYS, "captions", "question", "answer", "questions", "file_name")


@dataclass(frozen=True)
class Notes:
    """What one place, or all together, say about a file."""

    captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def add(self, other: Notes) -> Notes:
        """Returns both, for two rows of one table: each caption and question once, in order."""
        return Notes(
            tuple(dict.fromkeys(self.captions + other.captions)),
            tuple(dict.fromkeys(self.questions + other.questions)),
            {**self.attributes, **other.attributes},
        )


def read_tables(root: Path) -> dict[str, dict[str, Notes]]:
    """Returns table → file name → notes, for the metadata tables in `root`. Raises DataError, naming table and row."""
    tables: dict[str, dict[str, Notes]] = {}
    for name in TABLES:
        path = root / name
        if not path.is_file():
            continue
        notes: dict[str, Notes] = {}
        for row, values in _rows(path):
            file_name = values.get("file_name")
            if not isinstance(file_name, str) or not file_name.strip():
                raise DataError(f"'{path}', row {row}: no file_name")
            inside = Path(file_name.strip())
            if inside.is_absolute() or ".." in inside.parts:
                raise DataError(f"'{path}', row {row}: file_name '{file_name}' leads out of the folder; expected a path within it")
            key = inside.as_posix()
            try:
                notes[key] = notes.get(key, Notes()).add(_notes(values))
            except ValueError as error:
                raise DataError(f"'{path}', row {row}: {error}") from error
        tables[name] = notes
    return tables


def read_sidecars(audio: Path) -> dict[str, Notes]:
    """Returns file name → notes of the .json and .txt beside an audio file. Raises ValueError, naming the file, when one is malformed."""
    found: dict[str, Notes] = {}
    for suffix in (".json", ".txt"):
        path = audio.with_suffix(suffix)
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
            if suffix == ".json":
                found[path.name] = _notes(json.loads(text))
            else:
                found[path.name] = Notes(tuple(line.strip() for line in text.splitlines() if line.strip()))
        except (ValueError, OSError) as error:  # JSON and UTF-8 errors are ValueErrors
            raise ValueError(f"{path.name}: {error}") from error
    return found


def merge(audio: str, places: Mapping[str, Notes]) -> Notes:
    """Joins what several places say about a file. Raises DataError, naming both, when two of them disagree."""
    notes = Notes(attributes={key: value for place in places.values() for key, value in place.attributes.items()})
    for what in ("captions", "questions"):
        given = {place: getattr(found, what) for place, found in places.items() if getattr(found, what)}
        if not given:
            continue
        (first, values), *others = given.items()
        for place, other in others:
            if set(other) != set(values):
                raise DataError(f"'{audio}' has {what} {list(values)} in {first} but {list(other)} in {place}; keep one of them")
        notes = notes.add(Notes(**{what: values}))
    return notes


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (row number as an editor shows it, values) of a table."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {error}") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    yield number, _object(json.loads(line))
                except ValueError as error:
                    raise DataError(f"'{path}', row {number}: {error}") from error
        return
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = [column.strip() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    if "file_name" not in columns:
        raise DataError(f"'{path}' has no column 'file_name', only {columns}.{did_you_mean('file_name', columns)}")
    for values in reader:
        yield reader.line_num, {column: value for column, value in values.items() if column in columns and value}


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return value


def _notes(value: object) -> Notes:
    """Reads the keys of an object. Raises ValueError with what is wrong."""
    values = _object(value)
    captions = [_text(values[key], key) for key in _CAPTION_KEYS if values.get(key) is not None]
    captions += [_text(caption, "captions") for caption in _list(values.get("captions"), "captions")]
    pairs = [_pair(pair) for pair in _list(values.get("questions"), "questions")]
    if values.get("question") is not None or values.get("answer") is not None:
        pairs.append(_pair(values))
    attributes = {key: item for key, item in values.items() if key not in _FIELDS}
    return Notes(tuple(dict.fromkeys(caption for caption in captions if caption)), tuple(dict.fromkeys(pairs)), attributes)


def _list(value: object, name: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"'{name}' is {type(value).__name__}, expected a list")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {type(value).__name__}, expected text")
    if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"'{name}' holds half of a surrogate pair, which is not text")
    return value.strip()


def _pair(value: object) -> tuple[str, str]:
    values = _object(value)
    question, answer = _text(values.get("question"), "question"), _text(values.get("answer"), "answer")
    if not question or not answer:
        raise ValueError("a question needs both 'question' and 'answer'")
    return question, answer
