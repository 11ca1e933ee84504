"""Tables of captions, CSV and JSON lines, read strictly: nothing is guessed, and every error names the file and the
row."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from soundomni.core.errors import DataError, amount
from soundomni.data.audio import SUFFIXES
from soundomni.data.text_files import few, kind_of, parse_json, read_text

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_COMPARED = 100  # names that are compared with a missing one; each comparison takes time
_QUOTES = "close the quote, and double quotes that belong to a text"

Row = tuple[int, dict[str, Any]]
"""The line in which a row begins, as editors count, and its values by column; empty fields are left out."""


class Table:
    """A CSV file with a header.

    Args:
        path: the file.
        needed: columns that it must have, each with its other common names.
        known: columns whose names are matched in any case; `needed` ones always are.
        delimiter: what separates the columns.

    `rows` raises DataError, naming file and row, for a row with another number of fields than the header, or an
    unclosed quote.

    Raise DataError if it cannot be read, is not UTF-8, is separated by something else, lacks a column or has one twice.
    """

    def __init__(self, path: Path, *, needed: Mapping[str, tuple[str, ...]], known: tuple[str, ...] = (), delimiter: str = ",") -> None:
        self._path = path
        self._delimiter = delimiter
        text = _text(path)
        self._reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        known = (*needed, *known)
        self.columns = tuple(_named(column, known) for column in self._header())
        self._first_line = next((line for line in text.splitlines() if line.strip()), "")
        if not all(column in self.columns for column in needed):
            self.check_header(tuple(needed))
        self._check_columns(needed)

    def rows(self) -> Iterator[Row]:
        """Yield the rows that are not blank."""
        while (row := self._next()) is not None:
            line, fields = row
            if not any(field.strip() for field in fields):
                continue
            if len(fields) < len(self.columns) or any(fields[len(self.columns) :]):  # programs may end rows with empty fields
                raise DataError(f"'{self._path}', row {line}: {self._why_uneven(fields)}")
            yield line, {column: field for column, field in zip(self.columns, fields, strict=False) if column and field.strip()}

    def _header(self) -> list[str]:
        while (row := self._next()) is not None:
            if any(name.strip().strip("\ufeff") for name in row[1]):
                return row[1]
        raise DataError(f"'{self._path}' is empty; expected a header and rows")

    def _next(self) -> tuple[int, list[str]] | None:
        line = self._reader.line_num + 1
        try:
            return line, next(self._reader)
        except StopIteration:
            return None
        except csv.Error as error:
            reasons = {
                "unexpected end of data": f"a quote is opened and never closed; {_QUOTES}",
                "field larger": f"a field has more than {csv.field_size_limit():,} characters, as if a quote were never closed; {_QUOTES}",
                "expected after": f"text follows a closing quote; {_QUOTES}",
            }
            reason = next((reason for sign, reason in reasons.items() if sign in str(error)), str(error))
            raise DataError(f"'{self._path}', row {line}: {reason}") from error

    def _why_uneven(self, fields: list[str]) -> str:
        found = f"it has {amount(len(fields), 'field')}, but the header has {len(self.columns)}"
        if len(fields) < len(self.columns):
            return f"{found}; give every row all of them, including empty ones"
        if any(field.lstrip(" ").startswith('"') for field in fields):
            return f"{found}; remove the spaces before quotes"
        return f"{found}; quote captions that contain commas"

    def check_header(self, expected: tuple[str, ...] = ()) -> None:
        """Raise DataError if the first line is separated by something else, or is a row; call it if `expected` columns are missing."""
        header, own = self._first_line, _DELIMITERS[self._delimiter]
        if header.strip() == f"sep={self._delimiter}":
            raise DataError(f"'{self._path}' begins with '{header.strip()}', which only Excel knows; expected a header. Remove this line")
        for delimiter, name in _DELIMITERS.items():
            if delimiter == self._delimiter:
                continue
            others = [_named(column, expected) for column in header.split(delimiter)]
            if header.strip() == f"sep={delimiter}" or len(others) > len(self.columns):
                raise DataError(f"'{self._path}' is separated by {name}; expected {own}. Save it with {own} between the columns")
        named = next((name for name in self.columns if name.lower().endswith(SUFFIXES)), None)
        if named is not None:
            raise DataError(f"'{self._path}' begins with a row about '{named}'; expected a header. Add a first line with the column names")

    def _check_columns(self, needed: Mapping[str, tuple[str, ...]]) -> None:
        places: dict[str, int] = {}
        for number, column in enumerate(self.columns, start=1):
            first = places.setdefault(column, number)
            if column and first != number:
                raise DataError(
                    f"'{self._path}' has the column '{column}' twice, as columns {first} and {number}. Keep or rename one of them"
                )
        missing = [column for column in needed if column not in self.columns]
        for column, others in needed.items():
            if column in missing:
                found = [name for name in self.columns if name]
                raise DataError(f"'{self._path}' has no column '{column}'; {cure(column, others, found)}")


def cure(column: str, others: tuple[str, ...], found: Sequence[str]) -> str:
    """Return what there is instead of a missing column, and what to do; `others` are its other common names."""
    folded = {name.casefold(): name for name in found}
    same = next((folded[other] for other in others if other in folded), None)
    near = difflib.get_close_matches(column, found[:_COMPARED], n=1, cutoff=0.6)
    meant = same if same is not None else next(iter(near), None)
    action = f"Rename '{meant}' to '{column}'" if meant is not None else "Add it"
    return f"it has {few(found, most=8) if found else 'nothing'}. {action}"


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file with one JSON object per line. Raise DataError, which names file and row."""
    for line, text in enumerate(_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            values = parse_json(text)
            if not isinstance(values, dict):
                raise ValueError(f"expected an object, as on every line; found {kind_of(values)}")
        except ValueError as error:
            advice = "; expected a whole object on every line" if "it is not JSON" in str(error) else ""
            raise DataError(f"'{path}', row {line}: {error}{advice}") from error
        yield line, values


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"cannot read '{path}': {error}") from error


def _named(column: str, known: tuple[str, ...]) -> str:
    """Return a column's name without surrounding characters, in its known spelling if only the case differs."""
    name = column.strip().strip("\ufeff")
    return name.casefold() if name.casefold() in known else name
