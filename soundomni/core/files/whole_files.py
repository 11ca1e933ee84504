"""Files that appear whole or not at all, whenever a program is killed and whoever reads them meanwhile."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes | memoryview, *, part: str | None = None, durable: bool = False) -> None:
    """Write a file next to its place, then give it its name. If that fails, what was there stays and nothing else is left behind.

    Args:
        path: the file.
        content: text is written as UTF-8; what UTF-8 cannot encode, such as a file name that is not UTF-8, is escaped.
        part: name of the file while it is written, for a folder in which a part that a killed program left must be known by its name.
        durable: whether the content is on the disk, not only handed to the system, before the file gets its name.

    Raises OSError.
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
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
