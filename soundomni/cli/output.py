"""What commands write: the result on stdout, as text or with --json as one JSON value; everything else on stderr."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from soundomni.cli.progress import above_progress


def emit(args: argparse.Namespace, result: Any, *, text: str | None) -> None:
    """Writes a command's result: with --json as one line of JSON, otherwise `text`, or nothing when that is None."""
    line = to_json(result) if args.json else text
    if line is not None:
        with above_progress():
            sys.stdout.write(line.rstrip("\n") + "\n")
            sys.stdout.flush()


def note(text: str) -> None:
    """Writes a line of progress or advice to stderr."""
    with above_progress():
        sys.stderr.write(f"{text}\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lays rows out under their columns, left-aligned.

    >>> print(table(["kind", "name"], [["codec", "mdct"], ["sampler", "heun"]]))
    kind     name
    codec    mdct
    sampler  heun
    """
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def to_json(result: Any) -> str:
    """Writes strict JSON on one line: numbers that are not finite become null, paths text."""
    return json.dumps(_strict(result), ensure_ascii=False, allow_nan=False, default=str)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value
