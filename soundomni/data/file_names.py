"""File names as tables and lists write them, found whatever system they were written on."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote


class Names:
    """Finds audio files by the names in tables and lists, whatever system these were written on.

    Args:
        keys: keys of the audio files.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = set(keys)
        self._normal: dict[str, str | None] = {}
        for key in self._keys:
            normal = normal_form(key)
            self._normal[normal] = None if normal in self._normal else key
        self._near: dict[str, str] = {}

    def find(self, name: str, *, folder: str = "", root: Path | None = None) -> str:
        r"""Return the key that a name means, or where a file of this name would be.

        Backslashes separate folders if no file has them in its name, and letters with marks may be composed or not.

        Args:
            name: the given name, relative to `folder` (a key that ends with "/", or nothing), or absolute, but within
                `root`.

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
        return key if key in self._keys else self._normal.get(normal_form(key)) or key

    def nearest(self, key: str) -> str:
        """Return " Did you mean 'x'?" for a file that differs in case, lacks its suffix, begins in another folder or is
        written as in a URL ("a%20b.wav"), or nothing."""
        if not self._near:
            for known in sorted(self._keys, reverse=True):
                self._near[normal_form(stem_of(known)).casefold()] = self._near[normal_form(known).casefold()] = known
        tails: list[str] = []
        for spelling in dict.fromkeys((key, unquote(key))):  # unchanged, then as in a URL
            parts = normal_form(spelling).casefold().split("/")
            tails += ["/".join(parts[first:]) for first in range(len(parts))]
        found = next((self._near[tail] for tail in [*tails, *map(stem_of, tails)] if tail in self._near), None)
        return f" Did you mean '{found}'?" if found is not None else ""


def _leads_out(name: str) -> str:
    return f"file_name '{name}' leads out of the folder; expected a path within it"


def stem_of(key: str) -> str:
    """Return a name without its suffix."""
    return key.removesuffix(suffix_of(key))


def suffix_of(key: str) -> str:
    """Return the suffix of a name with its dot; nothing for a name that only begins with one."""
    name = key[key.rfind("/") + 1 :]
    return name[name.rfind(".") :] if "." in name[1:] else ""


def normal_form(key: str) -> str:
    """Return one spelling for names that look alike: systems store letters with marks composed or in parts."""
    return key if key.isascii() else unicodedata.normalize("NFC", key)
