"""Files that appear whole or not at all, even if a program is killed or others read them meanwhile."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes | memoryview, *, part: str | None = None, durable: bool = False) -> None:
    """Write a file under a temporary name, then rename it. If that fails, an older file stays and nothing else is left
    behind.

    Args:
        path: the file.
        content: bytes, or text to write as UTF-8; what UTF-8 cannot encode, such as a file name that is not UTF-8, is
            escaped.
        part: name of the file while it is written; give one if a part that a killed program left must be recognizable.
        durable: whether the content must be on the disk, not only handed to the system, before the file gets its name.

    Raise OSError.
    """
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    unfinished = path.with_name(part or f".{uuid.uuid4().hex}.part")
    if part is not None:
        unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("xb") as file:  # a link that someone put there would be followed
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file had no room
        raise
