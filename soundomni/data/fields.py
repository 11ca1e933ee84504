"""Columns of other people's tables: which one has the path, the captions and the times, found by the usual names or given
by the user.

A record is a row of a table, or a JSON object, by column.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soundomni.core.errors import DataError, SpecError, did_you_mean, listed, shown
from soundomni.data.captions import CAPTION_KEYS, FILE_NAMES, QUESTION_KEYS, Notes, notes_of, text_of
from soundomni.data.text_files import few, kind_of

FieldMap = Mapping[str, str | list[str]]
"""Role → column, or for captions a list of columns."""

_STANDARD_PATHS = ("file_name", "audio_filepath")  # of the Hub's audio folders, and of NeMo's manifests
_USUAL = {"start": ("start", "offset"), "end": ("end",), "duration": ("duration",)}
_LESS_USUAL_CAPTIONS = ("transcription", "transcript", "sentence", "normalized_text", "description", "raw_text")
_NUMBERED_CAPTION = re.compile(r"caption_?\d{1,3}")
_AUDIOCAPS = (("youtube_id", "start_time"), "{youtube_id}_{start_time}.wav")
_MOST_LAYOUTS = 256  # sets of columns whose fields are remembered
_MOST_SEEN = 1000
_MOST_SECONDS = 1e9


@dataclass(frozen=True)
class Fields:
    """Columns of a record, by role.

    Args:
        columns: role → column.
        captions: columns with captions.
        template: the path with columns in braces, instead of a column with the path.
    """

    columns: Mapping[str, str]
    captions: tuple[str, ...]
    template: str | None = None

    def path(self, record: Mapping[str, Any]) -> str:
        """Return the path that a record names. Raise ValueError if it names none."""
        if self.template is not None:
            lacking = [name for name in names_in(self.template) if not isinstance(record.get(name), str | int | float)]
            if lacking:
                raise ValueError(f"no {few(lacking)}, which its path '{self.template}' needs")
            return self.template.format_map({name: _in_path(record[name]) for name in names_in(self.template)})
        value = record.get(self.columns["path"])
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"'{self.columns['path']}' is {'empty' if value in (None, '') else kind_of(value)}; expected a path")
        return value

    def seconds(self, record: Mapping[str, Any], role: str) -> float | None:
        """Return the number of seconds for a role, or None. Raise ValueError unless it is finite and not negative."""
        column = self.columns.get(role)
        value = record.get(column) if column is not None else None
        if value is None or value == "":
            return None
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not 0 <= number <= _MOST_SECONDS or (number == 0 and role != "start"):
            least = "from 0" if role == "start" else "above 0"
            raise ValueError(f"'{column}' is {shown(value)}; expected a number of seconds {least}")
        return number

    def notes(self, record: Mapping[str, Any]) -> Notes:
        """Return captions, questions and attributes of a record. Raise ValueError, which says what is wrong."""
        texts = [text for column in self.captions for text in _texts(record.get(column), column)]
        used = {*self.columns.values(), *self.captions}
        asked = {key: value for key, value in record.items() if key in QUESTION_KEYS and key not in used}
        attributes = {key: value for key, value in record.items() if key not in used and key not in asked}
        return Notes(tuple(dict.fromkeys(filter(None, texts))), notes_of(asked).questions, attributes)


class FieldFinder:
    """Finds the fields of records, by a map of the user's or by the usual names.

    Args:
        given: role → column or columns; roles that are not in it are found by the usual names.
        roles: roles that may be in the map.
        where: what errors call the map.

    Raise SpecError for a map with another role, or with something other than names of columns.
    """

    def __init__(self, given: FieldMap | None, *, roles: Sequence[str], where: str = "fields") -> None:
        self._given = {role: _checked(where, role, value, roles) for role, value in (given or {}).items()}
        self._roles = roles
        self._where = where
        self._found: dict[tuple[str, ...], Fields] = {}
        self.seen: dict[str, None] = {}

    def find(self, columns: Iterable[str]) -> Fields:
        """Return the fields of a record with these columns.

        Raise ValueError if none of them has the path, or several might have it.
        """
        names = tuple(columns)
        if names not in self._found:
            if len(self.seen) < _MOST_SEEN:
                self.seen.update(dict.fromkeys(names))
            found = self._resolve(names)
            if len(self._found) >= _MOST_LAYOUTS:
                self._found.clear()
            self._found[names] = found
        return self._found[names]

    def check_seen(self, name: str) -> None:
        """Raise DataError if the map names a column that no record has; `name` is what the records come from."""
        for role, columns in self._given.items():
            parts = [part for column in columns for part in (names_in(column) if role == "path" else (column,))]
            for column in parts:
                if column not in self.seen and len(self.seen) < _MOST_SEEN:
                    near = did_you_mean(column, self.seen)
                    raise DataError(f"{self._where}.{role} is '{column}'; expected a column of {name}, which has {self._columns()}.{near}")

    def _columns(self) -> str:
        return few(tuple(self.seen), most=12) if self.seen else "none"

    def _resolve(self, names: tuple[str, ...]) -> Fields:
        by_case = {name.strip().casefold(): name for name in reversed(names)}
        columns = {role: self._given[role][0] for role in self._given if role != "captions"}
        template = None
        if "path" in self._roles:
            path = columns.get("path") or self._usual_path(names, by_case)
            if "{" in path:
                template = path
                columns.pop("path", None)
            else:
                columns["path"] = path
        for role in self._roles:
            usual = [by_case[name] for name in _USUAL.get(role, ()) if name in by_case]
            if role not in columns and len(usual) == 1 and usual[0] not in columns.values():
                columns[role] = usual[0]
        captions = self._given.get("captions") or self._usual_captions(names, by_case)
        return Fields(columns, tuple(captions), template)

    def _usual_path(self, names: tuple[str, ...], by_case: Mapping[str, str]) -> str:
        standard = [by_case[name] for name in _STANDARD_PATHS if name in by_case]
        suffixed = [name for name in names if name.casefold().endswith("_file_name")]
        others = [by_case[name] for name in FILE_NAMES if name in by_case]
        found = standard or suffixed or others
        if len(found) > 1:
            named = listed([f"'{name}'" for name in found])
            raise ValueError(f"{named} may each be the path. Choose one, for instance {self._where}: {{path: {found[0]}}}")
        if not found and all(name in by_case for name in _AUDIOCAPS[0]):
            return _AUDIOCAPS[1]
        if not found:
            example = next(iter(names), "COLUMN")
            expected = "file_name, audio_filepath or path"
            raise ValueError(
                f"no column with the path, such as {expected}; it has {few(names, most=12) if names else 'no columns'}. "
                f"Name the right one, for instance {self._where}: {{path: {example}}}"
            )
        return found[0]

    def _usual_captions(self, names: tuple[str, ...], by_case: Mapping[str, str]) -> list[str]:
        usual = [name for name in names if name.strip().casefold() in CAPTION_KEYS or _NUMBERED_CAPTION.fullmatch(name.strip().casefold())]
        others = [by_case[name] for name in _LESS_USUAL_CAPTIONS if name in by_case]
        if not usual and len(others) > 1:
            named = listed([f"'{name}'" for name in others])
            raise ValueError(
                f"{named} may each be the caption. Choose some of them, for instance {self._where}: {{captions: [{others[0]}]}}"
            )
        return usual or others


def names_in(template: str) -> tuple[str, ...]:
    """Return the columns that a template for a path has in braces; a text without braces is a column itself."""
    found = tuple(name for _, name, _, _ in string.Formatter().parse(template) if name is not None) if "{" in template else ()
    return found or (template,)


def _checked(where: str, role: str, value: object, roles: Sequence[str]) -> list[str]:
    """Return the columns for a role. Raise SpecError for another role, and for anything but names of columns."""
    if role not in roles:
        raise SpecError(f"{where} has '{role}'; expected one of {', '.join(roles)}.{did_you_mean(str(role), roles)}")
    given = value if isinstance(value, list) and role == "captions" else [value]
    columns = [column for column in given if isinstance(column, str) and column]
    if not columns or len(columns) < len(given):
        expected = "a column, or a list of columns" if role == "captions" else "a column"
        raise SpecError(f"{where}.{role} is {shown(value)}; expected {expected}")
    if role == "path" and "{" in columns[0] and not _is_template(columns[0]):
        raise SpecError(f"{where}.path is '{columns[0]}'; expected a path with columns in braces, such as '{{id}}.wav'")
    return columns


def _is_template(path: str) -> bool:
    """Return whether a path has only names of columns in its braces: format strings can do more."""
    try:
        return all(name.isidentifier() for name in names_in(path)) and not re.search(r"\{[^}]*[!:][^}]*\}", path)
    except ValueError:
        return False


def _in_path(value: str | float) -> str:
    """Return a value in the spelling of file names: Parquet and pandas turn whole numbers into 30.0, but names say
    30."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _texts(value: object, column: str) -> list[str]:
    if value is None:
        return []
    return [text_of(text, column) for text in (value if isinstance(value, list) else [value])]
