"""Files and folders that commands are given, and how what they write is numbered."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """Return a path that a user gave, with "~" as the home folder: in --out=~/x the shell leaves it as it is.

    Raise DataError if there is no such user.
    """
    from soundomni.core.errors import DataError

    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"'{path}' names the home folder of a user who does not exist on this machine; write the full path") from None


def expanded(path: str) -> str:
    """Return `user_path` as text, so that the parser of a command can apply it to an option."""
    return str(user_path(path)) if path.startswith("~") else path


def input_file(path: str | Path) -> Path:
    """Return the path of a file that a user gave. Raise UnreadableAudioError if it is not there, with where it was looked for."""
    from soundomni.core.errors import UnreadableAudioError

    file = user_path(path)
    if not str(path) or not file.exists():
        raise UnreadableAudioError(f"cannot read '{path}': no such file{looked_for(file)}")
    return file


def looked_for(path: Path) -> str:
    """Return what an error adds about a relative path: which place it means."""
    return "" if path.is_absolute() else f"; looked for '{path.absolute()}'"


def make_directory(path: str | Path) -> Path:
    """Make a folder before any work is done for it. Raise DataError if it cannot be written to."""
    from soundomni.core.errors import DataError

    if not str(path):
        raise DataError("an empty path was given, expected the name of a directory")
    folder = user_path(path)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"cannot write to '{folder}': it is a file; expected a directory{_meant(folder)}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to '{folder}': {error.strerror or error}{_meant(folder)}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cannot write to '{folder}': permission denied{_meant(folder)}")
    return folder


def _meant(path: Path) -> str:
    return "" if path.is_absolute() else f"; it is '{path.absolute()}'"


def empty_directory(path: str, *, option: str) -> Path:
    """Make a folder in which nothing is yet. Raise DataError, which names the option, when it cannot be written to or holds something."""
    from soundomni.core.errors import DataError

    folder = make_directory(path)
    if any(folder.iterdir()):
        raise DataError(f"'{path}' is not empty; give {option} a directory that does not exist, or an empty one")
    return folder


def new_directory(path: str) -> Path:
    """Return the absolute path. Raise CheckpointError if something is already: what it is, a user knows best."""
    from soundomni.core.errors import CheckpointError

    out = user_path(path).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"'{path}' already exists; give --out a directory that does not, or an empty one")
    return out


def next_number(folder: Path) -> int:
    """Return the number after the highest one that a file name in the folder begins with, as in `012-name.wav`; 0 without any."""
    return max(_numbers(folder), default=-1) + 1


def _numbers(folder: Path) -> set[int]:
    with os.scandir(folder) as entries:  # of many files, much faster than paths
        return {int(match[1]) for entry in entries if (match := re.match(r"([0-9]+)-", entry.name))}


@contextlib.contextmanager
def claimed_number(folder: Path) -> Iterator[int]:
    """Yield `next_number`, which no other process takes until the block ends: by then, a file of that number has to be there.

    Raise DataError if the folder cannot be written to.
    """
    from soundomni.core.errors import DataError

    number = next_number(folder)
    while True:
        claim = folder / f".{number:03d}.claim"
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise DataError(f"cannot write to '{folder}': {error.strerror or error}{_meant(folder)}") from error
        if number not in _numbers(folder):  # else another process took it, wrote its file and gave the number back in between
            break
        claim.unlink(missing_ok=True)
        number += 1
    try:
        yield number
    finally:
        claim.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file that other processes may add to as well. Raise DataError if it cannot be written whole."""
    from soundomni.core.errors import DataError

    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            written = file.write(data)  # at once, so that lines of two processes do not mix
            if written < len(data):
                file.truncate(file.tell() - written)  # half a line would spoil the next one as well
                raise DataError(f"cannot write '{path}': the disk is full")
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}") from error
