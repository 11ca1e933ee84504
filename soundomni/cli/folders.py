"""Files and folders given to commands, and the numbering of the files that commands write."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from soundomni.core.files.paths import place


def user_path(path: str | Path) -> Path:
    """Return a path that a user gave with "~" expanded, which the shell does not expand in --out=~/x.

    Raise DataError if there is no such user.
    """
    from soundomni.core.errors import DataError

    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"'{path}' names the home folder of a user who does not exist on this machine; write the full path") from None


def expanded(path: str) -> str:
    """Return `user_path` as text, for use as the type of a command's option."""
    return str(user_path(path)) if path.startswith("~") else path


def input_file(path: str | Path) -> Path:
    """Return the path of a file that a user gave.

    Raise UnreadableAudioError, which says where it was looked for, if it is missing.
    """
    from soundomni.core.errors import UnreadableAudioError

    file = user_path(path)
    if not str(path) or not file.exists():
        raise UnreadableAudioError(f"cannot read '{path}': no such file{looked_for(file)}")
    return file


def looked_for(path: Path) -> str:
    """Return what an error adds about a relative path: the place that it stands for."""
    return "" if path.is_absolute() else f"; looked for '{path.absolute()}'"


def make_directory(path: str | Path) -> Path:
    """Make a folder before any work is done for it. Raise DataError if it cannot be written to."""
    from soundomni.core.errors import DataError

    if not str(path):
        raise DataError("the path is empty; expected the name of a directory")
    folder = user_path(path)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"cannot write to {place(folder)}: it is a file; expected a directory")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {place(folder)}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"cannot write to {place(folder)}: permission denied")
    return folder


def new_directory(path: str) -> Path:
    """Return the absolute path. Raise CheckpointError if the path already exists and is not an empty directory."""
    from soundomni.core.errors import CheckpointError

    out = user_path(path).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"'{path}' already exists; give --out a new or empty directory")
    return out


def next_number(folder: Path) -> int:
    """Return the number after the highest one that starts a file name in the folder, as in `012-name.wav`; 0 if there
    is none."""
    return max(_numbers(folder), default=-1) + 1


def _numbers(folder: Path) -> set[int]:
    with os.scandir(folder) as entries:  # much faster than Path.iterdir if there are many files
        return {int(match[1]) for entry in entries if (match := re.match(r"([0-9]+)-", entry.name))}


@contextlib.contextmanager
def claimed_number(folder: Path) -> Iterator[int]:
    """Yield `next_number`, reserved until the block ends. By then, a file with that number has to be there.

    Raise DataError if the folder cannot be written to.
    """
    with claimed_numbers(folder, 1) as number:
        yield number


@contextlib.contextmanager
def claimed_numbers(folder: Path, count: int) -> Iterator[int]:
    """Yield the first of `count` consecutive numbers, all higher than any in the folder and reserved like
    `claimed_number`'s."""
    first = next_number(folder)
    while True:
        with contextlib.ExitStack() as claims:
            clash = next((number for number in range(first, first + count) if not _claim(folder, number, claims)), None)
            if clash is None:
                found = _numbers(folder)
                clash = max((number for number in range(first, first + count) if number in found), default=None)
            if clash is None:  # otherwise another process holds a number, or has used and released one
                yield first
                return
        first = clash + 1


def _claim(folder: Path, number: int, claims: contextlib.ExitStack) -> bool:
    """Reserve a number until `claims` is closed. Return whether it was free."""
    from soundomni.core.errors import DataError

    claim = folder / f".{number:03d}.claim"
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    except OSError as error:
        raise DataError(f"cannot write to {place(folder)}: {error.strerror or error}") from error
    claims.callback(claim.unlink, missing_ok=True)
    return True


def append_line(path: Path, line: str) -> None:
    """Add a line to a file that other processes may also write to.

    Raise DataError if it cannot be written completely.
    """
    from soundomni.core.errors import DataError

    data = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            written = file.write(data)  # in one call, so that lines of two processes do not mix
            if written < len(data):
                file.truncate(file.tell() - written)  # half a line would spoil the next one as well
                raise DataError(f"cannot write '{path}': the disk is full")
    except OSError as error:
        raise DataError(f"cannot write '{path}': {error.strerror or error}") from error
