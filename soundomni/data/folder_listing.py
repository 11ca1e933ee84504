"""What a folder of audio holds, by name only: audio files, the tables and sidecars next to them, and what is left out and why."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from soundomni.core.errors import DataError
from soundomni.core.interfaces import Skip
from soundomni.core.paths import place
from soundomni.data.audio import SUFFIXES

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
        audio: files that are taken for audio.
        tables: files that captions are read from.
        other_tables: files that look like tables, but are not read.
        skipped: other audio files, and folders that were not gone into, each with its reason.
    """

    audio: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    other_tables: list[str] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    _sidecars: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def sidecars(self, key: str) -> list[str]:
        """Return the .json and .txt files next to an audio file that share its stem, in this order."""
        return self._sidecars.get(_normal(_stem(key)), [])

    def add(self, key: str) -> None:
        """Sort a file in by its name."""
        suffix = _suffix(key).lower()
        if suffix in SUFFIXES:
            self.audio.append(key)
        elif key.rpartition("/")[2].lower() in TABLES:
            self.tables.append(key)
        elif suffix in SIDECARS:
            self._sidecars[_normal(_stem(key))].append(key)
        elif suffix in _UNREAD_TABLES:
            self.other_tables.append(key)
        elif suffix in _UNREADABLE:
            kind = suffix[1:].upper()
            reason = f"{kind} files cannot be read; convert it to WAV or FLAC"
            self.skipped.append(Skip(key, reason, "unsuitable", f"in {kind}, which cannot be read"))


def list_folder(root: Path, *, recursive: bool) -> Listing:
    """List a folder, and its subfolders if `recursive`; hidden files and folders are passed over.

    Links to folders are followed, after all else. One that leads to a folder that is listed already, or that this one lies in, is
    skipped, so that nothing is listed twice or for ever; so is a folder that cannot be read.

    Raises:
        DataError: `root` is not a folder, or cannot be read.
    """
    if not root.is_dir():
        raise DataError(f"no folder {place(root)}: expected a folder of audio files" + (", not a file" if root.exists() else ""))
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
            elif recursive:
                (links if entry.is_symlink() else folders).append(f"{key}/")


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle; whoever opens it says so
        return False


class Names:
    """Finds audio files by names that tables and lists give, whatever system these were written on.

    Args:
        keys: of the audio files.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = set(keys)
        self._normal: dict[str, str | None] = {}
        for key in self._keys:
            normal = _normal(key)
            self._normal[normal] = None if normal in self._normal else key
        self._near: dict[str, str] = {}

    def find(self, name: str, *, folder: str = "", root: Path | None = None) -> str:
        r"""Return the key that a name means, or where a file of this name would be.

        Backslashes separate folders where no file has them in its name, and letters with marks may be composed or not.

        Args:
            name: as it is given, relative to `folder` (a key that ends with "/", or nothing); or absolute, but within `root`.

        Raises:
            ValueError: it is empty, or leads out of the folder.
        """
        given = name if f"{folder}{name}" in self._keys else name.strip()
        if not given:
            raise ValueError("no file_name")
        if "\0" in given:
            raise ValueError("the file_name has a NUL character; expected a path within the folder")
        if "\\" in given and f"{folder}{given}" not in self._keys:
            if PureWindowsPath(given).drive:
                raise ValueError(_leads_out(name))
            given = given.replace("\\", "/")
        path = PurePosixPath(given)
        if path.is_absolute() and root is not None:
            given = os.path.relpath(given, root.absolute()) if path.is_relative_to(root.absolute()) else given
            path, folder = PurePosixPath(given), ""
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(_leads_out(name))
        key = f"{folder}{path.as_posix()}"
        return key if key in self._keys else self._normal.get(_normal(key)) or key

    def nearest(self, key: str) -> str:
        """Return " Did you mean 'x'?" for a file that differs in case, lacks its suffix or begins in another folder, or nothing."""
        if not self._near:
            for known in sorted(self._keys, reverse=True):
                self._near[_normal(_stem(known)).casefold()] = self._near[_normal(known).casefold()] = known
        parts = _normal(key).casefold().split("/")
        tails = ["/".join(parts[first:]) for first in range(len(parts))]
        found = next((self._near[tail] for tail in [*tails, *map(_stem, tails)] if tail in self._near), None)
        return f" Did you mean '{found}'?" if found is not None else ""


def _leads_out(name: str) -> str:
    return f"file_name '{name}' leads out of the folder; expected a path within it"


def _stem(key: str) -> str:
    return key.removesuffix(_suffix(key))


def _suffix(key: str) -> str:
    name = key[key.rfind("/") + 1 :]
    return name[name.rfind(".") :] if "." in name[1:] else ""


def _normal(key: str) -> str:
    """Return one spelling for names that look alike: systems store letters with marks composed or in parts."""
    return key if key.isascii() else unicodedata.normalize("NFC", key)
