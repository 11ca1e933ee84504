"""Files of JSON lines that grow while a program may be killed at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def to_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return one line per record."""
    return "".join(json.dumps(record) + "\n" for record in records)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append one line per record, in one write, after ending a last line that was cut short.

    Raise OSError on failure.
    """
    text = to_lines(records)
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else f"\n{text}"
        file.write(text.encode("ascii"))


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects in a file and the number of broken lines, without a last line that was cut short.

    Raise OSError on failure.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    found: list[dict[str, Any]] = []
    broken = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            found.append(record)
        else:
            broken += number < len(lines)
    return found, broken
