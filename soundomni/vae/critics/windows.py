"""Checks of the windows that critics look through, which have four hops of at least one sample, and of lists of sizes."""

from __future__ import annotations

from collections.abc import Sequence

from soundomni.core.errors import SpecError, shown

LONGEST_WINDOW = 2**20
MOST_NETWORKS = 64


def check_windows(windows: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths in samples. Raise SpecError unless there is at least one, and all are multiples of 4."""
    check_length("windows", windows)
    if not windows or not all(map(_is_window, windows)):
        expected = f"one or more lengths in samples that are multiples of 4, at most {LONGEST_WINDOW:,}"
        raise SpecError(f"windows is {shown(list(windows))}; expected {expected}")
    return tuple(windows)


def check_window(window: int) -> None:
    """Raise SpecError unless the length in samples is a multiple of 4."""
    if not _is_window(window):
        raise SpecError(f"window is {window}; expected a length in samples that is a multiple of 4, at most {LONGEST_WINDOW:,}")


def check_length(name: str, sizes: Sequence[int]) -> None:
    """Raise SpecError if a critic has more of something, such as layers, than MOST_NETWORKS."""
    if len(sizes) > MOST_NETWORKS:
        raise SpecError(f"{name} has {len(sizes):,} entries; expected at most {MOST_NETWORKS}")


def _is_window(window: int) -> bool:
    return 4 <= window <= LONGEST_WINDOW and window % 4 == 0
