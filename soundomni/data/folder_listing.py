"""Contents of an audio folder by name only: audio files, the tables and sidecars next to them, and what is left out and
why."""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from soundomni.core.errors import DataError
from soundomni.core.files.paths import place
from soundomni.core.interfaces import Skip
from soundomni.data.aac import AAC_SUFFIXES, NEEDS_PYAV
from soundomni.data.audio import SUFFIXES
from soundomni.data.file_names import normal_form, stem_of, suffix_of

TABLES = ("metadata.csv", "metadata.jsonl")
SIDECARS = (".json", ".txt")
_UNREADABLE = {
    *(".3gp", ".aac", ".ac3", ".amr", ".ape", ".asf", ".avi", ".dff", ".dsf", ".dts", ".eac3", ".flv", ".gsm", ".ircam", ".m4a", ".m4b"),
    *(".m4p", ".m4r", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".mpeg", ".mpg", ".ogv", ".paf", ".pvf", ".qcp", ".ra", ".ram"),
    *(".sds", ".shn", ".spx", ".tak", ".tta", ".weba", ".webm", ".wma", ".wmv", ".wv"),
}
_UNREAD_TABLES = (".csv", ".tsv", ".jsonl", ".parquet", ".xlsx", ".ods")
_Identity = tuple[int, int]


@dataclass
class Listing:
    """Names in a folder, as POSIX paths relative to it.

    Args:
        audio: audio files.
        tables: files with captions.
        other_tables: files that look like tables, but are not read.
        folders: folders with the name of a table or a sidecar.
        skipped: other audio files, and folders that were not entered, each with its reason.
    """

    audio: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    other_tables: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    _sidecars: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def sidecars(self, key: str) -> list[str]:
        """Return the .json and .txt files next to an audio file that share its stem, in this order."""
        return self._sidecars.get(normal_form(stem_of(key)), [])

    def unread_sidecars(self, keys: Sequence[str]) -> list[str]:
        """Return why possible sidecars are not read, and what to do: files named after one of the `keys` ("a.wav.txt"),
        folders, and files that belong to no audio file."""
        whole = {name: key for key in keys for name in self._sidecars.get(normal_form(key), [])}
        told = [f"'{name}' is not read: rename it to '{stem_of(key)}{suffix_of(name)}'" for name, key in whole.items()]
        told += [f"'{name}' is not read: it is a folder" for name in self.folders]
        stems = {normal_form(stem_of(key)) for key in self.audio}
        others = [name for stem, names in sorted(self._sidecars.items()) if stem not in stems for name in names if name not in whole]
        return told + [f"'{name}' is not read: there is no audio file '{stem_of(name)}.*'" for name in others]

    def add(self, key: str) -> None:
        """Add a file to the list for its kind of name."""
        suffix = suffix_of(key).lower()
        if suffix in SUFFIXES:
            self.audio.append(key)
        elif key.rpartition("/")[2].lower() in TABLES:
            self.tables.append(key)
        elif suffix in SIDECARS:
            self._sidecars[normal_form(stem_of(key))].append(key)
        elif suffix in _UNREAD_TABLES:
            self.other_tables.append(key)
        elif (skip := unread_format(key)) is not None:
            self.skipped.append(skip)


def unread_format(key: str, name: str | None = None) -> Skip | None:
    """Return why an audio file cannot be read if its suffix stands for a format without a decoder, such as M4A.

    Args:
        key: key of the skip.
        name: name of the file; the key by default.
    """
    suffix = suffix_of(key if name is None else name).lower()
    if suffix not in _UNREADABLE or suffix in SUFFIXES:
        return None
    kind = suffix[1:].upper()
    reason = f"{kind} files cannot be read; convert it to WAV or FLAC"
    if suffix in AAC_SUFFIXES:
        reason = f"{kind} files cannot be read without PyAV; run `{NEEDS_PYAV}`, or convert it to WAV or FLAC"
    return Skip(key, reason, "unsuitable", f"in {kind}, which cannot be read")


def check_patterns(name: str, patterns: object) -> None:
    """Raise DataError unless patterns are a list of texts, or None: a single text would be read as one pattern per
    letter."""
    if patterns is not None and not (isinstance(patterns, list | tuple) and all(isinstance(pattern, str) for pattern in patterns)):
        example = patterns if isinstance(patterns, str) else "*.wav"
        raise DataError(f"{name} is {patterns!r}; expected a list of patterns. Use {name}: ['{example}']")


def matches(key: str, patterns: list[str] | None, *, default: bool) -> bool:
    """Return whether a key fits one of the patterns; `default` if there are no patterns."""
    return default if not patterns else any(fnmatch(key, pattern) for pattern in patterns)


def list_folder(root: Path, *, recursive: bool) -> Listing:
    """List a folder, and its subfolders if `recursive`; hidden files and folders are ignored.

    Links to folders are followed last. A link to a folder that is already listed, or that contains this one, is
    skipped, so that nothing is listed twice or forever; so is a folder that cannot be read.

    Raises:
        DataError: `root` is not a folder, or cannot be read.
    """
    if not root.is_dir():
        given = f"{place(root)} is a file" if root.exists() else f"there is no folder {place(root)}"
        raise DataError(f"{given}; expected a folder of audio files")
    listing = Listing()
    for key in _walk(root, listing, recursive=recursive):
        listing.add(key)
    listing.audio.sort()
    listing.tables.sort()
    listing.other_tables.sort()
    return listing


def _walk(root: Path, listing: Listing, *, recursive: bool) -> Iterator[str]:
    """Yield the keys of all files, each folder once."""
    above = {_identity(parent) for parent in root.resolve().parents}
    seen: set[_Identity] = set()
    folders, links = deque([""]), deque[str]()
    while folders or links:
        prefix = folders.popleft() if folders else links.popleft()
        try:
            found = _identity(root / prefix)
            entries = sorted(os.scandir(root / prefix), key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise DataError(f"the folder {place(root)} cannot be read: {error.strerror or error}") from error
            reason = f"the folder cannot be read: {error.strerror or error}"
            listing.skipped.append(Skip(prefix, reason, "unreadable", "unreadable folders"))
            continue
        if found in seen or found in above:
            reason = "it links to a folder that is listed already" if found in seen else "it links to a folder that this one lies in"
            listing.skipped.append(Skip(prefix, reason, "unsuitable", "links to folders listed already"))
            continue
        seen.add(found)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            key = f"{prefix}{entry.name}"
            if not _is_folder(entry):
                yield key
                continue
            if entry.name.lower() in TABLES or suffix_of(entry.name).lower() in SIDECARS:
                listing.folders.append(key)
            if recursive:
                (links if entry.is_symlink() else folders).append(f"{key}/")


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link; opening it gives the error
        return False
