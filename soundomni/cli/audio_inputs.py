"""Audio files and folders given to a command, and the names of what it writes for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AudioInput:
    """A file to process.

    Args:
        path: the path, as given or below the given folder.
        name: path of what is written for it, below the output folder and without a suffix; None if that is numbered.
    """

    path: str
    name: str | None


def find_inputs(given: Sequence[str]) -> tuple[list[AudioInput], list[tuple[str, str]]]:
    """Find the audio files among files and folders; folders are searched with their subfolders.

    If there is a folder, every output keeps the name of its input, and the folders below the given one. Otherwise,
    outputs are numbered.

    Returns:
        the files, and pairs of (path, reason) of what is in the folders but cannot be read.

    Raises:
        DataError: a folder does not contain an audio file, or cannot be read.
    """
    from soundomni.cli.folders import user_path
    from soundomni.data.file_names import stem_of
    from soundomni.data.folder_listing import list_folder

    folders = {text: user_path(text) for text in given if text and user_path(text).is_dir()}
    found, skipped = [], []
    for text in given:
        if text not in folders:
            found.append(AudioInput(text, Path(text).stem if folders else None))
            continue
        listing = list_folder(folders[text], recursive=True)
        unusable = [skip for skip in listing.skipped if skip.kind == "unreadable" or not skip.key.endswith("/")]
        skipped += [(str(folders[text] / skip.key), skip.reason) for skip in unusable]
        if not listing.audio:
            _refuse_empty(folders[text], [f"'{skip.key}': {skip.reason}" for skip in unusable])
        found += [AudioInput(str(folders[text] / key), stem_of(key)) for key in listing.audio]
    return found, skipped


def _refuse_empty(folder: Path, skipped: Sequence[str]) -> None:
    """Raise DataError for a folder without audio files, with the first of those that cannot be read."""
    from soundomni.core.errors import DataError
    from soundomni.core.files.paths import place
    from soundomni.data.audio import SUFFIXES

    looked_for = f"looked for {' '.join(f'*{suffix}' for suffix in SUFFIXES)}"
    raise DataError(f"no audio files in {place(folder)} and its subfolders: {f'the first, {skipped[0]}' if skipped else looked_for}")


def check_names(inputs: Sequence[AudioInput], out: Path, suffix: str) -> None:
    """Raise DataError if two inputs would be written to the same file, or one to a file that already exists."""
    from soundomni.core.errors import DataError

    taken: dict[str, str] = {}
    for one in inputs:
        if one.name is None:
            continue
        target = out / f"{one.name}{suffix}"
        if one.name in taken:
            both = f"'{taken[one.name]}' and '{one.path}' would both be written to '{target}'"
            raise DataError(f"{both}. Rename one of them, or use a different --out for each")
        taken[one.name] = one.path
        if target.exists():
            raise DataError(f"'{target}' already exists. Give --out a new or empty directory")
