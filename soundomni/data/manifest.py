"""Audio files that a table names, with captions, times and other fields in its columns.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from soundomni.core.errors import DataError, UnreadableAudioError, message_of
from soundomni.core.files.paths import local_path, place
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.data.audio import HEADER_THREADS, audio_info, read_audio
from soundomni.data.captions import Gathered, Notes
from soundomni.data.fields import FieldFinder
from soundomni.data.file_names import Names
from soundomni.data.folder_listing import unread_format
from soundomni.data.manifest_rows import SUFFIXES, ManifestRow, fairseq_root, read_rows
from soundomni.data.reports import why_unusable
from soundomni.data.text_files import few

ROLES = ("path", "captions", "start", "end", "duration", "seconds")
_USUAL_FILES = tuple(f"metadata{suffix}" for suffix in (".csv", ".jsonl", ".parquet"))
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_ROUNDING = 0.01  # seconds by which a duration with two digits is off


@dataclass(frozen=True)
class _Part:
    """What a row names: a file, or a part of it from `start` on, in seconds."""

    row: int
    key: str
    start: float
    length: float | None
    seconds: float | None
    num_frames: int | None
    notes: Notes


class Manifest(Dataset):
    """Audio files, or parts of them, that a table names: metadata of the Hub's audio folders, NeMo manifests, the CSV files of
    AudioCaps and Clotho, fairseq's lists and others.

    The table is JSON lines (.jsonl, .json), CSV, TSV or Parquet, and its suffix says which. Rows of the same file or the
    same part add up, so several captions can take several rows. Items are sorted by path and start. The key of a
    file is its path below `root`; a part adds its times in seconds, as in `talk.flac#t=1.5,4`.

    Usual column names are recognized in any case:

    - the path: `file_name`, `audio_filepath`, or a column that ends with `_file_name`; without these, one of `path`,
      `audio`, `file`, `filename`, `wav` and similar names. The columns `youtube_id` and `start_time` name AudioCaps' clips,
      `{youtube_id}_{start_time}.wav`.
    - captions: `prompt`, `caption`, `text`, `captions`, and numbered ones such as `caption_1`; without these, one of
      `transcription`, `transcript`, `sentence`, `normalized_text`, `description`, `raw_text`.
    - a part of the file, in seconds: `start` or `offset`, and `duration` or `end`.
    - questions: as in audio-folder. All other columns are attributes.

    Files are never fetched: a URL is left out like a missing file.

    Args:
        path: the table, or a folder with one metadata.csv, metadata.jsonl or metadata.parquet; a leading `~` means the home
            directory.
        root: folder in which the paths start, by default the table's own (for a list of fairseq, the one in its first
            line). No path may lead out of it; absolute paths, as in NeMo manifests, are accepted within it.
        fields: role → column, for other column names, such as {path: clip, captions: [title, tags]}. The roles are path,
            captions, start, end, duration, and seconds, which is the length of the whole file: files of another length are
            left out as truncated. A path may also be put together from columns, as in "{id}.wav".
        captions: whether an item needs a caption or a question; if not, items without them are kept for tasks that need
            none.

    Damaged rows, and files that are missing, unreadable or shorter than their row says, are left out and listed in
    `skipped`. Links are followed wherever they lead.

    Raise DataError if there is no such table, if it has no column for the path, if a CSV row is malformed, if a path leads
    out of `root`, or if none of its clips can be used.
    """

    def __init__(
        self, *, path: str, root: str | None = None, fields: dict[str, str | list[str]] | None = None, captions: bool = True
    ) -> None:
        finder = FieldFinder(fields, roles=ROLES)
        self._table = _find_table(path)
        found = _find_root(self._table, root)
        self._root = Path(os.path.normpath(found.absolute()))  # absolute paths are compared with it, and have no `..`
        self._names = Names(())
        self._needs_captions = captions
        self._skipped: list[Skip] = []
        parts, count = [], 0
        for count, row in enumerate(read_rows(self._table, finder), start=1):  # noqa: B007
            part = self._part_of(row)
            if part is not None:
                parts.append(part)
        finder.check_seen(f"'{self._table.name}'")
        self._items, self._cuts = self._listed(parts)
        self._skipped.sort(key=lambda skip: (skip.key, skip.reason))
        if not self._items:
            raise DataError(why_unusable(count, "row", place(self._table), self._skipped))

    def __len__(self) -> int:
        return len(self._items)

    def item(self, index: int) -> Item:
        return self._items[index]

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return float32 `[C, S]` and the file's rate. Raise UnreadableAudioError."""
        key, first, whole = self._cuts[index]
        if whole:
            return read_audio(self._root / key)
        return read_audio(self._root / key, first=first, num_samples=self._items[index].num_samples)

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return a part of what `load` returns, without decoding anything after it. Raise UnreadableAudioError."""
        key, start, _ = self._cuts[index]
        return read_audio(self._root / key, first=start + first, num_samples=num_samples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped)

    def _part_of(self, row: ManifestRow) -> _Part | None:
        """Return what a row names, or None if it is damaged or names nothing that can be read."""
        name = f"{self._table.name}:{row.number}"
        try:
            if row.fields is None or isinstance(row.record, str):
                raise ValueError(row.record if isinstance(row.record, str) else "it has no fields")
            given = row.fields.path(row.record)
            if _URL.match(given.strip()):
                reason = "it is a URL, and nothing is fetched. Download the file, and name it by its path"
                self._skipped.append(Skip(name, f"'{given.strip()[:80]}': {reason}", "missing", "named by a URL"))
                return None
            key = self._inside(given, row.number)
            start, end, duration, seconds = (row.fields.seconds(row.record, role) for role in ("start", "end", "duration", "seconds"))
            length = _length(start or 0.0, end, duration)
            return _Part(row.number, key, start or 0.0, length, seconds, row.num_frames, row.fields.notes(row.record))
        except ValueError as error:
            self._skipped.append(Skip(name, message_of(error)))
            return None

    def _inside(self, given: str, number: int) -> str:
        """Return the key of a file below the root. Raise DataError for a path that leads out of it."""
        try:
            return self._names.find(given, root=self._root)
        except ValueError as error:
            if "leads out" not in str(error):
                raise
            found = f"'{self._table}', row {number}: '{given.strip()}' leads out of the folder {place(self._root)}"
            raise DataError(f"{found}. Set root to a folder that contains all files") from error

    def _listed(self, parts: list[_Part]) -> tuple[tuple[Item, ...], tuple[tuple[str, int, bool], ...]]:
        """Return the items, and of each (key of its file, first sample, whether it is the whole file)."""
        keys = sorted({part.key for part in parts})
        with ThreadPoolExecutor(HEADER_THREADS) as threads:
            headers = {key: header for key, header in zip(keys, threads.map(self._header, keys), strict=True) if header is not None}
        gathered: dict[tuple[str, int, int], Gathered] = {}
        for part in parts:
            if part.key in headers:
                try:
                    first, count = _cut(part, *headers[part.key][:2])
                except ValueError as error:
                    self._skipped.append(Skip(part.key, f"{message_of(error)} (row {part.row})"))
                    continue
                gathered.setdefault((part.key, first, count), Gathered()).add(part.notes)
        found: list[tuple[Item, tuple[str, int, bool]]] = []
        for (key, first, count), rows in sorted(gathered.items(), key=lambda entry: entry[0]):
            total, rate, spelling = headers[key]
            whole, notes = count == total, rows.notes()
            name = key if whole else f"{key}#t={_time(first, rate)},{_time(first + count, rate)}"
            if self._needs_captions and not notes.captions and not notes.questions:
                self._skipped.append(Skip(name, "it has no caption", "no caption"))
                continue
            item = Item(
                key=name,
                num_samples=count,
                sample_rate=rate,
                captions=notes.captions,
                questions=notes.questions,
                attributes=notes.attributes,
            )
            found.append((item, (spelling, first, whole)))
        return tuple(item for item, _ in found), tuple(cut for _, cut in found)

    def _header(self, key: str) -> tuple[int, int, str] | None:
        """Return samples, rate and the spelling of the key of a file; None if it cannot be read, which is noted."""
        path = self._root / key
        try:
            if not path.is_file():
                key = next((other for other in _spellings(key) if (self._root / other).is_file()), key)
                path = self._root / key
            unread = unread_format(key)
            if unread is not None and path.is_file():
                self._skipped.append(unread)
                return None
            num_samples, rate, _ = audio_info(path)
            return num_samples, rate, key
        except UnreadableAudioError as error:
            self._skipped.append(Skip(key, message_of(error), "unreadable" if path.exists() else "missing"))
        except (OSError, ValueError) as error:  # an impossible name
            self._skipped.append(Skip(key, f"it cannot be opened: {message_of(error)}", "missing"))
        return None


def _find_table(path: str) -> Path:
    given = local_path(path)
    if given.is_dir():
        found = [name for name in _USUAL_FILES if (given / name).is_file()]
        if len(found) != 1:
            others = sorted(file.name for file in given.iterdir() if file.suffix.lower() in SUFFIXES)
            has = f"it has {few(others, most=8)}. Name one of them" if others else "it has no table"
            raise DataError(f"{place(path)} is a folder; expected a table, or a folder with one of {', '.join(_USUAL_FILES)}: {has}")
        return given / found[0]
    if not given.is_file():
        what = "is not a regular file" if given.exists() else "does not exist"
        raise DataError(f"{place(path)} {what}; expected a table with a row for each clip")
    return given


def _find_root(table: Path, root: str | None) -> Path:
    """Return the folder in which paths start. Raise DataError if it is not a folder, or if only the table says that it is elsewhere."""
    if root is not None:
        folder = local_path(root)
        if not folder.is_dir():
            raise DataError(f"root is {place(root)}, which is not a folder; expected the one in which the paths of '{table.name}' start")
        return folder
    listed = fairseq_root(table)
    if listed is None:
        return table.parent
    try:
        inner = Names(()).find(listed, root=table.parent)
    except ValueError as error:
        raise DataError(f"'{table}' says that its files are in '{listed}', outside its own folder. Set root to that folder") from error
    return table.parent / inner


def _length(start: float, end: float | None, duration: float | None) -> float | None:
    """Return the seconds of a part, None for all up to the end. Raise ValueError if end and duration contradict each other."""
    if end is None:
        return duration
    if end <= start:
        raise ValueError(f"its part ends at {end:g} s, but starts at {start:g} s")
    if duration is not None and abs(end - start - duration) > _ROUNDING:
        raise ValueError(f"it lasts from {start:g} to {end:g} s, but its duration is {duration:g} s")
    return end - start


def _cut(part: _Part, total: int, rate: int) -> tuple[int, int]:
    """Return (first sample, number of samples) of a part in a file with `total` samples. Raise ValueError if it has fewer."""
    if part.num_frames is not None and part.num_frames != total:
        raise ValueError(f"it has {total} samples, but its row says {part.num_frames}")
    if part.seconds is not None and abs(part.seconds * rate - total) > _tolerance(total, rate):
        raise ValueError(f"it lasts {total / rate:.4g} s, but its row says {part.seconds:g} s")
    first = round(part.start * rate)
    if first >= total:
        raise ValueError(f"its part starts at {part.start:g} s, but the file lasts only {total / rate:.4g} s")
    if part.length is None:
        return first, total - first
    count = max(1, round(part.length * rate))
    if first + count - total > _tolerance(count, rate):
        raise ValueError(f"its part ends at {part.start + part.length:g} s, but the file lasts only {total / rate:.4g} s")
    if total - first - count < _ROUNDING * rate:  # which also holds beyond the end
        count = total - first
    return first, count


def _tolerance(count: int, rate: int) -> float:
    """Return the samples by which a length may be off: more is not rounding, but a truncated or replaced file."""
    return max(0.01 * count, 0.1 * rate)


def _time(sample: int, rate: int) -> str:
    """Return a time in seconds with as few digits as distinguish samples."""
    return f"{sample / rate:.6f}".rstrip("0").rstrip(".")


def _spellings(key: str) -> tuple[str, ...]:
    """Return a key with its letters with marks composed, and in parts: systems store them differently."""
    return tuple(unicodedata.normalize(form, key) for form in ("NFC", "NFD"))
