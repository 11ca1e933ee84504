"""Captions, questions and attributes next to audio files.

Three places are read, with no order of precedence: `<stem>.json`, `<stem>.txt` and, in the folder or any subfolder,
metadata.csv or metadata.jsonl. They may complete each other (a caption here, questions there). If two of them give the
same thing, they must agree: otherwise the data is wrong in one of them, and only its owner knows in which.

- `<stem>.txt`: one caption per line that is not blank.
- `<stem>.json`: an object with any of `prompt`, `caption`, `text` (a string each), `captions` (a list of strings),
  `questions` (a list of `{question, answer}`); every other key is an attribute.
- metadata.jsonl: such an object per line, with the file's path, relative to the table, in `file_name`; it may hold
  `question` and `answer` directly.
- metadata.csv: the same as columns; `captions` may be one text, and both lists may be written as JSON. Rows of one file
  add up, so several captions or questions can take several rows; an attribute with different values becomes a tuple of
  all of them.

All of them are UTF-8. The keys above are recognized in any case (`Caption`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundomni.core.errors import DataError
from soundomni.data.audio import SUFFIXES
from soundomni.data.file_names import Names
from soundomni.data.tables import Row, Table, cure, json_rows
from soundomni.data.text_files import few, kind_of, parse_json, read_text

CAPTION_KEYS = ("prompt", "caption", "text", "captions")
_FILE = "file_name"
FILE_NAMES = (
    *("filename", "file", "filepath", "file_path", "path", "audio", "audio_file", "audio_path", "audio_filename", "audio_filepath"),
    *("audio_file_path", "audio_file_name", "wav", "wav_path", "fname", "name", "clip", "location"),
)
"""Other common names of the column with the path."""
QUESTION_KEYS = ("question", "answer", "questions")
_FIELDS = (*CAPTION_KEYS, *QUESTION_KEYS, _FILE)
_MISSING = ("nan", "NaN", "<NA>", "#N/A")
"""Texts that pandas and Excel write into a field without a value."""

_MOST_SIDECAR_BYTES = 16_000_000


@dataclass(frozen=True)
class Notes:
    """What one place, or all together, say about a file."""

    captions: tuple[str, ...] = ()
    questions: tuple[tuple[str, str], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionTable:
    """Contents of a table.

    Args:
        name: its key in the folder, such as "train/metadata.csv".
        columns: its columns, or the keys of its objects, in order of appearance.
        notes: key of an audio file → notes, including files that do not exist.
    """

    name: str
    columns: tuple[str, ...]
    notes: Mapping[str, Notes]

    @property
    def has_texts(self) -> bool:
        """Whether it has a column for captions or questions."""
        return any(column in self.columns for column in (*CAPTION_KEYS, "question", "questions"))


def read_table(root: Path, name: str, names: Names) -> CaptionTable:
    """Read the table `name` in the folder `root`, whose files are relative to the table.

    Raise DataError, naming table and row.
    """
    path, folder = root / name, name[: name.rfind("/") + 1]
    columns: dict[str, None] = {}
    gathered: dict[str, Gathered] = {}
    for line, values in _rows(path, columns):
        try:
            row = _known(values)
            file_name = row.get(_FILE)
            if file_name is None:
                raise ValueError(f"no {_FILE}; {cure(_FILE, FILE_NAMES, tuple(row))}")
            if not isinstance(file_name, str):
                raise ValueError(f"'{_FILE}' is {kind_of(file_name)}; expected text")
            key = names.find(file_name, folder=folder, root=root)
            gathered.setdefault(key, Gathered()).add(notes_of(row))
        except ValueError as error:
            raise DataError(f"'{path}', row {line}: {error}") from error
    return CaptionTable(name, tuple(columns), {key: found.notes() for key, found in gathered.items()})


def read_sidecar(path: Path) -> Notes:
    """Read the .json or .txt next to an audio file. Raise ValueError, which names the file, if it is malformed."""
    try:
        text = read_text(path, most_bytes=_MOST_SIDECAR_BYTES)
        if path.suffix.lower() == ".json":
            return notes_of(_known(parse_json(text)))
        return notes_in_lines(text)
    except OSError as error:
        raise ValueError(f"{path.name}: it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def notes_in_lines(text: str) -> Notes:
    """Return the captions of a text, one on each line that is not blank. Raise ValueError."""
    captions = (text_of(line, "caption") for line in text.splitlines())
    return Notes(tuple(dict.fromkeys(caption for caption in captions if caption)))


def merge(audio: str, places: Mapping[str, Notes]) -> Notes:
    """Join what several places say about a file. Raise DataError, which names both, if two of them disagree."""
    attributes = {key: value for place in places.values() for key, value in place.attributes.items()}
    given: dict[str, tuple[Any, ...]] = {"captions": (), "questions": ()}
    for what in given:
        saying = {place: getattr(found, what) for place, found in places.items() if getattr(found, what)}
        if not saying:
            continue
        (first, given[what]), *others = saying.items()
        for place, other in others:
            if set(other) != set(given[what]):
                raise DataError(f"'{audio}' has {what} [{few(given[what])}] in {first} but [{few(other)}] in {place}; keep one of them")
    return Notes(given["captions"], given["questions"], attributes)


class Gathered:
    """What several rows say about one file, each caption and question once, in order."""

    def __init__(self) -> None:
        self._captions: dict[str, None] = {}
        self._questions: dict[tuple[str, str], None] = {}
        self._attributes: dict[str, dict[str, Any]] = {}

    def add(self, notes: Notes) -> None:
        """Add what another row says."""
        self._captions.update(dict.fromkeys(notes.captions))
        self._questions.update(dict.fromkeys(notes.questions))
        for name, value in notes.attributes.items():
            self._attributes.setdefault(name, {}).setdefault(repr(value), value)

    def notes(self) -> Notes:
        """Return everything that was added; an attribute with different values is a tuple of them."""
        attributes = {name: tuple(found.values()) for name, found in self._attributes.items()}
        return Notes(
            tuple(self._captions),
            tuple(self._questions),
            {name: values[0] if len(values) == 1 else values for name, values in attributes.items()},
        )


def _rows(path: Path, columns: dict[str, None]) -> Iterator[Row]:
    """Yield the rows of a table, and note its columns."""
    if path.suffix.lower() == ".jsonl":
        for line, values in json_rows(path):
            columns.update(dict.fromkeys(_key(name) for name in values))
            yield line, values
        return
    table = Table(path, needed={_FILE: FILE_NAMES}, known=_FIELDS)
    columns.update(dict.fromkeys(column for column in table.columns if column))
    for line, values in table.rows():
        try:
            for column, value in values.items():
                values[column] = cell_of(column, value)
        except ValueError as error:
            raise DataError(f"'{path}', row {line}: {error}") from error
        yield line, values


def cell_of(column: str, value: str) -> Any:
    """Return the value of a CSV field.

    Raise ValueError for a list that is not JSON, and for a quote that includes another row.
    """
    for line in value.splitlines()[1:]:
        name = line.partition(",")[0].strip(' "')
        if "," in line and name.lower().endswith(SUFFIXES):
            raise ValueError(f"a quoted field runs on into the row that begins with '{name}'; close the quote before it")
    if column in CAPTION_KEYS and value.strip() in _MISSING:
        raise ValueError(
            f"'{column}' is {value.strip()!r}, which many programs write for a missing value; leave it empty, or write it into <stem>.txt"
        )
    if column == "captions" and not value.lstrip().startswith("["):
        return [value]
    if column in ("captions", "questions"):
        try:
            return parse_json(value)
        except ValueError as error:
            raise ValueError(f"'{column}': {error}; expected a list, written as JSON") from error
    return value


def _known(value: object) -> dict[str, Any]:
    """Return an object with its known keys in lower case. Raise ValueError if it is not one, or has a key twice."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {kind_of(value)}")
    values: dict[str, Any] = {}
    for key, item in value.items():
        name = _key(key)
        if name in values:
            raise ValueError(f"it has the key '{name}' twice; keep one of them")
        values[name] = item
    return values


