"""What the first pass over a shard found, kept in a file, so that the next run does not read the shard again.

An index is JSON and belongs to a shard of one size and one time of change. It is read as a stranger's file: it is only
used if it has the expected form, and otherwise made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundomni.core.errors import message_of
from soundomni.core.files.paths import local_path, slug
from soundomni.core.files.small_files import read_json
from soundomni.core.files.whole_files import write_whole

logger = logging.getLogger("soundomni.data")

MEMORY = "memory"
"""Instead of a folder: indices are not kept."""

_VERSION = 1
_MOST_BYTES = 1 << 28
_MOST_VALUES = 1 << 24
_SETTLED = 2.0  # seconds after which a file cannot change again without another time of change


@dataclass(frozen=True)
class Identity:
    """Size in bytes and time of change in nanoseconds of a shard."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Identity:
        """Return the identity of a file. Raise OSError."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


class ShardIndex:
    """Keeps the indices of shards in a folder.

    Args:
        folder: the folder; None for `soundomni/indices` in the user's cache folder, XDG_CACHE_HOME or ~/.cache; MEMORY to
            keep none.
        kind: what the indices are about: those of another kind or of another version are not used.
    """

    def __init__(self, folder: str | None, *, kind: str) -> None:
        self._folder = None if folder == MEMORY else local_path(folder) if folder is not None else _cache_folder()
        self._kind = f"{kind} {_VERSION}"

    def read(self, shard: Path, identity: Identity) -> Any:
        """Return what was written for a shard that has not changed since, or None. What it contains is not checked."""
        if self._folder is None:
            return None
        try:
            found = read_json(self._file(shard), most_bytes=_MOST_BYTES, most_values=_MOST_VALUES)
        except (OSError, ValueError):
            return None
        head = [self._kind, identity.size, identity.changed]
        return found["content"] if isinstance(found, dict) and found.get("shard") == head and "content" in found else None

    def write(self, shard: Path, identity: Identity, content: Any) -> None:
        """Keep plain content for a shard, unless it changed while it was read or only just before."""
        if self._folder is None or time.time() - identity.changed / 1e9 < _SETTLED:
            return
        with contextlib.suppress(OSError):
            if Identity.of(shard) != identity:
                return
        text = json.dumps({"shard": [self._kind, identity.size, identity.changed], "content": content}, separators=(",", ":"))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._file(shard), text)
        except OSError as error:
            logger.debug("the index of '%s' is not kept: %s", shard, message_of(error))

    def _file(self, shard: Path) -> Path:
        assert self._folder is not None, "without a folder, there is no file"
        absolute = os.fsencode(shard.absolute())
        return self._folder / f"{slug(shard.name)}-{hashlib.sha256(absolute).hexdigest()[:16]}.json"


def _cache_folder() -> Path | None:
    """Return the folder for indices below the user's cache folder; None if there is no home directory."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if given and Path(given).is_absolute() else local_path("~/.cache")
    return home / "soundomni" / "indices" if home.is_absolute() else None
