"""The files that a run wrote into its directory, one line each, with SHA-256, so that nothing else is ever removed or
replaced."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from soundomni.core.files.small_files import open_regular
from soundomni.core.files.whole_files import write_whole
from soundomni.train.json_lines import append_lines, read_lines

FILE_NAME = "inventory.jsonl"
RUN_FILE = "run.json"
"""The first file that a run writes; with it, the directory is a run directory."""


class Inventory:
    """The inventory of a run directory.

    Args:
        directory: an existing directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / FILE_NAME

    @cached_property
    def _digests(self) -> dict[str, set[str]]:
        """Every digest that was written to each POSIX path within the directory."""
        digests: dict[str, set[str]] = {}
        if self._path.is_file():
            for record in read_lines(self._path)[0]:
                digests.setdefault(str(record.get("file")), set()).add(str(record.get("sha256")))
        return digests

    def write(self, name: str, text: str) -> None:
        """Write a file in one step, recorded beforehand: even after a kill, the file is known as the run's own.

        Raise OSError.
        """
        content = text.encode()
        self._note({name: hashlib.sha256(content).hexdigest()})
        write_whole(self._directory / name, content, part=f".{name}.part", durable=True)

    def record(self, files: Iterable[Path]) -> None:
        """Record files that are already written. Raise OSError."""
        self._note({file.relative_to(self._directory).as_posix(): digest(file) for file in files if file.is_relative_to(self._directory)})

    def knows(self, path: Path) -> bool:
        """Return whether something was ever written to `path`."""
        return self._name(path) in self._digests

    def is_of_run_that_never_began(self) -> bool:
        """Return whether the inventory only lists the file that begins a run: the run was killed, or the disk was full, before it was
        written.
        """
        return is_plain_file(self._path) and (not self._path.stat().st_size or self._digests.keys() == {RUN_FILE})

    def knows_any_in(self, folder: Path) -> bool:
        """Return whether something was ever written to a file in `folder`."""
        return any(name.startswith(f"{self._name(folder)}/") for name in self._digests)

    def is_ours(self, path: Path) -> bool:
        """Return whether `path` is a file with exactly the content that was written there. Raise OSError."""
        return self.knows(path) and is_plain_file(path) and digest(path) in self._digests[self._name(path)]

    def _name(self, path: Path) -> str:
        return path.relative_to(self._directory).as_posix()

    def _note(self, digests: dict[str, str]) -> None:
        new = {name: sha256 for name, sha256 in digests.items() if sha256 not in self._digests.get(name, ())}
        append_lines(self._path, [{"file": name, "sha256": sha256} for name, sha256 in new.items()])
        for name, sha256 in new.items():
            self._digests.setdefault(name, set()).add(sha256)


def is_plain_file(path: Path) -> bool:
    """Return whether `path` is a regular file, and not a link to one."""
    return path.is_file() and not path.is_symlink()


def digest(path: Path) -> str:
    """Return the SHA-256 of a regular file.

    Raise OSError, also for anything else: a pipe would keep the reader waiting.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a file or folder to `stem-N.suffix`, with the first free N, and return its new path. Raise OSError."""
    aside = free_name(path)
    path.rename(aside)
    return aside


def free_name(path: Path) -> Path:
    """Return `stem-N.suffix` next to `path`, with the first free N."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    return aside
