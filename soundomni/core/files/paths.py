"""Paths as people write them in specs: a leading `~` is the home directory, and errors name the absolute path."""

from __future__ import annotations

import re
from pathlib import Path


def local_path(path: str | Path) -> Path:
    """Return `path` with a leading `~` or `~user` expanded.

    A name that begins with `~` stays as it is if there is no such user. Relative paths still follow the working
    directory.
    """
    if not str(path).startswith("~"):  # Path would turn "./~", a folder here, into "~"
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user, or no home directory
        return Path(path)


def at_home(path: str) -> str:
    """Return the text of a path with a leading `~` or `~user` expanded, and any other text as it is.

    >>> at_home("./runs/mine")
    './runs/mine'
    """
    return str(local_path(path)) if path.startswith("~") else path


def place(path: str | Path) -> str:
    """Return a path for an error, quoted; a path that is not absolute is followed by the absolute path it stands for.

    >>> place("/data/sounds")
    "'/data/sounds'"
    """
    absolute = local_path(path).absolute()
    return f"'{path}'" if str(absolute) == str(path) else f"'{path}' ({absolute})"


def slug(text: str, *, longest: int = 40, default: str = "clip") -> str:
    """Return a text such as a prompt as part of a file name; `default` if none of it can be in a file name.

    >>> slug("Two clicks, then a tone!")
    'two-clicks-then-a-tone'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].strip("-") or default
