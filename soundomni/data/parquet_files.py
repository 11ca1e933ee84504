"""Parquet files of strangers, read in small pieces with pyarrow, which is imported on use.

Columns of plain values (texts, numbers, lists and structs of them) become records; binary, extension and nested columns
of other types are ignored, so nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from soundomni.core.errors import DataError, PluginError, amount, message_of
from soundomni.core.files.small_files import open_regular
from soundomni.data.text_files import parse_json

MOST_ROWS = 1 << 31
"""Most rows of a file: more come from a damaged footer."""
MOST_TEXT = 4_000_000
"""Most bytes of a text."""

_MOST_TEXTS = 1 << 30  # bytes of a column of texts in a row group, as the footer announces them
_ROWS = 64  # rows that are turned into records at a time
_BATCH_BYTES = 1 << 23  # bytes of audio that are read at a time, about
_MOST_BATCH = 64
_BUFFER = 1 << 16  # with one, a column is read in pieces instead of whole
_MOST_DEPTH = 4
_MAGIC = b"PAR1"
_FEATURES = b"huggingface"  # key of the schema's metadata


def pyarrow(needed_by: str) -> Any:
    """Return the module pyarrow. Raise PluginError, which says how to install it, if there is none."""
    try:
        for name in ("parquet", "compute"):
            importlib.import_module(f"pyarrow.{name}")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise PluginError(f"{needed_by} needs the package pyarrow: pip install soundomni[parquet]") from error


class ParquetFile:
    """An open Parquet file. Use it in one thread at a time.

    Args:
        path: the file.
        needed_by: what needs pyarrow, for the error if it is not installed.

    Raise DataError, in one line, if it is not a Parquet file, or its footer is damaged.
    """

    def __init__(self, path: Path, *, needed_by: str) -> None:
        self._pa = pyarrow(needed_by)
        self.path = path
        self._stack = contextlib.ExitStack()
        try:
            os.close(open_regular(path))  # a pipe would keep pyarrow waiting
            self._file = self._stack.enter_context(self._pa.OSFile(str(path)))
            _check_magic(self._file)
            plain = self._opened()
            self.schema = plain.schema_arrow
            texts = [field.name for field in self.schema if self._is_text(field.type)]
            self._reader = self._opened(read_dictionary=texts)  # a text that is repeated a million times is there once
            self.group_rows = [self._reader.metadata.row_group(group).num_rows for group in range(self._reader.num_row_groups)]
            if not all(count >= 0 for count in self.group_rows) or sum(self.group_rows) > MOST_ROWS:
                raise ValueError(f"its footer announces {sum(self.group_rows):,} rows")
        except (self._pa.ArrowException, *_FAULTS) as error:
            self._stack.close()
            raise DataError(f"cannot read '{path}': {_reason(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    @property
    def audio_columns(self) -> list[str]:
        """Columns with audio files: structs with `bytes` and `path`; those that the Hub's features call audio, if any."""
        found = [field.name for field in self.schema if self._is_audio(field.type)]
        said = [name for name in self._announced_audio() if name in found]
        return said or found

    @property
    def plain_columns(self) -> list[str]:
        """Columns that become fields of records."""
        return [field.name for field in self.schema if self._is_plain(field.type)]

    def records(self, group: int, columns: list[str]) -> Iterator[dict[str, Any] | str]:
        """Yield the rows of a row group as records without null values, or why a row is damaged. Raise ValueError."""
        if not columns:
            yield from ({} for _ in range(self.group_rows[group]))
            return
        self._check_texts(group, columns)
        for batch in self._batches(group, columns, _ROWS):
            lists = [self._values(batch.column(name)) for name in columns]
            for values in zip(*lists, strict=True):
                bad = next((f"'{name}': {value}" for name, value in zip(columns, values, strict=True) if isinstance(value, _Bad)), None)
                record = {name: value for name, value in zip(columns, values, strict=True) if value is not None}
                yield bad if bad is not None else record

    @property
    def binary_columns(self) -> list[str]:
        """Columns of binary values."""
        return [field.name for field in self.schema if self._is_bytes(field.type)]

    def audio(self, group: int, column: str) -> Iterator[tuple[bytes | None, str]]:
        """Yield (bytes, or None if there are none; path, or nothing) of the audio files in a row group. Raise ValueError."""
        size = self.audio_size(group, column)
        rows = max(1, min(_MOST_BATCH, _BATCH_BYTES * self.group_rows[group] // max(size, 1)))
        for batch in self._batches(group, [column], rows):
            files = batch.column(column)
            struct = self._pa.types.is_struct(files.type)
            contents, paths = (files.field("bytes"), files.field("path")) if struct else (files, None)
            for row in range(len(files)):
                path = self._value(paths[row]) if paths is not None and files[row].is_valid else None
                data = contents[row].as_py() if files[row].is_valid else None
                yield data, path if isinstance(path, str) and not isinstance(path, _Bad) else ""

    def audio_size(self, group: int, column: str) -> int:
        """Return the bytes of a row group's audio files, as its footer announces them."""
        row_group = self._reader.metadata.row_group(group)
        return int(sum(self._sizes(row_group, column)))

    def _sizes(self, row_group: Any, column: str) -> Iterator[int]:
        for index in range(row_group.num_columns):
            chunk = row_group.column(index)
            if chunk.path_in_schema == column or chunk.path_in_schema.startswith(f"{column}."):
                yield chunk.total_uncompressed_size

    def _opened(self, **settings: Any) -> Any:
        return self._pa.parquet.ParquetFile(
            self._file,
            memory_map=False,
            buffer_size=_BUFFER,
            pre_buffer=False,
            page_checksum_verification=True,
            arrow_extensions_enabled=False,
            **settings,
        )

    def _batches(self, group: int, columns: list[str], rows: int) -> Iterator[Any]:
        """Yield batches of a row group. Raise ValueError if it is damaged, or has another number of rows than announced."""
        found = 0
        try:
            for batch in self._reader.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False):
                found += batch.num_rows
                yield batch
        except (self._pa.ArrowException, *_FAULTS) as error:
            raise ValueError(f"row group {group} is damaged: {_reason(error)}") from error
        if found != self.group_rows[group]:
            raise ValueError(f"row group {group} has {amount(found, 'row')}, but {self.group_rows[group]:,} are announced")

    def _check_texts(self, group: int, columns: list[str]) -> None:
        row_group = self._reader.metadata.row_group(group)
        for column in columns:
            size = sum(self._sizes(row_group, column))
            if not 0 <= size <= _MOST_TEXTS:
                raise ValueError(f"row group {group} has {size:,} bytes in '{column}'; expected at most {_MOST_TEXTS:,}")

    def _values(self, column: Any) -> list[Any]:
        """Return the values of a column; a value that cannot be read is a _Bad."""
        compute, types = self._pa.compute, self._pa.types
        texts = column.dictionary if types.is_dictionary(column.type) else column
        if self._is_text(texts.type) and len(texts) and (compute.max(compute.binary_length(texts)).as_py() or 0) > MOST_TEXT:
            return [self._value(value) for value in column]
        if not self._is_text(texts.type) and column.nbytes > MOST_TEXT * len(column):
            return [_Bad(f"it has more than {MOST_TEXT:,} bytes")] * len(column)
        try:
            return [_plain(value) for value in column.to_pylist()]
        except (ValueError, OverflowError):
            return [self._value(value) for value in column]

    def _value(self, scalar: Any) -> Any:
        try:
            if self._pa.types.is_dictionary(scalar.type):
                scalar = scalar.value
            if scalar.is_valid and self._is_text(scalar.type) and scalar.as_buffer().size > MOST_TEXT:
                return _Bad(f"it has {scalar.as_buffer().size:,} bytes; expected at most {MOST_TEXT:,}")
            return _plain(scalar.as_py())
        except (ValueError, OverflowError) as error:
            return _Bad(message_of(error))

    def _is_text(self, kind: Any) -> bool:
        return bool(self._pa.types.is_string(kind) or self._pa.types.is_large_string(kind))

    def _is_plain(self, kind: Any, depth: int = 0) -> bool:
        types = self._pa.types
        if depth > _MOST_DEPTH:
            return False
        if types.is_dictionary(kind):
            return self._is_plain(kind.value_type, depth + 1)
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return self._is_plain(kind.value_type, depth + 1)
        if types.is_struct(kind):
            return kind.num_fields > 0 and all(self._is_plain(kind.field(i).type, depth + 1) for i in range(kind.num_fields))
        numbers = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
        times = types.is_date(kind) or types.is_time(kind) or types.is_timestamp(kind)
        return bool(self._is_text(kind) or types.is_null(kind) or numbers or times)

    def _is_audio(self, kind: Any) -> bool:
        types = self._pa.types
        if not types.is_struct(kind) or kind.num_fields < 2:
            return False
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        contents = fields.get("bytes")
        return contents is not None and "path" in fields and self._is_text(fields["path"]) and self._is_bytes(contents)

    def _is_bytes(self, kind: Any) -> bool:
        return bool(self._pa.types.is_binary(kind) or self._pa.types.is_large_binary(kind))

    def _announced_audio(self) -> list[str]:
        """Return the columns that the Hub's metadata call audio; none without such metadata."""
        text = (self.schema.metadata or {}).get(_FEATURES, b"")
        try:
            features = parse_json(text[:MOST_TEXT].decode())["info"]["features"]
            return [name for name, feature in features.items() if feature.get("_type") == "Audio"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []


class MetadataReader(ParquetFile):
    """A Parquet file of which only plain columns are read, row by row."""

    @property
    def columns(self) -> list[str]:
        """Columns of the records."""
        return self.plain_columns

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """Yield (number of the row, its record or why it is damaged); a damaged row group is one row."""
        first = 0
        for group, count in enumerate(self.group_rows):
            try:
                yield from enumerate(self.records(group, self.columns), start=first)
            except ValueError as error:
                yield first, message_of(error)
            first += count


class _Bad(str):
    """Why a value cannot be read."""


_FAULTS = (OSError, ValueError, OverflowError, MemoryError, KeyError, TypeError)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; dates, times and decimals become text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _check_magic(file: Any) -> None:
    """Raise ValueError unless a file begins and ends as a Parquet file does."""
    size = file.size()
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is not a Parquet file; expected 'PAR1' at its beginning")
    file.seek(max(len(_MAGIC), size - len(_MAGIC)))
    if file.read() != _MAGIC:
        raise ValueError("it is truncated; expected 'PAR1' at its end, after the footer. Fetch it again")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
