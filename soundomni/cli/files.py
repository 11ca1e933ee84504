"""Folders that commands write to."""

from __future__ import annotations

import os
import re
from pathlib import Path


def make_directory(path: str | Path) -> Path:
    """Makes a folder before any work is done for it. Raises DataError when it cannot be written to."""
    from soundomni.core.errors import DataError

    if not str(path):
        raise DataError("an empty path was given, expected the name of a directory")
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to '{folder}': {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cannot write to '{folder}': permission denied")
    return folder


def empty_directory(path: str, *, option: str) -> Path:
    """Makes a folder in which nothing is yet. Raises DataError, which names the option, when it cannot be written to or holds something."""
    from soundomni.core.errors import DataError

    folder = make_directory(path)
    if any(folder.iterdir()):
        raise DataError(f"'{path}' is not empty; give {option} a directory that does not exist, or an empty one")
    return folder


def new_directory(path: str) -> Path:
    """Returns the absolute path. Raises CheckpointError where something is already: what it is, a user knows best."""
    from soundomni.core.errors import CheckpointError

    out = Path(path).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"'{path}' already exists; give --out a directory that does not, or an empty one")
    return out


def next_number(folder: Path) -> int:
    """Returns the number after the highest one that a file name in the folder begins with, as in `012-name.wav`; 0 without any."""
    numbers = [int(match[1]) for path in folder.iterdir() if (match := re.match(r"(\d+)-", path.name))]
    return max(numbers, default=-1) + 1