def _key(name: str) -> str:
    known = name.strip().lower()
    return known if known in _FIELDS else name


def notes_of(values: Mapping[str, Any]) -> Notes:
    """Read the keys of an object. Raise ValueError, which says what is wrong."""
    captions = [text_of(values[key], key) for key in CAPTION_KEYS[:-1] if values.get(key) is not None]
    captions += [text_of(caption, "captions") for caption in _list(values.get("captions"), "captions")]
    pairs = [_pair(pair) for pair in _list(values.get("questions"), "questions")]
    if values.get("question") is not None or values.get("answer") is not None:
        pairs.append(_pair(values))
    attributes = {key: item for key, item in values.items() if key not in _FIELDS}
    return Notes(tuple(dict.fromkeys(caption for caption in captions if caption)), tuple(dict.fromkeys(pairs)), attributes)


def _list(value: object, name: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"'{name}' is {kind_of(value)}; expected a list")
    return value


def text_of(value: object, name: str) -> str:
    """Return a caption without surrounding white space, or nothing if it has no visible character.

    Raise ValueError, which names the column, if it is not text.
    """
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {kind_of(value)}; expected text")
    if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"'{name}' holds half of a surrogate pair, which is not text")
    if "\0" in value:
        raise ValueError(f"'{name}' holds a NUL character, which is not text")
    text = value.strip()
    return text if text.isprintable() or any(letter.isprintable() and not letter.isspace() for letter in text) else ""


def _pair(value: object) -> tuple[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"a question is {kind_of(value)}; expected an object")
    question, answer = (text_of(value[key], key) if value.get(key) is not None else "" for key in ("question", "answer"))
    if not question or not answer:
        raise ValueError("a question needs both 'question' and 'answer'")
    return question, answer
