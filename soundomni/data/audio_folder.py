"""A folder of audio files with captions beside them.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from soundomni.core.errors import DataError, UnreadableAudioError
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.data.audio import SUFFIXES, audio_info, read_audio
from soundomni.data.captions import TABLES, Notes, merge, read_sidecars, read_tables

_HEADER_THREADS = 8  # opening many small files waits on the disk or the network, not on the processor


class AudioFolder(Dataset):
    """Lists a folder once, in sorted order, reading headers only. Keys are POSIX paths relative to the folder.

    Where captions and questions come from is described in soundomni/data/captions.py: `<stem>.json`, `<stem>.txt`, metadata.csv and
    metadata.jsonl. Hidden files and folders are passed over.

    Args:
        path: the folder.
        captions: whether an item needs a caption or a question; without, those that have none are kept for tasks that need none.
        recursive: whether subfolders are listed.
        include: patterns of keys to take, such as "drums/*"; all by default.
        exclude: patterns of keys to leave out.
        file_list: a text file with one key per line, for instance of a split; only these are taken. Relative to the working directory.

    Links are followed to wherever they lead: the folder is its owner's. A file whose captions cannot be read counts as unreadable.

    Raises DataError when there is no such folder, no audio in it, no caption at all, a table that is malformed or names a file outside
    the folder, or two places that disagree on a caption.
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
        self._root = Path(path)
        self._needs_captions = captions
        self._skipped: list[Skip] = []
        if not self._root.is_dir():
            raise DataError(f"no folder '{path}': expected a folder of audio files")
        keys = sorted(self._list(recursive))
        keys = [key for key in keys if _matches(key, include, default=True) and not _matches(key, exclude, default=False)]
        if file_list is not None:
            keys = self._listed(Path(file_list), keys)
        if not keys:
            depth = "and its subfolders" if recursive else "itself"
            wanted = " ".join(f"*{suffix}" for suffix in SUFFIXES)
            raise DataError(f"no audio files in '{path}' {depth}: looked for {wanted}{_filters(include, exclude, file_list)}")
        tables = read_tables(self._root)
        with ThreadPoolExecutor(_HEADER_THREADS) as threads:
            found = threads.map(lambda key: self._examine(key, tables), keys)
            self._items = tuple(item for item in found if item is not None)
        self._report_missing(tables)
        self._skipped.sort(key=lambda skip: skip.key)
        if not self._items:
            self._refuse(len(keys))

    def __len__(self) -> int:
        return len(self._items)

    def item(self, index: int) -> Item:
        return self._items[index]

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Returns float32 `[C, S]` and the file's rate; raises UnreadableAudioError."""
        return read_audio(self._root / self._items[index].key)

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return a part of what `load` returns, without decoding what comes after it; raises UnreadableAudioError."""
        return read_audio(self._root / self._items[index].key, first=first, num_samples=num_samples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped)

    def _list(self, recursive: bool) -> Iterator[str]:
        for folder, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if recursive and not name.startswith(".")]
            for name in files:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    yield (Path(folder) / name).relative_to(self._root).as_posix()

    def _listed(self, file_list: Path, keys: list[str]) -> list[str]:
        """Returns the keys that the list names; the other names in it are skipped."""
        try:
            lines = file_list.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read the file list '{file_list}': {error}") from error
        wanted = {Path(line.strip()).as_posix() for line in lines if line.strip()}
        self._skipped += [Skip(key, f"named in {file_list.name}, but there is no such file", "missing") for key in wanted.difference(keys)]
        return [key for key in keys if key in wanted]

    def _examine(self, key: str, tables: Mapping[str, Mapping[str, Notes]]) -> Item | None:
        path = self._root / key
        try:
            num_samples, rate, _ = audio_info(path)
            places = {**read_sidecars(path), **{name: table[key] for name, table in tables.items() if key in table}}
        except (UnreadableAudioError, ValueError) as error:
            self._skipped.append(Skip(key, str(error)))
            return None
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

    def _report_missing(self, tables: Mapping[str, Mapping[str, Notes]]) -> None:
        for name, table in tables.items():
            missing = (key for key in table if not (self._root / key).is_file())
            self._skipped += [Skip(key, f"named in {name}, but there is no such file", "missing") for key in missing]

    def _refuse(self, num_files: int) -> None:
        if all(skip.kind == "no caption" for skip in self._skipped):
            raise DataError(
                f"none of the {num_files} audio files in '{self._root}' has a caption: looked for <stem>.json, <stem>.txt, "
                f"{TABLES[0]} and {TABLES[1]}; or set captions to false"
            )
        first = self._skipped[0]
        raise DataError(f"none of the {num_files} audio files in '{self._root}' can be used; the first, '{first.key}': {first.reason}")


def _matches(key: str, patterns: list[str] | None, *, default: bool) -> bool:
    return default if not patterns else any(fnmatch(key, pattern) for pattern in patterns)


def _filters(include: list[str] | None, exclude: list[str] | None, file_list: str | None) -> str:
    given = {"include": include, "exclude": exclude, "file_list": file_list}
    named = ", ".join(f"{name} {value}" for name, value in given.items() if value)
    return f" with {named}" if named else ""
