"""Audio files in the rows of Parquet shards: their headers, found once, and their bytes, read with their row group."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soundomni.core.errors import UnreadableAudioError, message_of
from soundomni.data.audio import audio_info
from soundomni.data.decoder import Embedded
from soundomni.data.parquet_files import ParquetFile
from soundomni.data.shard_index import Identity, ShardIndex

NO_BYTES = "it has no bytes, only a path, which is not opened"
_MOST_OPEN = 8  # shards that stay open
_MOST_NAME = 1000


@dataclass(frozen=True)
class Header:
    """Samples and rate of an audio file, or why it cannot be read, and the name that its row gives it."""

    num_samples: int = 0
    rate: int = 0
    name: str = ""
    fault: str = ""


@dataclass
class Group:
    """Headers of the rows of a row group, and why the rest of it cannot be read, if so."""

    headers: list[Header] = field(default_factory=list)
    fault: str = ""


def list_groups(file: ParquetFile, column: str, index: ShardIndex, identity: Identity) -> list[Group]:
    """Return the headers of a shard's audio files by row group, from its index if there is one.

    Args:
        file: the shard.
        column: its column with audio.
        index: where indices are kept.
        identity: identity of the shard, taken before it was opened.
    """
    kept = _from_json(index.read(file.path, identity), column, file.group_rows)
    if kept is not None:
        return kept
    groups = []
    for number in range(len(file.group_rows)):
        group = Group()
        try:
            for data, name in file.audio(number, column):
                group.headers.append(_header(data, name[:_MOST_NAME]))
        except ValueError as error:
            group.fault = message_of(error)
        groups.append(group)
    index.write(file.path, identity, _to_json(groups, column))
    return groups


def _header(data: bytes | None, name: str) -> Header:
    if data is None:
        return Header(name=name, fault=NO_BYTES)
    try:
        num_samples, rate, _ = audio_info(Embedded(name, data))
    except UnreadableAudioError as error:
        return Header(name=name, fault=message_of(error).removeprefix(f"cannot read '{name}': "))
    return Header(num_samples, rate, name)


def _to_json(groups: list[Group], column: str) -> dict[str, Any]:
    rows = [[[one.num_samples, one.rate, one.name, one.fault] for one in group.headers] for group in groups]
    return {"column": column, "rows": rows, "faults": [group.fault for group in groups]}


def _from_json(tree: Any, column: str, counts: list[int]) -> list[Group] | None:
    """Return groups from `_to_json`, or None if it is something else or does not fit the shard."""
    try:
        if tree["column"] != column or not len(tree["rows"]) == len(tree["faults"]) == len(counts):
            return None
        groups = []
        for rows, fault, count in zip(tree["rows"], tree["faults"], counts, strict=True):
            headers = [Header(*row) for row in rows]
            if not isinstance(fault, str) or not all(map(_fits, headers)) or len(headers) > count or (not fault and len(headers) < count):
                return None
            groups.append(Group(headers, fault))
    except (TypeError, ValueError, KeyError):
        return None
    return groups


def _fits(header: Header) -> bool:
    if not isinstance(header.name, str) or not isinstance(header.fault, str):
        return False
    return header.fault != "" or all(type(value) is int and value > 0 for value in (header.num_samples, header.rate))


@dataclass(frozen=True)
class _Shard:
    path: Path
    column: str
    identity: Identity


class RowReader:
    """Reads the bytes of audio files; several threads may use it, one after the other.

    Args:
        needed_by: what needs pyarrow, for the error if it is not installed.
        most_bytes: bytes of row groups that stay in memory. A larger row group is read in pieces, up to the wanted row.
    """

    def __init__(self, *, needed_by: str, most_bytes: int) -> None:
        self._needed_by = needed_by
        self._most_bytes = most_bytes
        self._shards: list[_Shard] = []
        self._open: OrderedDict[int, ParquetFile] = OrderedDict()
        self._kept: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def add(self, path: Path, column: str, identity: Identity) -> int:
        """Add a shard, and return its number."""
        self._shards.append(_Shard(path, column, identity))
        return len(self._shards) - 1

    def read(self, shard: int, group: int, row: int) -> bytes:
        """Return the audio file in a row. Raise DataError, ValueError or OSError."""
        one = self._shards[shard]
        if Identity.of(one.path) != one.identity:
            raise ValueError("its shard changed after it was listed. Start again")
        with self._lock:
            kept = self._kept.get((shard, group))
            if kept is None:
                file = self._file(shard)
                if file.audio_size(group, one.column) > self._most_bytes:
                    return _nth(file, group, one.column, row)
                kept = [data or b"" for data, _ in file.audio(group, one.column)]
                self._keep((shard, group), kept)
            self._kept.move_to_end((shard, group))
            return kept[row]

    def _file(self, shard: int) -> ParquetFile:
        if shard not in self._open:
            self._open[shard] = ParquetFile(self._shards[shard].path, needed_by=self._needed_by)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return self._open[shard]

    def _keep(self, key: tuple[int, int], files: list[bytes]) -> None:
        self._kept[key] = files
        self._kept_bytes += sum(map(len, files))
        while self._kept_bytes > self._most_bytes and len(self._kept) > 1:
            self._kept_bytes -= sum(map(len, self._kept.popitem(last=False)[1]))


def _nth(file: ParquetFile, group: int, column: str, row: int) -> bytes:
    for number, (data, _) in enumerate(file.audio(group, column)):
        if number == row:
            return data or b""
    raise ValueError(f"row group {group} ends before it")
