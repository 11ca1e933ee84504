"""What commands write: the result on stdout, as text or with --json as one JSON value; everything else on stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from soundomni.cli.progress import above_progress

_held: list[str] | None = None


def emit(args: argparse.Namespace, result: Any, *, text: str | None) -> None:
    """Write a command's result: with --json as one line of JSON, otherwise as `text`; None writes nothing."""
    if args.json:
        write(to_json(result) + "\n")
    elif text is not None:
        write(text.rstrip("\n") + "\n")


def write(text: str) -> None:
    """Write a part of a command's result to stdout, or hold it until then: see `results_only`."""
    if _held is None:
        with above_progress():
            sys.stdout.write(text)
            sys.stdout.flush()
    else:
        _held.append(text)


@contextmanager
def results_only() -> Iterator[None]:
    """Reserve stdout for `write`, whose texts are written when the block ends; anything else printed goes to stderr.

    This covers `print`, code in C, and processes that are started within the block.
    """
    global _held
    before, _held = _held, []
    stdout = sys.stdout
    stdout.flush()
    try:
        with _descriptor_diverted(), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        texts, _held = _held, before
        stdout.write("".join(texts))
        stdout.flush()


def end_stdout() -> None:
    """Send to stderr whatever is printed from now on, for example by functions that run when the interpreter ends."""
    sys.stdout = sys.stderr
    with contextlib.suppress(OSError):
        os.dup2(2, 1)


@contextmanager
def _descriptor_diverted() -> Iterator[None]:
    """Redirect the descriptor of stdout to that of stderr, or to nowhere if that is closed."""
    try:
        kept = os.dup(1)
    except OSError:  # stdout is closed, so nothing can be printed there
        yield
        return
    try:
        os.dup2(2, 1)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 1)
        os.close(kept)


def note(text: str) -> None:
    """Write a line of progress or advice to stderr."""
    with above_progress():
        sys.stderr.write(f"{text}\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows under their columns, left-aligned.

    >>> print(table(["kind", "name"], [["codec", "mdct"], ["sampler", "heun"]]))
    kind     name
    codec    mdct
    sampler  heun
    """
    cells = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def to_json(result: Any) -> str:
    """Return strict JSON on one line: numbers that are not finite become null, and paths become text."""
    return json.dumps(_strict(result), ensure_ascii=False, allow_nan=False, default=str)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, (list, tuple)) else value
