"""Files that were looked at whole before: reading a part of one again does not take looking at all of it again."""

from __future__ import annotations

import os
import threading
import time
from typing import BinaryIO, cast

from soundomni.data.containers import examine
from soundomni.data.containers.contents import Contents, View

MOST_KNOWN = 1 << 16
"""Files that are remembered at most; the oldest one makes room."""

_known: dict[tuple[int, ...], Contents | None] = {}
_lock = threading.Lock()  # clips are read in threads


def examine_once(file: BinaryIO, part: tuple[int, int] | None = None) -> Contents | None:
    """Return what `examine(file, thorough=True)` returns or has returned in this process since the file last changed.

    Args:
        file: opened for reading bytes.
        part: range of the bytes `[first, end)` of the file to look at, as if they were a file; None for all.

    A file that changed only just now is not remembered: it could change again without a new time.

    Raises ContainerError like `examine`, each time.
    """
    status = os.fstat(file.fileno())
    changed = max(status.st_mtime_ns, status.st_ctime_ns)  # programs set the time of the content back, not that of the change
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, *(part or ()))
    settled = time.time() - changed / 1e9 > _tick(changed)
    with _lock:
        if identity in _known:
            return _known[identity]
    contents = examine(file if part is None else cast(BinaryIO, View(file, (part,))), thorough=True)
    if settled:
        with _lock:
            _known[identity] = contents
            if len(_known) > MOST_KNOWN:
                del _known[next(iter(_known))]
    return contents


def _tick(changed: int) -> float:
    """Return a bound on the seconds between two ticks of the filesystem's clock, some of which only count seconds."""
    return 2.0 if changed % 1_000_000_000 == 0 else 0.1
