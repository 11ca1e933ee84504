"""Safetensors files that strangers may have written, opened so that their size limits the memory they take, not what
they declare.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from soundomni.core.errors import CheckpointError, message_of
from soundomni.core.files.small_files import open_regular

MOST_HEADER_BYTES = 1 << 24
"""Bytes of names, shapes and offsets; those of 100,000 tensors take half of it. Each byte takes several once it is
read."""


def open_tensors(file: Path) -> Any:
    """Open a safetensors file as `safetensors.safe_open` does.

    Raises:
        OSError: it is missing, cannot be read, is not a regular file, or its header has more than MOST_HEADER_BYTES.
        SafetensorError: it is damaged: offsets overlap, leave holes, lie beyond its end, or do not fit the shapes.
    """
    with os.fdopen(open_regular(file), "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = os.fstat(opened.fileno()).st_size
    if MOST_HEADER_BYTES < length <= size:  # the library refuses a header longer than the file
        raise OSError(f"its header has {length:,} bytes; expected at most {MOST_HEADER_BYTES:,}")
    return safe_open(file, framework="pt")


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn what opening and reading a safetensors file raises within the block into a CheckpointError that names the file."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"'{file}' cannot be read as safetensors; it is damaged or incomplete: {message_of(error)}") from error
    except OSError as error:
        raise CheckpointError(f"'{file}' cannot be read as safetensors: {error.strerror or message_of(error)}") from error
