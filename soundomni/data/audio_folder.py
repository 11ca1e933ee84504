"""A folder of audio files with captions next to them.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from soundomni.core.errors import DataError, UnreadableAudioError, message_of, none_of
from soundomni.core.files.paths import local_path, place
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.data.audio import HEADER_THREADS, SUFFIXES, audio_info, read_audio
from soundomni.data.captions import CAPTION_KEYS, CaptionTable, merge, read_sidecar, read_table
from soundomni.data.file_names import Names
from soundomni.data.folder_listing import TABLES, Listing, check_patterns, list_folder, matches
from soundomni.data.text_files import few, read_text

_MOST_NAMED = 3  # files named in an error


class AudioFolder(Dataset):
    """Audio files of a folder, listed once in sorted order from their headers only.

    Keys are POSIX paths relative to the folder.

    soundomni/data/captions.py describes where captions and questions come from: `<stem>.json`, `<stem>.txt`,
    metadata.csv and metadata.jsonl. Hidden files and folders are ignored. Audio files that cannot be read, rows that
    name no existing file, and files without a caption are left out and listed in `skipped`.

    Args:
        path: the folder; a leading `~` means the home directory.
        captions: whether an item needs a caption or a question; if not, items without them are kept for tasks that need
            none.
        recursive: whether to list subfolders.
        include: patterns of keys to include, such as "drums/*"; all by default.
        exclude: patterns of keys to leave out.
        file_list: text file with one key per line, such as a split; only these are used. Relative to the working
            directory.

    Links are followed wherever they lead, because the folder is its owner's. A file whose captions cannot be read
    counts as unreadable.

    Raise DataError if there is no such folder, if it has no audio or no captions, if a table is malformed or names a
    file outside the folder, or if two places disagree on a caption.
    """

    def __init__(
        self,
        *,
        path: str,
        captions: bool = True,
        recursive: bool = True,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        file_list: str | None = None,
    ) -> None:
        for name, patterns in (("include", include), ("exclude", exclude)):
            check_patterns(name, patterns)
        self._root = local_path(path)
        self._needs_captions = captions
        listing = list_folder(self._root, recursive=recursive)
        names = Names(listing.audio)

        def wanted(key: str) -> bool:
            return matches(key, include, default=True) and not matches(key, exclude, default=False)

        self._skipped = [skip for skip in listing.skipped if wanted(skip.key)]
        keys = [key for key in listing.audio if wanted(key)]
        if file_list is not None:
            keys = self._listed(file_list, keys, names)
        if not keys:
            raise DataError(f"no audio files in {place(path)}{_looked_for(recursive, include, exclude, file_list)}{self._first_skip()}")
        # A table may only describe files that are not wanted; its faults do not matter then.
        tables = [read_table(self._root, name, names) for name in listing.tables if _is_about(name, keys)]
        with ThreadPoolExecutor(HEADER_THREADS) as threads:
            found = threads.map(lambda key: self._examine(key, listing, tables), keys)
            self._items = tuple(item for item in found if item is not None)
        if file_list is None:
            self._report_missing(tables, names, listing, wanted)
        self._skipped.sort(key=lambda skip: skip.key)
        if not self._items:
            raise DataError(self._why_none(keys, tables, listing))

    def __len__(self) -> int:
        return len(self._items)

    def item(self, index: int) -> Item:
        return self._items[index]

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return float32 `[C, S]` and the file's rate. Raise UnreadableAudioError."""
        return read_audio(self._root / self._items[index].key)

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return a part of what `load` returns, without decoding anything after it. Raise UnreadableAudioError."""
        return read_audio(self._root / self._items[index].key, first=first, num_samples=num_samples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped)

    def _listed(self, file_list: str, keys: list[str], names: Names) -> list[str]:
        """Return the keys that the list names; its other names are skipped."""
        file = local_path(file_list)
        wanted: dict[str, None] = {}
        try:
            for number, line in enumerate(read_text(file).splitlines(), start=1):
                if line.strip():
                    try:
                        wanted[names.find(line, root=self._root)] = None
                    except ValueError as error:
                        raise DataError(f"the file list '{file}', line {number}: {error}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the file list {place(file_list)}: {getattr(error, 'strerror', None) or error}") from error
        known = set(keys)
        for key in wanted:
            if key not in known:
                self._skipped.append(_missing(key, file.name, names))
        return [key for key in keys if key in wanted]

    def _examine(self, key: str, listing: Listing, tables: Sequence[CaptionTable]) -> Item | None:
        try:
            num_samples, rate, _ = audio_info(self._root / key)
            places = {name.rpartition("/")[2]: read_sidecar(self._root / name) for name in listing.sidecars(key)}
        except (UnreadableAudioError, ValueError) as error:
            self._skipped.append(Skip(key, message_of(error)))  # in one line, whatever the file's name contains
            return None
        places |= {table.name: table.notes[key] for table in tables if key in table.notes}
        notes = merge(key, places)
        if self._needs_captions and not notes.captions and not notes.questions:
            self._skipped.append(Skip(key, "it has no caption", "no caption"))
            return None
        return Item(
            key=key,
            num_samples=num_samples,
            sample_rate=rate,
            captions=notes.captions,
            questions=notes.questions,
            attributes=notes.attributes,
        )

    def _report_missing(self, tables: Sequence[CaptionTable], names: Names, listing: Listing, wanted: Callable[[str], bool]) -> None:
        """Skip files that tables name and the listing does not have."""
        known = {*listing.audio, *(skip.key for skip in listing.skipped)}
        for table in tables:
            for key in table.notes:
                if key in known or not wanted(key):
                    continue
                if os.path.isfile(self._root / key):  # noqa: PTH113  False also for impossible file names
                    reason = f"named in {table.name}, but it is hidden, is not an audio file, or is in a folder that is not listed"
                    self._skipped.append(Skip(key, reason, "unsuitable", "named but not listed"))
                else:
                    self._skipped.append(_missing(key, table.name, names))

    def _why_none(self, keys: Sequence[str], tables: Sequence[CaptionTable], listing: Listing) -> str:
        start = f"{none_of(len(keys), 'audio file')} in {place(self._root)}"
        mute = sum(skip.kind == "no caption" for skip in self._skipped)
        if mute < len(keys):
            return f"{start} can be used{self._first_skip(unless='missing')}"
        told = [_why_mute(table, self._skipped) for table in tables]
        if not told:
            told = [f"looked for <stem>.json, <stem>.txt, {TABLES[0]} and {TABLES[1]}"]
            told += (
                [f"{few(listing.other_tables)} is not read; save it as {TABLES[0]}, or use the dataset manifest"]
                if listing.other_tables
                else []
            )
            told += listing.unread_sidecars(keys)[:_MOST_NAMED]
        why = "; ".join(told).replace("?; ", "? ")
        return f"{start} has a caption: {why}{'' if why.endswith('?') else '.'} To use files without captions, set captions to false"

    def _first_skip(self, *, unless: str = "") -> str:
        first = next((skip for skip in self._skipped if skip.kind != unless), None)
        return f"; the first, '{first.key}': {first.reason}" if first is not None else ""


def _why_mute(table: CaptionTable, skipped: Sequence[Skip]) -> str:
    """Return why a table provides no captions: it has no rows or no such column, or describes other files."""
    if not table.notes:
        return f"{table.name} has no rows; add one for each file"
    if not table.has_texts:
        expected = ", ".join(CAPTION_KEYS)
        others = [column for column in table.columns if column != "file_name"]
        with_captions = few(others, most=8) if len(others) == 1 else f"the one with the captions ({few(others, most=8)})"
        cure = f"rename {with_captions} to 'caption'" if others else "add a column 'caption'"
        return f"{table.name} has no column for captions; expected one of {expected}: {cure}"
    missing = [skip for skip in skipped if skip.kind == "missing" and skip.key in table.notes]
    if len(missing) == len(table.notes):
        return f"{none_of(len(missing), 'file')} that {table.name} names exists; the first, '{missing[0].key}': {missing[0].reason}"
    return f"their captions in {table.name} are empty"


def _missing(key: str, where: str, names: Names) -> Skip:
    return Skip(key, f"named in {where}, but there is no such file.{names.nearest(key)}".removesuffix("."), "missing")


def _is_about(table: str, keys: Sequence[str]) -> bool:
    folder = table[: table.rfind("/") + 1]
    return not folder or any(key.startswith(folder) for key in keys)


def _looked_for(recursive: bool, include: list[str] | None, exclude: list[str] | None, file_list: str | None) -> str:
    given: Mapping[str, object] = {"include": include, "exclude": exclude, "file_list": file_list}
    named = ", ".join(f"{name} {value}" for name, value in given.items() if value)
    wanted = " ".join(f"*{suffix}" for suffix in SUFFIXES)
    return f" {'and its subfolders' if recursive else 'itself'}: looked for {wanted}{f' with {named}' if named else ''}"
