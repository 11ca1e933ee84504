"""Small files that strangers may have written, read whole or refused, whatever lies at their path.

Only regular files of bounded size are read: a pipe would keep the reader waiting, a device may never end. Links are
followed, since the Hub's cache consists of them, but the target is checked after it is open, so that nobody can replace
it in between.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

MOST_BYTES = 1 << 24
"""Largest file that is read by default; the index of a model with 100,000 tensors takes half of it."""
MOST_VALUES = 2_000_000
"""Most values of a JSON document, estimated from its brackets and commas: each takes up to 200 bytes once it is read.
"""

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(file: str | Path) -> int:
    """Return a descriptor of a regular file, opened for reading; links are followed. Raise OSError for anything else."""
    descriptor = os.open(file, _FLAGS)  # a pipe that nobody writes to opens at once
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    kind = next((name for test, name in _KINDS if test(mode)), "something else")
    raise OSError(f"it is {kind}; expected a regular file")


def read_text(file: str | Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a regular file.

    Raises:
        OSError: it is missing, cannot be read, is not a regular file, or has more than `most_bytes`.
        ValueError: it is not UTF-8.
    """
    with os.fdopen(open_regular(file), "rb") as opened:
        return _decode(opened.read(most_bytes + 1), most_bytes)


def read_piped_text(file: str | Path, *, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a file that a user named on the command line; it may be a pipe below /dev.

    Raise as `read_text`.
    """
    if not str(file).startswith("/dev/"):
        return read_text(file, most_bytes=most_bytes)
    with Path(file).open("rb") as opened:
        return _decode(opened.read(most_bytes + 1), most_bytes)


def read_json(file: str | Path, *, most_bytes: int = MOST_BYTES, most_values: int = MOST_VALUES) -> Any:
    """Return what a regular file holds as JSON.

    Raises:
        OSError: as `read_text`.
        ValueError: it is not UTF-8 or not JSON, is nested too deeply, or holds too many values.
    """
    return parse_json(read_text(file, most_bytes=most_bytes), most_values=most_values)


def parse_json(text: str, *, most_values: int = MOST_VALUES) -> Any:
    """Return the value of a JSON text. Raise ValueError if it is not JSON, is nested too deeply, or holds too many values."""
    if sum(map(text.count, ",[{")) > most_values:
        raise ValueError(f"it holds more than {most_values:,} values")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # which Python explains with a setting of its own
        raise ValueError("it has a whole number of too many digits") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _decode(content: bytes, most_bytes: int) -> str:
    if len(content) > most_bytes:
        raise OSError(f"it has more than {most_bytes:,} bytes, too many for a file of this kind")
    return content.decode("utf-8")
