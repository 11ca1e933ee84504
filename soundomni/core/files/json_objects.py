"""JSON objects from files that users name, with errors that say what is wrong with the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from soundomni.core.errors import CheckpointError, message_of, shown
from soundomni.core.files.small_files import MOST_BYTES, read_json


def read_object(file: Path, *, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        CheckpointError: the file is missing, cannot be read, is not JSON, or holds another value.
    """
    try:
        tree = read_json(file, most_bytes=most_bytes)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{file}' cannot be read as JSON: {message_of(error)}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"'{file}' holds {shown(tree)}; expected a JSON object")
    return tree
