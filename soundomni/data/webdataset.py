"""Tar shards in the layout of WebDataset.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from soundomni.core.errors import DataError, UnreadableAudioError, message_of
from soundomni.core.files.paths import place
from soundomni.core.files.small_files import open_regular
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.data.audio import HEADER_THREADS, SUFFIXES, audio_info, read_audio
from soundomni.data.captions import Notes, merge, notes_in_lines
from soundomni.data.decoder import Embedded
from soundomni.data.fields import FieldFinder
from soundomni.data.folder_listing import unread_format
from soundomni.data.manifest_rows import MOST_ROW_BYTES
from soundomni.data.reports import why_unusable
from soundomni.data.shard_index import Identity, ShardIndex
from soundomni.data.shard_listing import list_shards
from soundomni.data.tar_members import Member, scan
from soundomni.data.text_files import few, kind_of, parse_json

_TEXTS = ("json", "txt")
_MOST_AUDIO_BYTES = 1 << 32
_KINDS: Mapping[str, Literal["unreadable", "missing", "no caption", "unsuitable"]] = {
    "unreadable": "unreadable",
    "unsuitable": "unsuitable",
}


@dataclass(frozen=True)
class _Header:
    """Samples and rate of an audio member, or why it cannot be read."""

    num_samples: int = 0
    rate: int = 0
    fault: str = ""


@dataclass
class _Contents:
    """What a shard contains: its regular members, the headers of those that are audio, and what is left out."""

    members: list[Member] = field(default_factory=list)
    headers: dict[str, _Header] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    cut: str | None = None


@dataclass(frozen=True)
class _Clip:
    """Where the audio of an item is."""

    shard: int
    first: int
    end: int


class WebDataset(Dataset):
    """Clips in tar shards, as WebDataset stores them: `KEY.flac` (or .wav, .mp3, .ogg, .opus and others), with `KEY.json` and
    `KEY.txt`.

    A key ends at the first dot of the file name, and files of one key belong together, in any order. Captions come from the
    columns of the JSON object, as in the dataset manifest, and from the lines of the text file. Members of other types, such
    as latents in .npy or .pyd, are ignored: nothing is extracted, and nothing is unpickled. Items are sorted by shard and
    key; the key of an item is SHARD/KEY.

    The first pass over a shard reads the headers of its members. What it finds is kept in a file in `index_dir`, so that the
    next run does not need to; a shard of another size or time of change is read again.

    Args:
        path: a .tar file, or a folder of them with its subfolders; a leading `~` means the home directory.
        include: patterns of shards to include, such as "train-*"; all by default, if they do not belong to several splits.
        audio: the extension of the audio, such as flac or vocals.wav, if keys have several audio files.
        fields: {captions: COLUMN or columns} of the JSON objects, for other names than the usual ones.
        captions: whether an item needs a caption or a question; if not, items without them are kept for tasks that need
            none.
        index_dir: folder for the indices; by default ~/.cache/soundomni/indices, or the same in XDG_CACHE_HOME. If it cannot
            be written, they are only kept in memory; "memory" never writes them.

    Links, devices, members whose name is absolute or leads out of the archive, JSON and text files above 4 MB, and audio
    that cannot be read are left out and listed in `skipped`. A truncated or damaged shard is listed with the place, and
    the complete members before that are used.

    Raise DataError if there are no shards, if those of several splits would be mixed, or if none of the clips can be used.
    """

    def __init__(
        self,
        *,
        path: str,
        include: list[str] | None = None,
        audio: str | None = None,
        fields: dict[str, str | list[str]] | None = None,
        captions: bool = True,
        index_dir: str | None = None,
    ) -> None:
        self._finder = FieldFinder(fields, roles=("captions",))
        self._audio = audio.lower().removeprefix(".") if audio is not None else None
        self._needs_captions = captions
        self._skipped: list[Skip] = []
        root, keys = list_shards(path, suffix=".tar", include=include)
        self._shards = [root / key for key in keys]
        self._identities: list[Identity] = []
        index = ShardIndex(index_dir, kind="webdataset")
        found: list[tuple[Item, _Clip]] = []
        for number, key in enumerate(keys):
            try:
                contents = self._examine(number, key, index)
                items = list(self._items_of(number, key, contents))
            except (DataError, OSError) as error:
                self._identities += [Identity(0, 0)] * (number + 1 - len(self._identities))
                self._skipped.append(Skip(key, message_of(error)))
                continue
            self._skipped += contents.skipped
            found += items
        if self._finder.seen:
            self._finder.check_seen("the JSON files")
        self._items, self._clips = tuple(item for item, _ in found), tuple(clip for _, clip in found)
        if not self._items:
            raise DataError(why_unusable(max(len(self._skipped), 1), "clip", place(path), self._skipped))

    def __len__(self) -> int:
        return len(self._items)

    def item(self, index: int) -> Item:
        return self._items[index]

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return float32 `[C, S]` and the file's rate. Raise UnreadableAudioError."""
        return read_audio(self._place(index))

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return a part of what `load` returns, without decoding anything after it. Raise UnreadableAudioError."""
        return read_audio(self._place(index), first=first, num_samples=num_samples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped)

    def _place(self, index: int) -> Embedded:
        """Return where the audio of an item is. Raise UnreadableAudioError if its shard changed since it was listed."""
        item, clip = self._items[index], self._clips[index]
        shard = self._shards[clip.shard]
        try:
            if Identity.of(shard) != self._identities[clip.shard]:
                raise UnreadableAudioError(f"cannot read '{item.key}': its shard changed after it was listed. Start again")
        except OSError as error:
            raise UnreadableAudioError(f"cannot read '{item.key}': {error.strerror or error}") from error
        return Embedded(item.key, shard, clip.first, clip.end)

    def _examine(self, number: int, key: str, index: ShardIndex) -> _Contents:
        """Return what a shard contains, from its index if there is one. Raise DataError or OSError."""
        shard = self._shards[number]
        identity = Identity.of(shard)
        self._identities.append(identity)
        kept = _from_json(index.read(shard, identity), identity.size, key)
        if kept is not None:
            return kept
        found = scan(shard, key)
        contents = _Contents(found.members, {}, found.skipped, found.cut)
        audio = [member for member in found.members if _is_audio(member.name)]
        with ThreadPoolExecutor(HEADER_THREADS) as threads:
            headers = threads.map(lambda member: _header(shard, member), audio)
            contents.headers = {member.name: header for member, header in zip(audio, headers, strict=True)}
        index.write(shard, identity, _to_json(contents, key))
        return contents

    def _items_of(self, number: int, shard: str, contents: _Contents) -> Iterator[tuple[Item, _Clip]]:
        """Yield the items of a shard, sorted by key; what cannot be used is noted."""
        cut = _split(contents.cut)[0] if contents.cut is not None else None
        with os.fdopen(open_regular(self._shards[number]), "rb") as file:
            for key, members in sorted(_by_key(contents.members).items()):
                name = f"{shard}/{key}"
                try:
                    if key == cut:
                        raise ValueError("the end of its truncated shard cuts it off")
                    member = self._audio_of(name, members)
                    if member is None:
                        continue
                    header = contents.headers[member.name]
                    if header.fault:
                        raise ValueError(header.fault)
                    notes = self._notes(name, file, members)
                except (ValueError, DataError, OSError) as error:
                    self._skipped.append(Skip(name, message_of(error)))
                    continue
                if self._needs_captions and not notes.captions and not notes.questions:
                    self._skipped.append(Skip(name, "it has no caption", "no caption"))
                    continue
                item = Item(
                    key=name,
                    num_samples=header.num_samples,
                    sample_rate=header.rate,
                    captions=notes.captions,
                    questions=notes.questions,
                    attributes=notes.attributes,
                )
                yield item, _Clip(number, member.first, member.first + member.size)

    def _audio_of(self, name: str, members: Sequence[tuple[str, Member]]) -> Member | None:
        """Return the audio among the files of a key; None if there is none, which is noted. Raise ValueError if it is not clear."""
        audio = [(extension, member) for extension, member in members if _is_audio(member.name)]
        chosen = [(extension, member) for extension, member in audio if self._audio in (None, extension)]
        if len({extension for extension, _ in chosen}) > 1:
            named = few([extension for extension, _ in chosen])
            raise ValueError(f"it has several audio files: {named}. Choose one, for instance audio: {chosen[0][0]}")
        if len(chosen) > 1 or any(sum(one == other for other, _ in members) > 1 for one in _TEXTS):
            raise ValueError("its shard has a file of this name twice")
        if chosen:
            return chosen[0][1]
        unread = next((skip for _, member in members if (skip := unread_format(name, member.name)) is not None), None)
        if unread is not None:
            self._skipped.append(unread)
        elif any(extension in _TEXTS for extension, _ in members):
            has = f"only {few([extension for extension, _ in audio])}" if audio else "no audio file"
            self._skipped.append(Skip(name, f"it has {has}", "missing", "without audio"))
        return None

    def _notes(self, name: str, file: Any, members: Sequence[tuple[str, Member]]) -> Notes:
        """Return what the JSON object and the text file of a key say. Raise ValueError or DataError."""
        places: dict[str, Notes] = {}
        for extension, member in members:
            if extension not in _TEXTS:
                continue
            if member.size > MOST_ROW_BYTES:
                raise ValueError(f".{extension} has {member.size:,} bytes; expected at most {MOST_ROW_BYTES:,}")
            file.seek(member.first)
            try:
                text = file.read(member.size).decode("utf-8-sig")
                places[f".{extension}"] = self._record(text) if extension == "json" else notes_in_lines(text)
            except ValueError as error:
                raise ValueError(f".{extension}: {message_of(error)}") from error
        return merge(name, places)

    def _record(self, text: str) -> Notes:
        record = parse_json(text)
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, found {kind_of(record)}")
        return self._finder.find(record).notes(record)


def _split(name: str) -> tuple[str, str]:
    """Return key and extension of a member, which the first dot of its file name separates.

    >>> _split("a.b/c.tar.gz")
    ('a.b/c', 'tar.gz')
    """
    folder, _, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _is_audio(name: str) -> bool:
    return f".{_split(name)[1].rpartition('.')[2]}" in SUFFIXES


def _by_key(members: Sequence[Member]) -> dict[str, list[tuple[str, Member]]]:
    """Return the files of each key with their extensions; hidden files are left out."""
    keys: dict[str, list[tuple[str, Member]]] = {}
    for member in members:
        key, extension = _split(member.name)
        if key and not key.endswith("/") and extension:
            keys.setdefault(key, []).append((extension, member))
    return keys


def _header(shard: Path, member: Member) -> _Header:
    if member.size > _MOST_AUDIO_BYTES:
        return _Header(fault=f"it has {member.size:,} bytes; expected at most {_MOST_AUDIO_BYTES:,}. Cut it into shorter files")
    try:
        num_samples, rate, _ = audio_info(Embedded(member.name, shard, member.first, member.first + member.size))
    except UnreadableAudioError as error:
        return _Header(fault=message_of(error).removeprefix(f"cannot read '{member.name}': "))
    return _Header(num_samples, rate)


def _to_json(contents: _Contents, key: str) -> dict[str, Any]:
    """Return the contents of a shard as plain data; keys are without the name of the shard, which may be called otherwise."""
    members = []
    for member in contents.members:
        header = contents.headers.get(member.name)
        found = [] if header is None else [header.fault] if header.fault else [header.num_samples, header.rate]
        members.append([member.name, member.first, member.size, *found])
    skipped = [[skip.key.removeprefix(key), skip.reason, skip.kind, skip.group] for skip in contents.skipped]
    return {"members": members, "skipped": skipped, "cut": contents.cut}


def _from_json(tree: Any, size: int, key: str) -> _Contents | None:
    """Return contents from `_to_json`, or None if it is something else or refers to bytes that the shard does not have."""
    try:
        contents = _Contents(cut=tree["cut"])
        for name, first, count, *found in tree["members"]:
            member = Member(name, first, count)
            right = isinstance(name, str) and type(first) is int and type(count) is int and 0 <= first <= first + count <= size
            if not right or not _fits(found) or _is_audio(name) != bool(found):
                return None
            contents.members.append(member)
            if found:
                contents.headers[name] = _Header(fault=found[0]) if len(found) == 1 else _Header(*found)
        for name, reason, kind, group in tree["skipped"]:
            if not all(isinstance(text, str) for text in (name, reason, group)):
                return None
            contents.skipped.append(Skip(f"{key}{name}", reason, _KINDS[kind], group))
    except (TypeError, ValueError, KeyError):
        return None
    return contents if contents.cut is None or isinstance(contents.cut, str) else None


def _fits(found: list[Any]) -> bool:
    """Return whether values are the header of a member: nothing, a fault, or samples and rate."""
    if len(found) == 1:
        return isinstance(found[0], str) and found[0] != ""
    return not found or (len(found) == 2 and all(type(value) is int and value > 0 for value in found))
