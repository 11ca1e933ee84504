"""Parquet shards with audio files in them, as the Hub stores datasets.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from soundomni.core.errors import DataError, SpecError, UnreadableAudioError, listed, message_of
from soundomni.core.files.paths import place
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.data.audio import read_audio
from soundomni.data.decoder import Embedded
from soundomni.data.fields import FieldFinder, Fields
from soundomni.data.folder_listing import unread_format
from soundomni.data.parquet_files import ParquetFile, pyarrow
from soundomni.data.parquet_rows import NO_BYTES, Group, Header, RowReader, list_groups
from soundomni.data.reports import why_unusable
from soundomni.data.shard_index import Identity, ShardIndex
from soundomni.data.shard_listing import list_shards
from soundomni.data.text_files import few

_NEEDED_BY = "dataset 'parquet'"


@dataclass(frozen=True)
class _Clip:
    """Where the audio of an item is: shard, row group, and row within it."""

    shard: int
    group: int
    row: int


class Parquet(Dataset):
    """Clips in Parquet shards, as the Hub stores datasets: a column with the audio files, as structs of `bytes` and `path`, and
    others with captions and more.

    Captions come from columns with the usual names, as in the dataset manifest; all other columns of plain values are
    attributes, and `file` is the name of the audio file. Items are in the order of the rows, shards sorted by name. The
    key of an item is SHARD:ROW.

    Reading needs pyarrow (`pip install soundomni[parquet]`) and never takes a whole table: a clip is read with its row
    group, and the row groups that were read last stay in memory within `cache_mb`. A row group that does not fit is
    read in pieces up to the clip, again for each clip. Reading in random order is therefore slow if row groups are
    large; tar shards do not have this cost.

    The first pass over a shard reads all its audio, to learn the lengths. What it finds is kept in a file in `index_dir`, so
    that the next run does not need to; a shard of another size or time of change is read again.

    Args:
        path: a .parquet file, or a folder of them with its subfolders; a leading `~` means the home directory.
        include: patterns of shards to include, such as "data/train-*"; all by default, if they do not belong to several
            splits.
        fields: role → column, for other column names than the usual ones: audio, and captions (one column or several).
        captions: whether an item needs a caption or a question; if not, items without them are kept for tasks that need
            none.
        cache_mb: megabytes of row groups to keep in memory.
        index_dir: folder for the indices; by default ~/.cache/soundomni/indices, or the same in XDG_CACHE_HOME. If it cannot
            be written, they are only kept in memory; "memory" never writes them.

    Damaged rows, row groups and shards, and rows without bytes, are left out and listed in `skipped`. Paths in the rows are
    never opened.

    Raise PluginError without pyarrow, and DataError if there are no shards, if those of several splits would be mixed, if
    the audio column is not clear, or if none of the clips can be used.
    """

    def __init__(
        self,
        *,
        path: str,
        include: list[str] | None = None,
        fields: dict[str, str | list[str]] | None = None,
        captions: bool = True,
        cache_mb: int = 256,
        index_dir: str | None = None,
    ) -> None:
        pyarrow(_NEEDED_BY)
        if cache_mb < 0:
            raise SpecError(f"cache_mb is {cache_mb}; expected 0 or more megabytes")
        self._finder = FieldFinder(fields, roles=("audio", "captions"))
        self._needs_captions = captions
        self._skipped: list[Skip] = []
        self._reader = RowReader(needed_by=_NEEDED_BY, most_bytes=cache_mb * 1_000_000)
        root, keys = list_shards(path, suffix=".parquet", include=include)
        index = ShardIndex(index_dir, kind="parquet")
        found: list[tuple[Item, _Clip]] = []
        for key in keys:
            try:
                found += self._items_of(key, root / key, index)
            except (DataError, ValueError, OSError) as error:
                self._skipped.append(Skip(key, message_of(error)))
        if self._finder.seen:
            self._finder.check_seen(place(path))
        self._items, self._clips = tuple(item for item, _ in found), tuple(clip for _, clip in found)
        if not self._items:
            raise DataError(why_unusable(max(len(self._skipped), 1), "row", place(path), self._skipped))

    def __len__(self) -> int:
        return len(self._items)

    def item(self, index: int) -> Item:
        return self._items[index]

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return float32 `[C, S]` and the file's rate. Raise UnreadableAudioError."""
        return read_audio(self._file(index))

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return a part of what `load` returns, without decoding anything after it. Raise UnreadableAudioError."""
        return read_audio(self._file(index), first=first, num_samples=num_samples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped)

    def _file(self, index: int) -> Embedded:
        item, clip = self._items[index], self._clips[index]
        try:
            return Embedded(item.key, self._reader.read(clip.shard, clip.group, clip.row))
        except (DataError, ValueError, OSError) as error:
            raise UnreadableAudioError(f"cannot read '{item.key}': {message_of(error)}") from error

    def _items_of(self, key: str, path: Path, index: ShardIndex) -> list[tuple[Item, _Clip]]:
        """Return the items of a shard; what cannot be used is noted. Raise DataError, ValueError or OSError if it is damaged."""
        identity = Identity.of(path)
        with ParquetFile(path, needed_by=_NEEDED_BY) as file:
            fields = self._finder.find(file.schema.names)
            column = _audio_column(file, fields.columns.get("audio"))
            shard = self._reader.add(path, column, identity)
            found: list[tuple[Item, _Clip]] = []
            start = 0
            for number, group in enumerate(list_groups(file, column, index, identity)):
                rows = self._rows(key, start, file, number, group, fields)
                found += [(item, _Clip(shard, number, row)) for row, item in rows]
                start += file.group_rows[number]
        return found

    def _rows(self, key: str, start: int, file: ParquetFile, number: int, group: Group, fields: Fields) -> Iterator[tuple[int, Item]]:
        """Yield (row, item) of a row group, whose first row is row `start` of the shard; what cannot be used is noted."""
        columns = [name for name in file.plain_columns if name != fields.columns.get("audio")]
        row = -1
        try:
            for row, (header, record) in enumerate(zip(group.headers, file.records(number, columns), strict=False)):
                item = self._item(f"{key}:{start + row}", header, record, fields)
                if item is not None:
                    yield row, item
        except ValueError as error:
            self._skipped.append(_damaged_rows(key, start + row + 1, start + file.group_rows[number], message_of(error)))
            return
        if group.fault:
            self._skipped.append(_damaged_rows(key, start + len(group.headers), start + file.group_rows[number], group.fault))

    def _item(self, name: str, header: Header, record: dict[str, Any] | str, fields: Fields) -> Item | None:
        """Return the item of a row, or None if it cannot be used, which is noted."""
        unread = unread_format(name, header.name) if header.fault else None
        if unread is not None:
            self._skipped.append(unread)
            return None
        if header.fault == NO_BYTES:
            self._skipped.append(Skip(name, header.fault, "missing", "without bytes"))
            return None
        try:
            if header.fault or isinstance(record, str):
                raise ValueError(header.fault or record)
            notes = fields.notes(record)
        except ValueError as error:
            self._skipped.append(Skip(name, message_of(error)))
            return None
        if self._needs_captions and not notes.captions and not notes.questions:
            self._skipped.append(Skip(name, "it has no caption", "no caption"))
            return None
        return Item(
            key=name,
            num_samples=header.num_samples,
            sample_rate=header.rate,
            captions=notes.captions,
            questions=notes.questions,
            attributes=({"file": header.name} if header.name else {}) | dict(notes.attributes),
        )


def _audio_column(file: ParquetFile, given: str | None) -> str:
    """Return the column with audio files. Raise ValueError if there is none, or several might be meant."""
    found = file.audio_columns
    if given is not None:
        if given not in (*found, *file.binary_columns):
            raise ValueError(f"its column '{given}' does not hold audio files; expected a struct of bytes and path, or binary values")
        return given
    if len(found) > 1:
        raise ValueError(f"it has several columns with audio: {listed(found)}. Choose one, for instance fields: {{audio: {found[0]}}}")
    if not found:
        raise ValueError(f"it has no column with audio, a struct of bytes and path; it has {few(file.schema.names, most=12)}")
    return found[0]


def _damaged_rows(key: str, first: int, end: int, reason: str) -> Skip:
    return Skip(f"{key}:{first}", f"rows {first} to {end - 1} cannot be read: {reason}")
