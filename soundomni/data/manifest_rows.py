"""Rows of manifests: JSON lines, CSV, TSV, Parquet, and the lists of fairseq."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import DataError, amount, message_of
from soundomni.core.files.small_files import open_regular
from soundomni.data.captions import CAPTION_KEYS, QUESTION_KEYS, cell_of
from soundomni.data.fields import FieldFinder, Fields
from soundomni.data.parquet_files import MetadataReader
from soundomni.data.tables import Table
from soundomni.data.text_files import compression_of, kind_of, parse_json

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MOST_ROW_BYTES = 4_000_000
"""Longest JSON text of one clip that is read: a longer one may take a hundred times its size."""

_FAIRSEQ = re.compile(r"[^\t\n]+\t\d{1,12}")
_HEAD = 1 << 16


@dataclass(frozen=True)
class ManifestRow:
    """A row of a manifest.

    Args:
        number: its line, or its number in a Parquet file.
        record: its values by column; if it is damaged, only the reason.
        fields: which of the columns have what; None if it is damaged.
        num_frames: number of samples that the row says its file has.
    """

    number: int
    record: Mapping[str, Any] | str
    fields: Fields | None = None
    num_frames: int | None = None


def read_rows(path: Path, finder: FieldFinder) -> Iterator[ManifestRow]:
    """Yield the rows of a manifest, including those that are damaged.

    Raise DataError, in one line, if it cannot be read, has no column with the paths, or has a row after which nothing can
    be trusted, such as one with an unclosed quote.
    """
    suffix = path.suffix.lower()
    readers: Mapping[str, Callable[[Path, FieldFinder], Iterator[ManifestRow]]] = {
        ".jsonl": _json_lines,
        ".json": _json_lines,  # as NeMo names its manifests
        ".csv": _csv,
        ".tsv": _tsv,
        ".parquet": _parquet,
    }
    if suffix not in readers:
        raise DataError(f"'{path}' has the suffix '{suffix}'; expected one of {', '.join(readers)}")
    if suffix != ".parquet":
        _check_text(path)
    yield from readers[suffix](path, finder)


def fairseq_root(path: Path) -> str | None:
    """Return the folder in the first line of a list in the layout of fairseq, or None for another file."""
    if path.suffix.lower() != ".tsv":
        return None
    lines = _head(path).decode("utf-8", "replace").split("\n")
    if len(lines) > 1 and lines[0].strip() and "\t" not in lines[0] and _FAIRSEQ.fullmatch(lines[1].rstrip("\r")):
        return lines[0].strip().removeprefix("\ufeff")
    return None


def _head(path: Path) -> bytes:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error


def _check_text(path: Path) -> None:
    """Raise DataError for a file that is empty, an archive or another binary file."""
    head = _head(path)
    if not head.strip():
        raise DataError(f"'{path}' is empty; expected a row for each clip")
    archive = compression_of(head)
    if archive is not None:
        raise DataError(f"'{path}' is compressed ({archive}); expected text. Unpack it")
    if head.startswith(b"\x80") or (head.count(0) * 4 > len(head)):
        raise DataError(f"'{path}' is a binary file; expected text in UTF-8")


def _json_lines(path: Path, finder: FieldFinder) -> Iterator[ManifestRow]:
    with os.fdopen(open_regular(path), "rb") as file:
        number = 0
        while line := file.readline(MOST_ROW_BYTES + 1):
            number += 1
            if len(line) > MOST_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(_HEAD)
                yield ManifestRow(number, f"it has more than {amount(MOST_ROW_BYTES, 'byte')}")
                continue
            if line.strip():
                yield _json_row(number, line, finder)


def _json_row(number: int, line: bytes, finder: FieldFinder) -> ManifestRow:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        try:
            record = parse_json(text)
        except ValueError as error:
            advice = "; expected a whole object on every line" if "it is not JSON" in str(error) else ""
            raise ValueError(f"{error}{advice}") from error
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, as on every line; found {kind_of(record)}")
        return ManifestRow(number, record, finder.find(record))
    except ValueError as error:
        return ManifestRow(number, message_of(error))


def _csv(path: Path, finder: FieldFinder, delimiter: str = ",") -> Iterator[ManifestRow]:
    table = Table(path, needed={}, known=QUESTION_KEYS, delimiter=delimiter)
    try:
        fields = finder.find(column for column in table.columns if column)
    except ValueError as error:
        table.check_header()
        raise DataError(f"'{path}': {error}") from error
    for line, values in table.rows():
        try:
            record = {column: cell_of(_canonical(column, fields), value) for column, value in values.items()}
        except ValueError as error:
            yield ManifestRow(line, message_of(error))
            continue
        yield ManifestRow(line, record, fields)


def _canonical(column: str, fields: Fields) -> str:
    """Return the name under which the fields of a CSV file are read: captions have many names."""
    name = column.strip().casefold()
    return column if column not in fields.captions else name if name in CAPTION_KEYS else "caption"


def _tsv(path: Path, finder: FieldFinder) -> Iterator[ManifestRow]:
    if fairseq_root(path) is None:
        yield from _csv(path, finder, "\t")
        return
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if not text.strip():
                continue
            if _FAIRSEQ.fullmatch(text) is None or "\ufffd" in text:
                yield ManifestRow(number, "it is not a path and a number of samples with a tab between them")
                continue
            name, _, frames = text.partition("\t")
            yield ManifestRow(number, {"path": name}, Fields({"path": "path"}, ()), int(frames))


def _parquet(path: Path, finder: FieldFinder) -> Iterator[ManifestRow]:
    with MetadataReader(path, needed_by="a manifest in Parquet") as reader:
        try:
            fields = finder.find(reader.columns)
        except ValueError as error:
            more = ". Its clips are in its rows: use the dataset 'parquet'" if reader.audio_columns else ""
            raise DataError(f"'{path}': {error}{more}") from error
        for number, record in reader.rows():
            yield ManifestRow(number, record, fields if isinstance(record, dict) else None)
