"""AudioCaps (Kim et al. 2019, "AudioCaps: Generating Captions for Audios in The Wild"): its CSV and the clips cut from
it.

Shape letters: C audio channels, S samples.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from soundomni.core.errors import DataError, UnreadableAudioError, none_of
from soundomni.core.files.paths import local_path, place
from soundomni.core.interfaces import Dataset, Item, Skip
from soundomni.data.audio import audio_info, read_audio
from soundomni.data.tables import Table

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
_WHOLE = re.compile(r"(\d+)\.0+")
_NOT_IN_NAMES = "/\\\0"  # with these, a row could name a file outside the folder of clips


class AudioCaps(Dataset):
    """One item per clip, `{youtube_id}_{start_time}{extension}`, with all of its captions in the CSV, in the CSV's
    order.

    Args:
        csv: a split of AudioCaps, with the columns audiocap_id, youtube_id, start_time and caption.
        audio_dir: folder of its clips. Clips that are missing (videos vanish) or unreadable are skipped.
        extension: suffix of the clips' files.

    In `csv` and `audio_dir`, a leading `~` means the home directory.

    Raise DataError if the CSV is missing, lacks a column or names a file outside the folder, or if none of its clips
    exists.
    """

    def __init__(self, *, csv: str, audio_dir: str, extension: str = ".wav") -> None:
        self._audio_dir = local_path(audio_dir)
        self._skipped: list[Skip] = []
        if not self._audio_dir.is_dir():
            given = f"{place(audio_dir)} is a file" if self._audio_dir.exists() else f"there is no folder {place(audio_dir)}"
            raise DataError(f"{given}; expected the folder with the clips of AudioCaps")
        clips: dict[str, list[dict[str, str]]] = {}
        for row in _read(local_path(csv)):
            clips.setdefault(self._key(row, extension), []).append(row)
        found = (self._examine(key, rows) for key, rows in clips.items())
        self._items = tuple(item for item in found if item is not None)
        if not self._items:
            first = f"; the first, '{self._skipped[0].key}': {self._skipped[0].reason}" if self._skipped else ""
            raise DataError(f"{none_of(len(clips), 'clip')} of '{csv}' can be used from {place(audio_dir)}{first}")

    def __len__(self) -> int:
        return len(self._items)

    def item(self, index: int) -> Item:
        return self._items[index]

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Return float32 `[C, S]` and the file's rate. Raise UnreadableAudioError."""
        return read_audio(self._audio_dir / self._items[index].key)

    def load_part(self, index: int, *, first: int, num_samples: int) -> tuple[np.ndarray, int]:
        """Return a part of what `load` returns, without decoding anything after it. Raise UnreadableAudioError."""
        return read_audio(self._audio_dir / self._items[index].key, first=first, num_samples=num_samples)

    @property
    def skipped(self) -> tuple[Skip, ...]:
        return tuple(self._skipped)

    def _key(self, row: dict[str, str], extension: str) -> str:
        """Return the file name of a row's clip. Some tables write a start in whole seconds as "30.0", but the files say
        "30"."""
        as_written = f"{row['youtube_id']}_{row['start_time']}{extension}"
        whole = _WHOLE.fullmatch(row["start_time"])
        if whole is None or (self._audio_dir / as_written).exists():
            return as_written
        return f"{row['youtube_id']}_{whole[1]}{extension}"

    def _examine(self, key: str, rows: list[dict[str, str]]) -> Item | None:
        captions = tuple(dict.fromkeys(row["caption"] for row in rows if row["caption"]))
        try:
            num_samples, rate, _ = audio_info(self._audio_dir / key)
        except UnreadableAudioError as error:
            self._skipped.append(Skip(key, str(error), "unreadable" if (self._audio_dir / key).exists() else "missing"))
            return None
        if not captions:
            self._skipped.append(Skip(key, "it has no caption", "no caption"))
            return None
        attributes = {
            "youtube_id": rows[0]["youtube_id"],
            "start_time": rows[0]["start_time"],
            "audiocap_ids": tuple(row["audiocap_id"] for row in rows),
        }
        return Item(key=key, num_samples=num_samples, sample_rate=rate, captions=captions, attributes=attributes)


def _read(path: Path) -> list[dict[str, str]]:
    """Return the rows, each with a value for every column. Raise DataError."""
    if not path.is_file():
        raise DataError(f"cannot read {place(path)}: there is no such file; expected the CSV of AudioCaps")
    rows: list[dict[str, str]] = []
    for line, values in Table(path, needed=dict.fromkeys(COLUMNS, ())).rows():
        row = {column: values.get(column, "").strip() for column in COLUMNS}
        for column in ("youtube_id", "start_time"):
            if any(sign in row[column] for sign in _NOT_IN_NAMES):
                found = f"has the {column} {row[column]!r} in row {line}"
                raise DataError(f"'{path}' {found}; expected a part of a file name, without folders")
        rows.append(row)
    return rows
